"""Every error that wasman raises.

    WasmanError
    ├── InvalidArgumentError (ValueError)     what the caller gave cannot be used; nothing was started or changed
    ├── ModuleError
    │   ├── InvalidModuleError                the bytes are not a guest that wasman can run
    │   └── WasmVersionMismatchError          another module was offered for a run that is pinned to its own
    ├── WorkflowAlreadyExistsError            the workflow id is taken
    ├── WorkflowNotFoundError                 no instance, or no workflow, has that name
    ├── WorkflowClosedError                   the run has ended, so it takes no more requests
    ├── ConcurrentExecutionError              somebody else has moved the instance on; this copy is dropped
    ├── SignalsFullError                      as many signals wait for the instance as may; this one was not accepted
    ├── RunEndedError                         the run ended other than by completing (what `result()` raises)
    │   ├── WorkflowFailedError               ... the guest failed it
    │   │   └── WorkflowPanicError            ... by a panic; carries the message, its cause the backtrace
    │   ├── WorkflowCancelledError            ... it was asked to, and its guest honoured it
    │   ├── WorkflowTerminatedError           ... a person ended it
    │   └── WorkflowTimedOutError             ... its own timeout ended it
    ├── ResultTimeoutError (TimeoutError)     a result was not there in the time that it was waited for; the run goes on
    ├── BlockedError                          why an instance stands still until somebody unblocks it
    │   ├── NondeterminismError               the replay asked for something the log does not hold
    │   ├── CorruptSnapshotError              stored bytes are missing, damaged or not where they belong
    │   ├── LimitError                        the instance reached one of its `Limits`; it goes on under a higher one
    │   │   ├── GuestTimeoutError             ... one turn of the guest used more processor time than it may
    │   │   └── GuestLimitError               ... memory, tables, stack, stored bytes, a request or a response
    │   ├── GuestProtocolError                the guest does not follow the ABI that it was built for
    │   ├── GuestDeadlockError                nothing can happen any more that would let the guest go on
    │   ├── PayloadCodecError                 a payload was encoded by a codec that is not here, or that failed
    │   ├── InputMismatchError                the guest's entry takes other integers than the run was given
    │   ├── UnsupportedStateError             the state was written by a newer wasman
    │   └── StreamError                       a source or sink cannot be used
    │       └── SourceChangedError            ... because the source is no longer what it was at the start
    ├── ActivityError                         an activity failed for good; carries type, message, details, attempt
    ├── GuestTrapError                        a guest trapped; carries the wasm backtrace
    ├── ActivityCancelledError                what an activity does is no longer wanted: it should stop
    ├── ApplicationError                      raised by activities: a failure with a type and details
    ├── SecretUnavailableError                a secret that is given by reference is not on this machine
    ├── SimulatedCrashError                   a `TestRunner` has crashed where it was told to
    └── StoreError
        ├── StoreUnavailableError             full, locked, read-only or unreachable: nothing was written, try again
        └── StoreSchemaError                  the store was made by another version of wasman, or by another program

What the caller can do: mend the argument (`InvalidArgumentError`, `ModuleError`), choose another id or ask for the
existing run (`WorkflowAlreadyExistsError`), mend the cause and `unblock` (`BlockedError`: the run keeps all its data),
or wait (`StoreUnavailableError`). `ConcurrentExecutionError` needs nothing: the winner goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = [
    "ActivityCancelledError",
    "ActivityError",
    "ApplicationError",
    "BlockedError",
    "ConcurrentExecutionError",
    "CorruptSnapshotError",
    "Failure",
    "GuestDeadlockError",
    "GuestLimitError",
    "GuestProtocolError",
    "GuestTimeoutError",
    "GuestTrapError",
    "InputMismatchError",
    "InvalidArgumentError",
    "InvalidModuleError",
    "LimitError",
    "ModuleError",
    "NondeterminismError",
    "PayloadCodecError",
    "ResultTimeoutError",
    "RunEndedError",
    "SecretUnavailableError",
    "SignalsFullError",
    "SimulatedCrashError",
    "SourceChangedError",
    "StoreError",
    "StoreSchemaError",
    "StoreUnavailableError",
    "StreamError",
    "UnsupportedStateError",
    "WasmVersionMismatchError",
    "WasmanError",
    "WorkflowAlreadyExistsError",
    "WorkflowCancelledError",
    "WorkflowClosedError",
    "WorkflowFailedError",
    "WorkflowNotFoundError",
    "WorkflowPanicError",
    "WorkflowTerminatedError",
    "WorkflowTimedOutError",
]


def _writable(text: str) -> str:
    """Text as UTF-8 can write it: an exception's may hold a file's name that is none."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@frozen
