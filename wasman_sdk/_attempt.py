"""The attempt that is running, as the activity sees it."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from wasman_host.activity import ActivityCall

__all__ = ["ActivityInfo", "current", "info", "info_of"]


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
    """

    name: str
    attempt: int
    idempotency_key: str
    workflow: str
    workflow_id: str
    run_id: str
    started: datetime


current: ContextVar[ActivityCall] = ContextVar("wasman_activity_call")


def info_of(call: ActivityCall) -> ActivityInfo:
    """What an activity may know of `call`."""
    return ActivityInfo(
        name=call.name,
        attempt=call.attempt,
        idempotency_key=call.idempotency_key,
        workflow=call.workflow,
        workflow_id=call.key.id,
        run_id=call.run,
        started=datetime.fromtimestamp(call.started / 1e9, tz=UTC),
    )


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
