"""What can be told of a module before anything is run by it: what it wants, what it has, and how its runs come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from wasman_host.errors import GuestLimitError, InvalidModuleError
from wasman_host.guest import abi_v1
from wasman_host.guest.abi_v0 import FUNCTIONS as ABI_V0
from wasman_host.guest.binary import Import, ModuleBinary, custom_sections, parse
from wasman_host.guest.module import PROVIDED, TURN, compile_module, digest, entry_of, initial_state

if TYPE_CHECKING:
    from wasman_host.guest.limits import GuestLimits
    from wasman_host.guest.module import GuestModule

__all__ = ["Comeback", "Inspection", "inspect"]

_ABI_V0 = {function.module for function in ABI_V0}


@frozen
class Comeback:
    """How a run of the module comes back after a crash, or when its memory was given up.

    Attributes:
        how: "memory", "continuation", "checkpoint", "replay" or "replay with initialisation".
        why: The reason, in words.
    """

    how: str
    why: str


_BY_MEMORY = Comeback(
    "memory",
    "it waits by returning to its host: it goes on in the memory of its last snapshot, and nothing is replayed but the "
    "turns that came after that, where its worker has died",
)


@frozen
class Inspection:
    """A module.

    Attributes:
        digest: sha256 of its bytes, in hex.
        size: Bytes.
        problem: Why it cannot be run, "" where it can.
        abi: "v0", "v1", "WASI only" where it imports nothing of wasman's, "" where that cannot be told.
        binary: What its sections say; None where they make no sense.
        unknown: Imports that wasman does not provide, or not so.
        sections: (name, bytes) of its custom sections.
        entry: The export that a run calls, "" where there is none.
        initialisers: What is called once before it.
        image: Bytes of its memory after its initialisation, as far as they are not zero; None where it has no image.
        comeback: How its runs come back; None where it has none.
    """

    digest: str
    size: int
    problem: str
    abi: str = ""
    binary: ModuleBinary | None = None
    unknown: Sequence[Import] = ()
    sections: Sequence[tuple[str, int]] = ()
    entry: str = ""
    initialisers: Sequence[str] = ()
    image: int | None = None
    comeback: Comeback | None = None


def inspect(data: bytes, name: str, limits: GuestLimits, entry: str = "", *, resume: str = "replay") -> Inspection:
    """Look at a module; up to seconds of processor time, where its code is not cached yet.

    Args:
        data: Its bytes.
        name: What to call it in messages.
        limits: What its initialisation may use.
        entry: The export to call, "" for `run`, else `_start`.
        resume: What its workflow says of how it comes back: "replay" or "checkpoint".
    """
    sha256, size = digest(data), len(data)
    try:
        _, binary = parse(data)
        sections = custom_sections(data)
    except InvalidModuleError as error:
        return Inspection(sha256, size, f"{name} {error}")
    unknown = [one for one in binary.imports if PROVIDED.get((one.module, one.name)) != one.type or one.type is None]
    found = Inspection(
        sha256,
        size,
        "",
        _abi(binary),
        binary,
        unknown,
        sections,
    )
    try:
        return _whole(found, data, name, limits, entry, resume)
    except (InvalidModuleError, GuestLimitError) as error:
        return evolve(found, problem=str(error).partition("\n")[0])


def _abi(binary: ModuleBinary) -> str:
    modules = {wanted.module for wanted in binary.imports}
    if abi_v1.MODULE in modules or TURN in binary.functions:
        return "v1"
    return "v0" if modules & _ABI_V0 else "WASI only"


def _whole(found: Inspection, data: bytes, name: str, limits: GuestLimits, entry: str, resume: str) -> Inspection:
    module = compile_module(data, name)
    called = entry_of(module.binary, entry, name)
    if module.turns and module.snapshots:
        raise InvalidModuleError(f"{name} cannot be kept between its turns: {module.snapshots}")
    unfinished, image = "", None
    if not module.snapshots:
        state = initial_state(module, called, limits)
        unfinished = state.unfinished
        image = None if unfinished else len(state.memory.rstrip(b"\0"))
    found = evolve(found, entry=called, initialisers=module.initialisers(called), image=image)
    if module.turns:
        return evolve(found, comeback=_BY_MEMORY)
    return evolve(found, comeback=_comeback(module, unfinished, resume))


def _comeback(module: GuestModule, unfinished: str, resume: str) -> Comeback:
    snapshots = module.snapshots
    if snapshots:
        return Comeback("replay with initialisation", f"it is never snapshotted: {snapshots}")
    if unfinished:
        return Comeback(
            "replay with initialisation",
            f"its initialisation calls {unfinished}, so it belongs to each run and there is no image to restore",
        )
    if module.continues and module.asyncified is not None:
        return Comeback(
            "continuation",
            f"it was asyncified: as it waits in {' or '.join(module.asyncified.imports)} its stack can be kept, and "
            f"nothing is replayed but what came behind the last snapshot",
        )
    if module.reentrant:
        return Comeback(
            "checkpoint", "it exports wasman_reentrant: its entry is called anew over the memory of its last checkpoint"
        )
    if resume == "checkpoint":
        return Comeback(
            "checkpoint", 'its workflow says resume="checkpoint": its entry is called anew over its last checkpoint'
        )
    return Comeback(
        "replay",
        "it does not say that it skips what it has done when it is entered anew (the export wasman_reentrant, or "
        'resume="checkpoint" of its workflow): the log is replayed from the start',
    )
