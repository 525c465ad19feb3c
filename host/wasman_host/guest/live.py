"""One live guest: enter it, park it, wake it, read and restore its memory.

A guest is driven by its instance's task: `enter`, then `resume` until it has ended; whenever it is parked, `answer` it.
Nothing here waits, and nothing here is thread-safe: a guest belongs to the thread that made it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from ctypes import addressof, byref
from typing import TYPE_CHECKING

from attrs import frozen

from wasman_host.errors import GuestLimitError, InvalidModuleError
from wasman_host.guest import capi
from wasman_host.guest.engine import engine, ticker
from wasman_host.guest.imports import Request, StopGuest, current

if TYPE_CHECKING:
    from wasman_host.guest.module import GuestModule
    from wasman_host.guest.world import World

__all__ = ["Ended", "Guest", "Parked", "Trapped", "Yielded"]

_WASM_PAGE = 65536
_KINDS = {"i32": 0, "i64": 1, "f32": 2, "f64": 3, "v128": 4}
_WIDTHS = {0: 4, 1: 8, 2: 4, 3: 8, 4: 16}
_STACK_OVERFLOW = 0
_UNREACHABLE = 9


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
        limit: Which limit of the instance it ran into, or "" for a fault of its own.
    """

    message: str
    backtrace: str
    limit: str


