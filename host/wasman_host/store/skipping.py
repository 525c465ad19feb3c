"""A store in memory whose clock stands still, and jumps to the next time that somebody waits for.

Its clock shows a time that is given to it and moves by jumps only, each to the earliest time that an instance waits
for: a timer, a retry, a start that is delayed, an execution timeout. So two runs of one program see the same times, and
what waits for different times happens in order. Two things make it jump:

    skipped   somebody waits for an instance (`watch`), or for a time (`sleep`), and nothing is under way:
              every worker waits for something to claim, there is nothing to claim, and every instance that a worker
              has does nothing but wait for a time
    passed    as much time has gone by, as elsewhere: a program that waits for something else is not stuck

Leases are measured by the world's clock: a worker does not lose its instances by a jump.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint
from attrs import define
from typing_extensions import override

from wasman_host.store.memory import MemoryStore
from wasman_host.store.protocol import OPEN, Key, Status
from wasman_host.store.rules import claimable
from wasman_host.store.watchers import Watchers
from wasman_host.wake import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from wasman_host.store.protocol import Change, Claim, Lost, Message, Sent, Step, Stored, Unread, Won

__all__ = ["SkippingStore"]

_TURNS = 20  # of the event loop without anything happening, until the clock jumps: what is woken may take some to act
_TIMED = frozenset({Status.RUNNING, Status.WAITING, Status.PUBLISHING})


@define(eq=False)
class _Sleeper:
    """Who waits for a time, on behalf of an instance if there is a key."""

    due: int
    key: Key | None
    answer: Answer[None]


class _Hints(Watchers):
    """Tells the store of what workers should look at."""

    def __init__(self, claimable: Callable[[], None]) -> None:
        super().__init__()
        self._claimable = claimable

    @override
    def hint(self, keys: Iterable[Key], *, claimable: bool) -> None:
        super().hint(keys, claimable=claimable)
        if claimable:
            self._claimable()


class SkippingStore(MemoryStore):
    """See above.

    Args:
        start: What its clock shows at first, ns since 1970.

    Attributes:
        skips: Whether time is skipped while somebody waits for an instance; `sleep` skips all the same.
        activities: How many activities are under way; counted by whoever calls them.
    """

    def __init__(self, start: int) -> None:
        self._time = start
        super().__init__(clock=lambda: self._time, lease_clock=time.monotonic_ns)
        self.skips = True
        self.activities = 0
        self._begun = start
        self._sleepers: list[_Sleeper] = []
        self._queues: dict[str, frozenset[str]] = {}  # that each worker claims from
        self._watching = 0  # for instances
        self._looking: list[Answer[None]] = []  # workers that wait for something to claim
        self._moved: Answer[None] | None = None
        self._starts: dict[Key, int] = {}
        self._ahead: int | None
        self._since, self._ahead = _seconds(), start
        self._watchers = _Hints(self._wake_workers)

    # -- what instances and people wait for ---------------------------------------------------------------------------

    @override
    async def sleep_until(self, time: int, key: Key | None) -> None:
        """Wait until the clock shows `time`, for an instance, or for a person (None), for whom time is skipped."""
        if time <= self._time:
            await checkpoint()
            return
        sleeper = _Sleeper(time, key, Answer())
        self._sleepers.append(sleeper)
        self._something()
        try:
            await sleeper.answer.wait()
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
                self._something()

    @override
    def new_run(self, key: Key) -> str:
        """The same at every run of the same program, so that what a guest draws from its random stream is the same."""
        self._starts[key] = started = self._starts.get(key, 0) + 1
        return hashlib.sha256(f"{self._begun} {key.tenant} {key.id} {started}".encode()).hexdigest()[:32]

    @override
    async def watch(self, key: Key | None, timeout: float) -> None:
        if key is None:
            await self._look(timeout)
            return
        self._watching += 1
        self._something()
        try:
            await super().watch(key, timeout)
        finally:
            self._watching -= 1

    async def _look(self, timeout: float) -> None:
        """A worker has looked at everything, and waits until it should look again."""
        answer: Answer[None] = Answer()
        self._looking.append(answer)
        self._something()
        try:
            with anyio.move_on_after(timeout):
                await answer.wait()
        finally:
            if answer in self._looking:
                self._looking.remove(answer)
                self._something()

    def wake_watchers(self) -> None:
        """Let everybody who waits for an instance look at it again."""
        self._watchers.hint(self._watchers.keys, claimable=False)

    def _wake_workers(self) -> None:
        looking, self._looking = self._looking, []
        for answer in looking:
            answer.set(None)

    # -- what happens -------------------------------------------------------------------------------------------------

    def _something(self) -> None:
        """Something has changed that the clock may depend on."""
        if self._moved is not None:
            self._moved.set(None)

    @override
    async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        try:
            return await super().commit(changes)
        finally:
            self._something()

    @override
    async def send(self, message: Message) -> Sent:
        try:
            return await super().send(message)
        finally:
            self._something()

    @override
    async def claim(self, worker: str, queues: Sequence[str], limit: int) -> list[Claim]:
        self._queues[worker] = frozenset(queues)
        return await super().claim(worker, queues, limit)

    @override
    async def leave(self, worker: str) -> None:
        self._queues.pop(worker, None)
        await super().leave(worker)
        self._something()

    def current(self, key: Key) -> Stored | None:
        """The instance, at once; None also where only other rows of it are there."""
        instance = self._instances.get(key)
        return None if instance is None else instance.stored

    def bury(self, worker: str) -> None:
        """The worker has died: what it has may be taken over at once."""
        self._queues.pop(worker, None)
        self._leases.pop(worker, None)
        self._wake_workers()

    # -- the clock ----------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Run until cancelled: this is what moves the clock."""
        while True:
            moved: Answer[None] = Answer()
            self._moved = moved
            due = self._next()
            if due != self._ahead:  # what is nearest now has not been waited for yet
                self._ahead, self._since = due, _seconds()
            if due is None:
                await moved.wait()
            elif self._wanted() and self._is_quiet():
                if await self._stays_quiet(moved):
                    self._jump(due)
            elif (left := self._left(due)) <= 0:
                self._jump(due)
            else:
                with anyio.move_on_after(left):
                    await moved.wait()

    def _due(self) -> Iterator[int]:
        """All the times that somebody waits for."""
        yield from (sleeper.due for sleeper in self._sleepers)
        for stored in self._open():
            columns = stored.columns
            if columns.expires is not None:
                yield columns.expires
            if columns.owner is None and columns.wake is not None and columns.status in _TIMED:
                yield columns.wake

    def _open(self) -> Iterator[Stored]:
        for instance in self._instances.values():
            stored = instance.stored
            if stored is not None and stored.columns.workflow and stored.columns.status in OPEN:
                yield stored

    def _next(self) -> int | None:
        return min((due for due in self._due() if due > self._time), default=None)

    def _wanted(self) -> bool:
        """Whether somebody waits for time to be skipped."""
        return (self.skips and self._watching > 0) or any(sleeper.key is None for sleeper in self._sleepers)

    def _is_quiet(self) -> bool:
        """Whether nothing is under way."""
        workers = [worker for worker in self._leases if self._is_alive(worker)]
        if self.activities or len(self._looking) < len(workers):
            return False
        asleep = {sleeper.key for sleeper in self._sleepers}
        served = frozenset[str]().union(*(self._queues.get(worker, ()) for worker in workers))
        for stored in self._open():
            columns = stored.columns
            if columns.owner in workers:
                late = columns.expires is not None and columns.expires <= self._time
                if late or stored.key not in asleep:
                    return False
            elif columns.queue in served and claimable(columns, stored.mail, self._time, owner_dead=True):
                return False
        return True

    async def _stays_quiet(self, moved: Answer[None]) -> bool:
        for _ in range(_TURNS):
            await checkpoint()
            if moved.settled:
                return False
        return self._is_quiet()

    def _left(self, due: int) -> float:
        """Seconds until as much time has passed as `due` is away."""
        return (due - self._time) / 1e9 - (_seconds() - self._since)

    def _jump(self, due: int) -> None:
        self._time, self._since = due, _seconds()
        for sleeper in [sleeper for sleeper in self._sleepers if sleeper.due <= due]:
            self._sleepers.remove(sleeper)
            sleeper.answer.set(None)
        self._wake_workers()


def _seconds() -> float:
    return time.monotonic()
