"""The attempt that is running, as the activity sees it."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attrs import frozen
from pydantic_core import to_json

from wasman_host.errors import ActivityCancelledError, InvalidArgumentError
from wasman_sdk._validation import unserialisable

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from datetime import timedelta

    from wasman_host.activity import ActivityCall

__all__ = [
    "ActivityInfo",
    "ActivityLogger",
    "activity_logger",
    "current",
    "heartbeat",
    "info",
    "info_of",
    "is_cancelled",
    "wait_for_cancelled_sync",
]

_DETAILS = 64 * 1024  # bytes of a heartbeat's details: they are stored with the run's record


@frozen
class ActivityInfo:
    """The attempt that is running.

    Attributes:
        name: The activity's name.
        attempt: From 1.
        idempotency_key: The same at every attempt of this call, and of no other call ever: give it to whatever you
            change.
        workflow: The calling workflow's name.
        workflow_id: The calling instance.
        run_id: Its run.
        started: When this attempt began.
        scheduled: When the guest called, by its own time.
        heartbeat_details: What the attempts before this one have given to `activity.heartbeat` last.
    """

    name: str
    attempt: int
    idempotency_key: str
    workflow: str
    workflow_id: str
    run_id: str
    started: datetime
    scheduled: datetime
    heartbeat_details: tuple[Any, ...] = ()


current: ContextVar[ActivityCall] = ContextVar("wasman_activity_call")


class ActivityLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines have the attempt's names as attributes: tenant, workflow, id, run, activity, attempt."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add them; outside of an activity there are none."""
        call = current.get(None)
        if call is not None:
            names = {
                "tenant": call.key.tenant,
                "workflow": call.workflow,
                "id": call.key.id,
                "run": call.run,
                "activity": call.name,
                "attempt": call.attempt,
            }
            kwargs["extra"] = {**names, **(kwargs.get("extra") or {})}
        return msg, kwargs


activity_logger = ActivityLogger(logging.getLogger("wasman.activity"))


def info_of(call: ActivityCall) -> ActivityInfo:
    """What an activity may know of `call`."""
    return ActivityInfo(
        name=call.name,
        attempt=call.attempt,
        idempotency_key=call.idempotency_key,
        workflow=call.workflow,
        workflow_id=call.key.id,
        run_id=call.run,
        started=_time(call.started),
        scheduled=_time(call.scheduled),
        heartbeat_details=tuple(call.heartbeat),
    )


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC)


def running(what: str) -> ActivityCall:
    """The call that is answered here. Raises `RuntimeError` outside of an activity, which `what` is named in."""
    try:
        return current.get()
    except LookupError:
        message = f"activity.{what}() is called outside of an activity"
        raise RuntimeError(message) from None


def info() -> ActivityInfo:
    """The attempt that is running. Raises `RuntimeError` outside of an activity."""
    return info_of(running("info"))


def heartbeat(*details: Any) -> None:
    """Say that the attempt lives, and what the next one should know of it.

    Raises:
        ActivityCancelledError: The attempt is over, and nobody waits for it any more.
        InvalidArgumentError: JSON cannot hold the details, or they have more than 64 KiB.
        RuntimeError: This is no activity.
    """
    call = running("heartbeat")
    if call.attempts.is_over(call):
        message = (
            f"attempt {call.attempt} of activity {call.name!r} is over: its run was cancelled or has ended, it has "
            f"timed out, or its worker gave it up; stop, what it does is not wanted any more"
        )
        raise ActivityCancelledError(message)
    if not details:
        call.attempts.heartbeat(call, None)
        return
    try:
        encoded = to_json(details)
    except ValueError as error:
        message = f"the heartbeat of activity {call.name!r} holds details that JSON cannot: {unserialisable(details)}"
        raise InvalidArgumentError(message) from error
    if len(encoded) > _DETAILS:
        message = (
            f"the heartbeat of activity {call.name!r} has details of {len(encoded):,} bytes, and may have "
            f"{_DETAILS:,}; keep what is larger elsewhere"
        )
        raise InvalidArgumentError(message)
    call.attempts.heartbeat(call, encoded)


def is_cancelled() -> bool:
    """Whether the attempt is over, and nobody waits for it any more: for sync activities, which nothing interrupts."""
    call = running("is_cancelled")
    return call.attempts.is_over(call)


def wait_for_cancelled_sync(timeout: timedelta | None = None) -> bool:
    """Wait in a sync activity until the attempt is over, at most for `timeout`; whether it is."""
    call = running("wait_for_cancelled_sync")
    return call.attempts.over(call).wait(None if timeout is None else timeout.total_seconds())
