"""Why a run has failed, as a chain of exceptions: what `raise ... from` shows, down to where it began."""

from __future__ import annotations

from wasman_host.errors import ActivityError, ApplicationError, Failure, GuestTrapError

__all__ = ["cause_of"]


def cause_of(failure: Failure | None) -> Exception | None:
    """The failure of the activity that a guest has failed by, or its trap; None where it has only said so."""
    if failure is None:
        return None
    if failure.backtrace:
        return GuestTrapError(failure)
    if failure.type != "ActivityError" or not isinstance(failure.details, dict):
        return None
    try:
        activity = Failure.of_json(failure.details)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # a guest says what it likes
    error: Exception = ActivityError(activity)
    outer, cause = error, activity.cause
    while cause is not None:
        outer.__cause__ = ApplicationError(cause.message, type=cause.type, details=cause.details)
        outer, cause = outer.__cause__, cause.cause
    return error
