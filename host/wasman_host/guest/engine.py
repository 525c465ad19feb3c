"""The wasmtime engines of this process: settings that decide what a guest can do, and the ticker that makes it yield.

There is one engine for each depth that guests' calls may nest, because that is an engine's setting. What is compiled
does not depend on it.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from typing import TYPE_CHECKING

from attrs import frozen
from wasmtime import Config, Engine, _ffi

from wasman_host.guest import capi
from wasman_host.guest.limits import MAX_STACK, STACK, STACK_STEP
from wasman_host.guest.linear import provide

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SETTINGS", "TICK", "GuestEngine", "engine", "engine_of", "settings", "snapshot_engine", "ticker"]

SETTINGS = "1"  # kept in every record: raise it when a setting below changes what a guest can observe
_LINGERS = 100  # ticks without a guest until the ticker sleeps: waking it costs more than a restore
TICK = 0.01  # seconds between two epochs: how long a busy guest may keep the event loop
_ABOVE = 1536 * 1024  # bytes of the native stack beyond the guest's: for host functions

# Shared memory needs threads, threads race; the others are proposals whose state no snapshot holds.
_OFF = (
    "threads", "multi_memory", "memory64", "gc", "exceptions", "function_references", "stack_switching",
    "component_model",
    "wide_arithmetic", "custom_page_sizes", "component_model_async", "component_model_async_stackful",
    "component_model_more_async_builtins",
)  # fmt: skip
# A module that still validates without these cannot change its tables while it runs.
_OFF_FOR_SNAPSHOTS = ("reference_types", "tail_call", "relaxed_simd")


def _switches(features_off: tuple[str, ...]) -> Mapping[str, bool]:
    return {
        **{f"wasm_{name}": False for name in features_off},
        "epoch_interruption": True,
        "wasm_relaxed_simd_deterministic": True,
        "cranelift_nan_canonicalization": True,
        "memory_may_move": False,
        # Wasmtime would map data into a memory that it takes for one of its own, and ends the process over ours.
        "memory_init_cow": False,
        "shared_memory": False,
    }


def settings() -> Mapping[str, str | bool]:
    """All that compiled code depends on besides its module and wasmtime's version."""
    return {"settings": SETTINGS, **_switches(_OFF)}


def _config(features_off: tuple[str, ...], stack: int = STACK) -> Config:
    config = Config()
    for name, on in _switches(features_off).items():
        _set(config, name, on)
    _set_size(config, "max_wasm_stack", stack)
    _set_size(config, "async_stack_size", stack + _ABOVE)
    provide(config)
    return config


def _set(config: Config, name: str, on: bool) -> None:  # noqa: FBT001  the setter's own argument
    getattr(_ffi, f"wasmtime_config_{name}_set")(config.ptr(), on)


def _set_size(config: Config, name: str, size: int) -> None:
    getattr(_ffi, f"wasmtime_config_{name}_set")(config.ptr(), size)


@frozen(eq=False)
class GuestEngine:
    """An engine that guests run on, and its C address."""

    engine: Engine
    address: ctypes.c_void_p


_engines: dict[int, GuestEngine] = {}


def engine_of(stack: int) -> GuestEngine:
    """The engine for guests whose calls may nest `stack` bytes, rounded up to 64 KiB."""
    depth = min(max(-(-stack // STACK_STEP), 1) * STACK_STEP, MAX_STACK)
    found = _engines.get(depth)
    if found is None:
        made = Engine(_config(_OFF, depth))
        found = _engines.setdefault(depth, GuestEngine(made, capi.address(made)))
    return found


def engine() -> Engine:
    """The engine that modules are compiled by, and that most guests run on."""
    return engine_of(STACK).engine


@functools.cache
def snapshot_engine() -> Engine:
    """An engine that only validates: it refuses modules whose tables can change, which no snapshot would hold."""
    return Engine(_config(_OFF + _OFF_FOR_SNAPSHOTS))


class _Ticker:
    """Raises the engine's epoch every `TICK` seconds while guests run, and sleeps when none has for a while.

    Attributes:
        ticks: How often it has, or is about to.
    """

    def __init__(self) -> None:
        self.ticks = 0
        self._awake = threading.Event()
        self._entered = False
        self._threads: list[list[bool]] = []
        self._local = threading.local()
        threading.Thread(target=self._run, name="wasman epoch ticker", daemon=True).start()

    def enter(self) -> list[bool]:
        """A guest of this thread is about to run: until it has left, the first item of what this gives must be True."""
        inside: list[bool] | None = getattr(self._local, "inside", None)
        if inside is None:
            inside = self._local.inside = [False]
            self._threads.append(inside)
        inside[0] = self._entered = True
        if not self._awake.is_set():
            self._awake.set()
        return inside

    def _run(self) -> None:
        idle = 0
        while True:
            self._awake.wait()
            self._entered = False
            time.sleep(TICK)
            self.ticks += 1
            for one in list(_engines.values()):
                one.engine.increment_epoch()
            idle = 0 if self._running() else idle + 1
            if idle > _LINGERS:
                idle = 0  # it lingers anew, whenever it is woken
                self._awake.clear()
                if self._running():  # it was entered between the two lines above
                    self._awake.set()

    def _running(self) -> bool:
        return self._entered or any(inside[0] for inside in self._threads)


@functools.cache
def ticker() -> _Ticker:
    """The process-wide ticker."""
    return _Ticker()


assert capi.poll is not None  # importing the C API binds it; a wheel without it fails here and not in mid-run
