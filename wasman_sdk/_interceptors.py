"""Interceptors: what an application puts around the calls of its clients and its workers."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from wasman_host.events import Event
    from wasman_sdk._attempt import ActivityInfo

__all__ = ["ExecuteActivityInput", "WorkerInterceptor", "chained", "listens"]


@dataclass(frozen=True, kw_only=True)
class ExecuteActivityInput:
    """One attempt of an activity.

    Attributes:
        info: Which attempt, of what, for whom.
        payload: What the guest sent, as the activity will get it: validated, or bytes where it (or the fallback) takes
            bytes; None where it takes no payload. `dataclasses.replace(given, payload=...)` gives it another one.
    """

    info: ActivityInfo
    payload: Any = field(repr=False)


class WorkerInterceptor:
    """Around what a worker does for guests: override what is of interest, and call `call_next` to go on.

    Of several the first is the outermost. What it raises instead of calling on is the activity's failure, and what it
    gives back is the activity's result, validated like any other.
    """

    async def execute_activity(
        self, given: ExecuteActivityInput, call_next: Callable[[ExecuteActivityInput], Awaitable[Any]]
    ) -> Any:
        """Around each attempt of an activity; `activity.info()` works inside."""
        return await call_next(given)

    def on_event(self, event: Event) -> None:
        """What happens to instances, at the same points as in the log; called in the middle of it, so be quick.

        What it raises is logged, and changes nothing.
        """


def listens(interceptor: WorkerInterceptor) -> bool:
    """Whether it wants to hear of events: telling one that does not would cost each call something."""
    return type(interceptor).on_event is not WorkerInterceptor.on_event


def chained(
    interceptors: Sequence[object], name: str, last: Callable[[Any], Awaitable[Any]]
) -> Callable[[Any], Awaitable[Any]]:
    """`last`, with the method `name` of each interceptor around it, the first outermost."""
    for interceptor in reversed(interceptors):
        last = functools.partial(_called, getattr(interceptor, name), last)
    return last


def _called(
    method: Callable[[Any, Callable[[Any], Awaitable[Any]]], Awaitable[Any]],
    call_next: Callable[[Any], Awaitable[Any]],
    given: Any,
) -> Awaitable[Any]:
    return method(given, call_next)
