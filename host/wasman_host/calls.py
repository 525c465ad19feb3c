"""A guest's calls of activities: attempts, backoffs, and what is committed of them.

An answer is durable before the guest gets it. A failed attempt and its backoff are committed, and so is the begin of
the next attempt, so that attempts are counted over crashes; a first attempt costs no commit of its own.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel

from wasman_host.activity import ActivityCall, failure_of
from wasman_host.errors import ApplicationError, Failure, GuestLimitError
from wasman_host.guest import abi_v0
from wasman_host.oplog import Delivery
from wasman_host.payload import Payload

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable

    from wasman_host.activity import ActivityDefinition
    from wasman_host.guest.live import Guest
    from wasman_host.machine import Machine, Proposal
    from wasman_host.store.protocol import Key

__all__ = ["Calls", "GivenUp", "Run"]

_POLITE = 64  # replayed answers between two turns of the event loop
_UNREGISTERED = 5.0  # seconds until somebody looks again whether an activity is registered


class GivenUp(Exception):  # noqa: N818  not an error: the guest needs no more driving
    """The run was closed, or the instance released, in the middle of a host call."""


class Run(Protocol):
    """What calls need of the instance that makes them."""

    key: Key
    machine: Machine

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """Where it says what happens to it."""

    def activity(self, name: str) -> ActivityDefinition | None:
        """What answers calls of `name`, or None."""

    def now(self) -> int:
        """The store's time, in ns since 1970."""

    def sleep_until(self, time: int) -> Awaitable[None]:
        """Wait until then by the store's clock."""

    def require_lease(self) -> None:
        """Raise `ConcurrentExecutionError` unless this worker may act."""

    async def commit(self, proposal: Proposal) -> None:
        """Make it durable, then true."""

    async def loaded(self, payload: Payload) -> Payload:
        """The payload with its bytes."""

    def waiting(self, *, until: int | None) -> None:
        """The guest waits for an activity (None), or for a time that is known: its memory may be given up meanwhile."""

    def resumed(self) -> None:
        """It is about to be answered; raises `Evicted` where its memory was given up."""


