"""Wake-ups on the path of every step: the one file of the host that knows asyncio and trio.

anyio's events and task wake-ups cost a quarter of the throughput of a durable call, so the three things that happen
once a step are done on the event loop's own primitives here. Everything else in wasman is anyio.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import sys
import threading
import time
import types
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import sniffio

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Answer", "call_later", "call_soon", "keeps_order", "others_wait", "poster", "turn"]

T = TypeVar("T")

_PARTS = ("_ready", "_scheduled", "_selector")  # of asyncio's own loop, in all versions of Python that there are


class _Running(threading.local):
    """The event loop that this thread was last seen to run, and whether it shows who waits for it."""

    loop: asyncio.AbstractEventLoop | None = None
    shows: bool = False


_running = _Running()
os.register_at_fork(after_in_child=lambda: setattr(_running, "loop", None))


def _loop() -> asyncio.AbstractEventLoop:
    """The running event loop. Python 3.11 asks the kernel for the process's id each time that it is asked for it."""
    loop = _running.loop
    if loop is None or not loop.is_running():
        loop = _running.loop = asyncio.get_running_loop()
        _running.shows = type(loop) is asyncio.SelectorEventLoop and all(hasattr(loop, part) for part in _PARTS)
    return loop


def _on_trio() -> bool:
    # trio cannot be the running library unless somebody imported it; looking there first keeps asyncio's path short.
    if "trio" not in sys.modules:
        return False
    try:
        return sniffio.current_async_library() == "trio"
    except sniffio.AsyncLibraryNotFoundError:  # a callback of asyncio's loop, where there is no task to tell by
        return False


class Answer(Generic[T]):
    """One value, or one exception, for one task that waits for it, set on the thread of its event loop."""

    __slots__ = ("_future", "_outcome")

    def __init__(self) -> None:
        self._outcome: tuple[T | None, BaseException | None] | None = None
        if _on_trio():
            import trio  # noqa: PLC0415  trio is optional; only a program that runs on it has it

            self._future: asyncio.Future[None] | trio.Event = trio.Event()
        else:
            self._future = _loop().create_future()

    def set(self, value: T) -> None:
        """Give the value; later settings are ignored."""
        self._settle((value, None))

    def fail(self, error: BaseException) -> None:
        """Give an exception instead; later settings are ignored."""
        self._settle((None, error))

    def _settle(self, outcome: tuple[T | None, BaseException | None]) -> None:
        if self._outcome is not None:
            return
        self._outcome = outcome
        if isinstance(self._future, asyncio.Future):
            if not self._future.done():  # the waiting task may have been cancelled
                self._future.set_result(None)
        else:
            self._future.set()

    @property
    def settled(self) -> bool:
        """Whether a value or an exception was given."""
        return self._outcome is not None

    async def wait(self) -> T:
        """The value, as soon as it is there; raises the exception if one was given."""
        if self._outcome is None:
            if isinstance(self._future, asyncio.Future):
                await self._future
            else:
                await self._future.wait()
        assert self._outcome is not None
        value, error = self._outcome
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # T may be None itself

    async def within(self, seconds: float) -> None:
        """Wait until something was given, at most so long; what was given is left to `wait`."""
        if self._outcome is not None:
            return
        if isinstance(self._future, asyncio.Future):
            # A timer of the loop costs a third of a cancel scope.
            timer = _loop().call_later(seconds, self._over, self._future)
            try:
                await self._future
            finally:
                timer.cancel()
        else:
            with anyio.move_on_after(seconds):
                await self._future.wait()

    @staticmethod
    def _over(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)


@types.coroutine
def turn() -> Generator[Any, Any, None]:
    """Let every other task that can go on do so first. A cancellation may be felt meanwhile."""
    if _on_trio():
        import trio  # noqa: PLC0415  see Answer

        yield from trio.lowlevel.checkpoint().__await__()  # noqa: ASYNC105  this is how a generator awaits it
    else:
        yield


def others_wait() -> bool:
    """Whether anything but the running task could go on now: a callback, a timer that is due, a file that is ready.

    A turn of asyncio's loop in which there is nothing to do takes 20 us in the middle of other work, and this look at
    what such a turn begins with less than half of it. The look is at private parts of that loop: with any other one, or
    trio, it cannot be told, and True is said. So it is in debug mode, where asyncio complains of tasks without turns.
    """
    if _on_trio():
        return True
    loop: Any = _loop()
    if not _running.shows or loop.get_debug():
        return True
    # A file that is ready is still so in the turn that follows: the selector tells what is, not what has changed.
    if loop._ready or loop._selector.select(0):  # noqa: SLF001  see above
        return True
    timers = loop._scheduled  # noqa: SLF001
    return bool(timers) and timers[0].when() <= time.monotonic()


def poster() -> Callable[[Callable[[], object]], None]:
    """What lets the running event loop call something soon, from any thread, without waiting for it.

    Once the loop has ended, what it is given is dropped.
    """
    if _on_trio():
        import trio  # noqa: PLC0415  see Answer

        schedule: Callable[[Callable[[], object]], object] = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        # In the context of this thread: in that of a worker thread there is, for anyio, no event loop.
        context = contextvars.copy_context()
        schedule = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, context=context)

    def post(callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):
            schedule(callback)

    return post


def call_soon(callback: Callable[[], None]) -> None:
    """Run `callback` in the next turn of the running event loop."""
    if _on_trio():
        import trio  # noqa: PLC0415  see Answer

        trio.lowlevel.current_trio_token().run_sync_soon(callback)
    else:
        _loop().call_soon(callback)


def keeps_order() -> bool:
    """Whether what is called soon is called before all that is woken after that. Not on trio, which shuffles."""
    return not _on_trio()


def call_later(seconds: float, callback: Callable[[], None]) -> None:
    """Run `callback` on the running event loop after `seconds`."""
    if _on_trio():
        import trio  # noqa: PLC0415  see Answer

        async def wait() -> None:
            await trio.sleep(seconds)
            callback()

        trio.lowlevel.spawn_system_task(wait)
    else:
        _loop().call_later(seconds, callback)
