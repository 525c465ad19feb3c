"""Engines in several threads of one process."""

import ctypes
import mmap
import sys
import threading
import time
from typing import Any

import pytest

from wasman_host.guest import engine, memory, module
from wasman_host.guest.engine import engine_of
from wasman_host.guest.imports import linker_of
from wasman_host.guest.limits import STACK_STEP
from wasman_host.guest.memory import PAGE


def test_threads_that_compile_at_once_share_what_guests_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callbacks of a second linker were freed with it, and guests that were prepared by it called freed memory."""
    made: list[Any] = []

    def slowly(*given: Any) -> Any:
        made.append(linker_of(*given))
        time.sleep(0.05)
        return made[-1]

    monkeypatch.setattr(module, "linker_of", slowly)
    on = engine_of(37 * STACK_STEP)  # one that no other test has
    linkers: list[object] = []
    threads = [threading.Thread(target=lambda: linkers.append(module._linker(on))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert {id(linker) for linker in linkers} == {id(made[0][0])}


def test_the_ticker_lingers_after_each_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it had slept, it went to sleep again after one tick, and was woken for nearly every guest."""
    monkeypatch.setattr(engine, "_LINGERS", 5)
    clock = engine.ticker()

    def sleeps() -> None:
        until = time.monotonic() + 30
        while clock._awake.is_set():
            assert time.monotonic() < until, "it never sleeps"
            time.sleep(0.001)

    clock.enter()[0] = False
    for _ in range(2):
        sleeps()
        before = clock.ticks
        clock.enter()[0] = False
        sleeps()
        assert clock.ticks - before > 5


def test_threads_scan_their_own_memories() -> None:
    """What one thread asks the kernel of its guests is not mixed with what another one asks."""
    if not memory.maps():
        pytest.skip("memories are compared here, by no shared buffer")
    wrong: list[object] = []
    begin = threading.Barrier(3)

    def scan(step: int) -> None:
        image = memory.image_of(64 * PAGE, [])
        with mmap.mmap(-1, 64 * PAGE) as place:
            address = ctypes.addressof(first := ctypes.c_char.from_buffer(place))
            image.lay(address)
            for page in range(0, 64, step):
                place[page * PAGE] = 1
            right = [(page, 1) for page in range(0, 64, step)]
            begin.wait()
            wrong.extend(found for _ in range(2000) if (found := image.written(address, 64 * PAGE)) != right)
            del first

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=scan, args=(step,)) for step in (2, 3, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