class Failure:
    """What went wrong, in the form in which it is stored and handed to guests.

    Attributes:
        type: A short name that programs can compare, such as ``CardDeclined`` or ``GuestTrap``.
        message: One sentence for people.
        details: Anything JSON can hold, chosen by who raised it.
        activity: The activity that failed, or "" where the failure is not an activity's.
        attempt: The attempt that failed, from 1; 0 where the failure is not an activity's.
        backtrace: The guest's wasm backtrace, or "" where there is none.
        cause: What brought it about: of an exception its `__cause__`, of a timeout the attempt before; or None.
        non_retryable: Whether another attempt could not have helped, as who raised it or the retry policy says.
    """

    type: str
    message: str = field(converter=_writable)
    details: Any = None
    activity: str = ""
    attempt: int = 0
    backtrace: str = ""
    cause: Failure | None = None
    non_retryable: bool = False

    def as_json(self) -> dict[str, Any]:
        """The stored form; empty fields are left out."""
        fields = {
            "type": self.type,
            "message": self.message,
            "details": self.details,
            "activity": self.activity,
            "attempt": self.attempt,
            "backtrace": self.backtrace,
            "cause": self.cause and self.cause.as_json(),
            "non_retryable": self.non_retryable,
        }
        kept = {"type", "message"} if self.details is None else {"type", "message", "details"}
        return {name: value for name, value in fields.items() if value or name in kept}

    @classmethod
    def of_json(cls, fields: dict[str, Any]) -> Failure:
        """The inverse of `as_json`."""
        return cls(
            type=str(fields["type"]),
            message=str(fields["message"]),
            details=fields.get("details"),
            activity=str(fields.get("activity", "")),
            attempt=int(fields.get("attempt", 0)),
            backtrace=str(fields.get("backtrace", "")),
            cause=cls.of_json(fields["cause"]) if fields.get("cause") else None,
            non_retryable=bool(fields.get("non_retryable", False)),
        )

    def __str__(self) -> str:
        attempt = f", attempt {self.attempt}" if self.attempt else ""
        where = f" (activity {self.activity!r}{attempt})" if self.activity else ""
        return f"{self.type}: {self.message}{where}"


class WasmanError(Exception):
    """The root of everything that wasman raises on purpose."""


class InvalidArgumentError(WasmanError, ValueError):
    """What the caller gave cannot be used; nothing was started or changed."""


class ModuleError(WasmanError):
    """A module cannot be used."""


class InvalidModuleError(ModuleError):
    """The bytes are not a guest that wasman can run; the message says what is wrong with them."""


class WasmVersionMismatchError(ModuleError):
    """Another module was offered for a run that is pinned to its own."""


