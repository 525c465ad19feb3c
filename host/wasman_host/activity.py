"""Activities as the host sees them: named handlers of bytes, and when to try again.

The SDK turns decorated Python functions into these.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import field, frozen

from wasman_host.errors import ApplicationError, Failure
from wasman_host.payload import Payload
from wasman_host.store.protocol import Key

__all__ = ["ActivityCall", "ActivityDefinition", "Retry", "failure_of"]


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

    def retries(self, failure: Failure, attempt: int, *, non_retryable: bool) -> bool:
        """Whether there is another attempt after `attempt` failed with `failure`."""
        if non_retryable or failure.type in self.non_retryable:
            return False
        return self.maximum_attempts == 0 or attempt < self.maximum_attempts


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

    @property
    def idempotency_key(self) -> str:
        """The same at every attempt of this call, and of no other call ever."""
        return f"{self.run}/{self.operation}"


@frozen
class ActivityDefinition:
    """A registered activity.

    Attributes:
        name: What guests call it by.
        handler: Takes the call, gives the response's bytes; an `ApplicationError` says how it failed, any other
            exception is a failure of that exception's class.
        retry: When to try again.
        timeout: Seconds that one attempt may take, or None.
    """

    name: str
    handler: Callable[[ActivityCall], Awaitable[bytes]]
    retry: Retry = field(factory=Retry)
    timeout: float | None = None


def failure_of(error: Exception, name: str, attempt: int) -> tuple[Failure, bool]:
    """What is stored of an exception that an activity raised, and whether another attempt cannot help."""
    if isinstance(error, ApplicationError):
        return Failure(error.type, str(error), error.details, name, attempt), error.non_retryable
    return Failure(type(error).__name__, str(error) or repr(error), None, name, attempt), False
