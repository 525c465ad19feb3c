"""A checked, compiled module, ready to be instantiated."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import field, frozen
from wasmtime import InstancePre, Linker, Module, WasmtimeError

from wasman_host.errors import GuestLimitError, InvalidModuleError
from wasman_host.guest import abi_v0, abi_v1, capi, wasi
from wasman_host.guest.asyncify import Asyncified, asyncified
from wasman_host.guest.binary import START_EXPORT, Function, ModuleBinary, initial_data, parse
from wasman_host.guest.cache import Entry, code_cache
from wasman_host.guest.engine import GuestEngine, engine, engine_of, snapshot_engine
from wasman_host.guest.imports import linker_of
from wasman_host.guest.limits import STACK
from wasman_host.guest.live import Ended, Exceeded, Guest, Trapped, Yielded
from wasman_host.guest.memory import Image, image_of
from wasman_host.guest.panics import last_words
from wasman_host.guest.world import initial_world

if TYPE_CHECKING:
    from wasman_host.guest.cache import CodeCache
    from wasman_host.guest.limits import GuestLimits

__all__ = [
    "PROVIDED",
    "TURN",
    "GuestModule",
    "InitialState",
    "check",
    "compile_module",
    "digest",
    "entry_of",
    "initial_state",
]

TURN = "wasman_turn"  # the export that is entered at every turn of a guest of ABI v1

# What a guest of turns may not import: it would wait in the middle of a turn.
_WAITS = {(abi_v1.MODULE, "wait"), *((one.module, one.name) for one in abi_v0.FUNCTIONS if one.waits)}
_FUNCTIONS = [*wasi.FUNCTIONS, *abi_v0.FUNCTIONS, *abi_v1.FUNCTIONS]
PROVIDED = {(function.module, function.name): Function(function.params, [function.result] if function.result else [])
            for function in _FUNCTIONS}  # fmt: skip
_Facts: TypeAlias = tuple[ModuleBinary, str, Asyncified | None]
_REENTRANT = "wasman_reentrant"
_ABI = "wasman_abi"
_BLOCK = "wasman_block"
# What the host calls of a guest of ABI v1, and how it is to be typed.
_V1_EXPORTS = {
    _ABI: Function((), ("i32",)),
    _BLOCK: Function((), ("i32",)),
    TURN: Function(("i32",), ("i32",)),
}


_linkers: dict[GuestEngine, tuple[Linker, list[Any]]] = {}
_linking = threading.Lock()


def _linker(on: GuestEngine) -> Linker:
    """The one linker of an engine.

    Threads that compile at once must share it: the callbacks of a second one would be freed while guests call them.
    """
    with _linking:
        if on not in _linkers:
            _linkers[on] = linker_of(on.engine, _FUNCTIONS)
        return _linkers[on][0]


def digest(data: bytes) -> str:
    """A module's name: sha256 of its bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def check(data: bytes, name: str, cache: CodeCache | None = None) -> ModuleBinary:
    """Everything that can be said against a module without compiling it.

    Args:
        data: The module's bytes.
        name: What to call it in messages.
        cache: What is known of it already; the process's own if not said.

    Raises:
        InvalidModuleError: It cannot be run; the message says why and what to do.
    """
    cache = cache or code_cache()
    sha256 = digest(data)
    facts = cache.facts(sha256)
    known = None if facts is None else _known(facts, sha256, cache)
    if known is None:
        return _checked(data, name)[1]
    _judge(known[0], name)
    return known[0]


def _checked(data: bytes, name: str) -> tuple[bytes, ModuleBinary, Asyncified | None]:
    """The rewritten module, what it says, and how its stack is unwound, after everything was looked at."""
    try:
        rewritten, binary = parse(data)
    except InvalidModuleError as error:
        message = f"{name} {error}; compile the guest to a core module (TinyGo: -target wasip1)"
        raise InvalidModuleError(message) from error
    _judge(binary, name)
    try:
        unwinds = asyncified(data)
    except InvalidModuleError as error:
        message = f"{name} {error}"
        raise InvalidModuleError(message) from error
    try:
        Module.validate(engine(), rewritten)
    except WasmtimeError as error:
        message = f"{name} is not a valid module: {_sentence(error)}"
        raise InvalidModuleError(message) from error
    return rewritten, binary, unwinds