class Guest:
    """One instance of a module in a store of its own.

    Attributes:
        world: What WASI shows it: clock, random, output.
        request: What it is parked for, or None.
        stopping: What a host function raised; the guest was stopped for it.
    """

    def __init__(self, module: GuestModule, world: World, memory_limit: int) -> None:
        """Instantiate `module`; no code of it runs.

        Raises:
            GuestLimitError: Its initial memory is larger than `memory_limit` bytes.
        """
        self.module = module
        self.world = world
        self.request: Request | None = None
        self.stopping: BaseException | None = None
        self._limit = memory_limit
        self._future: int | None = None
        self._answer: int | None = None
        self._slot = self._slot_kind = 0
        self._spent = 0.0
        self._yielded = False
        self._trap, self._error = ctypes.c_void_p(), ctypes.c_void_p()
        self._store: int | None = capi.store_new(capi.address(engine()), None, None)
        capi.limit(self._store, memory_limit, 1_000_000, 1, 8, 1)
        self._context = capi.context_of(self._store)
        capi.set_epoch_deadline(self._context, 1)
        capi.yield_at_epoch(self._context, 1)
        self._instance = capi.Instance()
        future = capi.instantiate_async(
            capi.address(module.prepared),
            self._context,
            addressof(self._instance),
            addressof(self._trap),
            addressof(self._error),
        )
        current.guest = self
        done = capi.poll(future)
        assert done, "instantiation runs no code that could wait"
        capi.future_delete(future)
        problem = self._take_problem()
        if problem is not None:
            self.close()
            if "memory" in problem and "limit" in problem:
                pages = module.binary.memory[0] if module.binary.memory else 0
                message = (
                    f"the module wants {pages * _WASM_PAGE:,} bytes of memory to begin with and the instance may have "
                    f"{memory_limit:,}; raise the limit and unblock"
                )
                raise GuestLimitError(message)
            raise InvalidModuleError(problem)
        self._memory = self._export("memory")
        self._globals = [(_KINDS[kind], self._export(name)) for name, kind in module.binary.globals]
        self._base = capi.memory_data(self._context, addressof(self._memory.of.memory))
        self._size = 0
        self._view = memoryview(b"")
        self._measure()

    def _export(self, name: str) -> capi.Extern:
        export, encoded = capi.Extern(), name.encode()
        found = capi.export_get(self._context, addressof(self._instance), encoded, len(encoded), addressof(export))
        assert found, f"the module exports {name}"
        return export

    # Entering

    def enter(self, name: str, args: Sequence[int] = ()) -> None:
        """Prepare a call of the exported function `name`; `resume` runs it."""
        assert self._future is None, "a guest runs one function at a time"
        kinds = [_KINDS[kind] for kind in self.module.exports[name].params]
        self._results_kinds = [_KINDS[kind] for kind in self.module.exports[name].results]
        self._function = self._export(name)
        self._args = (capi.Value * max(1, len(args)))()
        self._results = (capi.Value * max(1, len(self._results_kinds)))()
        for place, (kind, value) in enumerate(zip(kinds, args, strict=True)):
            self._args[place].kind = ctypes.c_uint8(kind)
            if kind == 0:
                self._args[place].of.i32 = ctypes.c_int32(value).value
            else:
                self._args[place].of.i64 = ctypes.c_int64(value).value
        self._future = capi.call_async(
            self._context,
            addressof(self._function.of.func),
            addressof(self._args),
            len(kinds),
            addressof(self._results),
            len(self._results_kinds),
            addressof(self._trap),
            addressof(self._error),
        )

    def resume(self) -> Parked | Yielded | Ended | Trapped:
        """Run the guest until it waits, yields or ends. Raises what a host function raised."""
        assert self._future is not None, "the guest was entered"
        current.guest = self
        inside = ticker().enter()
        if self._yielded:
            begin = time.thread_time()
        else:
            # Ticks that passed while the guest was parked are not its own: without this it would yield at once.
            begin = 0.0
            capi.set_epoch_deadline(self._context, 2)
        done = capi.poll(self._future)
        inside[0] = False
        if self._yielded:
            self._spent += time.thread_time() - begin
        if done:
            capi.future_delete(self._future)
            self._future = None
            return self._ended()
        if self.request is not None:
            self._spent, self._yielded = 0.0, False
            return Parked(self.request)
        self._yielded = True
        return Yielded(self._spent)

    def _ended(self) -> Ended | Trapped:
        stopping, self.stopping = self.stopping, None
        code = capi.trap_code(self._trap.value) if self._trap.value else None
        problem = self._take_problem()
        if isinstance(stopping, StopGuest):
            return Ended(code=stopping.code)
        if stopping is not None:
            raise stopping
        if problem is None:
            values = [
                self._results[place].of.i32 if kind == 0 else self._results[place].of.i64
                for place, kind in enumerate(self._results_kinds)
            ]
            return Ended(values)
        _, _, rest = problem.partition("wasm backtrace:")
        backtrace, _, cause = rest.partition("Caused by:")
        reason = (cause or problem).strip().splitlines()[-1].strip()
        limit = ""
        if code == _STACK_OVERFLOW:
            limit = "stack"
        elif code == _UNREACHABLE and self.near_memory_limit:
            limit = "memory"
        return Trapped(reason, backtrace.strip("\n").rstrip(), limit)

    @property
    def near_memory_limit(self) -> bool:
        """Whether doubling the memory would exceed its limit: what allocators try first, and then give up."""
        self._measure()
        return 2 * self._size > self._limit

    def _take_problem(self) -> str | None:
        if self._trap.value:
            trap, self._trap.value = self._trap.value, None
            return capi.trap_text(trap)
        if self._error.value:
            error, self._error.value = self._error.value, None
            return capi.error_text(error)
        return None

    # Parking: called by host functions while the guest is being polled

    def parking(self, slot: int | None, kind: int) -> None:
        """A host function that may wait was called; its result goes to `slot`."""
        self._slot, self._slot_kind, self._answer = slot or 0, kind, None

    def answer(self, value: int) -> None:
        """Give the host call that the guest waits in its result; the next `resume` goes on behind it."""
        self._answer = value

    def hand_over(self) -> bool:
        """Write the answer to where wasmtime wants it; False while there is none."""
        if self._answer is None:
            return False
        value, self._answer, self.request = self._answer, None, None
        if not self._slot:  # the function has no result
            return True
        ctypes.c_uint8.from_address(self._slot).value = self._slot_kind
        if self._slot_kind == 0:
            ctypes.c_int32.from_address(self._slot + 8).value = value
        else:
            ctypes.c_int64.from_address(self._slot + 8).value = value
        return True

    # Memory. Guest pointers are hostile: every one is checked against the memory's present size.

    def _measure(self) -> None:
        size = capi.memory_size(self._context, addressof(self._memory.of.memory))
        if size != self._size:
            self._size = size
            self._view = memoryview((ctypes.c_ubyte * size).from_address(self._base)).cast("B")

    def view(self, pointer: int, length: int) -> memoryview | None:
        """The guest's bytes themselves, or None where they are not all inside its memory.

        Valid until the guest runs again or is closed.
        """
        if pointer + length > self._size:
            self._measure()
            if pointer + length > self._size:
                return None
        return self._view[pointer : pointer + length]

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

    def memory(self) -> bytes:
        """All of the linear memory."""
        self._measure()
        return bytes(self._view)

    def globals(self) -> list[tuple[int, bytes]]:
        """The mutable globals in the module's order: (value kind, value bytes)."""
        values = []
        value = capi.Value()
        for kind, export in self._globals:
            capi.global_get(self._context, addressof(export.of.global_), addressof(value))
            # Beyond the value's own width the union holds garbage.
            values.append((kind, ctypes.string_at(addressof(value) + 8, _WIDTHS[kind])))
        return values

    def restore(
        self, memory: bytes | bytearray, values: Sequence[tuple[int, bytes]], *, keep: int | None = None
    ) -> None:
        """Make memory and globals what they were; the global at place `keep` keeps its present value.

        Raises:
            GuestLimitError: The memory is larger than the instance may have now.
        """
        self._measure()
        if len(memory) > self._size:
            before = ctypes.c_uint64()
            pages = (len(memory) - self._size) // _WASM_PAGE
            error = capi.memory_grow(self._context, addressof(self._memory.of.memory), pages, byref(before))
            if error:
                capi.error_text(error)
                message = (
                    f"the snapshot holds {len(memory):,} bytes of memory and the instance may have {self._limit:,}; "
                    f"raise the limit and unblock"
                )
                raise GuestLimitError(message)
            self._measure()
        self._view[: len(memory)] = memory
        value = capi.Value()
        for place, ((kind, data), (_, export)) in enumerate(zip(values, self._globals, strict=True)):
            if place == keep:
                continue
            value.kind = ctypes.c_uint8(kind)
            ctypes.memset(addressof(value) + 8, 0, 16)
            ctypes.memmove(addressof(value) + 8, data, len(data))
            error = capi.global_set(self._context, addressof(export.of.global_), addressof(value))
            assert not error, capi.error_text(error)

    def close(self) -> None:
        """Drop the guest, parked or not. Its views become invalid."""
        self._view = memoryview(b"")
        self._size = 0
        if self._future is not None:
            capi.future_delete(self._future)
            self._future = None
        if self._store is not None:
            capi.store_delete(self._store)
            self._store = None
