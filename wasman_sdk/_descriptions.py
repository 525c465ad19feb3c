"""What a client shows of an instance: how it stands, and what was handed to its guest."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from attrs import frozen

from wasman_host.record import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.control import Description
    from wasman_host.oplog import Entry

__all__ = ["HistoryEvent", "PendingActivity", "WaitingSignal", "WorkflowDescription", "description_of", "events_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@frozen
class PendingActivity:
    """A call that is waiting for its next attempt or for a worker.

    Attributes:
        name: The activity's name.
        attempts: Attempts that have begun.
        next_attempt: When the next one begins, or None while one is under way.
        last_failure: How the last one failed, or "".
    """

    name: str
    attempts: int
    next_attempt: datetime | None
    last_failure: str


@frozen
class WaitingSignal:
    """A signal that the guest has not received yet.

    Attributes:
        name: Its name.
        message_id: By which a repeated send of it is known.
        sent: When it was accepted.
        size: Bytes of its value, as they are stored.
    """

    name: str
    message_id: str
    sent: datetime
    size: int


@frozen
class WorkflowDescription:
    """An instance as it stands.

    Attributes:
        id: The workflow id.
        run_id: Its current run.
        workflow: The workflow's name.
        status: "running", "waiting", "blocked", "publishing", "completed", "failed", "cancelled", "terminated"
            or "timed_out".
        reason: Why it is blocked, what it waits for, or why it failed; "" else.
        module: sha256 of the module that the run is pinned to, in hex.
        owner: The worker that holds it, or None.
        created: When the run was started.
        expires: When a timeout ends it, or None.
        closed: When it ended, or None.
        log_entries: Deliveries in its log.
        snapshots: Deltas over its base image.
        snapshot_bytes: Their stored size.
        snapshot_entry: The first log entry that the newest of them does not hold, or None where there is none.
        pending: Calls that wait.
        undelivered: Mail that was accepted and came too late: (id, kind).
        memo: What the starter noted.
        search_attributes: What it is found by.
        previous_run_id: The run that the id had before, or ""; `get_handle(id, run_id=...)` gives it.
        limits: What its guest may use, or None where its record cannot be read.
        backtrace: Where in its module the guest trapped, if that is why it failed; "" else.
        cancel_requested: The reason of a cancel that the guest was told of, or is to be told of; "" else.
        signals: Those that the guest has not received yet, the oldest first. What was sent in the last moment may still
            be in the mail.
        unread: Messages in its mail that no worker has taken yet.
    """

    id: str
    run_id: str
    workflow: str
    status: str
    reason: str
    module: str
    owner: str | None
    created: datetime
    expires: datetime | None
    closed: datetime | None
    log_entries: int
    snapshots: int
    snapshot_bytes: int
    snapshot_entry: int | None
    pending: tuple[PendingActivity, ...]
    undelivered: tuple[tuple[str, str], ...]
    memo: Mapping[str, Any]
    search_attributes: Mapping[str, str]
    previous_run_id: str
    limits: Limits | None
    backtrace: str
    cancel_requested: str
    signals: tuple[WaitingSignal, ...]
    unread: int


@frozen
class HistoryEvent:
    """One thing that was handed to a guest, from the run's log.

    Attributes:
        entry: The log entry; events of one entry were handed over together.
        time: The guest's time from there on.
        kind: "start" (the input), "session", "result" (of an activity, or a signal that was received), "failed" (an
            activity), "fired" (a timer), "cancel" (the guest was told of one), or what ended the run from outside:
            "terminate", "timed_out". "dropped" stands for entries that were not kept.
        operation: The number of the operation that it answers, or None.
        name: The activity's or the signal's name; for a timer how long it was, in nanoseconds; "" else.
        size: Bytes handed over, as they are stored.
        codec: What they were encoded by; "" else.
        failure: How the activity failed, why the run was ended, or which entries were dropped; "" else.
    """

    entry: int
    time: datetime
    kind: str
    operation: int | None
    name: str
    size: int
    failure: str
    codec: str = ""


def events_of(entries: Sequence[Entry]) -> list[HistoryEvent]:
    names = {
        entry.operations - len(entry.issued) + place: operation.name
        for entry in entries
        for place, operation in enumerate(entry.issued)
    }
    return [
        HistoryEvent(
            entry=entry.n,
            time=_time(entry.time),
            kind=delivery.kind,
            operation=None if delivery.operation < 0 else delivery.operation,
            name=names.get(delivery.operation, ""),
            size=delivery.payload.size if delivery.payload else 0,
            failure="" if delivery.failure is None else str(delivery.failure),
            codec=delivery.payload.codec if delivery.payload else "",
        )
        for entry in entries
        for delivery in entry.deliveries
    ]


def _time(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def description_of(found: Description) -> WorkflowDescription:
    stored, record = found.stored, found.record
    columns = stored.columns
    reason = found.reason
    if record is not None and record.failure is not None:
        reason = str(record.failure)
    pending = tuple(
        PendingActivity(
            operation.name,
            operation.attempts,
            None if operation.retry_at is None else _time(operation.retry_at),
            "" if operation.failure is None else str(operation.failure),
        )
        for operation in (record.open if record else ())
    )
    snapshot = record.snapshot if record else None
    return WorkflowDescription(
        id=stored.key.id,
        run_id=stored.run,
        workflow=columns.workflow,
        status=found.status.value,
        reason=reason,
        module=columns.module,
        owner=columns.owner,
        created=_time(columns.created),
        expires=_time(record.pinned.expires) if record and record.pinned.expires is not None else None,
        closed=None if columns.closed is None else _time(columns.closed),
        log_entries=found.entries,
        snapshots=len(snapshot.deltas) if snapshot else 0,
        snapshot_bytes=snapshot.size if snapshot else 0,
        snapshot_entry=snapshot.entry if snapshot else None,
        pending=pending,
        undelivered=tuple(record.undelivered) if record else (),
        memo=dict(record.pinned.memo) if record else {},
        search_attributes=dict(columns.attributes),
        previous_run_id=record.pinned.previous if record else "",
        limits=record.pinned.limits if record else None,
        backtrace=record.failure.backtrace if record and record.failure else "",
        cancel_requested=record.cancel.reason if record and record.cancel else "",
        signals=tuple(
            WaitingSignal(signal.name, signal.message, _time(signal.sent), signal.payload.size)
            for signal in (record.signals if record else ())
        ),
        unread=stored.mail,
    )
