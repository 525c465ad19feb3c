"""ABI v1, module "wasman": operations, batched. What it means is in docs/abi.md; here is how it looks in memory.

A guest of the form of turns is given events by its inbox and leaves commands in its outbox, one crossing a turn. One of
the blocking form flushes commands, and waits in `wait`. What both pull besides stands in the guest's `Exchange`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from wasman_host.guest.imports import HostFunction, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from wasman_host.guest.live import Guest

__all__ = [
    "BLOCK",
    "FUNCTIONS",
    "INBOX",
    "INLINE",
    "MODULE",
    "NO_OPERATION",
    "VERSION",
    "Block",
    "CallCommand",
    "CancelCommand",
    "Command",
    "CompleteCommand",
    "Exchange",
    "FailCommand",
    "MalformedError",
    "ReceiveCommand",
    "StreamRead",
    "StreamWrite",
    "Wait",
    "commands",
    "event",
    "start_event",
]

MODULE = "wasman"
VERSION = 1
INLINE = 4096  # bytes of a result or an input that go into the inbox; larger ones are pulled
INBOX = 4096  # bytes that the smallest inbox has
NO_OPERATION = 0xFFFFFFFF
START, RESULT, FAILED, FIRED, CANCEL = 1, 2, 3, 4, 5  # events

BAD_POINTER = -1
UNKNOWN = -2
TAKEN = -3
NOT_READY = -4
CANCELLED = -5
NOT_ALLOWED = -6
TOO_LARGE = -7

_IS_FAILURE = 1 << 30
_FRAME = struct.Struct("<IIHHI")
_CALL = struct.Struct("<II")
_U32 = struct.Struct("<I")
_PULLED = 1  # flag of an event whose body is read by `result_read`
_INPUT, _SESSION = 0xFFFFFFFF, 0xFFFFFFFE
_MAX_WAITED = 1 << 16  # operations of one `wait`
BLOCK = struct.Struct("<IIII8xq")


class Block(NamedTuple):
    """What the guest says of itself after a turn.

    Attributes:
        inbox: Where events go.
        capacity: Bytes of the inbox.
        outbox: Where this turn's commands are.
        length: Their bytes.
        deadline: When it wants a turn though nothing has happened, ns since 1970; -1 for never.
    """

    inbox: int
    capacity: int
    outbox: int
    length: int
    deadline: int

    @classmethod
    def read(cls, guest: Guest, address: int) -> Block:
        """The block at `address`. Raises `MalformedError`, whose text stands for itself."""
        data = guest.view(address, BLOCK.size)
        if data is None:
            raise MalformedError(f"its block at {address:#x} is not inside its memory")
        return cls(*BLOCK.unpack(data))


class MalformedError(Exception):
    """What a guest says does not follow the ABI; the text goes on behind "the guest ..."."""


# Commands


class CallCommand(NamedTuple):
    """Call an activity."""

    operation: int
    name: str
    options: bytes
    request: bytes


class ReceiveCommand(NamedTuple):
    """Receive a signal."""

    operation: int
    name: str


class CancelCommand(NamedTuple):
    """Cut a call short, or withdraw a receive."""

    operation: int


class CompleteCommand(NamedTuple):
    """The run ends with this result."""

    result: bytes


class FailCommand(NamedTuple):
    """The run ends with this failure, JSON."""

    failure: bytes


Command = CallCommand | ReceiveCommand | CancelCommand | CompleteCommand | FailCommand


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"gives {what} {data[:64]!r}, which is not UTF-8") from error


def commands(data: bytes | memoryview) -> Iterator[Command]:
    """The commands in an outbox, in order. Raises `MalformedError`."""
    at, end = 0, len(data)
    while at < end:
        if end - at < _FRAME.size:
            raise MalformedError(f"leaves {end - at} bytes behind its last command")
        length, operation, kind, _flags, _ = _FRAME.unpack_from(data, at)
        if length < _FRAME.size or length > end - at:
            raise MalformedError(f"says that a command has {length} bytes, where {end - at} are left")
        yield _command(kind, operation, bytes(data[at + _FRAME.size : at + length]))
        at += length + 7 & ~7


def _command(kind: int, operation: int, body: bytes) -> Command:
    match kind:
        case 1:
            if len(body) < _CALL.size:
                raise MalformedError(f"says of call {operation} neither name nor options")
            name, options = _CALL.unpack_from(body)
            at = _CALL.size
            if name + options > len(body) - at:
                raise MalformedError(f"says that name and options of call {operation} are longer than it is")
            named = _text(body[at : at + name], "an activity the name")
            return CallCommand(operation, named, body[at + name : at + name + options], body[at + name + options :])
        case 2:
            return ReceiveCommand(operation, _text(body, "a signal the name"))
        case 3:
            return CancelCommand(operation)
        case 4:
            return CompleteCommand(body)
        case 5:
            return FailCommand(body)
    raise MalformedError(f"gives a command of kind {kind}, which this wasman does not know: use a newer one")


# Events


def _framed(kind: int, operation: int, flags: int, body: bytes) -> bytes:
    length = _FRAME.size + len(body)
    return b"".join((_FRAME.pack(length, operation, kind, flags, 0), body, bytes(-length & 7)))


def event(kind: int, operation: int, body: bytes, room: int) -> tuple[bytes, bool]:
    """An event, and whether its body stays outside, to be pulled; `room` bytes are left in the inbox."""
    if len(body) <= INLINE and _FRAME.size + len(body) + 7 <= room:
        return _framed(kind, operation, 0, body), False
    return _framed(kind, operation, _PULLED, _U32.pack(len(body))), True


def start_event(info: bytes, given: bytes, room: int) -> bytes:
    """The event that begins a run; an input that is large is pulled."""
    head = _U32.pack(len(info)) + info
    if len(given) <= INLINE and _FRAME.size + len(head) + len(given) + 7 <= room:
        return _framed(START, NO_OPERATION, 0, head + given)
    return _framed(START, NO_OPERATION, _PULLED, head + _U32.pack(len(given)))


# Imports


class StreamRead(Request):
    """`stream_read`: `view` is where the bytes go, valid while the guest is parked."""

    __slots__ = ("name", "view")

    def __init__(self, name: str, view: memoryview) -> None:
        self.name, self.view = name, view


class StreamWrite(Request):
    """`stream_write`: `view` holds the bytes, valid while the guest is parked; empty closes."""

    __slots__ = ("name", "view")

    def __init__(self, name: str, view: memoryview) -> None:
        self.name, self.view = name, view


class Wait(Request):
    """`wait`: until one of `operations` is answered, or `deadline` (ns since 1970, -1 for never) has come."""

    __slots__ = ("deadline", "operations")

    def __init__(self, operations: Sequence[int], deadline: int) -> None:
        self.operations, self.deadline = operations, deadline


class Exchange:
    """What a guest of ABI v1 pulls from its host, and flushes to it, while it runs.

    Attributes:
        input: What the run was started with.
        session: Its session as JSON.
        take: Called with commands that the guest hands over at once.
        untaken: Answers that were announced and not taken, by operation: (bytes, whether it is a failure).
        issued: How many operations the guest has asked for.
        open: Those of them that are not answered.
        turns: Whether its form is that of turns.
        log: Called with level, message and attributes.
    """

    __slots__ = ("input", "issued", "log", "open", "session", "take", "turns", "untaken")

    def __init__(self, log: Callable[[int, str, bytes], None], take: Callable[[bytes], None], *, turns: bool) -> None:
        self.input = self.session = b"null"
        self.take = take
        self.untaken: dict[int, tuple[bytes, bool]] = {}
        self.issued = 0
        self.open: Container[int] = ()
        self.turns = turns
        self.log = log

    def answer(self, operation: int) -> bytes | int:
        """The bytes that `operation` stands for, or an error code."""
        if operation == _INPUT:
            return self.input
        if operation == _SESSION:
            return self.session
        found = self.untaken.get(operation)
        if found is not None:
            return found[0]
        if operation >= self.issued:
            return UNKNOWN
        return NOT_READY if operation in self.open else TAKEN


def _exchange(guest: Guest, name: str) -> Exchange | None:
    """None while a module is initialised, when there is nobody to answer; or where the guest has another ABI."""
    if guest.world.initialising:
        guest.world.wanted_host = f"{MODULE}.{name}"
        return None
    return guest.exchange


def _now(guest: Guest) -> int:
    return guest.world.time


def _random(guest: Guest, pointer: int, length: int) -> int:
    view = guest.view(pointer, length)
    if view is None:
        return BAD_POINTER
    view[:] = guest.world.draw(length)
    return 0


def _log(guest: Guest, level: int, message: int, length: int, attributes: int, attributes_length: int) -> int:
    exchange = _exchange(guest, "log")
    if exchange is None:
        return NOT_ALLOWED
    said, more = guest.read(message, length), guest.read(attributes, attributes_length)
    if said is None or more is None:
        return BAD_POINTER
    exchange.log(level - (1 << 32) if level >> 31 else level, said.decode(errors="replace"), more)
    return 0


def _flush(guest: Guest, pointer: int, length: int) -> int:
    exchange = _exchange(guest, "flush")
    if exchange is None:
        return NOT_ALLOWED
    given = guest.read(pointer, length)
    if given is None:
        return BAD_POINTER
    exchange.take(given)
    return 0


def _result_len(guest: Guest, operation: int) -> int:
    exchange = _exchange(guest, "result_len")
    if exchange is None:
        return NOT_ALLOWED
    answer = exchange.answer(operation)
    if isinstance(answer, int):
        return answer
    failed = operation < _SESSION and exchange.untaken[operation][1] and not exchange.turns
    return len(answer) | (_IS_FAILURE if failed else 0)


def _result_read(guest: Guest, operation: int, offset: int, pointer: int, length: int) -> int:
    exchange = _exchange(guest, "result_read")
    if exchange is None:
        return NOT_ALLOWED
    answer = exchange.answer(operation)
    if isinstance(answer, int):
        return answer
    if offset > len(answer):
        return TOO_LARGE
    part = answer[offset : offset + length]
    if not guest.write(pointer, part):
        return BAD_POINTER
    if operation < _SESSION and offset + len(part) == len(answer):
        del exchange.untaken[operation]
    return len(part)


def _stream(guest: Guest, name: str, named: int, named_length: int, pointer: int, length: int) -> Request | int:
    if _exchange(guest, name) is None:
        return NOT_ALLOWED
    called, view = guest.read(named, named_length), guest.view(pointer, length)
    if called is None or view is None:
        return BAD_POINTER
    try:
        return (StreamRead if name == "stream_read" else StreamWrite)(called.decode(), view)
    except UnicodeDecodeError:
        return UNKNOWN


def _stream_read(guest: Guest, named: int, named_length: int, pointer: int, length: int) -> Request | int:
    return _stream(guest, "stream_read", named, named_length, pointer, length)


def _stream_write(guest: Guest, named: int, named_length: int, pointer: int, length: int) -> Request | int:
    return _stream(guest, "stream_write", named, named_length, pointer, length)


def _wait(guest: Guest, operations: int, count: int, deadline: int) -> Request | int:
    exchange = _exchange(guest, "wait")
    if exchange is None or exchange.turns:
        return NOT_ALLOWED
    if count > _MAX_WAITED:
        return TOO_LARGE
    view = guest.view(operations, 4 * count)
    if view is None:
        return BAD_POINTER
    return Wait(struct.unpack(f"<{count}I", view), deadline - (1 << 64) if deadline >> 63 else deadline)


def _idle_deadline(guest: Guest) -> int:
    return guest.world.idle_deadline


_I32, _I64 = "i32", "i64"
FUNCTIONS: Sequence[HostFunction] = [
    HostFunction(MODULE, "now", [], _I64, _now),
    HostFunction(MODULE, "random", [_I32] * 2, _I32, _random),
    HostFunction(MODULE, "log", [_I32] * 5, _I32, _log),
    HostFunction(MODULE, "flush", [_I32] * 2, _I32, _flush),
    HostFunction(MODULE, "result_len", [_I32], _I32, _result_len),
    HostFunction(MODULE, "result_read", [_I32] * 4, _I32, _result_read),
    HostFunction(MODULE, "stream_read", [_I32] * 4, _I32, _stream_read, waits=True),
    HostFunction(MODULE, "stream_write", [_I32] * 4, _I32, _stream_write, waits=True),
    HostFunction(MODULE, "wait", [_I32, _I32, _I64], _I32, _wait, waits=True),
    HostFunction(MODULE, "idle_deadline", [], _I64, _idle_deadline),
]
