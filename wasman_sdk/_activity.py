"""`@activity`: Python functions that answer a guest's calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from attrs import frozen

from wasman_sdk import _attempt
from wasman_sdk._retry import RetryPolicy
from wasman_sdk._signature import Signature, owner_of, signature_of

if TYPE_CHECKING:
    from types import FrameType

    from wasman_sdk._attempt import ActivityInfo, ActivityLogger

__all__ = ["MARK", "Registered", "activity"]

F = TypeVar("F", bound=Callable[..., Any])

MARK = "__wasman_activity__"


@frozen(eq=False)
class Registered:
    """What the decorator found out about a function."""

    function: Callable[..., Any]
    name: str
    signature: Signature
    retry: RetryPolicy
    start_to_close_timeout: timedelta | None
    schedule_to_start_timeout: timedelta | None
    schedule_to_close_timeout: timedelta | None
    heartbeat_timeout: timedelta | None
    max_concurrent: int | None
    max_per_second: float | None


class _Activity:
    """`@activity`, `@activity(...)`, and what the attempt that is running may ask."""

    @overload
    def __call__(self, function: F, /) -> F: ...

    @overload
    def __call__(
        self,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        start_to_close_timeout: timedelta | None = None,
        schedule_to_start_timeout: timedelta | None = None,
        schedule_to_close_timeout: timedelta | None = None,
        heartbeat_timeout: timedelta | None = None,
        max_concurrent: int | None = None,
        max_per_second: float | None = None,
    ) -> Callable[[F], F]: ...

    def __call__(
        self,
        function: F | None = None,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        start_to_close_timeout: timedelta | None = None,
        schedule_to_start_timeout: timedelta | None = None,
        schedule_to_close_timeout: timedelta | None = None,
        heartbeat_timeout: timedelta | None = None,
        max_concurrent: int | None = None,
        max_per_second: float | None = None,
    ) -> F | Callable[[F], F]:
        """Register a function or a method, async or not, as an activity; it stays a plain callable.

        It has at most one payload parameter, the first, which is validated from the guest's JSON (or is the guest's own
        bytes, where its type is `bytes`). Parameters whose type is a `Session`, `ActivityInfo`, or, behind the
        payload, one of the worker's resources are injected. `Pool | None` is None where the worker has no pool; what
        has a default and cannot be injected is left at it. Of a method, `self` is no parameter: the worker is given
        `object.method`.

        Args:
            function: The function, where the decorator has no arguments.
            name: What guests call it by; the function's name by default (of `__call__` its class's).
            retry: When to try again; see `RetryPolicy` for the default.
            start_to_close_timeout: How long one attempt may take; another one follows.
            schedule_to_start_timeout: How long an attempt may wait until it begins: for a worker that has the activity,
                and for its turn. No other one follows.
            schedule_to_close_timeout: How long the guest waits in all, attempts, backoffs and crashes included.
            heartbeat_timeout: How long an attempt may give no `activity.heartbeat()`; another one follows.
            max_concurrent: How many attempts of it run at once in a worker.
            max_per_second: How many of them begin in a second in a worker, evenly spaced.

        Raises:
            TypeError: A parameter cannot be given, or an option makes no sense; the message names it.
        """
        frame = sys._getframe(1)  # noqa: SLF001  its annotations may name what is local to where it stands

        def register(wrapped: F) -> F:
            named = _name_of(wrapped, name)
            if retry is not None and not isinstance(retry, RetryPolicy):
                raise TypeError(f"activity {named!r}: retry is a RetryPolicy, not {retry!r}")
            if max_concurrent is not None and not (type(max_concurrent) is int and max_concurrent > 0):
                raise TypeError(f"activity {named!r}: max_concurrent is a number from 1 on, not {max_concurrent!r}")
            if max_per_second is not None and not (type(max_per_second) in {int, float} and max_per_second > 0):
                raise TypeError(f"activity {named!r}: max_per_second is a number above 0, not {max_per_second!r}")
            registered = Registered(
                function=wrapped,
                name=named,
                signature=signature_of(wrapped, named, _visible(frame, getattr(wrapped, "__qualname__", ""))),
                retry=retry or RetryPolicy(),
                start_to_close_timeout=_timeout(named, "start_to_close_timeout", start_to_close_timeout),
                schedule_to_start_timeout=_timeout(named, "schedule_to_start_timeout", schedule_to_start_timeout),
                schedule_to_close_timeout=_timeout(named, "schedule_to_close_timeout", schedule_to_close_timeout),
                heartbeat_timeout=_timeout(named, "heartbeat_timeout", heartbeat_timeout),
                max_concurrent=max_concurrent,
                max_per_second=max_per_second,
            )
            try:
                setattr(wrapped, MARK, registered)
            except AttributeError as error:
                message = f"activity {named!r}: {wrapped!r} cannot be marked; decorate the function where it is defined"
                raise TypeError(message) from error
            return wrapped

        return register if function is None else register(function)

    info: staticmethod[[], ActivityInfo] = staticmethod(_attempt.info)
    heartbeat: staticmethod[..., None] = staticmethod(_attempt.heartbeat)
    is_cancelled: staticmethod[[], bool] = staticmethod(_attempt.is_cancelled)
    wait_for_cancelled_sync: staticmethod[..., bool] = staticmethod(_attempt.wait_for_cancelled_sync)
    logger: ActivityLogger = _attempt.activity_logger


activity: _Activity = _Activity()


def _visible(frame: FrameType | None, qualified: str) -> dict[str, Any]:
    """What code at `frame` sees besides its module's names: those of the functions and classes around `qualified`."""
    names: dict[str, Any] = {}
    while frame is not None:
        around = frame.f_code.co_qualname
        if frame.f_locals is not frame.f_globals and qualified.startswith((f"{around}.<locals>.", f"{around}.")):
            names = {**frame.f_locals, **names}
        elif names or frame.f_locals is frame.f_globals:
            break
        frame = frame.f_back
    return names


def _name_of(function: object, name: str | None) -> str:
    if isinstance(function, staticmethod | classmethod):
        raise TypeError(f"activity {function.__name__!r}: put @activity below @{type(function).__name__}")
    if not callable(function):
        raise TypeError(f"@activity is for functions and methods, not for {function!r}")
    named = getattr(function, "__name__", "") if name is None else name
    if named == "__call__":
        named = owner_of(function)
    if not isinstance(named, str) or not named or named.startswith("wasman."):
        raise TypeError(f"an activity needs a name that does not begin with 'wasman.', not {named!r}")
    return named


def _timeout(name: str, option: str, value: object) -> timedelta | None:
    if value is None or (isinstance(value, timedelta) and value > timedelta(0)):
        return value
    raise TypeError(f"activity {name!r}: {option} is a timedelta longer than zero, not {value!r}")
