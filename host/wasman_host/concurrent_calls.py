"""One of the calls of a run that makes several at the same time, or may."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from typing_extensions import override

from wasman_host.calls import Calls, Run
from wasman_host.options import Options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wasman_host.activity import ActivityDefinition
    from wasman_host.codec import PayloadCodec
    from wasman_host.events import EventKind
    from wasman_host.instance import Instance
    from wasman_host.machine import Machine, Proposal
    from wasman_host.operations import Asked
    from wasman_host.payload import Payload
    from wasman_host.record import Cancel
    from wasman_host.store.protocol import Key
    from wasman_host.turns import Turns

__all__ = ["ConcurrentCall"]


class ConcurrentCall(Run):
    """What `Calls` need of a run whose calls are made beside each other.

    Attributes:
        asked: The call that is made.
        calls: What makes it.
    """

    __slots__ = ("_instance", "_turns", "asked", "calls")

    def __init__(self, turns: Turns, instance: Instance) -> None:
        self._turns, self._instance = turns, instance
        self.calls = Calls(self)
        self.asked: Asked

    @property
    @override
    def key(self) -> Key:
        return self._instance.key

    @property
    @override
    def machine(self) -> Machine:
        return self._instance.machine

    @property
    @override
    def cancel(self) -> Cancel | None:
        return None  # the guest decides what a cancel means for its calls

    @property
    @override
    def codec(self) -> PayloadCodec | None:
        return self._instance.codec

    @property
    @override
    def reports(self) -> bool:
        return self._instance.reports

    @property
    @override
    def crowded(self) -> bool:
        return self._instance.crowded

    @override
    def concludes(self) -> None:
        self._instance.concludes()

    @property
    @override
    def is_written_beside(self) -> bool:
        return False  # all commits of the run go through `Turns.commit`, one after the other

    @override
    def report(
        self, kind: EventKind, level: int, text: str, *, activity: str = "", attempt: int = 0, reason: str = ""
    ) -> None:
        self._instance.report(kind, level, text, activity=activity, attempt=attempt, reason=reason)

    @override
    def activity(self, name: str) -> ActivityDefinition | None:
        definition = self._instance.activity(name)
        if definition is None or not self.asked.options:
            return definition
        return Options.read(self.asked.options).applied(definition)

    @override
    def now(self) -> int:
        return self._instance.now()

    @override
    def sleep_until(self, time: int) -> Awaitable[None]:
        return self._instance.sleep_until(time)

    @override
    def require_lease(self) -> None:
        self._instance.require_lease()

    @override
    async def commit(self, proposal: Proposal) -> None:
        await self._instance.commit(proposal)

    @override
    async def propose(self, make: Callable[[], Proposal | None]) -> None:
        # What the guest cancels must not leave a commit whose outcome nobody knows.
        with anyio.CancelScope(shield=True):
            await self._turns.commit(make)

    @override
    async def commit_beside(self, propose: Callable[[], Proposal]) -> bool:
        made = False

        def make() -> Proposal | None:
            # Others may have been written before: the call may be over by now, and the instance somebody else's.
            nonlocal made
            made = self._turns.makes(self.asked.number)
            return propose() if made else None

        await self.propose(make)
        return made

    @override
    async def settled(self) -> None:
        return

    @override
    def soon(self, callback: Callable[[], None]) -> None:
        self._instance.soon(callback)

    @override
    def beside(self, work: Callable[[], Awaitable[None]]) -> None:
        self._instance.beside(work)

    @override
    async def loaded(self, payload: Payload) -> Payload:
        return await self._instance.loaded(payload)

    @override
    def waiting(self, *, until: int | None) -> None:
        """The run's own task says for what it waits."""

    @override
    def resumed(self) -> None:
        """The run's own task gives the answer to the guest."""
