"""Activities as the host sees them: named handlers of bytes, how long they may take, and when to try again.

The SDK turns decorated Python functions into these.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import Factory, evolve, field
from pydantic_core import from_json, to_json

from wasman_host.errors import ApplicationError, Failure
from wasman_host.payload import Payload
from wasman_host.slots import Slots
from wasman_host.store.protocol import Key
from wasman_host.values import frozen

if TYPE_CHECKING:
    import threading

__all__ = ["ActivityCall", "ActivityDefinition", "Attempts", "Failed", "Retry", "failed_by"]

_CAUSES = 8  # of one failure: a chain of exceptions may be long, or a ring


@frozen
class Retry:
    """When a failed activity is tried again; seconds throughout.

    Attributes:
        initial_interval: Wait before the second attempt.
        backoff_coefficient: How much longer each further wait is.
        maximum_interval: The longest wait.
        maximum_attempts: How many attempts there are in all, those included that a dead worker had begun; 0 for no end.
        non_retryable: Types of failures for which another attempt cannot help.
    """

    initial_interval: float = 1.0
    backoff_coefficient: float = 2.0
    maximum_interval: float = 100.0
    maximum_attempts: int = 5
    non_retryable: frozenset[str] = frozenset()

    def delay(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt` has failed."""
        # The exponent is bounded so that a policy without an end never overflows a float.
        return min(self.initial_interval * self.backoff_coefficient ** min(attempt - 1, 64), self.maximum_interval)

    def retries(self, failure: Failure, attempt: int) -> bool:
        """Whether there is another attempt after `attempt` failed with `failure`."""
        if failure.non_retryable:
            return False
        return self.maximum_attempts == 0 or attempt < self.maximum_attempts


class Attempts(Protocol):
    """Who makes attempts, as an attempt may ask it; all of it from any thread."""

    def is_over(self, call: ActivityCall) -> bool:
        """Whether the attempt has ended or was given up."""

    def over(self, call: ActivityCall) -> threading.Event:
        """Set when the attempt has ended or was given up."""

    def heartbeat(self, call: ActivityCall, details: bytes | None) -> None:
        """The attempt lives, and wants the next one to know of `details`, a list as JSON."""


@frozen
class ActivityCall:
    """One attempt of one call.

    Attributes:
        key: The calling instance.
        run: Its run id.
        workflow: Its workflow's name.
        operation: The call's number within the run.
        name: The activity's name.
        attempt: From 1.
        request: What the guest sent.
        session: The run's session as JSON, or None.
        started: When this attempt began, ns since 1970.
        scheduled: When the guest asked, by its own time, ns since 1970.
        heartbeat: What the attempts before have said last, JSON's values.
        attempts: Who makes it.
    """

    key: Key
    run: str
    workflow: str
    operation: int
    name: str
    attempt: int
    request: bytes = field(repr=False)
    session: Payload | None
    started: int
    scheduled: int
    heartbeat: Sequence[Any]
    attempts: Attempts = field(repr=False, eq=False)

    @property
    def idempotency_key(self) -> str:
        """The same at every attempt of this call, and of no other call ever."""
        return f"{self.run}/{self.operation}"


def _is_bounded(definition: ActivityDefinition) -> bool:
    limits = (definition.timeout, definition.schedule_to_close, definition.heartbeat_timeout)
    return any(limit is not None for limit in limits)


def _is_queued(definition: ActivityDefinition) -> bool:
    return any(
        one is not None for one in (definition.slots, definition.schedule_to_start, definition.schedule_to_close)
    )


@frozen
class ActivityDefinition:
    """A registered activity.

    Attributes:
        name: What guests call it by.
        handler: Takes the call, gives the response's bytes; an `ApplicationError` says how it failed, any other
            exception is a failure of that exception's class.
        retry: When to try again.
        timeout: Seconds that one attempt may take, or None.
        schedule_to_start: Seconds from the guest's asking, or the end of a backoff, to the attempt's begin, or None.
        schedule_to_close: Seconds from the guest's asking to its answer, all attempts and backoffs included, or None.
        heartbeat_timeout: Seconds between two heartbeats of an attempt, or None.
        slots: What attempts wait for, or None where they begin at once.
        bounded: Whether something cuts an attempt short.
        queued: Whether something may keep it from beginning.
    """

    name: str
    handler: Callable[[ActivityCall], Awaitable[bytes]]
    retry: Retry = field(factory=Retry)
    timeout: float | None = None
    schedule_to_start: float | None = None
    schedule_to_close: float | None = None
    heartbeat_timeout: float | None = None
    slots: Slots | None = None
    # Every call asks these two, and most activities have nothing of it.
    bounded: bool = field(init=False, default=Factory(_is_bounded, takes_self=True))
    queued: bool = field(init=False, default=Factory(_is_queued, takes_self=True))


@frozen
class Failed:
    """A failed attempt.

    Attributes:
        failure: What is stored of it.
        delay: Seconds until the next one, where the activity has said so.
    """

    failure: Failure
    delay: float | None = None


def failed_by(error: Exception, name: str, attempt: int, retry: Retry) -> Failed:
    """What becomes of an exception that an activity raised."""
    failure = _failure_of(error, name, attempt, _CAUSES)
    if failure.type in retry.non_retryable:
        failure = evolve(failure, non_retryable=True)
    if not isinstance(error, ApplicationError):
        return Failed(failure)
    delay = None if error.next_retry_delay is None else max(0.0, error.next_retry_delay.total_seconds())
    return Failed(failure, delay)


def _written(details: object) -> Any:
    """Details as they are stored; what JSON has no place for is said instead, so that the failure is not lost by it."""
    if details is None:
        return None
    try:
        return from_json(to_json(details, inf_nan_mode="null"))
    except ValueError as error:
        return f"(the details cannot be written: {error})"


def _failure_of(error: BaseException, name: str, attempt: int, causes: int) -> Failure:
    cause = None
    if error.__cause__ is not None and causes > 0:
        cause = _failure_of(error.__cause__, "", 0, causes - 1)
    kind, details, non_retryable = type(error).__name__, None, False
    if isinstance(error, ApplicationError):
        kind, details, non_retryable = error.type, _written(error.details), error.non_retryable
    try:
        message = str(error) or repr(error)
    except Exception as wrong:  # noqa: BLE001  the exception is somebody else's code
        message = f"({kind} tells nothing: {wrong!r})"
    return Failure(kind, message, details, name, attempt, cause=cause, non_retryable=non_retryable)
