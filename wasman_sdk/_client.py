"""The client: start workflows, find them, wait for them."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import anyio
import anyio.to_thread
from pydantic import TypeAdapter

from wasman_host import deployments, starting
from wasman_host.codec import checked_codec
from wasman_host.errors import InvalidArgumentError, WorkflowNotFoundError
from wasman_host.guest.module import digest
from wasman_host.ids import validated_id
from wasman_host.record import Limits
from wasman_host.store import open_store, path_of, redacted
from wasman_sdk._handle import WorkflowHandle
from wasman_sdk._interceptors import (
    ClientInterceptor,
    CountWorkflowsInput,
    DeployInput,
    ListWorkflowsPageInput,
    StartWorkflowInput,
    chained,
    checked,
)
from wasman_sdk._listing import Listing, filter_of, page_of
from wasman_sdk._starting import Options, StartWorkflowOptions
from wasman_sdk._workflow import Workflow, input_payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence
    from types import TracebackType

    from typing_extensions import Unpack

    from wasman_host.codec import PayloadCodec
    from wasman_host.payload import Payload
    from wasman_host.store.protocol import Store
    from wasman_sdk._descriptions import WorkflowDescription
    from wasman_sdk._listing import WorkflowFilter, WorkflowPage


__all__ = ["Client"]

logger = logging.getLogger("wasman.client")

In = TypeVar("In")
Out = TypeVar("Out")

_ANY: TypeAdapter[Any] = TypeAdapter(Any)


class Client:
    """A connection to a store; use it as `async with Client.connect(url) as client`.

    Attributes:
        store: The open store.
        tenant: Whose instances it sees.
        is_open: Whether its store is open.
        codec: What payloads are encoded by before they are stored, or None.
        workers: Workers of this process that begin at once what is started here.
    """

    def __init__(
        self,
        store: Store,
        tenant: str,
        interceptors: Sequence[ClientInterceptor] = (),
        codec: PayloadCodec | None = None,
    ) -> None:
        """Use `connect`."""
        self.store = store
        self.tenant = tenant
        self._interceptors = checked(interceptors, ClientInterceptor)
        self.codec: PayloadCodec | None = checked_codec(codec)
        self.is_open: bool = False
        self.workers: list[starting.Adopter] = []
        self._stack = contextlib.AsyncExitStack()

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        tenant: str = "default",
        interceptors: Sequence[ClientInterceptor] = (),
        codec: PayloadCodec | None = None,
    ) -> Client:
        """A client that opens its store when it is entered: `async with Client.connect(url) as client`.

        A relative path is resolved now; the absolute one is logged.

        Args:
            url: `sqlite:///file.db` (relative) or `sqlite:////absolute/file.db`; `file://folder` (relative) or
                `file:///absolute/folder`; or `memory://` for one process's life.
            tenant: Whose instances it sees.
            interceptors: What is put around each call of the client and its handles, the first outermost.
            codec: What inputs, sessions, results and the answers of activities are encoded by before they are stored,
                such as to encrypt them; workers of this client use it as well.

        Raises:
            InvalidArgumentError: The URL names no kind of store, and the message lists those that there are; or the
                codec is none.
        """
        store = open_store(url)
        logger.info("the store of this client is %s", path_of(store) or redacted(url))
        return cls(store, tenant, interceptors, codec)

    @classmethod
    def over(
        cls,
        store: Store,
        tenant: str = "default",
        *,
        interceptors: Sequence[ClientInterceptor] = (),
        codec: PayloadCodec | None = None,
    ) -> Client:
        """A client of a store that is open already, used without entering it; whoever has opened the store closes it.

        Without `store.serve()` beside it, what another process commits is seen only when it is asked for.
        """
        client = cls(store, tenant, interceptors, codec)
        client.is_open = True
        return client

    def __repr__(self) -> str:
        tenant = "" if self.tenant == "default" else f", tenant={self.tenant!r}"
        return f"Client({self.store!r}{tenant})"

    def __await__(self) -> Any:
        message = "Client.connect is not awaited: write `async with Client.connect(url) as client:`"
        raise TypeError(message)

    async def __aenter__(self) -> Self:
        await self.store.open()
        self.is_open = True
        self._stack = contextlib.AsyncExitStack()
        self._stack.push_async_callback(self.store.close)
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(tasks.cancel_scope.cancel)
        tasks.start_soon(self.store.serve, name="wasman store watcher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self.is_open = False
        if error is None or isinstance(error, anyio.get_cancelled_exc_class()):
            return await self._stack.__aexit__(kind, error, traceback)
        # The task group would wrap what the body has raised, and the application could not catch it by its class.
        await self._stack.__aexit__(None, None, None)
        return None

    async def deploy(self, workflow: Workflow[Any, Any]) -> str:
        """Point the workflow's name at its module; runs that have started keep theirs. The module's sha256, in hex.

        Raises:
            InvalidArgumentError: The workflow has no module.
            InvalidModuleError: Its module cannot be run.
        """
        return await chained(self._interceptors, "deploy", self._deploy)(DeployInput(workflow=workflow))

    async def _deploy(self, given: DeployInput) -> str:
        workflow = given.workflow
        data = await anyio.to_thread.run_sync(workflow.module)
        if data is None:
            message = f"workflow {workflow.name!r} has no module to deploy; give it one by module="
            raise InvalidArgumentError(message)
        return (
            await deployments.deploy(
                self.store, self.tenant, workflow.name, data, workflow.entry, resume=workflow.resume
            )
        ).module

    async def deploy_absent(self, workflow: Workflow[Any, Any]) -> None:
        """Deploy the workflow's module where its name points at nothing yet; another module under the name stays."""
        present = await deployments.deployed(self.store, self.tenant, workflow.name)
        data = await anyio.to_thread.run_sync(workflow.module)
        if data is None:
            return
        if present is None:
            present = await deployments.deploy(
                self.store, self.tenant, workflow.name, data, workflow.entry, resume=workflow.resume, move=False
            )
        if present.module != digest(data):
            logger.warning(
                "workflow %r is deployed with another module (%s) than the one at hand; new runs use that one until "
                "`deploy` moves the name",
                workflow.name,
                present.module[:12],
            )

    @overload
    async def start_workflow(
        self, workflow: Workflow[In, Out], given: In, *, id: str, **options: Unpack[StartWorkflowOptions]
    ) -> WorkflowHandle[Out]: ...

    @overload
    async def start_workflow(
        self,
        workflow: str,
        given: Any = None,
        *,
        id: str,
        result_type: type[Out],
        **options: Unpack[StartWorkflowOptions],
    ) -> WorkflowHandle[Out]: ...

    @overload
    async def start_workflow(
        self, workflow: str, given: Any = None, *, id: str, **options: Unpack[StartWorkflowOptions]
    ) -> WorkflowHandle[Any]: ...

    async def start_workflow(
        self,
        workflow: Workflow[Any, Any] | str,
        given: Any = None,
        *,
        id: str,
        result_type: Any = Any,
        **options: Unpack[StartWorkflowOptions],
    ) -> WorkflowHandle[Any]:
        """Start a durable run; it is on disk when this returns, whether or not a worker runs.

        Args:
            workflow: The workflow, or its name where only that is known.
            given: Its input.
            id: The workflow id: 1 to 200 bytes of UTF-8 without "/", ".." or control characters.
            result_type: What `result()` gives, where the workflow is only a name.
            options: As of `StartWorkflowOptions`: session, memo, search_attributes, queue, id_conflict_policy,
                id_reuse_policy, execution_timeout, run_timeout, start_delay.

        Returns:
            A handle of the run that was started, or of the open one that is used instead.

        Raises:
            InvalidArgumentError: The id, the input, the session or an option cannot be used.
            WorkflowAlreadyExistsError: The id has a run, and the policies refuse another one.
            WorkflowNotFoundError: Nothing is deployed under the name.
            InvalidModuleError: The workflow's module cannot be run.
        """
        asked = StartWorkflowInput(workflow=workflow, given=given, id=id, options=options, result_type=result_type)
        return await chained(self._interceptors, "start_workflow", self._start_workflow)(asked)

    async def _start_workflow(self, asked: StartWorkflowInput) -> WorkflowHandle[Any]:
        workflow, id = asked.workflow, validated_id(asked.id)  # noqa: A001  the field's own word
        chosen = Options(**asked.options)
        if isinstance(workflow, str):
            name, output = workflow, _ANY if asked.result_type is Any else TypeAdapter(asked.result_type)
            payload = input_payload(name, asked.given)
            host, session = await chosen.for_host(id, "", Limits())
        else:
            name, output = workflow.name, workflow.output
            payload = workflow.payload(asked.given)
            host, session = await chosen.for_host(id, workflow.resume, workflow.limits)
        try:
            run = await self._start(id, name, payload, session, host)
        except WorkflowNotFoundError:
            if isinstance(workflow, str):
                raise
            await self.deploy_absent(workflow)
            run = await self._start(id, name, payload, session, host)
        return WorkflowHandle(self.store, self.tenant, id, run, name, output, self._interceptors, self.codec)

    async def _start(
        self, id_: str, name: str, given: Payload, session: Payload | None, options: starting.StartOptions
    ) -> str:
        return await starting.start(
            self.store, self.tenant, id_, name, given, session, options, self.workers, self.codec
        )

    @overload
    async def execute_workflow(
        self, workflow: Workflow[In, Out], given: In, *, id: str, **options: Unpack[StartWorkflowOptions]
    ) -> Out: ...

    @overload
    async def execute_workflow(
        self,
        workflow: str,
        given: Any = None,
        *,
        id: str,
        result_type: type[Out],
        **options: Unpack[StartWorkflowOptions],
    ) -> Out: ...

    @overload
    async def execute_workflow(
        self, workflow: str, given: Any = None, *, id: str, **options: Unpack[StartWorkflowOptions]
    ) -> Any: ...

    async def execute_workflow(
        self,
        workflow: Workflow[Any, Any] | str,
        given: Any = None,
        *,
        id: str,
        result_type: Any = Any,
        **options: Unpack[StartWorkflowOptions],
    ) -> Any:
        """Start a run and wait for its result; see `start_workflow` and `WorkflowHandle.result`."""
        if isinstance(workflow, str):
            handle = await self.start_workflow(workflow, given, id=id, result_type=result_type, **options)
        else:
            handle = await self.start_workflow(workflow, given, id=id, **options)
        return await handle.result()

    @overload
    def get_handle(
        self, id: str, *, workflow: Workflow[Any, Out], run_id: str | None = None
    ) -> WorkflowHandle[Out]: ...

    @overload
    def get_handle(self, id: str, *, workflow: None = None, run_id: str | None = None) -> WorkflowHandle[Any]: ...

    def get_handle(
        self, id: str, *, workflow: Workflow[Any, Any] | None = None, run_id: str | None = None
    ) -> WorkflowHandle[Any]:
        """A handle of an instance that was started elsewhere; nothing is looked up yet.

        Args:
            id: The workflow id.
            workflow: Types the result.
            run_id: One particular run; by default whichever is the current one.

        Raises:
            InvalidArgumentError: No instance can have that id.
        """
        output: TypeAdapter[Any] = workflow.output if workflow else _ANY
        name = workflow.name if workflow else ""
        return WorkflowHandle(
            self.store, self.tenant, validated_id(id), run_id, name, output, self._interceptors, self.codec
        )

    def list_workflows(
        self, *, page_size: int = 100, **where: Unpack[WorkflowFilter]
    ) -> AsyncIterator[WorkflowDescription]:
        """Instances, newest first: `async for found in client.list_workflows(status="running")`.

        Args:
            page_size: How many are read at once.
            where: Which; as of `WorkflowFilter`: status, workflow, id_prefix, search_attributes, parent, started_after,
                started_before, closed_after, closed_before. All by default.

        Raises:
            InvalidArgumentError: There is no such status, a time has no time zone, or the page size is less than 1.
        """
        filter_of(self.tenant, where)  # what is wrong with it is said here, not where the listing is read

        def read(cursor: str | None) -> Awaitable[WorkflowPage]:
            return self.list_workflows_page(page_size=page_size, cursor=cursor, **where)

        return Listing(read, page_size)

    async def list_workflows_page(
        self, *, page_size: int = 100, cursor: str | None = None, **where: Unpack[WorkflowFilter]
    ) -> WorkflowPage:
        """One page of a listing, for those who show pages: the next one is asked for with the `cursor` of this one.

        Args:
            page_size: How many instances it has at most.
            cursor: `WorkflowPage.cursor` of the page before; None for the first page.
            where: As of `list_workflows`; the same for all pages.

        Raises:
            InvalidArgumentError: As of `list_workflows`, or the cursor is none.
        """
        asked = ListWorkflowsPageInput(page_size=page_size, cursor=cursor, where=where)
        return await chained(self._interceptors, "list_workflows_page", self._page)(asked)

    async def _page(self, asked: ListWorkflowsPageInput) -> WorkflowPage:
        return await page_of(self.store, filter_of(self.tenant, asked.where), asked.page_size, asked.cursor)

    async def count(self, **where: Unpack[WorkflowFilter]) -> int:
        """How many instances there are; `where` as of `list_workflows`."""
        asked = CountWorkflowsInput(where=where)
        return await chained(self._interceptors, "count_workflows", self._count)(asked)

    async def _count(self, asked: CountWorkflowsInput) -> int:
        return await self.store.count(filter_of(self.tenant, asked.where))
