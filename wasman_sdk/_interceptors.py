"""Interceptors: what an application puts around the calls of its clients and its workers."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import timedelta

    from wasman_host.events import Event
    from wasman_host.record import Limits
    from wasman_sdk._attempt import ActivityInfo
    from wasman_sdk._descriptions import HistoryEvent, WorkflowDescription
    from wasman_sdk._handle import WorkflowHandle
    from wasman_sdk._listing import WorkflowFilter, WorkflowPage
    from wasman_sdk._signal import Signal
    from wasman_sdk._starting import StartWorkflowOptions
    from wasman_sdk._workflow import Workflow

__all__ = [
    "CancelWorkflowInput",
    "ClientInterceptor",
    "CountWorkflowsInput",
    "DeployInput",
    "DescribeWorkflowInput",
    "ExecuteActivityInput",
    "GetResultInput",
    "HistoryInput",
    "ListWorkflowsPageInput",
    "OfRun",
    "SignalWorkflowInput",
    "StartWorkflowInput",
    "TerminateWorkflowInput",
    "UnblockWorkflowInput",
    "WorkerInterceptor",
    "chained",
    "checked",
    "listens",
]

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")


# Around a client's calls


@dataclass(frozen=True, kw_only=True)
class DeployInput:
    """`Client.deploy`: point a name at a module.

    Attributes:
        workflow: The workflow, with its module.
    """

    workflow: Workflow[Any, Any]


@dataclass(frozen=True, kw_only=True)
class StartWorkflowInput:
    """`Client.start_workflow`, and the start of `execute_workflow`.

    Attributes:
        workflow: The workflow, or its name.
        given: Its input, not validated yet.
        id: The workflow id.
        options: What else was given: session, memo, timeouts and so on.
        result_type: What `result()` gives, where the workflow is only a name.
    """

    workflow: Workflow[Any, Any] | str
    given: Any = field(repr=False)
    id: str
    options: StartWorkflowOptions
    result_type: Any = Any


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """A call about one instance.

    Attributes:
        id: The workflow id.
        run_id: The run, or None for the one that is current.
    """

    id: str
    run_id: str | None


@dataclass(frozen=True, kw_only=True)
class GetResultInput(OfRun):
    """`WorkflowHandle.result`; `timeout` is how long it waits at most."""

    timeout: timedelta | None


@dataclass(frozen=True, kw_only=True)
class DescribeWorkflowInput(OfRun):
    """`WorkflowHandle.describe`."""


@dataclass(frozen=True, kw_only=True)
class HistoryInput(OfRun):
    """`WorkflowHandle.history`."""


@dataclass(frozen=True, kw_only=True)
class CancelWorkflowInput(OfRun):
    """`WorkflowHandle.cancel`, for a `reason`."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class SignalWorkflowInput(OfRun):
    """`WorkflowHandle.signal`.

    Attributes:
        signal: The signal, or its name.
        value: What it says, not validated yet.
        message_id: By which a repeated send is known; None where one is drawn.
    """

    signal: Signal[Any] | str
    value: Any = field(repr=False)
    message_id: str | None


