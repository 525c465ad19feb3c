"""Room for attempts: how many of an activity, and of a worker, run at once, and how fast they begin.

Whoever has to wait waits in one line an activity, first come, first served. Only the head of a line waits for its
activity's rate and then for the worker's room, so a slow activity keeps no room from others.
"""

from __future__ import annotations

import anyio

__all__ = ["Slots"]


class Slots:
    """Room for the attempts of one activity in one worker."""

    def __init__(
        self, at_once: int | None = None, per_second: float | None = None, worker: anyio.Semaphore | None = None
    ) -> None:
        """Nothing runs yet.

        Args:
            at_once: How many attempts run at once.
            per_second: How many begin in a second, evenly spaced.
            worker: The room that all activities of the worker share.
        """
        self._own = None if at_once is None else anyio.Semaphore(at_once)
        self._worker = worker
        self._interval = 0.0 if per_second is None else 1 / per_second
        self._next = float("-inf")  # when the next attempt may begin, by the event loop's clock
        self._line = anyio.Lock()

    def take(self) -> bool:
        """Take room if there is some and nobody waits for it; `release` gives it back."""
        if self._line.locked() or (self._interval and anyio.current_time() < self._next):
            return False
        if not _taken(self._own):
            return False
        if not _taken(self._worker):
            if self._own is not None:
                self._own.release()
            return False
        self._began()
        return True

    async def wait(self) -> None:
        """Wait for room and take it; `release` gives it back."""
        async with self._line:
            if self._own is not None:
                await self._own.acquire()
            try:
                if self._interval:
                    await anyio.sleep(max(0.0, self._next - anyio.current_time()))
                if self._worker is not None:
                    await self._worker.acquire()
            except BaseException:
                if self._own is not None:
                    self._own.release()
                raise
            self._began()

    def _began(self) -> None:
        if self._interval:
            self._next = anyio.current_time() + self._interval

    def release(self) -> None:
        """An attempt has ended."""
        for semaphore in (self._worker, self._own):
            if semaphore is not None:
                semaphore.release()


def _taken(semaphore: anyio.Semaphore | None) -> bool:
    if semaphore is None:
        return True
    try:
        semaphore.acquire_nowait()
    except anyio.WouldBlock:
        return False
    return True
