"""The client and its handles for code without an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from wasman_host.errors import InvalidArgumentError
from wasman_sdk._client import Client
from wasman_sdk._portal import Portal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import timedelta
    from types import TracebackType

    from typing_extensions import Unpack

    from wasman_host.codec import PayloadCodec
    from wasman_host.record import Limits
    from wasman_host.store.protocol import Store
    from wasman_sdk._descriptions import HistoryEvent, WorkflowDescription
    from wasman_sdk._handle import WorkflowHandle
    from wasman_sdk._interceptors import ClientInterceptor
    from wasman_sdk._listing import WorkflowFilter, WorkflowPage
    from wasman_sdk._signal import Signal
    from wasman_sdk._starting import StartWorkflowOptions
    from wasman_sdk._workflow import Workflow

__all__ = ["SyncClient", "SyncWorkflowHandle"]

In = TypeVar("In")
Out = TypeVar("Out")
T = TypeVar("T")


class SyncWorkflowHandle(Generic[Out]):
    """A `WorkflowHandle` whose methods block; they may be called from any thread.

    Attributes:
        id: The workflow id.
        run_id: The run, or None for whichever is the current one.
    """

    def __init__(self, handle: WorkflowHandle[Out], portal: Callable[[], Portal]) -> None:
        """Made by the client."""
        self.id: str = handle.id
        self.run_id: str | None = handle.run_id
        self._handle, self._portal = handle, portal

    def __repr__(self) -> str:
        return f"Sync{self._handle!r}"

    def result(self, *, timeout: timedelta | None = None) -> Out:
        """As `WorkflowHandle.result`."""
        return self._portal().call(lambda: self._handle.result(timeout=timeout))

    def describe(self) -> WorkflowDescription:
        """As `WorkflowHandle.describe`."""
        return self._portal().call(self._handle.describe)

    def history(self) -> list[HistoryEvent]:
        """As `WorkflowHandle.history`."""
        return self._portal().call(self._handle.history)

    def cancel(self, reason: str = "cancelled by request") -> None:
        """As `WorkflowHandle.cancel`."""
        self._portal().call(self._handle.cancel, reason)

    @overload
    def signal(self, signal: Signal[T], value: T, *, message_id: str | None = None) -> None: ...

    @overload
    def signal(self, signal: str, value: Any = None, *, message_id: str | None = None) -> None: ...

    def signal(self, signal: Signal[Any] | str, value: Any = None, *, message_id: str | None = None) -> None:
        """As `WorkflowHandle.signal`."""
        self._portal().call(lambda: self._handle.signal(signal, value, message_id=message_id))

    def terminate(self, reason: str = "terminated by request") -> None:
        """As `WorkflowHandle.terminate`."""
        self._portal().call(self._handle.terminate, reason)

    def unblock(self, *, limits: Limits | None = None) -> None:
        """As `WorkflowHandle.unblock`."""
        self._portal().call(lambda: self._handle.unblock(limits=limits))


class SyncClient:
    """A `Client` for code without an event loop: `with SyncClient.connect("sqlite:///wasman.db") as client`.

    Its methods block, and may be called from any thread. They are those of `Client`, but for `over`: an open store
    belongs to the event loop in which it was opened. Interceptors run in the client's own event loop.
    """

    def __init__(self, client: Client) -> None:
        """Use `connect`."""
        self._client = client
        self._portal = Portal()

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        tenant: str = "default",
        interceptors: Sequence[ClientInterceptor] = (),
        codec: PayloadCodec | None = None,
    ) -> SyncClient:
        """As `Client.connect`."""
        return cls(Client.connect(url, tenant=tenant, interceptors=interceptors, codec=codec))

    def __repr__(self) -> str:
        return f"Sync{self._client!r}"

    def __enter__(self) -> Self:
        self._portal.open(self._client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._portal.close(kind, error, traceback)

    @property
    def store(self) -> Store:
        """The store; its methods belong to the client's own event loop."""
        return self._client.store

    @property
    def tenant(self) -> str:
        """Whose instances it sees."""
        return self._client.tenant

    @property
    def is_open(self) -> bool:
        """Whether its store is open."""
        return self._portal.is_open

    def _open(self) -> Portal:
        if not self._portal.is_open:
            message = "the client is not open: use it inside `with SyncClient.connect(url) as client:`"
            raise InvalidArgumentError(message)
        return self._portal

    def deploy(self, workflow: Workflow[Any, Any]) -> str:
        """As `Client.deploy`."""
        return self._open().call(lambda: self._client.deploy(workflow))

    def deploy_absent(self, workflow: Workflow[Any, Any]) -> None:
        """As `Client.deploy_absent`."""
        self._open().call(self._client.deploy_absent, workflow)

    @overload
    def start_workflow(
        self, workflow: Workflow[In, Out], given: In, *, id: str, **options: Unpack[StartWorkflowOptions]
    ) -> SyncWorkflowHandle[Out]: ...

    @overload
    def start_workflow(
        self,
        workflow: str,
        given: Any = None,
        *,
        id: str,
        result_type: type[Out],
        **options: Unpack[StartWorkflowOptions],
    ) -> SyncWorkflowHandle[Out]: ...

    @overload
    def start_workflow(
        self, workflow: str, given: Any = None, *, id: str, **options: Unpack[StartWorkflowOptions]
    ) -> SyncWorkflowHandle[Any]: ...

    def start_workflow(
        self,
        workflow: Workflow[Any, Any] | str,
        given: Any = None,
        *,
        id: str,
        result_type: Any = Any,
        **options: Unpack[StartWorkflowOptions],
    ) -> SyncWorkflowHandle[Any]:
        """As `Client.start_workflow`."""

        async def start() -> WorkflowHandle[Any]:
            if isinstance(workflow, str):
                return await self._client.start_workflow(workflow, given, id=id, result_type=result_type, **options)
            return await self._client.start_workflow(workflow, given, id=id, **options)

        return SyncWorkflowHandle(self._open().call(start), self._open)

    @overload
    def execute_workflow(
        self, workflow: Workflow[In, Out], given: In, *, id: str, **options: Unpack[StartWorkflowOptions]
    ) -> Out: ...

    @overload
    def execute_workflow(
        self,
        workflow: str,
        given: Any = None,
        *,
        id: str,
        result_type: type[Out],
        **options: Unpack[StartWorkflowOptions],
    ) -> Out: ...

    @overload
    def execute_workflow(
        self, workflow: str, given: Any = None, *, id: str, **options: Unpack[StartWorkflowOptions]
    ) -> Any: ...

    def execute_workflow(
        self,
        workflow: Workflow[Any, Any] | str,
        given: Any = None,
        *,
        id: str,
        result_type: Any = Any,
        **options: Unpack[StartWorkflowOptions],
    ) -> Any:
        """As `Client.execute_workflow`."""
        if isinstance(workflow, str):
            handle = self.start_workflow(workflow, given, id=id, result_type=result_type, **options)
        else:
            handle = self.start_workflow(workflow, given, id=id, **options)
        return handle.result()

    @overload
    def get_handle(
        self, id: str, *, workflow: Workflow[Any, Out], run_id: str | None = None
    ) -> SyncWorkflowHandle[Out]: ...

    @overload
    def get_handle(self, id: str, *, workflow: None = None, run_id: str | None = None) -> SyncWorkflowHandle[Any]: ...

    def get_handle(
        self, id: str, *, workflow: Workflow[Any, Any] | None = None, run_id: str | None = None
    ) -> SyncWorkflowHandle[Any]:
        """As `Client.get_handle`."""
        if workflow is None:
            return SyncWorkflowHandle(self._client.get_handle(id, run_id=run_id), self._open)
        return SyncWorkflowHandle(self._client.get_handle(id, workflow=workflow, run_id=run_id), self._open)

    def list_workflows(self, *, page_size: int = 100, **where: Unpack[WorkflowFilter]) -> Iterator[WorkflowDescription]:
        """As `Client.list_workflows`."""
        self._client.list_workflows(page_size=page_size, **where)  # which refuses what cannot be asked for
        return self._rows(page_size, where)

    def _rows(self, page_size: int, where: WorkflowFilter) -> Iterator[WorkflowDescription]:
        cursor: str | None = None
        while True:
            page = self.list_workflows_page(page_size=page_size, cursor=cursor, **where)
            yield from page.workflows
            cursor = page.cursor
            if cursor is None:
                return

    def list_workflows_page(
        self, *, page_size: int = 100, cursor: str | None = None, **where: Unpack[WorkflowFilter]
    ) -> WorkflowPage:
        """As `Client.list_workflows_page`."""
        return self._open().call(lambda: self._client.list_workflows_page(page_size=page_size, cursor=cursor, **where))

    def count(self, **where: Unpack[WorkflowFilter]) -> int:
        """As `Client.count`."""
        return self._open().call(lambda: self._client.count(**where))
