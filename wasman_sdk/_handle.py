"""Handles: one instance, to wait for it, look at it and steer it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

import anyio

from wasman_host import control
from wasman_host.codec import decoded, encoded
from wasman_host.errors import (
    ResultTimeoutError,
    RunEndedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowPanicError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from wasman_host.reasons import PANIC
from wasman_host.store.protocol import CLOSED, Key, Status
from wasman_sdk._causes import cause_of
from wasman_sdk._descriptions import HistoryEvent, WorkflowDescription, description_of, events_of
from wasman_sdk._interceptors import (
    CancelWorkflowInput,
    DescribeWorkflowInput,
    GetResultInput,
    HistoryInput,
    SignalWorkflowInput,
    TerminateWorkflowInput,
    UnblockWorkflowInput,
    chained,
)
from wasman_sdk._signal import Signal, signal_payload
from wasman_sdk._workflow import read_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from pydantic import TypeAdapter

    from wasman_host.codec import PayloadCodec
    from wasman_host.record import Limits
    from wasman_host.store.protocol import Store, Stored
    from wasman_sdk._interceptors import ClientInterceptor, OfRun

__all__ = ["WorkflowHandle"]

logger = logging.getLogger("wasman.client")

Out = TypeVar("Out")
T = TypeVar("T")

_LOOK = 5.0  # seconds between two looks at an instance although no hint came
_ENDS: Mapping[Status, type[RunEndedError]] = {
    Status.FAILED: WorkflowFailedError,
    Status.CANCELLED: WorkflowCancelledError,
    Status.TERMINATED: WorkflowTerminatedError,
    Status.TIMED_OUT: WorkflowTimedOutError,
}


class WorkflowHandle(Generic[Out]):
    """One instance: its current run, or the run it was made for.

    Attributes:
        id: The workflow id.
        run_id: The run, or None for whichever is the current one.
    """

    def __init__(
        self,
        store: Store,
        tenant: str,
        id_: str,
        run_id: str | None,
        workflow: str,
        output: TypeAdapter[Out],
        interceptors: Sequence[ClientInterceptor] = (),
        codec: PayloadCodec | None = None,
    ) -> None:
        """Made by the client."""
        self.id = id_
        self.run_id = run_id
        self._store = store
        self._tenant = tenant
        self._interceptors = interceptors
        self._codec = codec
        self._workflow = workflow
        self._output = output

    def __repr__(self) -> str:
        return f"WorkflowHandle(id={self.id!r}, run_id={self.run_id!r})"

    async def result(self, *, timeout: timedelta | None = None) -> Out:
        """Wait until the run has ended; what the guest gave. Without `run_id` it is the run that is current now.

        A blocked run has not ended: it is waited for, and a warning says why it stands still.

        Args:
            timeout: How long to wait at most.

        Raises:
            ResultTimeoutError: It has not ended by then; the run goes on.
            WorkflowFailedError: The guest failed the run. Where that was for an activity's failure, its cause is an
                `ActivityError`, and the causes of that are what the activity has raised; where the guest trapped, its
                cause is a `GuestTrapError` with the wasm backtrace.
            WorkflowCancelledError: It was cancelled.
            WorkflowTerminatedError: A person ended it.
            WorkflowTimedOutError: Its execution timeout ended it.
            WorkflowNotFoundError: There is no such run.
            CorruptSnapshotError: The result is damaged.
            PayloadCodecError: The result was encoded by a codec that this client has not.
            StoreUnavailableError: The store does not answer, or the client was closed meanwhile.
        """
        given = GetResultInput(id=self.id, run_id=self.run_id, timeout=timeout)
        return await chained(self._interceptors, "get_result", self._result_in_time)(given)

    async def _result_in_time(self, given: GetResultInput) -> Out:
        if given.timeout is None:
            return await self._result(given)
        with anyio.move_on_after(given.timeout.total_seconds()):
            return await self._result(given)
        found = control.describe_stored(await control.load(self._store, self._key(given), given.run_id))
        reason = f" ({found.reason.splitlines()[0]})" if found.reason else ""
        message = (
            f"run {found.stored.run} of {given.id!r} has not ended within {given.timeout.total_seconds():g} s: it is "
            f"{found.status.value}{reason}, and goes on"
        )
        raise ResultTimeoutError(message)

    async def _result(self, given: GetResultInput) -> Out:
        key, run, warned = self._key(given), given.run_id, -1
        while True:
            remembered = self._store.remembered(key)
            if remembered is not None and remembered.run == run:
                found = remembered
            else:
                found = await control.load(self._store, key, run)
                run = found.run
            if found.columns.status in CLOSED:
                return await self._ended(found)
            if found.columns.status is Status.BLOCKED and found.version != warned:
                warned = found.version
                logger.warning("%s is blocked: %s", key.id, control.describe_stored(found).reason)
            await self._store.watch(key, _LOOK)

    def _key(self, given: OfRun) -> Key:
        return Key(self._tenant, given.id)

    async def _ended(self, stored: Stored) -> Out:
        found = control.describe_stored(stored)
        record = found.record
        if record is None:
            raise control.unreadable(stored)
        if record.status is Status.COMPLETED:
            assert record.result is not None, "a completed run has a result"
            payload = decoded(await control.load_payload(self._store, stored, record.result), self._codec)
            return cast("Out", read_result(self._output, payload, self._workflow or record.pinned.workflow))
        kind = _ENDS.get(record.status, RunEndedError)
        if record.status is Status.FAILED and record.failure is not None and record.failure.type == PANIC:
            kind = WorkflowPanicError
        words = record.status.value.replace("_", " ")
        was = "was " if kind in {WorkflowTerminatedError, WorkflowCancelledError} else ""
        message = f"run {record.run} of {self.id!r} {was}{words}"
        why: object = record.failure and (
            record.failure if issubclass(kind, WorkflowFailedError) else record.failure.message
        )
        if record.status is Status.CANCELLED and record.cancel is not None:
            why = record.cancel.reason
        raise kind(f"{message}: {why}", record.failure) from cause_of(record.failure)

    async def describe(self) -> WorkflowDescription:
        """How it stands. Raises `WorkflowNotFoundError`."""
        given = DescribeWorkflowInput(id=self.id, run_id=self.run_id)
        return await chained(self._interceptors, "describe_workflow", self._describe)(given)

    async def _describe(self, given: DescribeWorkflowInput) -> WorkflowDescription:
        return description_of(await control.describe(self._store, self._key(given), given.run_id))

    async def history(self) -> list[HistoryEvent]:
        """The run's log so far, checked; sizes and names only, no payloads.

        Raises:
            WorkflowNotFoundError: There is no such run.
            CorruptSnapshotError: The record or the log is damaged.
            UnsupportedStateError: A newer wasman wrote it.
        """
        given = HistoryInput(id=self.id, run_id=self.run_id)
        return await chained(self._interceptors, "history", self._history)(given)

    async def _history(self, given: HistoryInput) -> list[HistoryEvent]:
        return events_of(
            await control.history(self._store, await control.load(self._store, self._key(given), given.run_id))
        )

    async def cancel(self, reason: str = "cancelled by request") -> None:
        """Tell the guest to end, in its own way; durable when this returns, and asking again changes nothing.

        The activity that the guest waits for is cancelled, and the call fails with the type "Cancelled"; where it waits
        for none, its next call does. From then on it may call others, to tidy up. A guest that fails with what it was
        told is cancelled; one that gives a result is completed.

        Raises:
            WorkflowNotFoundError: There is no such run.
            WorkflowClosedError: It has ended already.
            InvalidArgumentError: It is an instance of an `Engine`.
        """
        given = CancelWorkflowInput(id=self.id, run_id=self.run_id, reason=reason)
        await chained(self._interceptors, "cancel_workflow", self._cancel)(given)

    async def _cancel(self, given: CancelWorkflowInput) -> None:
        await control.cancel(self._store, self._key(given), given.reason, given.run_id)

    @overload
    async def signal(self, signal: Signal[T], value: T, *, message_id: str | None = None) -> None: ...

    @overload
    async def signal(self, signal: str, value: Any = None, *, message_id: str | None = None) -> None: ...

    async def signal(self, signal: Signal[Any] | str, value: Any = None, *, message_id: str | None = None) -> None:
        """Send the run something that its guest may receive; durable when this returns, in the order of the sends.

        Nothing is lost: what the guest has not received when the run ends is listed as undelivered.

        Args:
            signal: The signal, or its name.
            value: What it says; JSON, and bytes as they are.
            message_id: By which a repeated send is known, which changes nothing then. It must be another one for each
                signal; drawn if not said.

        Raises:
            WorkflowNotFoundError: There is no such run.
            WorkflowClosedError: It has ended already.
            SignalsFullError: As many signals wait for it as may (`Limits.signals`); this one was not accepted.
            InvalidArgumentError: The value does not fit or is too large, the name is empty or too long, or it is an
                instance of an `Engine`.
            PayloadCodecError: The codec has failed.
        """
        given = SignalWorkflowInput(id=self.id, run_id=self.run_id, signal=signal, value=value, message_id=message_id)
        await chained(self._interceptors, "signal_workflow", self._signal)(given)

    async def _signal(self, given: SignalWorkflowInput) -> None:
        if isinstance(given.signal, Signal):
            name, payload = given.signal.name, given.signal.payload(given.value)
        else:
            name, payload = given.signal, signal_payload(given.signal, given.value)
        await control.signal(
            self._store,
            self._key(given),
            name,
            encoded(payload, self._codec),
            run=given.run_id,
            message_id=given.message_id,
            deflate=self._store.deflates,
        )

    async def terminate(self, reason: str = "terminated by request") -> None:
        """End the run without asking the guest; durable when this returns, done by whichever worker holds or claims it.

        Raises:
            WorkflowNotFoundError: There is no such run.
            WorkflowClosedError: It has ended already.
        """
        given = TerminateWorkflowInput(id=self.id, run_id=self.run_id, reason=reason)
        await chained(self._interceptors, "terminate_workflow", self._terminate)(given)

    async def _terminate(self, given: TerminateWorkflowInput) -> None:
        await control.terminate(self._store, self._key(given), given.reason, given.run_id)

    async def unblock(self, *, limits: Limits | None = None) -> None:
        """Let a blocked run go on from where it stands, perhaps with other limits.

        Raises:
            WorkflowNotFoundError: There is no such run.
            WorkflowClosedError: It has ended.
            InvalidArgumentError: It is not blocked.
            CorruptSnapshotError: Its record still cannot be read.
        """
        given = UnblockWorkflowInput(id=self.id, run_id=self.run_id, limits=limits)
        await chained(self._interceptors, "unblock_workflow", self._unblock)(given)

    async def _unblock(self, given: UnblockWorkflowInput) -> None:
        await control.unblock(self._store, self._key(given), given.run_id, given.limits)
