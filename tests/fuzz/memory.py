"""What host functions may do to a guest's memory, watched at every call.

Memory is copied when a host function is called, and compared when its guest is about to go on, or is closed. What may
be written, and what must lie inside of memory for a call to succeed, is said here once more, apart from the host.

A byte behind the memory needs no watching: wasmtime reserves the whole address range of a memory, and touching what
is not yet memory ends the process.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from wasman_host.guest import abi_v0, live
from wasman_host.guest import module as modules
from wasman_host.guest.imports import HostFunction, Request

__all__ = ["problems", "watch"]

Range = tuple[int, int]  # pointer, length

_LARGEST = 4 * 1024 * 1024  # bytes of memory that are still copied at every call


def _nothing(*_args: int) -> Sequence[Range]:
    return []


# What a call may write, by its arguments.
_WRITTEN: Mapping[str, Callable[..., Sequence[Range]]] = {
    "host_call_api": lambda _name, _n, _request, _m, response, capacity: [(response, capacity)],
    "stream_data": lambda direction, pointer, length: [(pointer, length)] if direction == 0 else [],
    "args_sizes_get": lambda count, size: [(count, 4), (size, 4)],
    "environ_sizes_get": lambda count, size: [(count, 4), (size, 4)],
    "clock_res_get": lambda _clock, out: [(out, 8)],
    "clock_time_get": lambda _clock, _precision, out: [(out, 8)],
    "fd_fdstat_get": lambda _fd, out: [(out, 24)],
    "fd_filestat_get": lambda _fd, out: [(out, 64)],
    "fd_read": lambda _fd, _vectors, _count, read: [(read, 4)],
    "fd_write": lambda _fd, _vectors, _count, written: [(written, 4)],
    "poll_oneoff": lambda _subscriptions, out, count, stored: [(out, 32 * count), (stored, 4)],
    "random_get": lambda pointer, length: [(pointer, length)],
}
# What a call reads besides; it cannot succeed where this lies outside.
_READ: Mapping[str, Callable[..., Sequence[Range]]] = {
    "host_call_api": lambda name, n, request, m, _response, _capacity: [(name, n), (request, m)],
    "stream_data": lambda _direction, pointer, length: [(pointer, length)],
    "fd_write": lambda _fd, vectors, count, _written: [(vectors, 8 * count)],
    "poll_oneoff": lambda subscriptions, _out, count, _stored: [(subscriptions, 48 * count)],
}


@frozen
class _Call:
    function: HostFunction
    args: Sequence[int]
    before: bytes | None

    def __str__(self) -> str:
        return f"{self.function.module}.{self.function.name}({', '.join(map(hex, self.args))})"


problems: list[str] = []
_calls: dict[int, _Call] = {}


def _finish(guest: live.Guest, answer: int | None) -> None:
    call = _calls.pop(id(guest), None)
    if call is None:
        return
    name = call.function.name
    after = guest.memory()
    written = list(_WRITTEN.get(name, _nothing)(*call.args))
    if answer is not None:
        wasi = call.function.module != abi_v0.MODULE
        succeeded = answer == 0 if wasi else answer >= 0
        needed = written + list(_READ.get(name, _nothing)(*call.args))
        if succeeded and any(pointer + length > len(after) for pointer, length in needed):
            problems.append(f"{call} gave {answer}, and memory has {len(after):#x} bytes")
        if not wasi and written:
            [(pointer, length)] = written
            if answer > length:
                problems.append(f"{call} gave {answer}")
            written = [(pointer, max(0, answer))]
    if call.before is None:
        return
    if len(call.before) != len(after):
        problems.append(f"{call} changed the memory's size from {len(call.before):#x} to {len(after):#x}")
        return
    if call.before == after:
        return
    allowed = bytearray(call.before)
    for pointer, length in written:
        allowed[pointer : pointer + length] = after[pointer : pointer + length]
    if allowed != after:
        at = next(place for place, (one, other) in enumerate(zip(allowed, after, strict=True)) if one != other)
        problems.append(f"{call} gave {answer} and wrote at {at:#x}")


def _watched(function: HostFunction) -> HostFunction:
    body = function.body

    def watched(guest: live.Guest, *args: int) -> int | Request | None:
        memory = guest.memory()
        _calls[id(guest)] = _Call(function, args, bytes(memory) if len(memory) <= _LARGEST else None)
        try:
            answer = body(guest, *args)
        except BaseException:
            _finish(guest, None)
            raise
        if not function.waits:
            _finish(guest, answer if function.result == "i32" and isinstance(answer, int) else None)
        return answer

    return evolve(function, body=watched)


def watch() -> None:
    """Watch all host functions of this process. Once, and before anything is compiled."""
    modules._FUNCTIONS[:] = [_watched(function) for function in modules._FUNCTIONS]
    answer, close = live.Guest.answer, live.Guest.close

    def watched_answer(guest: live.Guest, value: int) -> None:
        answer(guest, value)
        _finish(guest, value)

    def watched_close(guest: live.Guest) -> None:
        _finish(guest, None)
        close(guest)

    patched: Any = live.Guest
    patched.answer, patched.close = watched_answer, watched_close
