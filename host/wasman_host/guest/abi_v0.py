"""ABI v0, module "env": what guests of the original wasman import. They run unchanged.

    checkpoint()
    host_get_time() -> i64      ns since 1970
    host_call_api(name, name_len, req, req_len, resp, resp_max) -> i32
                                bytes of the response; -1 failed; -2 it is larger than resp_max: it stays, and the next
                                identical call takes it
    stream_data(direction, ptr, len) -> i32
                                direction 0 download, 1 upload; bytes moved; 0 end; -1 failed; an upload of 0 closes

All but the clock park the guest: what they ask for is a `Request`, which the instance's driver answers. Streams park it
only where their bytes are not ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wasman_host.guest.imports import HostFunction, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.guest.live import Guest

__all__ = ["FAILED", "FUNCTIONS", "MODULE", "TOO_LARGE", "Call", "Checkpoint", "Download", "Refused", "Upload"]

MODULE = "env"
FAILED = -1
TOO_LARGE = -2
_DOWNLOAD, _UPLOAD = 0, 1


class Checkpoint(Request):
    """`checkpoint()`."""

    __slots__ = ()


class Call(Request):
    """`host_call_api`: name and request are copied, the response's place is checked."""

    __slots__ = ("capacity", "name", "request", "response")

    def __init__(self, name: str, request: bytes, response: int, capacity: int) -> None:
        self.name, self.request, self.response, self.capacity = name, request, response, capacity


class Download(Request):
    """`stream_data(0, ...)`: `view` is where the bytes go, valid while the guest is parked."""

    __slots__ = ("view",)

    def __init__(self, view: memoryview) -> None:
        self.view = view


class Upload(Request):
    """`stream_data(1, ...)`: `view` holds the bytes, valid while the guest is parked; empty closes."""

    __slots__ = ("view",)

    def __init__(self, view: memoryview) -> None:
        self.view = view


class Refused(Request):
    """A host call that makes no sense, such as one with a pointer outside of memory. The guest is answered -1."""

    __slots__ = ("message", "type")

    def __init__(self, type_: str, message: str) -> None:
        self.type, self.message = type_, message


def _checkpoint(guest: Guest) -> int | Request:
    return _in_a_run(guest, "checkpoint") or Checkpoint()


def _host_get_time(guest: Guest) -> int:
    return guest.world.time


def _host_call_api(
    guest: Guest, name: int, name_length: int, request: int, request_length: int, response: int, capacity: int
) -> int | Request:
    if _in_a_run(guest, "host_call_api"):
        return FAILED
    called = guest.read(name, name_length)
    if called is None:
        return _outside("the name", name, name_length)
    sent = guest.read(request, request_length)
    if sent is None:
        return _outside("the request", request, request_length)
    if guest.view(response, capacity) is None:
        return _outside("the response", response, capacity)
    try:
        return Call(called.decode(), sent, response, capacity)
    except UnicodeDecodeError:
        return Refused("BadName", f"host_call_api: the name {called[:64]!r} is not UTF-8")


def _stream_data(guest: Guest, direction: int, pointer: int, length: int) -> int | Request:
    if _in_a_run(guest, "stream_data"):
        return FAILED
    view = guest.view(pointer, length)
    if view is None:
        return _outside("the buffer of stream_data", pointer, length)
    if direction in (_DOWNLOAD, _UPLOAD):
        moved = guest.transfer(view, direction == _UPLOAD)
        if moved is not None:
            if moved:  # a guest that reads on behind the end gets nowhere
                guest.unspent()
            return moved
        return Upload(view) if direction == _UPLOAD else Download(view)
    return Refused("BadDirection", f"stream_data: direction {direction} is neither 0 (download) nor 1 (upload)")


def _outside(what: str, pointer: int, length: int) -> Refused:
    return Refused("BadPointer", f"{what} at {pointer:#x}, {length} bytes, is not inside the guest's memory")


def _in_a_run(guest: Guest, name: str) -> int:
    """0 within a run; while a module is initialised there is nobody to answer."""
    if guest.world.initialising:
        guest.world.wanted_host = name
        return FAILED
    return 0


_I32 = "i32"
FUNCTIONS: Sequence[HostFunction] = [
    HostFunction(MODULE, "checkpoint", [], "", _checkpoint, waits=True),
    HostFunction(MODULE, "host_get_time", [], "i64", _host_get_time),
    HostFunction(MODULE, "host_call_api", [_I32] * 6, _I32, _host_call_api, waits=True),
    HostFunction(MODULE, "stream_data", [_I32] * 3, _I32, _stream_data, waits=True),
]
