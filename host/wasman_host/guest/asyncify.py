"""Guests of any language whose stack can be unwound into their memory, and built up again, by Binaryen's asyncify.

    wasm-opt --asyncify --pass-arg=asyncify-imports@env.host_call_api ...

instruments every function that can reach one of the named imports. While a global of the module says "unwinding", each
of them writes its locals to a place in memory and returns; while it says "rewinding", each goes straight back into the
call that it was in. Nothing else of the guest runs meanwhile. So a guest that waits in one of these imports can be kept
in the middle of its calls (`unwind`), and go on there in another instance (`rewind`).

It is the host that steers, by setting the two globals: the functions that the pass exports cannot be called while the
guest is parked. The place in memory is lent: what stood there is put back as soon as the stack is out, or in again. So
a guest's memory never shows that it was kept, whatever its language thinks of memory that it does not use.

Which modules may be steered is said by the custom section `wasman.asyncify`, which `wasman build --asyncify` adds: one
without it drives its own coroutines by the same means (TinyGo). It is JSON: `{"version": 1, "imports": [...]}`.

Source: Binaryen's src/passes/Asyncify.cpp, its opening comment (the two globals, the record of current and end).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import asdict, field, frozen

from wasman_host.errors import BlockedError, CorruptSnapshotError, GuestLimitError, InvalidModuleError
from wasman_host.guest.binary import exported_body, mutable_globals, section, with_section
from wasman_host.guest.live import Ended, Parked, Trapped, Yielded

if TYPE_CHECKING:
    from wasman_host.guest.live import Exceeded, Guest

__all__ = ["EXPORTS", "SECTION", "Asyncified", "Suspended", "asyncified", "mark", "rewind", "unwind"]

SECTION = "wasman.asyncify"
EXPORTS = (
    "asyncify_start_unwind",
    "asyncify_stop_unwind",
    "asyncify_start_rewind",
    "asyncify_stop_rewind",
    "asyncify_get_state",
)
_VERSION = 1
_NORMAL, _UNWINDING, _REWINDING = 0, 1, 2
_RECORD = struct.Struct("<II")  # where the stack's next byte goes, and where its place ends
# How asyncify_start_unwind begins: no locals, then `state = 1; data = the argument`.
_I32_CONST_1_GLOBAL_SET, _LOCAL_GET_0_GLOBAL_SET = b"\x41\x01\x24", b"\x20\x00\x24"


@frozen
class Asyncified:
    """How a module's stack is unwound.

    Attributes:
        imports: The imports in which it can be, such as "env.host_call_api".
        state: The global that says what is going on, by its place among the mutable ones.
        data: The global that says where the stack goes.
    """

    imports: Sequence[str]
    state: int
    data: int

    def to_json(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Asyncified:
        """What `to_json` gave."""
        return cls(tuple(fields["imports"]), int(fields["state"]), int(fields["data"]))


def mark(data: bytes, imports: Sequence[str]) -> bytes:
    """The module with the section that says that its stack can be unwound in these imports."""
    return with_section(data, SECTION, json.dumps({"version": _VERSION, "imports": list(imports)}).encode())


def asyncified(data: bytes) -> Asyncified | None:
    """What the section of a module says, and where its globals are; None for a module without it.

    Raises:
        InvalidModuleError: There are several such sections, or what they say makes no sense, or the module has not what
            they say. The message continues a sentence that begins with the module's name.
    """
    found = section(data, SECTION)
    if not found:
        return None
    if len(found) > 1:
        message = f"has {len(found)} sections {SECTION}: it was asyncified twice; build it anew from its source"
        raise InvalidModuleError(message)
    try:
        said = json.loads(found[0])
        version, imports = said["version"], [str(name) for name in said["imports"]]
    except (ValueError, KeyError, TypeError) as error:
        message = f"has a damaged section {SECTION} ({error!r}); build it anew by `wasman build --asyncify`"
        raise InvalidModuleError(message) from error
    if version != _VERSION:
        message = f"was asyncified by another wasman (version {version} of its section {SECTION}); use a newer one"
        raise InvalidModuleError(message)
    state, place = _globals_of(exported_body(data, EXPORTS[0]))
    known = mutable_globals(data)
    if state not in known or place not in known:
        message = f"has a section {SECTION} and was not asyncified; build it anew by `wasman build --asyncify`"
        raise InvalidModuleError(message)
    return Asyncified(tuple(imports), known.index(state), known.index(place))


def _globals_of(body: bytes | None) -> tuple[int, int]:
    """The indices of the two globals, -1 each where they cannot be told."""
    if body is None or not body.startswith(b"\0" + _I32_CONST_1_GLOBAL_SET):
        return -1, -1
    state, at = _number(body, 1 + len(_I32_CONST_1_GLOBAL_SET))
    if body[at : at + len(_LOCAL_GET_0_GLOBAL_SET)] != _LOCAL_GET_0_GLOBAL_SET:
        return -1, -1
    return state, _number(body, at + len(_LOCAL_GET_0_GLOBAL_SET))[0]


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:  # noqa: PLR2004  the continuation bit of LEB128
            break
    return value, at


@frozen
class Suspended:
    """A guest whose stack is out of the way: with its memory and globals, all that it is.

    Attributes:
        function: The import that it is in.
        args: What it gave to it.
        stack: What it wrote of its calls.
    """

    function: str
    args: Sequence[int]
    stack: bytes = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return {"function": self.function, "args": list(self.args), "stack": self.stack.hex()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Suspended:
        """What `to_json` gave."""
        return cls(fields["function"], tuple(fields["args"]), bytes.fromhex(fields["stack"]))


def unwind(guest: Guest) -> Suspended:
    """Take the stack of a parked guest out; the function that was entered has returned then, and means nothing by it.

    Raises:
        GuestLimitError: The stack is larger than the guest's calls may nest, or than its memory.
        BlockedError: The module does not do what its section says.
    """
    marks, waits_in = guest.module.asyncified, guest.waits_in
    assert marks is not None, "only marked guests are steered"
    assert waits_in is not None, "the guest is parked"
    function, args = waits_in
    lent = min(len(guest.memory()), _RECORD.size + guest.stack)
    before = guest.read(0, lent)
    assert before is not None, "no more is lent than there is"
    guest.write(0, _RECORD.pack(_RECORD.size, lent))
    guest.set_global(marks.data, 0)
    guest.set_global(marks.state, _UNWINDING)
    guest.answer(0)
    outcome = _to_the_end(guest)
    guest.set_global(marks.state, _NORMAL)
    top = _RECORD.unpack(guest.read(0, _RECORD.size) or b"")[0]
    if top > lent or (isinstance(outcome, Trapped) and "out of bounds" in outcome.message):
        larger = lent < len(guest.memory())
        message = (
            f"the guest's calls, as it waits in {function}, take more than {lent - _RECORD.size:,} bytes, the "
            f"lesser of its limit of stack and its memory, so it cannot be kept; "
            f"{'raise the limit and unblock' if larger else 'build it with more memory to begin with'}"
        )
        raise GuestLimitError(message, "stack")
    if not isinstance(outcome, Ended):
        message = (
            f"module {guest.module.digest[:12]} did not unwind its stack as it waited in {function}: it was not "
            f"asyncified for all imports that its section {SECTION} names. Build it anew by `wasman build --asyncify`, "
            f"terminate this run and start it with the new module"
        )
        raise BlockedError(message)
    stack = guest.read(_RECORD.size, top - _RECORD.size)
    assert stack is not None, "it lies in what was lent"
    guest.write(0, before[:top])
    return Suspended(function, args, stack)


def rewind(guest: Guest, entry: str, args: Sequence[int], suspended: Suspended) -> Parked:
    """Enter a guest that has the memory and globals of `suspended` again: it is parked then as it was.

    Args:
        guest: The guest, which runs nothing.
        entry: The function that was entered.
        args: What it was given.
        suspended: Where the guest was in it.

    Raises:
        CorruptSnapshotError: It comes to something else.
    """
    marks = guest.module.asyncified
    assert marks is not None, "only marked guests are steered"
    top = _RECORD.size + len(suspended.stack)
    before = guest.read(0, top)
    if before is not None:
        lent, there = before, False

        def arrived(function: str) -> Sequence[int]:
            nonlocal there
            guest.set_global(marks.state, _NORMAL)
            guest.write(0, lent)
            if function != suspended.function:
                message = f"a guest that was kept in {suspended.function} came to {function} as its stack was rewound"
                raise CorruptSnapshotError(message)
            there = True
            return suspended.args

        guest.write(0, _RECORD.pack(top, top) + suspended.stack)
        guest.set_global(marks.data, 0)
        guest.set_global(marks.state, _REWINDING)
        guest.rewinding = arrived
        guest.enter(entry, args)
        outcome = _to_the_end(guest)
        if isinstance(outcome, Parked) and there:
            return outcome
    message = (
        f"the stack of a guest of module {guest.module.digest[:12]}, kept as it waited in {suspended.function}, does "
        f"not fit its memory; restore a backup"
    )
    raise CorruptSnapshotError(message)


def _to_the_end(guest: Guest) -> Parked | Ended | Trapped | Exceeded:
    while isinstance(outcome := guest.resume(), Yielded):  # it does no more than its stack is deep
        continue
    return outcome
