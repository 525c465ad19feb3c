"""Host functions: how wasm calls Python, so that nothing is ever raised through wasm.

A body gets the guest and its raw arguments and returns a number. Bodies that may have to wait return a `Request`
instead: the guest's native stack stays parked until the driver answers. What a body raises is kept with its guest,
the guest is stopped by a trap, and the driver raises it on its own stack after the poll.

Which guest is calling is known by the thread: every poll sets it, and no two polls of a thread overlap.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen
from wasmtime import FuncType, Linker, ValType

from wasman_host.guest import capi

if TYPE_CHECKING:
    from wasmtime import Engine

    from wasman_host.guest.live import Guest

__all__ = ["HostFunction", "Request", "StopGuest", "current", "linker_of"]

_VALUE_TYPES = {"i32": (ValType.i32, 0), "i64": (ValType.i64, 1)}
_MASKS = {"i32": 0xFFFFFFFF, "i64": 0xFFFFFFFFFFFFFFFF}
_PLACES = {"i32": "8xI20x", "i64": "8xQ16x"}  # of an unsigned number in a checked value of 32 bytes


class Request:
    """What a parked guest waits for. Each ABI defines its own."""

    __slots__ = ()


@frozen
class HostFunction:
    """One function that guests may import.

    Attributes:
        module: The import's module.
        name: The import's name.
        params: "i32" or "i64" each; arguments arrive unsigned.
        result: "i32", "i64", or "" for none.
        body: Called with the guest and its arguments.
        waits: Whether `body` may return a `Request`.
    """

    module: str
    name: str
    params: Sequence[str]
    result: str
    body: Callable[..., int | Request | None]
    waits: bool = False


class StopGuest(Exception):  # noqa: N818  not an error: the guest asked for its end
    """Raised by a body to end the guest in order, such as at proc_exit."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit with code {code}")
        self.code = code


class _Current(threading.local):
    """The guest that this thread is polling."""

    guest: Guest


current = _Current()

_STOP = b"stopped by the host"


def _unchecked(function: HostFunction) -> Any:
    """The C callback for a function that never waits. Raw values are 16 bytes each."""
    slots = [(2 * place, _MASKS[kind]) for place, kind in enumerate(function.params)]
    count = 2 * max(len(slots), 1)
    words_type = ctypes.c_int64 * count
    body = function.body

    @capi.UNCHECKED_CALLBACK  # type: ignore[untyped-decorator]  # ctypes types its prototypes as objects
    def callback(_env: int | None, _caller: int | None, values: int, _count: int) -> int:
        guest = current.guest
        if guest.exceeded or (guest.tables and guest.look()):
            return capi.trap_new(_STOP, len(_STOP)) or 0
        words = words_type.from_address(values) if values else None
        try:
            result = body(guest, *[words[slot] & mask for slot, mask in slots])  # type: ignore[index]
            if result is not None and words is not None:
                words[0] = cast("int", result)
        except BaseException as error:  # noqa: BLE001  nothing may pass through wasm, KeyboardInterrupt included
            guest.stopping = error
            return capi.trap_new(_STOP, len(_STOP)) or 0
        return 0

    return callback


def _asynchronous(function: HostFunction) -> Any:
    """The C callback for a function that may wait. Checked values are 32 bytes each, the number at byte 8."""
    numbers = struct.Struct("@" + "".join(_PLACES[kind] for kind in function.params))
    values_type = ctypes.c_char * max(1, numbers.size)
    kind = _VALUE_TYPES[function.result][1] if function.result else 0
    continuation_type = c_void_p * 3
    body, name = function.body, f"{function.module}.{function.name}"

    @capi.ASYNC_CALLBACK  # type: ignore[untyped-decorator]  # ctypes types its prototypes as objects
    def callback(
        _env: int | None, _caller: int | None, args: int, _count: int, results: int, _nresults: int, trap: int, out: int
    ) -> None:
        # The continuation comes first: wasmtime aborts the process over one that is not filled.
        guest = current.guest
        cell = continuation_type.from_address(out)
        cell[0], cell[1], cell[2] = capi.IS_ANSWERED, guest.answered_at, None
        try:
            # Where there is no result, its place is no address: an empty array begins anywhere.
            guest.parking(results if function.result else None, kind)
            if guest.exceeded or (guest.tables and guest.look()):
                guest.answer(0)
                c_void_p.from_address(trap).value = capi.trap_new(_STOP, len(_STOP))
                return
            given: Sequence[int] = numbers.unpack_from(values_type.from_address(args))
            if guest.rewinding is not None:  # what the guest gives now is not what it gave
                arrived, guest.rewinding = guest.rewinding, None
                given = arrived(name)
            result = body(guest, *given)
            if isinstance(result, Request):
                guest.request = result
                if guest.module.asyncified is not None:
                    guest.waits_in = (name, given)
            else:
                guest.answer(result or 0)
        except BaseException as error:  # noqa: BLE001  nothing may pass through wasm, KeyboardInterrupt included
            guest.stopping = error
            guest.answer(0)
            c_void_p.from_address(trap).value = capi.trap_new(_STOP, len(_STOP))

    return callback


def linker_of(engine: Engine, functions: Sequence[HostFunction]) -> tuple[Linker, list[Any]]:
    """A linker that knows `functions`, and the C callbacks, which must live as long as it does."""
    linker = Linker(engine)
    kept: list[Any] = []
    for function in functions:
        params = [_VALUE_TYPES[kind][0]() for kind in function.params]
        results = [_VALUE_TYPES[function.result][0]()] if function.result else []
        functype = FuncType(params, results)
        callback, define = (
            (_asynchronous(function), capi.define_async)
            if function.waits
            else (_unchecked(function), capi.define_unchecked)
        )
        module, name = function.module.encode(), function.name.encode()
        error = define(
            capi.address(linker), module, len(module), name, len(name), capi.address(functype), callback, None, None
        )
        assert not error, capi.error_text(error)
        kept.append(callback)
    return linker, kept
