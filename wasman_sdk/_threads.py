"""Threads for sync activities: a bounded number of them, those included that nobody waits for any more."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from wasman_host.wake import poster

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Threads"]

T = TypeVar("T")


class Threads:
    """The threads of one worker. A call that is given up keeps its place until its thread has ended.

    anyio's limiters give the place back at once, on asyncio; a worker whose sync activities time out while they hang
    would have more and more threads.
    """

    def __init__(self, most: int) -> None:
        """None is started yet; at most `most` run at once."""
        self._places = anyio.CapacityLimiter(most)
        self._any = anyio.CapacityLimiter(math.inf)

    async def run(self, function: Callable[[], T]) -> T:
        """What `function` gives in a thread. Where this is cancelled, the thread goes on by itself."""
        place, call = object(), _Call()
        await self._places.acquire_on_behalf_of(place)
        post = poster()

        def work() -> T:
            if not call.begins():
                raise InterruptedError  # nobody hears it
            try:
                return function()
            finally:
                if call.ends():
                    post(lambda: self._places.release_on_behalf_of(place))

        try:
            return await anyio.to_thread.run_sync(work, limiter=self._any, abandon_on_cancel=True)
        finally:
            if call.left():
                self._places.release_on_behalf_of(place)


class _Call:
    """One call between its thread and its task: who leaves last gives the place back."""

    __slots__ = ("_began", "_deciding", "_ended", "_left")

    def __init__(self) -> None:
        self._deciding = threading.Lock()
        self._began = self._ended = self._left = False

    def begins(self) -> bool:
        """The thread begins, unless nobody waits for it any more."""
        with self._deciding:
            self._began = not self._left
            return self._began

    def ends(self) -> bool:
        """The thread has ended; whether the place is to be given back there."""
        with self._deciding:
            self._ended = True
            return self._left

    def left(self) -> bool:
        """The task waits no more; whether the place is to be given back there."""
        with self._deciding:
            self._left = True
            return self._ended or not self._began
