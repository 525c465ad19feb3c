"""Why a run has failed, as a chain of exceptions: what `raise ... from` shows, down to where it began."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from wasman_host.errors import ActivityError, ApplicationError, Failure, GuestTrapError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cause_of"]


def cause_of(failure: Failure | None) -> Exception | None:
    """A guest's trap; or the activity's failure that it has failed by, and then the causes that it says itself."""
    if failure is None:
        return None
    if failure.backtrace:
        return GuestTrapError(failure)
    chain = [*_activity_of(failure), *map(_exception_of, _down(failure.cause))]
    for error, cause in pairwise(chain):
        error.__cause__ = cause
    return chain[0] if chain else None


def _activity_of(failure: Failure) -> list[Exception]:
    """The activity's failure that a guest has returned as it was, with its causes."""
    if failure.type != "ActivityError" or not isinstance(failure.details, dict):
        return []
    try:
        activity = Failure.of_json(failure.details)
    except (KeyError, TypeError, ValueError, AttributeError):
        return []  # a guest says what it likes
    return [ActivityError(activity), *map(_exception_of, _down(activity.cause))]


def _down(failure: Failure | None) -> Iterator[Failure]:
    while failure is not None:
        yield failure
        failure = failure.cause


def _exception_of(failure: Failure) -> Exception:
    if failure.activity:
        return ActivityError(failure)
    return ApplicationError(
        failure.message, type=failure.type, details=failure.details, non_retryable=failure.non_retryable
    )