def _judge(binary: ModuleBinary, name: str) -> None:
    """Refuse a module that wants what wasman does not give."""
    for wanted in binary.imports:
        full = f"{wanted.module}.{wanted.name}"
        if wanted.kind == "memory":
            message = f"{name} imports its memory ({full}); build it so that it has, and exports, its own"
        elif wanted.kind == "global" and wanted.mutable:
            message = f"{name} imports the mutable global {full}, which no snapshot would hold; build it without"
        elif wanted.kind != "func":
            message = f"{name} imports the {wanted.kind} {full}; wasman provides functions only"
        elif (wanted.module, wanted.name) not in PROVIDED:
            message = f"{name} imports {full}, which wasman does not provide; see docs/abi.md for what it does"
        elif PROVIDED[wanted.module, wanted.name] != wanted.type:
            known = PROVIDED[wanted.module, wanted.name]
            message = f"{name} imports {full} as {wanted.type}, and it is {known}; see docs/abi.md"
        else:
            continue
        raise InvalidModuleError(message)
    if binary.memory is None:
        message = f"{name} has no memory; a guest needs one, exported as 'memory'"
        raise InvalidModuleError(message)
    if binary.shared:
        message = f"{name} wants shared memory; threads would make it impossible to repeat, build it without"
        raise InvalidModuleError(message)
    if not binary.memory_exported:
        message = f"{name} does not export its memory as 'memory'"
        raise InvalidModuleError(message)
    unsaved = [kind for _, kind in binary.globals if kind not in {"i32", "i64", "f32", "f64", "v128"}]
    if unsaved:
        message = f"{name} has a mutable global of type {unsaved[0]}, which no snapshot can hold; build it without"
        raise InvalidModuleError(message)


def entry_of(binary: ModuleBinary, entry: str, name: str) -> str:
    """The export that a run calls: `entry`, or for "" `run`, else `_start`.

    Raises:
        InvalidModuleError: There is no such function, or it takes something else than integers; or an initialiser takes
            or returns anything.
    """
    if TURN in binary.functions:
        return _turn_of(binary, name)
    asks = next((one for one in binary.imports if one.module == abi_v1.MODULE), None)
    if asks is not None and _ABI not in binary.functions:
        message = (
            f"{name} imports {asks.module}.{asks.name} and does not export {_ABI!r}, which says for which ABI it is "
            f"written; see docs/abi.md"
        )
        raise InvalidModuleError(message)
    wanted = [entry] if entry else ["run", "_start"]
    found = next((export for export in wanted if export in binary.functions), None)
    if found is None:
        exported = ", ".join(sorted(binary.functions)) or "no function"
        message = f"{name} lacks its entry {' or '.join(map(repr, wanted))}; it exports {exported}"
        raise InvalidModuleError(message)
    function = binary.functions[found]
    if not {*function.params, *function.results} <= {"i32", "i64"}:
        message = f"{name}: its entry {found!r} is {function}; an entry takes and returns integers only"
        raise InvalidModuleError(message)
    for initialiser in _initialisers(binary, found):
        function = binary.functions[initialiser]
        if function.params or function.results:
            message = f"{name}: its initialiser {initialiser!r} is {function}; it takes and returns nothing"
            raise InvalidModuleError(message)
    return found


def _turn_of(binary: ModuleBinary, name: str) -> str:
    """The export that is entered at every turn of a guest of ABI v1, where all is as the host needs it."""
    for export, wanted in _V1_EXPORTS.items():
        function = binary.functions.get(export)
        if function is None:
            message = f"{name} exports {TURN!r} and not {export!r}; docs/abi.md says what a guest exports"
            raise InvalidModuleError(message)
        if (tuple(function.params), tuple(function.results)) != (tuple(wanted.params), tuple(wanted.results)):
            message = f"{name} exports {export!r} as {function}, and it is {wanted}; see docs/abi.md"
            raise InvalidModuleError(message)
    waits = next((one for one in binary.imports if (one.module, one.name) in _WAITS), None)
    if waits is not None:
        message = (
            f"{name} exports {TURN!r} and imports {waits.module}.{waits.name}, which waits; a guest of turns waits by "
            f"returning, see docs/abi.md"
        )
        raise InvalidModuleError(message)
    return TURN


def _initialisers(binary: ModuleBinary, entry: str) -> Sequence[str]:
    """What its author exports to be called once before `entry`."""
    if "_initialize" in binary.functions:
        return ["_initialize"]
    return ["_start"] if "_start" in binary.functions and entry != "_start" else []


