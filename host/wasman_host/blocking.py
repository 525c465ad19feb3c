"""The run of a guest of ABI v1 that waits with its stack standing: in the import `wait`, where it is parked.

What has happened is committed and kept for it until it takes it. Where its module was asyncified its stack is unwound
when it is to be kept, and built up again in the same `wait` (`guest.asyncify`). Else a run is taken up again by
repeating it: every `wait` is given what the log says that it was given.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
from pydantic_core import to_json
from typing_extensions import override

from wasman_host.guest import abi_v1
from wasman_host.guest.abi_v1 import CompleteCommand
from wasman_host.guest.imports import StopGuest
from wasman_host.guest.live import Ended
from wasman_host.turns import GuestEnded, Turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.guest.abi_v1 import Wait
    from wasman_host.oplog import Delivery

__all__ = ["Blocking"]

_POLITE = 64  # repeated waits between two turns of the event loop


class Blocking(Turns):
    """Lives one run of a guest of the blocking form."""

    __slots__ = ("_repeated", "_resumed", "_waiting")

    _in_turns = False
    _stuck = "its wait names no operation that is to be answered"

    @override
    async def run(self) -> None:
        problem: Exception | None = None
        self._repeated, self._waiting, self._resting = 0, False, True
        self._resumed = time.thread_time()  # when the guest went on
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                outcome = await self._instance.drive()
                if not isinstance(outcome, Ended) or outcome.code:
                    problem = GuestEnded(outcome)
            except Exception as error:  # noqa: BLE001  raised again outside of the task group, which would wrap it
                problem = error
            if problem is None or isinstance(problem, GuestEnded):
                # It cannot be kept any more: if its worker leaves now, the end comes first.
                self._instance.concludes()
                tasks.cancel_scope.shield = True
            tasks.cancel_scope.cancel()
        self._tasks = None
        if problem is None and self.operations.end is None:
            self.operations.end = CompleteCommand(b"null")  # it has returned, which is enough
        await self._settle(problem)

    @override
    def _take(self, commands: bytes | memoryview) -> None:
        super()._take(commands)
        if self.operations.end is not None:
            raise StopGuest(0)

    async def wait(self, wanted: Wait) -> int:
        """What the import gives: the place of an operation that was answered, or how many there are at the deadline."""
        if any(number >= self._machine.operations for number in wanted.operations):
            return abi_v1.UNKNOWN
        if wanted.deadline < 0 and wanted.operations and not self._answerable(wanted):
            return abi_v1.TAKEN
        self._spent += time.thread_time() - self._resumed
        self._waiting = True
        place = await self._waited(wanted)
        self._waiting = False  # where this task is stopped in between, the guest is parked all the same
        self._resumed = time.thread_time()
        return place

    async def _waited(self, wanted: Wait) -> int:
        operations, machine = self.operations, self._machine
        while (place := self._answered(wanted)) is None:
            entry = machine.next_entry()
            if entry is not None:
                deliveries: Sequence[Delivery] = [await self._loaded(delivery) for delivery in entry.deliveries]
                operations.answered(deliveries)
                self._repeated += 1
                if self._repeated % _POLITE == 0:
                    await anyio.lowlevel.checkpoint()
            else:
                # What came first while a deadline or a cancel was committed: the guest had to be told of that before.
                await self._instance.heed()
                if wanted.deadline < 0 and not wanted.operations and self._instance.cancel is None:
                    raise self._deadlock()  # others may be open, but no answer of theirs would end this wait
                operations.deadline = wanted.deadline
                if self._instance.keeps(self._turns, self._spent):
                    await self.keep()
                self._begin_calls(alone=False)
                deliveries = await self._committed(*await self._happened())
            self._keep_answers(deliveries)
            self._turns += 1
            self._resting = True
            kinds = {delivery.kind for delivery in deliveries}
            if "cancel" in kinds:
                return abi_v1.CANCELLED
            if "fired" in kinds and self._answered(wanted) is None:
                return len(wanted.operations)
            if not machine.replaying:
                await self._instance.heed()
        return place

    def _answerable(self, wanted: Wait) -> bool:
        return any(number in self.operations.open or number in self.exchange.untaken for number in wanted.operations)

    def _answered(self, wanted: Wait) -> int | None:
        untaken = self.exchange.untaken
        return next((place for place, number in enumerate(wanted.operations) if number in untaken), None)

    def _keep_answers(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.kind == "result":
                assert delivery.payload is not None, "a result has a payload"
                self.exchange.untaken[delivery.operation] = (delivery.payload.content, False)
            elif delivery.kind == "failed":
                failure = delivery.failure.as_json() if delivery.failure else None
                self.exchange.untaken[delivery.operation] = (to_json(failure), True)

    @property
    @override
    def _may_be_evicted(self) -> bool:
        # While a call is under way its guest stays: what it waits for would be called again.
        return not self._running

    @override
    async def keep(self) -> None:
        if not self._waiting or not self._resting:
            return
        self._waiting = False  # until its stack stands again
        await self._instance.keep_waiting({"turns": self.operations.state(self.exchange)}, self.commit)
        self._turns, self._spent, self._waiting = 0, 0.0, True