class WorkflowAlreadyExistsError(WasmanError):
    """The workflow id is taken by an instance that is already there.

    Attributes:
        run_id: The run that it has, or "" where that is not known.
    """

    def __init__(self, message: str, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id


class WorkflowNotFoundError(WasmanError):
    """There is no such instance or workflow in this store."""


class WorkflowClosedError(WasmanError):
    """The run has ended, so it takes no more requests."""


class SignalsFullError(WasmanError):
    """As many signals wait for the instance as may; the one that was sent was not accepted."""


class ConcurrentExecutionError(WasmanError):
    """Somebody else has moved this instance on since it was read; the copy held here is dropped."""


class RunEndedError(WasmanError):
    """The run ended other than by completing.

    Attributes:
        failure: What is stored of the end.
    """

    def __init__(self, message: str, failure: Failure | None = None) -> None:
        super().__init__(message)
        self.failure = failure


class ResultTimeoutError(WasmanError, TimeoutError):
    """A result was not there in the time that it was waited for. The run goes on; wait again, or look at it."""


class WorkflowFailedError(RunEndedError):
    """The guest failed its run: it called `wasman.fail`, trapped, or exited with a code other than 0."""


class WorkflowPanicError(WorkflowFailedError):
    """The guest panicked. What it was given is kept: with the panic mended, its log can be replayed and looked at."""


class WorkflowCancelledError(RunEndedError):
    """The run was cancelled: its guest was told, and ended with what it was told."""


class WorkflowTerminatedError(RunEndedError):
    """A person ended the run."""


class WorkflowTimedOutError(RunEndedError):
    """The run's own execution timeout or run timeout ended it."""


class BlockedError(WasmanError):
    """Why an instance stands still. Its data is untouched; mend the cause, then unblock it."""


class NondeterminismError(BlockedError):
    """The replayed guest asked for something else than its log holds."""


class CorruptSnapshotError(BlockedError):
    """Stored bytes of an instance are missing, damaged, or not where they belong."""


class LimitError(BlockedError):
    """An instance reached one of its limits, and goes on under a higher one.

    Attributes:
        limit: Which one, as `Limits` names it.
    """

    def __init__(self, message: str, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class GuestTimeoutError(LimitError):
    """One turn of the guest used more processor time than the instance may."""


class GuestLimitError(LimitError):
    """The guest reached a limit of its instance, such as memory or stack."""


class GuestProtocolError(BlockedError):
    """The guest does not follow the ABI that it was built for; its SDK is at fault, or another one is needed."""


class GuestDeadlockError(BlockedError):
    """Nothing can happen any more that would let the guest go on: all its goroutines wait for each other."""


class PayloadCodecError(BlockedError):
    """A payload was encoded by a codec that this process has not, or the codec has failed."""


class InputMismatchError(BlockedError):
    """The guest's entry takes other integers than the run was given."""


class UnsupportedStateError(BlockedError):
    """The state was written by a newer wasman than this one."""


class StreamError(BlockedError):
    """A source or a sink of the session cannot be used."""


class SourceChangedError(StreamError):
    """A source is no longer what it was when the run started, so its bytes cannot be read again."""


class ActivityError(WasmanError):
    """An activity failed for good.

    Attributes:
        failure: All that is stored of its last failure.
        type: What it failed by: a short name that programs can compare.
        message: One sentence for people.
        details: Anything JSON can hold, chosen by who raised it.
        activity: The activity's name.
        attempt: The attempt that failed, from 1.
        non_retryable: Whether no other attempt followed because it could not have helped.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.type, self.message, self.details = failure.type, failure.message, failure.details
        self.activity, self.attempt, self.non_retryable = failure.activity, failure.attempt, failure.non_retryable


class GuestTrapError(WasmanError):
    """A guest trapped: what WebAssembly does where other programs crash. The message ends with the wasm backtrace.

    Attributes:
        failure: All that is stored of it.
        backtrace: Where in the module it was, innermost frame first.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.message}\n{failure.backtrace}")
        self.failure = failure
        self.backtrace = failure.backtrace


class ActivityCancelledError(WasmanError):
    """This attempt is over: the run was cancelled or has ended, the attempt timed out, or its worker gave it up."""


class ApplicationError(WasmanError):
    """Raise this in an activity to say more than a Python exception can.

    Args:
        message: One sentence for people.
        type: A short name that the guest can compare; the class name by default.
        details: Anything JSON can hold.
        non_retryable: True where another attempt cannot help.
        next_retry_delay: When the next attempt begins, if there is one, instead of what the retry policy says.
    """

    def __init__(
        self,
        message: str,
        *,
        type: str = "",
        details: Any = None,
        non_retryable: bool = False,
        next_retry_delay: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.type = type or self.__class__.__name__
        self.details = details
        self.non_retryable = non_retryable
        self.next_retry_delay = next_retry_delay


class SecretUnavailableError(WasmanError):
    """A secret that is given by reference is not on the machine that needs it."""


class SimulatedCrashError(WasmanError):
    """A `TestRunner` has crashed where it was told to; the next runner goes on from what was durable."""


class StoreError(WasmanError):
    """The store cannot do what was asked of it."""


class StoreUnavailableError(StoreError):
    """The store is full, locked, read-only or unreachable: nothing was written, and trying again later may help."""


class StoreSchemaError(StoreError):
    """The file is no wasman store, or one that another version of wasman has made."""