def _sentence(error: WasmtimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown error"


@frozen(eq=False)
class GuestModule:
    """A module that can be instantiated.

    Attributes:
        digest: sha256 of the bytes as they were given, in hex.
        binary: What its sections say.
        snapshots: "" where memory and globals are all of its state, else why they are not.
        reentrant: Whether it declares that its entry may be called anew over its old memory.
        asyncified: How its stack is unwound into its memory, None where it is not.
        exports: Exported functions, the one that was a start section included.
        initial: What its memory holds before any code of it runs; None where only instantiating it tells.
    """

    digest: str
    binary: ModuleBinary
    snapshots: str
    reentrant: bool
    asyncified: Asyncified | None
    exports: Mapping[str, Function] = field(repr=False)
    initial: Image | None = field(repr=False)
    _compiled: Module = field(repr=False)
    _prepared: dict[GuestEngine, tuple[InstancePre, ctypes.c_void_p]] = field(factory=dict, repr=False)

    def prepared(self, stack: int) -> ctypes.c_void_p:
        """Wasmtime's prepared instance, for guests whose calls may nest `stack` bytes."""
        on = engine_of(stack)
        found = self._prepared.get(on)
        if found is None:
            module = self._compiled
            if on is not engine_of(STACK):
                module = Module.deserialize(on.engine, self._compiled.serialize())
            prepared = _linker(on).instantiate_pre(module)
            found = self._prepared.setdefault(on, (prepared, capi.address(prepared)))
        return found[1]

    @property
    def turns(self) -> bool:
        """Whether its guests return to the host whenever they have nothing to do (ABI v1)."""
        return TURN in self.binary.functions

    @property
    def version(self) -> int:
        """The ABI that it is written for, by what it exports; 0 also where it imports nothing of wasman's."""
        return 1 if _ABI in self.binary.functions else 0

    @property
    def continues(self) -> bool:
        """Whether its guests can be kept in the middle of a call. Those of ABI v1 that block are replayed."""
        return self.asyncified is not None and not self.turns

    def initialisers(self, entry: str) -> Sequence[str]:
        """Exports that run before `entry`, once a module."""
        return [*([START_EXPORT] if self.binary.has_start else []), *_initialisers(self.binary, entry)]


def compile_module(data: bytes, name: str, cache: CodeCache | None = None) -> GuestModule:
    """Check and compile a module, or take it from the cache; up to seconds of processor time, so call it in a thread.

    Args:
        data: The module's bytes.
        name: What to call it in messages.
        cache: Where its code may be, and is kept; the process's own if not said.

    Raises:
        InvalidModuleError: It cannot be run.
    """
    cache = cache or code_cache()
    sha256 = digest(data)
    found = _cached(sha256, name, cache)
    if found is None:
        rewritten, binary, unwinds = _checked(data, name)
        try:
            compiled = Module(engine(), rewritten)
        except WasmtimeError as error:
            message = f"{name} cannot be compiled: {_sentence(error)}"
            raise InvalidModuleError(message) from error
        snapshots = ""
        try:
            Module.validate(snapshot_engine(), rewritten)
        except WasmtimeError as error:
            snapshots = f"its tables may change while it runs: {_sentence(error)}"
        facts = {
            "binary": binary.to_json(),
            "snapshots": snapshots,
            "asyncified": None if unwinds is None else unwinds.to_json(),
        }
        cache.store(sha256, Entry(facts, bytes(compiled.serialize())))
    else:
        (binary, snapshots, unwinds), compiled = found
    initially = initial_data(data)
    module = GuestModule(
        digest=sha256,
        binary=binary,
        snapshots=snapshots,
        reentrant=_REENTRANT in binary.functions,
        asyncified=unwinds,
        exports={**binary.functions, START_EXPORT: Function((), ())},
        initial=None if initially is None else image_of(*initially),
        compiled=compiled,
    )
    module.prepared(STACK)
    return module


def _cached(sha256: str, name: str, cache: CodeCache) -> tuple[_Facts, Module] | None:
    """What the cache has of the module, ready to be used."""
    entry = cache.load(sha256)
    if entry is None:
        return None
    known = _known(entry.facts, sha256, cache)
    if known is None:
        return None
    _judge(known[0], name)
    try:
        compiled = Module.deserialize(engine(), entry.code)
    except WasmtimeError as error:  # such as code for another processor, in a home folder that machines share
        cache.discard(sha256, f"wasmtime refuses it ({_sentence(error)})")
        return None
    return known, compiled


def _known(facts: Mapping[str, Any], sha256: str, cache: CodeCache) -> _Facts | None:
    """What the cache says of the module: its sections, why it has no snapshots, how its stack is unwound."""
    try:
        unwinds = facts["asyncified"]
        return (
            ModuleBinary.from_json(facts["binary"]),
            str(facts["snapshots"]),
            None if unwinds is None else Asyncified.from_json(unwinds),
        )
    except (ValueError, KeyError, TypeError) as error:
        cache.discard(sha256, f"its facts make no sense ({error!r})")
        return None


@frozen
class InitialState:
    """A module's state when its initialisation has ended, the same for every instance on every machine.

    Attributes:
        memory: All of its linear memory.
        globals: Its mutable globals in order: (value kind, value bytes).
        unfinished: The host call that the initialisation made, for which it needs a run; "" for none.
        block: Where a guest of turns says what it wants; 0 for others.
    """

    memory: bytes = field(repr=False)
    globals: Sequence[tuple[int, bytes]]
    unfinished: str = ""
    block: int = 0


def initial_state(module: GuestModule, entry: str, limits: GuestLimits) -> InitialState:
    """Instantiate `module` and run its initialisers.

    Raises:
        InvalidModuleError: An initialiser traps, exits with an error, or never ends.
        GuestLimitError: It wants more than `limits` allow.
    """
    guest = Guest(module, initial_world(), limits)
    try:
        for name in module.initialisers(entry):
            guest.enter(name)
            while isinstance(ended := guest.resume(), Yielded) and not guest.world.wanted_host:
                if ended.seconds > _INITIALISATION_SECONDS:
                    message = f"module {module.digest[:12]}: {name} does not end within {_INITIALISATION_SECONDS} s"
                    raise InvalidModuleError(message)
            if guest.world.wanted_host:
                break  # it needs a run to call the host, whatever has become of it without
            if isinstance(ended, Exceeded):
                used = f" ({ended.used:,})" if ended.used else ""
                message = (
                    f"module {module.digest[:12]}: {name} reached its limit of {ended.limit}{used}; raise the limit, "
                    f"then unblock\n{ended.backtrace}"
                )
                raise GuestLimitError(message, ended.limit)
            if isinstance(ended, Trapped):
                message = f"module {module.digest[:12]}: {name} trapped: {_last_words(guest, ended.message)}"
                raise InvalidModuleError(f"{message}\n{ended.backtrace}")
            assert isinstance(ended, Ended), "nothing waits while a module is initialised"
            if ended.code:
                why = _last_words(guest, f"code {ended.code}")
                message = f"module {module.digest[:12]}: {name} exited with {why}"
                raise InvalidModuleError(message)
        if module.version and guest.world.wanted_host:
            message = (
                f"module {module.digest[:12]}: its initialisation calls {guest.world.wanted_host}, and there is no run "
                f"yet to answer; call it from the workflow"
            )
            raise InvalidModuleError(message)
        block = _introduced(module, guest) if module.version else 0
        return InitialState(bytes(guest.memory()), guest.globals(), guest.world.wanted_host, block)
    finally:
        guest.close()


def _last_words(guest: Guest, otherwise: str) -> str:
    """What the guest wrote as it panicked, such as that two workflows have one name."""
    guest.world.flush()
    found = last_words(guest.world.said)
    return otherwise if found is None else found[0]


def _introduced(module: GuestModule, guest: Guest) -> int:
    """Ask a guest of ABI v1 for which version it was written, and where its block is (0 where it has none)."""
    version = _asked(module, guest, _ABI)
    if version != abi_v1.VERSION:
        message = (
            f"module {module.digest[:12]} is written for ABI {version}, and this wasman knows {abi_v1.VERSION}; "
            f"use a newer wasman, or build the guest with the SDK of this one (wasman build)"
        )
        raise InvalidModuleError(message)
    if not module.turns:
        return 0
    address = _asked(module, guest, _BLOCK) & 0xFFFFFFFF
    try:
        block = abi_v1.Block.read(guest, address)
    except abi_v1.MalformedError as error:
        message = f"module {module.digest[:12]}: {error}; see docs/abi.md"
        raise InvalidModuleError(message) from error
    if block.capacity < abi_v1.INBOX or guest.view(block.inbox, block.capacity) is None:
        message = (
            f"module {module.digest[:12]}: its inbox ({block.capacity} bytes at {block.inbox:#x}) is not at least "
            f"{abi_v1.INBOX} bytes inside its memory; see docs/abi.md"
        )
        raise InvalidModuleError(message)
    return address


def _asked(module: GuestModule, guest: Guest, name: str) -> int:
    guest.enter(name)
    ended = guest.resume()
    if not isinstance(ended, Ended) or ended.code:
        why = _last_words(guest, "it does not return; see docs/abi.md")
        raise InvalidModuleError(f"module {module.digest[:12]}: {name} failed: {why}")
    return ended.values[0]


_INITIALISATION_SECONDS = 10.0  # of processor time