class Calls:
    """Answers one guest's `host_call_api` where it names an activity."""

    __slots__ = ("_repeated", "_run")

    def __init__(self, run: Run) -> None:
        self._run = run
        self._repeated = 0

    async def answer(self, guest: Guest, call: abi_v0.Call) -> int:
        """What the call returns: the response's length, -1 for a failure, -2 for a response larger than its place."""
        run = self._run
        machine = run.machine
        request = hashlib.sha256(call.request).hexdigest()
        kept = machine.kept_for(call.name, request) if machine.kept is not None else None
        if kept is not None:
            taken = respond(guest, call, kept.content)
            if taken >= 0:
                machine.took()
            return taken
        number = machine.issue("call", call.name, request)
        delivery = await self.replayed(number) if machine.replaying else None
        if delivery is None:
            self._check(call)
            delivery = await self._perform(number, call)
            await run.commit(machine.answered((delivery,), run.now()))
            run.resumed()
        if delivery.payload is None:
            return abi_v0.FAILED
        payload = delivery.payload if delivery.payload.data is not None else await run.loaded(delivery.payload)
        answer = respond(guest, call, payload.content)
        if answer == abi_v0.TOO_LARGE:
            machine.keep(number, call.name, request, payload)
        return answer

    def _check(self, call: abi_v0.Call) -> None:
        """Before anything is done for it: a call that the instance may not make, or has no room to log."""
        machine = self._run.machine
        limits = machine.pinned.limits
        if len(call.request) > limits.request:
            message = (
                f"the guest of {self._run.key} sends activity {call.name!r} a request of {len(call.request):,} bytes "
                f"and may send {limits.request:,}; raise the limit and unblock, or terminate it"
            )
            raise GuestLimitError(message, "request")
        self.check_room()

    def check_room(self) -> None:
        """Before an operation is logged. Raises `GuestLimitError` where the instance has stored what it may."""
        machine = self._run.machine
        allowed = machine.pinned.limits.stored
        if machine.tail.stored > allowed:
            message = (
                f"{self._run.key} has {machine.tail.stored:,} bytes stored and may have {allowed:,}; raise the limit "
                f"and unblock, or terminate it"
            )
            raise GuestLimitError(message, "stored")

    async def replayed(self, number: int) -> Delivery | None:
        """The logged answer to operation `number`, if there is one."""
        delivery = self._run.machine.replayed(number)
        if delivery is not None:
            self._repeated += 1
            if self._repeated % _POLITE == 0:
                await anyio.lowlevel.checkpoint()
        return delivery

    async def _perform(self, number: int, call: abi_v0.Call) -> Delivery:
        """Call the activity until it succeeds, fails for good, or runs out of attempts."""
        run, machine = self._run, self._run.machine
        definition = run.activity(call.name)
        if definition is None:
            reason = f"activity {call.name!r} is registered with no worker that has seen it; start one that has it"
            run.log.warning("%s waits: %s", run.key, reason)
            await run.commit(machine.waits(number, call.name, reason, run.now() + int(_UNREGISTERED * 1e9)))
            raise GivenUp
        retry = definition.retry
        attempt = machine.attempts(number) + 1
        known = machine.open_operation(number)
        failure = known.failure if known else None
        while True:
            if known is not None and known.retry_at is not None:
                run.waiting(until=known.retry_at)
                await run.sleep_until(known.retry_at)
            if retry.maximum_attempts and attempt > retry.maximum_attempts:
                message = f"activity {call.name!r} began {attempt - 1} times and no worker survived to tell"
                return Delivery(
                    "failed", number, failure=failure or Failure("WorkerDied", message, None, call.name, attempt - 1)
                )
            if known is not None:
                await run.commit(machine.begun(number, attempt))
            run.require_lease()
            run.waiting(until=None)
            try:
                response = await self._attempt(definition, number, attempt, call)
            except Exception as error:  # noqa: BLE001  whatever an activity raises is its failure
                failure, non_retryable = failure_of(error, call.name, attempt)
                run.log.warning(
                    "attempt %d of activity %r failed: %s: %s", attempt, call.name, failure.type, failure.message
                )
            else:
                self._check_response(call, response)
                return Delivery("result", number, Payload.of(response))
            if not retry.retries(failure, attempt, non_retryable=non_retryable):
                return Delivery("failed", number, failure=failure)
            retry_at = run.now() + int(retry.delay(attempt) * 1e9)
            await run.commit(machine.backoff(number, call.name, failure, retry_at))
            known = machine.open_operation(number)
            attempt += 1

    def _check_response(self, call: abi_v0.Call, response: bytes) -> None:
        limit = self._run.machine.pinned.limits.response
        if len(response) > limit:
            message = (
                f"activity {call.name!r} returned {len(response):,} bytes and the guest of {self._run.key} may be "
                f"given {limit:,}; raise the limit and unblock: it will be called again, under the same key"
            )
            raise GuestLimitError(message, "response")

    def _attempt(
        self, definition: ActivityDefinition, number: int, attempt: int, call: abi_v0.Call
    ) -> Awaitable[bytes]:
        run, machine = self._run, self._run.machine
        given = ActivityCall(
            run.key,
            machine.run,
            machine.pinned.workflow,
            number,
            call.name,
            attempt,
            call.request,
            machine.session,
            run.now(),
        )
        # Without a frame of its own where there is no timeout: thousands of instances may wait here.
        return definition.handler(given) if definition.timeout is None else _within(definition, given)


async def _within(definition: ActivityDefinition, given: ActivityCall) -> bytes:
    with anyio.move_on_after(definition.timeout):
        return await definition.handler(given)
    message = f"activity {given.name!r} did not end within {definition.timeout:g} s"
    raise ApplicationError(message, type="StartToCloseTimeout")


def respond(guest: Guest, call: abi_v0.Call, data: bytes) -> int:
    """Write a response to its place; its length, or -2 where it does not fit."""
    if len(data) > call.capacity:
        return abi_v0.TOO_LARGE
    # The place was inside memory when the guest asked, and memory never shrinks.
    written = guest.write(call.response, data)
    assert written, "memory never shrinks"
    return len(data)
