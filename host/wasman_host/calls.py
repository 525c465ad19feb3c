"""A guest's calls of activities: attempts, backoffs, and what is committed of them.

An answer is durable before the guest gets it. A failed attempt and its backoff are committed, and so is the begin of
the next attempt, so that attempts are counted over crashes; a first attempt costs no commit of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Protocol

import anyio
import anyio.lowlevel
from attrs import evolve

from wasman_host.activity import ActivityCall, failed_by
from wasman_host.codec import encoded_delivery
from wasman_host.errors import ApplicationError, Failure, GuestLimitError
from wasman_host.guest import abi_v0
from wasman_host.oplog import Delivery
from wasman_host.payload import Payload
from wasman_host.record import OpenOperation
from wasman_host.wake import turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wasman_host.activity import ActivityDefinition, Failed
    from wasman_host.codec import PayloadCodec
    from wasman_host.events import EventKind
    from wasman_host.guest.live import Guest
    from wasman_host.machine import Machine, Proposal
    from wasman_host.record import Cancel
    from wasman_host.store.protocol import Key

__all__ = ["Calls", "GivenUp", "Run"]

_POLITE = 64  # replayed answers between two turns of the event loop
_UNREGISTERED = 5.0  # seconds until somebody looks again whether an activity is registered
_KEPT = 1.0  # seconds between two commits of what an attempt's heartbeats say


class GivenUp(Exception):  # noqa: N818  not an error: the guest needs no more driving
    """The run was closed, or the instance released, in the middle of a host call."""


class Run(Protocol):
    """What calls need of the instance that makes them."""

    __slots__ = ()

    @property
    def key(self) -> Key:
        """Which instance it is."""

    @property
    def machine(self) -> Machine:
        """Its state machine."""

    @property
    def cancel(self) -> Cancel | None:
        """A cancel of which the guest does not know yet."""

    @property
    def codec(self) -> PayloadCodec | None:
        """What its payloads are encoded by."""

    @property
    def reports(self) -> bool:
        """Whether anybody hears of what happens all the time."""

    def report(
        self, kind: EventKind, level: int, text: str, *, activity: str = "", attempt: int = 0, reason: str = ""
    ) -> None:
        """Say what has happened."""

    @property
    def crowded(self) -> bool:
        """Whether other runs go on at the same time: then each lets the others come as far as it is."""

    def concludes(self) -> None:
        """What has happened is certain: nothing interrupts the run until that is committed."""

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

    async def propose(self, make: Callable[[], Proposal]) -> None:
        """Make what `make` gives durable, then true; it is called when nothing else is being committed."""

    async def commit_beside(self, propose: Callable[[], Proposal]) -> bool:
        """Make something durable while the instance waits for its activity; False where it does not."""

    @property
    def is_written_beside(self) -> bool:
        """Whether something is being made durable beside the instance."""

    async def settled(self) -> None:
        """Wait until it is: what is proposed next is made over it."""

    def soon(self, callback: Callable[[], None]) -> None:
        """Call it on the worker's event loop, from any thread, if there is a worker."""

    def beside(self, work: Callable[[], Awaitable[None]]) -> None:
        """Let `work` run beside the instance, if there is a worker whose task it can be."""

    async def loaded(self, payload: Payload) -> Payload:
        """The payload with its bytes."""

    def waiting(self, *, until: int | None) -> None:
        """The guest waits for an activity (None), or for a time that is known: its memory may be given up meanwhile."""

    def resumed(self) -> None:
        """It is about to be answered; raises `Evicted` where its memory was given up."""


class Asking(Protocol):
    """A call of an activity, whichever ABI it came by."""

    @property
    def name(self) -> str:
        """The activity's name."""

    @property
    def request(self) -> bytes:
        """What it is sent."""


class Pulse:
    """What an attempt has said of itself. Made when it first says something, or is asked.

    Attributes:
        at: When it last did, by the monotonic clock.
        details: What its last heartbeat with details said, as JSON.
        kept: Those details that are durable.
        due: When the next ones may be made durable, by the monotonic clock.
        keeping: Whether a task sees to it that they are.
        over: Set when the attempt is.
    """

    __slots__ = ("at", "details", "due", "keeping", "kept", "over")

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.details: bytes | None = None
        self.kept: bytes | None = None
        self.due = 0.0
        self.keeping = False
        self.over = threading.Event()