@dataclass(frozen=True, kw_only=True)
class TerminateWorkflowInput(OfRun):
    """`WorkflowHandle.terminate`, for a `reason`."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class UnblockWorkflowInput(OfRun):
    """`WorkflowHandle.unblock`; `limits` are what the guest may use from now on, None for what it might before."""

    limits: Limits | None


@dataclass(frozen=True, kw_only=True)
class ListWorkflowsPageInput:
    """`Client.list_workflows_page`, and each page of `list_workflows`.

    Attributes:
        page_size: How many instances it has at most.
        cursor: Where it begins, or None for the first page.
        where: Which instances.
    """

    page_size: int
    cursor: str | None
    where: WorkflowFilter


@dataclass(frozen=True, kw_only=True)
class CountWorkflowsInput:
    """`Client.count`; `where` says which instances."""

    where: WorkflowFilter


class ClientInterceptor:
    """Around what a client and its handles do: override what is of interest, and call `call_next` to go on.

    Of several the first is the outermost. `dataclasses.replace(given, ...)` changes what is asked for.
    """

    async def deploy(self, given: DeployInput, call_next: Callable[[DeployInput], Awaitable[str]]) -> str:
        """Around `Client.deploy`; gives the module's sha256, in hex."""
        return await call_next(given)

    async def start_workflow(
        self, given: StartWorkflowInput, call_next: Callable[[StartWorkflowInput], Awaitable[WorkflowHandle[Any]]]
    ) -> WorkflowHandle[Any]:
        """Around `Client.start_workflow` and the start of `Client.execute_workflow`."""
        return await call_next(given)

    async def get_result(self, given: GetResultInput, call_next: Callable[[GetResultInput], Awaitable[Any]]) -> Any:
        """Around `WorkflowHandle.result`, and the wait of `Client.execute_workflow`."""
        return await call_next(given)

    async def describe_workflow(
        self,
        given: DescribeWorkflowInput,
        call_next: Callable[[DescribeWorkflowInput], Awaitable[WorkflowDescription]],
    ) -> WorkflowDescription:
        """Around `WorkflowHandle.describe`."""
        return await call_next(given)

    async def history(
        self, given: HistoryInput, call_next: Callable[[HistoryInput], Awaitable[list[HistoryEvent]]]
    ) -> list[HistoryEvent]:
        """Around `WorkflowHandle.history`."""
        return await call_next(given)

    async def cancel_workflow(
        self, given: CancelWorkflowInput, call_next: Callable[[CancelWorkflowInput], Awaitable[None]]
    ) -> None:
        """Around `WorkflowHandle.cancel`."""
        await call_next(given)

    async def signal_workflow(
        self, given: SignalWorkflowInput, call_next: Callable[[SignalWorkflowInput], Awaitable[None]]
    ) -> None:
        """Around `WorkflowHandle.signal`."""
        await call_next(given)

    async def terminate_workflow(
        self, given: TerminateWorkflowInput, call_next: Callable[[TerminateWorkflowInput], Awaitable[None]]
    ) -> None:
        """Around `WorkflowHandle.terminate`."""
        await call_next(given)

    async def unblock_workflow(
        self, given: UnblockWorkflowInput, call_next: Callable[[UnblockWorkflowInput], Awaitable[None]]
    ) -> None:
        """Around `WorkflowHandle.unblock`."""
        await call_next(given)

    async def list_workflows_page(
        self, given: ListWorkflowsPageInput, call_next: Callable[[ListWorkflowsPageInput], Awaitable[WorkflowPage]]
    ) -> WorkflowPage:
        """Around `Client.list_workflows_page`, and each page that `Client.list_workflows` reads."""
        return await call_next(given)

    async def count_workflows(
        self, given: CountWorkflowsInput, call_next: Callable[[CountWorkflowsInput], Awaitable[int]]
    ) -> int:
        """Around `Client.count`."""
        return await call_next(given)


# Around a worker's


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


def checked(interceptors: Sequence[T], kind: type[T]) -> tuple[T, ...]:
    """The interceptors, each of which is a `kind`. Raises `TypeError`."""
    given: tuple[object, ...] = tuple(interceptors)
    wrong = [one for one in given if not isinstance(one, kind)]
    if wrong:
        message = f"interceptors= takes objects of subclasses of {kind.__name__}, and {wrong[0]!r} is none"
        raise TypeError(message)
    return tuple(interceptors)


def chained(
    interceptors: Sequence[object], name: str, last: Callable[[In], Awaitable[Out]]
) -> Callable[[In], Awaitable[Out]]:
    """`last`, with the method `name` of each interceptor around it, the first outermost."""
    for interceptor in reversed(interceptors):
        last = functools.partial(_called, getattr(interceptor, name), last)
    return last


def _called(
    method: Callable[[In, Callable[[In], Awaitable[Out]]], Awaitable[Out]],
    call_next: Callable[[In], Awaitable[Out]],
    given: In,
) -> Awaitable[Out]:
    return method(given, call_next)
