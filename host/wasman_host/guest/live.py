"""One live guest: enter it, park it, wake it, read and restore its memory.

A guest is driven by its instance's task: `enter`, then `resume` until it has ended; whenever it is parked, `answer` it.
Nothing here waits, and nothing here is thread-safe: a guest belongs to the thread that made it.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Sequence
from ctypes import addressof, byref
from typing import TYPE_CHECKING

from wasman_host.errors import GuestLimitError, InvalidModuleError
from wasman_host.guest import capi
from wasman_host.guest.engine import engine_of, ticker
from wasman_host.guest.imports import Request, StopGuest, current
from wasman_host.guest.limits import MAX_TABLE
from wasman_host.guest.linear import CAPACITY, LinearMemory
from wasman_host.guest.memory import PAGE
from wasman_host.values import frozen

if TYPE_CHECKING:
    from wasman_host.guest.abi_v1 import Exchange
    from wasman_host.guest.binary import Function
    from wasman_host.guest.limits import GuestLimits
    from wasman_host.guest.memory import Image
    from wasman_host.guest.module import GuestModule
    from wasman_host.guest.world import World

__all__ = ["Ended", "Exceeded", "Guest", "Parked", "Trapped", "Yielded"]

_WASM_PAGE = 65536
_KINDS = {"i32": 0, "i64": 1, "f32": 2, "f64": 3, "v128": 4}
_WIDTHS = {0: 4, 1: 8, 2: 4, 3: 8, 4: 16}
_STACK_OVERFLOW = 0
_MAX_PARTS = 8  # tables of a module
_NO_TICK = 1 << 32  # epochs that never pass


@frozen
class Parked:
    """The guest waits in a host call."""

    request: Request


@frozen
class Yielded:
    """The guest is busy and let the event loop have its turn; `seconds` of processor time since it was last parked."""

    seconds: float


@frozen
class Ended:
    """The entered function returned `values`, or the guest exited with `code`."""

    values: Sequence[int] = ()
    code: int = 0


@frozen
class Trapped:
    """The guest trapped.

    Attributes:
        message: What the trap is, in one line.
        backtrace: The wasm frames, innermost first.
    """

    message: str
    backtrace: str


@frozen
class Exceeded:
    """The guest used more than its instance may, and does not run again.

    Attributes:
        limit: "memory", "table_elements" or "stack".
        used: Bytes that it wanted, or elements of its largest table; 0 where they were not counted.
        backtrace: The wasm frames where there are some, innermost first.
        refused: Why the system gave less than the limit allows, "" where it did not.
    """

    limit: str
    used: int = 0
    backtrace: str = ""
    refused: str = ""


def _never_ready(_view: memoryview, _upload: bool) -> int | None:  # noqa: FBT001  a callback's arguments
    return None


class _Shared(ctypes.Structure):
    r"""What the C API and Python leave each other: one object, because there are as many as there are guests.

    `trap` and `error` are what ended a call; `answered` is b"\x01" as long as the host call that the guest is in has
    its answer, see `capi.IS_ANSWERED`.
    """

    _fields_ = (("trap", ctypes.c_void_p), ("error", ctypes.c_void_p), ("answered", ctypes.c_char * 2))


_Result = ctypes.c_char * 16
_RESULTS = (struct.Struct("@B7xI").pack_into, struct.Struct("@B7xQ").pack_into)  # a kind and a number, by the kind
_ERROR: int = _Shared.error.offset
_ANSWERED: int = _Shared.answered.offset


class _Function:
    """An exported function, and what the C API needs of a call of it.

    Attributes:
        args: The integer of each argument; what does not fit is cut to its width.
        call: Addresses and counts, as `capi.call_async` wants them.
    """

    __slots__ = ("_export", "_function", "_results", "_values", "args", "call")

    def __init__(self, export: capi.Extern, function: Function) -> None:
        given, got = len(function.params), len(function.results)
        values = (capi.Value * max(1, given + got))()  # of the arguments, then of the results
        for value, kind in zip(values, function.params, strict=False):
            value.kind = ctypes.c_uint8(_KINDS[kind])
        self.args = _integers(values, function.params)
        self._results: list[ctypes.c_int32 | ctypes.c_int64] | None = None
        self._export, self._function, self._values = export, function, values  # whose addresses follow
        first = addressof(values)
        self.call = (addressof(export.of.func), first, given, first + given * ctypes.sizeof(capi.Value), got)

    def results(self) -> list[int]:
        """The integer of each result, after it has returned."""
        if self._results is None:  # only now: thousands of guests may wait in a call that has not returned yet
            self._results = _integers(self._values, self._function.results, len(self.args))
        return [result.value for result in self._results]


def _integers(
    values: ctypes.Array[capi.Value], kinds: Sequence[str], first: int = 0
) -> list[ctypes.c_int32 | ctypes.c_int64]:
    """The integers in values of these kinds, where they are: reading a union costs more than a turn of a guest may."""
    return [
        (ctypes.c_int32 if kind == "i32" else ctypes.c_int64).from_address(addressof(values[place].of))
        for place, kind in enumerate(kinds, first)
    ]


class Guest:
    """One instance of a module in a store of its own.

    Attributes:
        linear: Its linear memory.
        world: What WASI shows it: clock, random, output.
        answered_at: Where wasmtime looks whether its host call has an answer.
        request: What it is parked for, or None.
        stopping: What a host function raised; the guest was stopped for it.
        transfer: Moves a stream's bytes (view, whether it is the upload) if they are ready, else gives None.
        waits_in: The import that a guest whose stack can be unwound is parked in, such as "env.host_call_api", and what
            it gave to it; None else.
        rewinding: Called with the first import that it comes to, for what it gave to it; None unless its stack is being
            built up again.
        exchange: What a guest of ABI v1 pulls and flushes; None for others.
        exceeded: Whether it wanted more than it may have: no host function does anything for it any more.
        tables: Its tables, where they can grow.
    """

    __slots__ = (
        "_context",
        "_error",
        "_function",
        "_functions",
        "_future",
        "_globals",
        "_instance",
        "_limits",
        "_memory",
        "_memory_address",
        "_shared",
        "_slot",
        "_slot_kind",
        "_spent",
        "_store",
        "_tables",
        "_ticks",
        "_yielded",
        "answered_at",
        "exceeded",
        "exchange",
        "linear",
        "module",
        "request",
        "rewinding",
        "stopping",
        "tables",
        "transfer",
        "waits_in",
        "world",
    )

    def __init__(self, module: GuestModule, world: World, limits: GuestLimits, image: Image | None = None) -> None:
        """Instantiate `module`; no code of it runs.

        Args:
            module: What of.
            world: What it is shown.
            limits: What it may use.
            image: What its memory is to hold, where that is known already: `restore` lays it else.

        Raises:
            GuestLimitError: It wants more to begin with than it may have.
        """
        self.module = module
        self.world = world
        self.request: Request | None = None
        self.stopping: BaseException | None = None
        self.transfer: Callable[[memoryview, bool], int | None] = _never_ready
        self.waits_in: tuple[str, Sequence[int]] | None = None
        self.rewinding: Callable[[str], Sequence[int]] | None = None
        self.exceeded = False
        self.exchange: Exchange | None = None
        self.tables: Sequence[int] = ()
        self._limits = limits
        self._future: int | None = None
        self._slot = self._slot_kind = 0
        self._ticks = -1  # of the ticker, when the guest was last told how many more it may run for
        self._spent = 0.0
        self._yielded = False
        self._shared = _Shared()
        self._error = addressof(self._shared) + _ERROR
        self.answered_at = addressof(self._shared) + _ANSWERED
        self._functions: dict[str, _Function] = {}
        self.linear = LinearMemory(limits.memory, (image or module.initial) if module.initial else None)
        prepared = module.prepared(limits.stack)
        self._store: int | None = capi.store_new(engine_of(limits.stack).address, None, None)
        # Tables that can change are limited by looking at them (`look`): a guest that is refused a growth would go on,
        # and do otherwise than under a higher limit.
        elements = limits.table_elements
        if module.snapshots:
            elements = MAX_TABLE // max(1, len(module.binary.tables))
        capi.limit(self._store, CAPACITY, elements, 1, _MAX_PARTS, 1)
        self._context = capi.context_of(self._store)
        # Constant expressions may be compiled to a function that looks at the epoch; every `resume` sets it anew.
        capi.set_epoch_deadline(self._context, _NO_TICK)
        capi.yield_at_epoch(self._context, 1)
        self._instance = capi.Instance()
        future = capi.instantiate_async(
            prepared,
            self._context,
            addressof(self._instance),
            addressof(self._shared),
            addressof(self._shared) + _ERROR,
        )
        current.guest = self
        while not capi.poll_at_once(future):  # data that is copied is copied by code, which yields as any other
            continue
        capi.future_delete(future)
        problem = self._take_problem()
        if problem is not None:
            self.close()
            raise self._not_made(problem)
        self._memory = self._export("memory")
        self._memory_address = addressof(self._memory.of.memory)
        self._globals = [(_KINDS[kind], self._export(name)) for name, kind in module.binary.globals]
        if module.snapshots:
            self._tables = [self._export(name) for name in module.binary.tables]
            self.tables = [addressof(table.of.table) for table in self._tables]
            if self.look():
                self.close()
                raise self._not_made("table")

    def _not_made(self, problem: str) -> BaseException:
        if self.stopping is not None:
            return self.stopping
        memory, limits, limit = self.linear, self._limits, "memory"
        if memory.refused:
            limit = ""
            message = (
                f"this machine refuses the {memory.wanted:,} bytes of memory that the module wants to begin with "
                f"({memory.refused}); free some and unblock"
            )
        elif memory.wanted:
            message = (
                f"the module wants {memory.wanted:,} bytes of memory to begin with and the instance may have "
                f"{limits.memory:,}; raise the limit and unblock"
            )
        elif "table" in problem:
            limit = "table_elements"
            message = (
                f"the module wants larger tables to begin with than the {limits.table_elements:,} elements that "
                f"the instance may have; raise the limit and unblock"
            )
        else:
            return InvalidModuleError(problem)
        return GuestLimitError(message, limit)

    def _export(self, name: str) -> capi.Extern:
        export, encoded = capi.Extern(), name.encode()
        found = capi.export_get(self._context, addressof(self._instance), encoded, len(encoded), addressof(export))
        assert found, f"the module exports {name}"
        return export

    # Entering

    def enter(self, name: str, args: Sequence[int] = ()) -> None:
        """Prepare a call of the exported function `name`; `resume` runs it."""
        assert self._future is None, "a guest runs one function at a time"
        self._require()
        # What a call needs is kept: guests of turns are entered by the same export again and again.
        found = self._functions.get(name)
        if found is None:
            found = self._functions[name] = _Function(self._export(name), self.module.exports[name])
        self._function = found
        for place, given in zip(found.args, args, strict=True):
            place.value = given
        self._future = capi.call_async(self._context, *found.call, addressof(self._shared), self._error)

    def _require(self) -> None:
        """Before wasmtime is asked for anything of its own. Raises `RuntimeError` where it was closed."""
        if self._store is None:
            message = "the guest was closed"
            raise RuntimeError(message)

    def resume(self) -> Parked | Yielded | Ended | Trapped | Exceeded:
        """Run the guest until it waits, yields or ends. Raises what a host function raised.

        A guest that wanted more than it may have is not heard any more: that it did is all that is said.
        """
        assert self._future is not None, "the guest was entered"
        current.guest = self
        if self.request is not None and self._shared.answered:
            self.request = self.waits_in = None
        clock = ticker()
        inside = clock.enter()
        if self._yielded:
            begin = time.thread_time()
        else:
            # Ticks that passed while the guest was parked are not its own: without this it would yield at once.
            begin = 0.0
            if self._ticks != clock.ticks:
                self._ticks = clock.ticks
                capi.set_epoch_deadline(self._context, 2)
        done = capi.poll(self._future)
        inside[0] = False
        if self._yielded:
            self._spent += time.thread_time() - begin
        if done:
            capi.future_delete(self._future)
            self._future = None
            self._spent, self._yielded = 0.0, False
            return self._ended()
        if self.exceeded or (self.tables and self.look()):
            return self._exceeding()
        if self.request is not None:
            self._spent, self._yielded = 0.0, False
            return Parked(self.request)
        self._yielded = True
        return Yielded(self._spent)

    def _ended(self) -> Ended | Trapped | Exceeded:
        stopping, self.stopping = self.stopping, None
        code = capi.trap_code(self._shared.trap) if self._shared.trap else None
        problem = self._take_problem()
        if self.exceeded or (self.tables and self.look()):
            self.stopping = stopping
            return self._exceeding()
        if isinstance(stopping, StopGuest):
            return Ended(code=stopping.code)
        if stopping is not None:
            raise stopping
        if problem is None:
            return Ended(self._function.results())
        _, _, rest = problem.partition("wasm backtrace:")
        backtrace, _, cause = rest.partition("Caused by:")
        frames = backtrace.strip("\n").rstrip()
        if code == _STACK_OVERFLOW:
            return Exceeded("stack", backtrace=frames)
        reason = (cause or problem).strip().splitlines()[-1].strip()
        return Trapped(reason, frames)

    def look(self) -> bool:
        """Whether a table has grown beyond the limit."""
        self.exceeded = self._largest_table() > self._limits.table_elements
        return self.exceeded

    def _largest_table(self) -> int:
        return max((capi.table_size(self._context, table) for table in self.tables), default=0)

    def _exceeding(self) -> Exceeded:
        stopping, self.stopping = self.stopping, None
        if stopping is not None and not isinstance(stopping, StopGuest):
            raise stopping
        if self.linear.wanted:
            return Exceeded("memory", self.linear.wanted, refused=self.linear.refused)
        return Exceeded("table_elements", self._largest_table())

    def _take_problem(self) -> str | None:
        if self._shared.trap:
            trap, self._shared.trap = self._shared.trap, None
            return capi.trap_text(trap)
        if self._shared.error:
            error, self._shared.error = self._shared.error, None
            return capi.error_text(error)
        return None

    # Parking: called by host functions while the guest is being polled

    def parking(self, slot: int | None, kind: int) -> None:
        """A host function that may wait was called; its result goes to `slot`."""
        self._slot, self._slot_kind = slot or 0, kind
        self._shared.answered = b""

    def answer(self, value: int) -> None:
        """Give the host call that the guest waits in its result; the next `resume` goes on behind it."""
        if self._slot:  # else the function has no result
            place, pack = _Result.from_address(self._slot), _RESULTS[self._slot_kind]
            pack(place, 0, self._slot_kind, value & 0xFFFFFFFFFFFFFFFF if self._slot_kind else value & 0xFFFFFFFF)
        self._shared.answered = b"\x01"

    def unspent(self) -> None:
        """The guest was served without waiting: a turn of it begins, as after a wait."""
        self._spent = 0.0

    # Memory. Guest pointers are hostile: every one is checked against the memory's present size.

    @property
    def base(self) -> int:
        """Where the linear memory begins, an address of this process."""
        return self.linear.base

    def view(self, pointer: int, length: int) -> memoryview | None:
        """The guest's bytes themselves, or None where they are not all inside its memory.

        Valid until the guest runs again or is closed.
        """
        memory = self.linear
        if pointer + length > memory.size:
            return None
        return memory.view[pointer : pointer + length]

    def read(self, pointer: int, length: int) -> bytes | None:
        """A copy of the guest's bytes, or None where they are not all inside its memory."""
        view = self.view(pointer, length)
        return None if view is None else bytes(view)

    def write(self, pointer: int, data: bytes) -> bool:
        """Write into the guest's memory; False, with nothing written, where it does not fit."""
        view = self.view(pointer, len(data))
        if view is None:
            return False
        view[:] = data
        return True

    def memory(self) -> memoryview:
        """All of the linear memory; valid until the guest runs again or is closed."""
        return self.linear.view

    def written(self) -> int:
        """Bytes of memory that this guest has for itself: pages it has written, or all where that cannot be told."""
        memory = self.linear
        if memory.image is None or not memory.image.mapped:
            return memory.size
        return PAGE * sum(count for _, count in memory.image.written(memory.base, memory.size))

    def globals(self) -> list[tuple[int, bytes]]:
        """The mutable globals in the module's order: (value kind, value bytes)."""
        self._require()
        values = []
        value = capi.Value()
        for kind, export in self._globals:
            capi.global_get(self._context, addressof(export.of.global_), addressof(value))
            # Beyond the value's own width the union holds garbage.
            values.append((kind, ctypes.string_at(addressof(value) + 8, _WIDTHS[kind])))
        return values

    def set_global(self, place: int, number: int) -> None:
        """Set the mutable i32 global at `place` in the module's order, also while the guest is parked."""
        self._require()
        kind, export = self._globals[place]
        value = capi.Value()
        value.kind, value.of.i32 = ctypes.c_uint8(kind), ctypes.c_int32(number).value
        error = capi.global_set(self._context, addressof(export.of.global_), addressof(value))
        assert not error, capi.error_text(error)

    @property
    def stack(self) -> int:
        """Bytes that its calls may nest."""
        return self._limits.stack

    def restore(self, image: Image, values: Sequence[tuple[int, bytes]], *, keep: int | None = None) -> None:
        """Make memory and globals what they were; the global at place `keep` keeps its present value.

        Raises:
            GuestLimitError: The memory is larger than the instance may have now.
        """
        if image.size > self._limits.memory:
            message = (
                f"the snapshot holds {image.size:,} bytes of memory and the instance may have {self._limits.memory:,}; "
                f"raise the limit and unblock"
            )
            raise GuestLimitError(message, "memory")
        memory = self.linear
        if image.size > memory.size:
            before = ctypes.c_uint64()
            pages = (image.size - memory.size) // _WASM_PAGE
            current.guest = self
            error = capi.memory_grow(self._context, self._memory_address, pages, byref(before))
            if error:
                why = capi.error_text(error)
                if memory.refused:
                    message = (
                        f"this machine refuses the {memory.wanted:,} bytes of memory that the snapshot holds "
                        f"({memory.refused}); free some and unblock"
                    )
                    raise GuestLimitError(message)
                message = f"the snapshot's memory does not fit its module: {why}; restore a backup"
                raise InvalidModuleError(message)
        self.lay(image)
        value = capi.Value()
        at = addressof(value) + 8
        for place, ((kind, data), (_, export)) in enumerate(zip(values, self._globals, strict=True)):
            if place == keep:
                continue
            value.kind = ctypes.c_uint8(kind)
            ctypes.memmove(at, data.ljust(16, b"\0"), 16)
            error = capi.global_set(self._context, addressof(export.of.global_), addressof(value))
            assert not error, capi.error_text(error)

    def lay(self, image: Image) -> None:
        """Lay an image under the memory, which is at least as large."""
        self.linear.lay(image)

    def close(self) -> None:
        """Drop the guest, parked or not. Its views become invalid."""
        if self._future is not None:
            capi.future_delete(self._future)
            self._future = None
        if self._store is not None:
            capi.store_delete(self._store)
            self._store = None
        self._slot = 0  # it lay in what is freed now, and an answer that comes all the same must be written nowhere
        self.linear.close()