_making = threading.Lock()


class Calls:
    """Answers one guest's `host_call_api` where it names an activity.

    Attributes:
        cut: The last attempt that has ended, or was given up, and what its heartbeats said; None where none did.
    """

    __slots__ = ("_asked", "_call", "_pulse", "_repeated", "_run", "_told", "cut")

    def __init__(self, run: Run) -> None:
        self._run = run
        self._repeated = 0
        self._asked = 0
        self._told = False  # whether anybody hears of the attempt that is under way
        self._call: ActivityCall | None = None  # the attempt that is under way
        self._pulse: Pulse | None = None  # that attempt's
        self.cut: OpenOperation | None = None

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
        if delivery is None and (cancel := run.cancel) is not None:
            await run.commit(machine.cancelled(number, call.name, cancel, run.now()))
            return abi_v0.FAILED
        if delivery is None:
            self.check(call)
            delivery = await self.perform(number, call, machine.time)
            if run.is_written_beside:
                await run.settled()
            if run.crowded:
                run.concludes()
                await turn()
            logged = delivery if run.codec is None else encoded_delivery(delivery, run.codec)
            await run.commit(machine.answered((logged,), run.now()))
            run.resumed()
        if delivery.payload is None:
            return abi_v0.FAILED
        payload = delivery.payload
        if payload.data is None or payload.codec:
            payload = await run.loaded(payload)
        answer = respond(guest, call, payload.content)
        if answer == abi_v0.TOO_LARGE:
            machine.keep(number, call.name, request, payload)
        return answer

    def check(self, call: Asking) -> None:
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

    async def perform(self, number: int, call: Asking, asked: int) -> Delivery:
        """Call the activity until it succeeds, fails for good, or runs out of attempts.

        Args:
            number: The operation.
            call: The call.
            asked: When the guest asked, by its own time, ns since 1970.
        """
        run, machine, self._asked = self._run, self._run.machine, asked
        definition = run.activity(call.name) or await self._unregistered(number, call.name)
        most = definition.retry.maximum_attempts
        attempt = machine.attempts(number) + 1
        known = machine.open_operation(number)
        failure = known.failure if known else None
        while True:
            if known is not None and known.retry_at is not None:
                run.waiting(until=known.retry_at)
                await run.sleep_until(known.retry_at)
            if most and attempt > most:
                message = f"activity {call.name!r} began {attempt - 1} times and no worker survived to tell"
                return Delivery(
                    "failed", number, failure=failure or Failure("WorkerDied", message, None, call.name, attempt - 1)
                )
            run.waiting(until=None)
            if definition.queued:
                late = await self._begin(definition, number, attempt, call.name)
                if late is not None:
                    return Delivery("failed", number, failure=late)
                known = machine.open_operation(number)
            try:
                if known is not None:
                    await run.propose(partial(machine.begun, number, attempt))
                run.require_lease()
                try:
                    response = await self._attempt(definition, number, attempt, call)
                except Exception as error:  # noqa: BLE001  whatever an activity raises is its failure
                    failed = failed_by(error, call.name, attempt, definition.retry)
                except BaseException:
                    self._report("activity_cancelled", call.name, attempt)
                    raise
                else:
                    self._check_response(call, response)
                    self._report("activity_completed", call.name, attempt)
                    return Delivery("result", number, Payload.of(response))
            finally:
                said = self._ended()
                if definition.slots is not None:
                    definition.slots.release()
            before, failure = failure, failed.failure
            self._report("activity_failed", call.name, attempt, f"{failure.type}: {failure.message}")
            retry_at = self._retry_at(definition, failed, attempt)
            if retry_at is None:
                if failure.type == "ScheduleToCloseTimeout" and failure.cause is None:
                    failure = evolve(failure, cause=before)
                return Delivery("failed", number, failure=failure)
            if run.is_written_beside:
                await run.settled()
            await run.propose(partial(machine.backoff, number, call.name, failure, retry_at, said))
            known = machine.open_operation(number)
            attempt += 1

    async def _unregistered(self, number: int, name: str) -> NoReturn:
        """Nobody here has the activity: the instance is given up for a while, for whoever has it."""
        run, machine = self._run, self._run.machine
        reason = f"activity {name!r} is registered with no worker that has seen it; start one that has it"
        run.report("waiting", logging.WARNING, f"{run.key} waits: {reason}", activity=name, reason=reason)
        await run.commit(machine.waits(number, name, reason, run.now() + int(_UNREGISTERED * 1e9)))
        raise GivenUp

    def _retry_at(self, definition: ActivityDefinition, failed: Failed, attempt: int) -> int | None:
        """When the next attempt begins, ns since 1970, or None where there is none."""
        retry = definition.retry
        if not retry.retries(failed.failure, attempt):
            return None
        delay = retry.delay(attempt) if failed.delay is None else failed.delay
        retry_at = self._run.now() + int(delay * 1e9)
        if definition.schedule_to_close is not None:
            closes = self._asked + int(definition.schedule_to_close * 1e9)
            if retry_at >= closes:  # it could not succeed in time, so the guest hears at once why it failed
                return None
        return retry_at

    async def _begin(self, definition: ActivityDefinition, number: int, attempt: int, name: str) -> Failure | None:
        """Wait until the attempt may begin, and take its slot; why it may not any more, if so."""
        run, machine, slots = self._run, self._run.machine, definition.slots
        known = machine.open_operation(number)
        asked = scheduled = self._asked
        if attempt > 1:  # each further attempt is scheduled anew
            scheduled = known.retry_at if known is not None and known.retry_at is not None else run.now()
        ends = {
            "ScheduleToStartTimeout": (scheduled, definition.schedule_to_start),
            "ScheduleToCloseTimeout": (asked, definition.schedule_to_close),
        }
        due = {kind: since + int(seconds * 1e9) for kind, (since, seconds) in ends.items() if seconds is not None}
        kind = min(due, key=due.__getitem__, default="")
        if not kind or run.now() < due[kind]:
            if slots is None or slots.take():
                return None
            if known is None or known.retry_at is None:
                # Whoever dies while it waits has begun no attempt; committed, that is known.
                await run.propose(partial(machine.queued, number, name, attempt - 1, run.now()))
            with anyio.move_on_after((due[kind] - run.now()) / 1e9 if kind else None):
                await slots.wait()
                return None
        field = "schedule_to_start" if kind == "ScheduleToStartTimeout" else "schedule_to_close"
        message = (
            f"attempt {attempt} of activity {name!r} did not begin within {getattr(definition, field):g} s "
            f"({field}_timeout)"
        )
        return Failure(kind, message, None, name, attempt, cause=known.failure if known else None)

    def _report(self, kind: EventKind, name: str, attempt: int, why: str = "") -> None:
        if why or self._told:
            words = f"failed: {why}" if why else kind.removeprefix("activity_")
            text = f"attempt {attempt} of activity {name!r} {words}"
            level = logging.WARNING if why else logging.DEBUG
            self._run.report(kind, level, text, activity=name, attempt=attempt, reason=why)

    def _check_response(self, call: Asking, response: bytes) -> None:
        limit = self._run.machine.pinned.limits.response
        if len(response) > limit:
            message = (
                f"activity {call.name!r} returned {len(response):,} bytes and the guest of {self._run.key} may be "
                f"given {limit:,}; raise the limit and unblock: it will be called again, under the same key"
            )
            raise GuestLimitError(message, "response")

    def _attempt(self, definition: ActivityDefinition, number: int, attempt: int, call: Asking) -> Awaitable[bytes]:
        run, machine = self._run, self._run.machine
        self._told = run.reports
        self._report("activity_started", call.name, attempt)
        known = machine.open_operation(number) if machine.record.open else None
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
            self._asked,
            () if known is None else known.heartbeat,
            self,
        )
        self._call = given
        # Without a frame of its own where there is no timeout: thousands of instances may wait here.
        return self._bounded(definition, given) if definition.bounded else definition.handler(given)

    async def _bounded(self, definition: ActivityDefinition, given: ActivityCall) -> bytes:
        """The attempt, cut short by its timeouts. Raises `ApplicationError` where one is over."""
        ends = {
            "StartToCloseTimeout": definition.timeout,
            "ScheduleToCloseTimeout": definition.schedule_to_close
            and definition.schedule_to_close - (given.started - given.scheduled) / 1e9,
        }
        left = {kind: seconds for kind, seconds in ends.items() if seconds is not None}
        kind = min(left, key=left.__getitem__, default="")
        with anyio.move_on_after(max(0.0, left[kind]) if kind else None) as scope:
            if definition.heartbeat_timeout is None:
                return await definition.handler(given)
            return await self._watched(definition, given)
        assert scope.cancelled_caught, "an attempt returns, raises, or is cut short"
        option = "start_to_close_timeout" if kind == "StartToCloseTimeout" else "schedule_to_close_timeout"
        seconds = definition.timeout if kind == "StartToCloseTimeout" else definition.schedule_to_close
        message = f"activity {given.name!r} did not end within {seconds:g} s ({option})"
        raise ApplicationError(message, type=kind, non_retryable=kind == "ScheduleToCloseTimeout")

    async def _watched(self, definition: ActivityDefinition, given: ActivityCall) -> bytes:
        """The attempt, cut short where its heartbeats stay away."""
        allowed = definition.heartbeat_timeout
        assert allowed is not None, "only heartbeats with a timeout are watched"
        pulse = self._pulse_of(given)

        silent = False

        async def watch(scope: anyio.CancelScope) -> None:
            nonlocal silent
            while (left := pulse.at + allowed - time.monotonic()) > 0:
                await anyio.sleep(left)
            silent = True
            scope.cancel()

        outcome: bytes | Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, tasks.cancel_scope)
            try:
                outcome = await definition.handler(given)
            except Exception as error:  # noqa: BLE001  raised again outside of the task group, which would wrap it
                outcome = error
            tasks.cancel_scope.cancel()
        if isinstance(outcome, bytes):
            return outcome
        if isinstance(outcome, Exception) and not silent:
            raise outcome
        message = f"activity {given.name!r} gave no heartbeat for {allowed:g} s (heartbeat_timeout)"
        raise ApplicationError(message, type="HeartbeatTimeout")

    # What an attempt asks, from any thread

    def is_over(self, call: ActivityCall) -> bool:
        """Whether the attempt has ended or was given up."""
        return self._call is not call

    def over(self, call: ActivityCall) -> threading.Event:
        """Set when the attempt has ended or was given up."""
        return self._pulse_of(call).over

    def heartbeat(self, call: ActivityCall, details: bytes | None) -> None:
        """The attempt lives, and wants the next one to know of `details`, a list as JSON.

        They are made durable at once, then at most once a second.
        """
        pulse = self._pulse_of(call)
        pulse.at = time.monotonic()
        if details is None or details == pulse.details:
            return
        pulse.details = details
        if not pulse.keeping:
            self._run.soon(partial(self._keep, call, pulse))

    def _pulse_of(self, call: ActivityCall) -> Pulse:
        with _making:
            if self._call is not call:  # nobody asks any more
                pulse = Pulse()
                pulse.over.set()
                return pulse
            if self._pulse is None:
                self._pulse = Pulse()
            return self._pulse

    def _keep(self, call: ActivityCall, pulse: Pulse) -> None:
        if pulse.keeping or self._call is not call:
            return
        pulse.keeping = True
        run, machine = self._run, self._run.machine

        async def keep() -> None:
            while True:
                await anyio.sleep(max(0.0, pulse.due - time.monotonic()))
                details = pulse.details
                if self._call is not call:
                    return
                said = json.loads(details or b"[]")
                if await run.commit_beside(partial(machine.heartbeat, call.operation, call.name, call.attempt, said)):
                    pulse.kept = details
                pulse.due = time.monotonic() + _KEPT
                pulse.keeping = False
                # One that came in between has seen that somebody keeps it.
                if pulse.details == pulse.kept or self._call is not call:
                    return
                pulse.keeping = True

        run.beside(keep)

    def _ended(self) -> list[object] | None:
        """The attempt is over; what its last heartbeat said, if it did."""
        with _making:
            call, pulse, self._pulse, self._call = self._call, self._pulse, None, None
        if pulse is None:
            return None
        pulse.over.set()
        if pulse.details is None or call is None:
            return None
        said: list[object] = json.loads(pulse.details)
        self.cut = OpenOperation(call.operation, "call", call.name, call.attempt, heartbeat=said)
        return said


def respond(guest: Guest, call: abi_v0.Call, data: bytes) -> int:
    """Write a response to its place; its length, or -2 where it does not fit."""
    if len(data) > call.capacity:
        return abi_v0.TOO_LARGE
    # The place was inside memory when the guest asked, and memory never shrinks.
    written = guest.write(call.response, data)
    assert written, "memory never shrinks"
    return len(data)
