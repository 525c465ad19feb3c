"""The client: start workflows, find them, wait for them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, overload

import anyio
import anyio.to_thread
from attrs import evolve, frozen
from pydantic import TypeAdapter

from wasman_host import control
from wasman_host.errors import (
    InvalidArgumentError,
    RunEndedError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from wasman_host.payload import JSON, Payload
from wasman_host.record import Limits
from wasman_host.store import open_store
from wasman_host.store.protocol import CLOSED, Filter, Key, Status, Store
from wasman_sdk._session import Session, bind
from wasman_sdk._workflow import Workflow, read_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from types import TracebackType

    from wasman_host.oplog import Entry
    from wasman_host.store.protocol import Stored

__all__ = ["Client", "HistoryEvent", "PendingActivity", "WorkflowDescription", "WorkflowHandle"]

logger = logging.getLogger("wasman.client")

In = TypeVar("In")
Out = TypeVar("Out")

_LOOK = 5.0  # seconds between two looks at an instance although no hint came
_PAGE = 100
_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_ENDS: Mapping[Status, type[RunEndedError]] = {
    Status.FAILED: WorkflowFailedError,
    Status.TERMINATED: WorkflowTerminatedError,
    Status.TIMED_OUT: WorkflowTimedOutError,
}


@frozen
class PendingActivity:
    """A call that is waiting for its next attempt or for a worker.

    Attributes:
        name: The activity's name.
        attempts: Attempts that have begun.
        next_attempt: When the next one begins, or None while one is under way.
        last_failure: How the last one failed, or "".
    """

    name: str
    attempts: int
    next_attempt: datetime | None
    last_failure: str


@frozen
class WorkflowDescription:
    """An instance as it stands.

    Attributes:
        id: The workflow id.
        run_id: Its current run.
        workflow: The workflow's name.
        status: "running", "waiting", "blocked", "publishing", "completed", "failed", "terminated" or "timed_out".
        reason: Why it is blocked, what it waits for, or why it failed; "" else.
        module: sha256 of the module that the run is pinned to, in hex.
        owner: The worker that holds it, or None.
        created: When the run was started.
        closed: When it ended, or None.
        log_entries: Deliveries in its log.
        snapshots: Deltas over its base image.
        snapshot_bytes: Their stored size.
        snapshot_entry: The first log entry that the newest of them does not hold, or None where there is none.
        pending: Calls that wait.
        undelivered: Mail that was accepted and came too late: (id, kind).
        memo: What the starter noted.
        limits: What its guest may use, or None where its record cannot be read.
        backtrace: Where in its module the guest trapped, if that is why it failed; "" else.
    """

    id: str
    run_id: str
    workflow: str
    status: str
    reason: str
    module: str
    owner: str | None
    created: datetime
    closed: datetime | None
    log_entries: int
    snapshots: int
    snapshot_bytes: int
    snapshot_entry: int | None
    pending: tuple[PendingActivity, ...]
    undelivered: tuple[tuple[str, str], ...]
    memo: Mapping[str, Any]
    limits: Limits | None
    backtrace: str


@frozen
class HistoryEvent:
    """One thing that was handed to a guest, from the run's log.

    Attributes:
        entry: The log entry; events of one entry were handed over together.
        time: The guest's time from there on.
        kind: "start" (the input), "session", "result" or "failed" (of an activity), "fired" (a timer), or what ended
            the run from outside: "terminate", "timed_out".
        operation: The number of the operation that it answers, or None.
        name: The activity's name; for a timer how long it was, in nanoseconds; "" else.
        size: Bytes handed over.
        failure: How the activity failed, or why the run was ended; "" else.
    """

    entry: int
    time: datetime
    kind: str
    operation: int | None
    name: str
    size: int
    failure: str


def _events(entries: Sequence[Entry]) -> list[HistoryEvent]:
    names = [operation.name for entry in entries for operation in entry.issued]
    return [
        HistoryEvent(
            entry=entry.n,
            time=_time(entry.time),
            kind=delivery.kind,
            operation=None if delivery.operation < 0 else delivery.operation,
            name=names[delivery.operation] if 0 <= delivery.operation < len(names) else "",
            size=delivery.payload.size if delivery.payload else 0,
            failure="" if delivery.failure is None else str(delivery.failure),
        )
        for entry in entries
        for delivery in entry.deliveries
    ]


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC)


def _description(found: control.Description) -> WorkflowDescription:
    stored, record = found.stored, found.record
    columns = stored.columns
    reason = found.reason
    if record is not None and record.failure is not None:
        reason = str(record.failure)
    pending = tuple(
        PendingActivity(
            operation.name,
            operation.attempts,
            None if operation.retry_at is None else _time(operation.retry_at),
            "" if operation.failure is None else str(operation.failure),
        )
        for operation in (record.open if record else ())
    )
    snapshot = record.snapshot if record else None
    return WorkflowDescription(
        id=stored.key.id,
        run_id=stored.run,
        workflow=columns.workflow,
        status=found.status.value,
        reason=reason,
        module=columns.module,
        owner=columns.owner,
        created=_time(columns.created),
        closed=None if columns.closed is None else _time(columns.closed),
        log_entries=found.entries,
        snapshots=len(snapshot.deltas) if snapshot else 0,
        snapshot_bytes=snapshot.size if snapshot else 0,
        snapshot_entry=snapshot.entry if snapshot else None,
        pending=pending,
        undelivered=tuple(record.undelivered) if record else (),
        memo=dict(record.pinned.memo) if record else {},
        limits=record.pinned.limits if record else None,
        backtrace=record.failure.backtrace if record and record.failure else "",
    )


class WorkflowHandle(Generic[Out]):
    """One instance: its current run, or the run it was made for.

    Attributes:
        id: The workflow id.
        run_id: The run, or None for whichever is the current one.
    """

    def __init__(
        self, store: Store, tenant: str, id_: str, run_id: str | None, workflow: str, output: TypeAdapter[Out]
    ) -> None:
        """Made by the client."""
        self.id = id_
        self.run_id = run_id
        self._store = store
        self._key = Key(tenant, id_)
        self._workflow = workflow
        self._output = output

    def __repr__(self) -> str:
        return f"WorkflowHandle(id={self.id!r}, run_id={self.run_id!r})"

    async def result(self) -> Out:
        """Wait until the run has ended; what the guest gave.

        A blocked run has not ended: it is waited for, and a warning says why it stands still.

        Raises:
            WorkflowFailedError: The guest failed the run.
            WorkflowTerminatedError: A person ended it.
            WorkflowTimedOutError: Its execution timeout ended it.
            WorkflowNotFoundError: There is no such run.
            CorruptSnapshotError: The result is damaged.
        """
        warned = -1
        while True:
            found = await self._load()
            if found.columns.status in CLOSED:
                return await self._ended(found)
            if found.columns.status is Status.BLOCKED and found.version != warned:
                warned = found.version
                logger.warning("%s is blocked: %s", self.id, control.describe_stored(found).reason)
            await self._store.watch(self._key, _LOOK)

    async def _load(self) -> Stored:
        return await control.load(self._store, self._key, self.run_id)

    async def _ended(self, stored: Stored) -> Out:
        found = control.describe_stored(stored)
        record = found.record
        if record is None:
            raise control.unreadable(stored)
        if record.status is Status.COMPLETED:
            assert record.result is not None, "a completed run has a result"
            payload = await control.load_payload(self._store, stored, record.result)
            return cast("Out", read_result(self._output, payload, self._workflow or record.pinned.workflow))
        kind = _ENDS.get(record.status, RunEndedError)
        words = record.status.value.replace("_", " ")
        message = f"run {record.run} of {self.id!r} {'was ' if kind is WorkflowTerminatedError else ''}{words}"
        why = record.failure and (record.failure if kind is WorkflowFailedError else record.failure.message)
        raise kind(f"{message}: {why}", record.failure)

    async def describe(self) -> WorkflowDescription:
        """How it stands. Raises `WorkflowNotFoundError`."""
        return _description(await control.describe(self._store, self._key, self.run_id))

    async def history(self) -> list[HistoryEvent]:
        """The run's log so far, checked; sizes and names only, no payloads.

        Raises:
            WorkflowNotFoundError: There is no such run.
            CorruptSnapshotError: The record or the log is damaged.
            UnsupportedStateError: A newer wasman wrote it.
        """
        return _events(await control.history(self._store, await self._load()))

    async def terminate(self, reason: str = "terminated by request") -> None:
        """End the run without asking the guest; durable when this returns, done by whichever worker holds or claims it.

        Raises:
            WorkflowNotFoundError: There is no such run.
            WorkflowClosedError: It has ended already.
        """
        await control.terminate(self._store, self._key, reason, self.run_id)

    async def unblock(self, *, limits: Limits | None = None) -> None:
        """Let a blocked run go on from where it stands, perhaps with other limits.

        Raises:
            WorkflowNotFoundError: There is no such run.
            WorkflowClosedError: It has ended.
            InvalidArgumentError: It is not blocked.
            CorruptSnapshotError: Its record still cannot be read.
        """
        await control.unblock(self._store, self._key, self.run_id, limits)


class Client:
    """A connection to a store; use it as `async with Client.connect(url) as client`.

    Attributes:
        store: The open store.
        tenant: Whose instances it sees.
        is_open: Whether its store is open.
        workers: Workers of this process that begin at once what is started here.
    """

    def __init__(self, store: Store, tenant: str) -> None:
        """Use `connect`."""
        self.store = store
        self.tenant = tenant
        self.is_open = False
        self.workers: list[control.Adopter] = []
        self._stack = contextlib.AsyncExitStack()

    @classmethod
    def connect(cls, url: str, *, tenant: str = "default") -> Client:
        """A client that opens its store when it is entered.

        Args:
            url: `sqlite:///file.db` (relative) or `sqlite:////absolute/file.db`; `file://folder` (relative) or
                `file:///absolute/folder`; or `memory://` for one process's life.
            tenant: Whose instances it sees.

        Raises:
            InvalidArgumentError: The URL names no kind of store.
        """
        return cls(open_store(url), tenant)

    @classmethod
    def over(cls, store: Store, tenant: str = "default") -> Client:
        """A client of a store that is open already, used without entering it; whoever has opened the store closes it.

        Without `store.serve()` beside it, what another process commits is seen only when it is asked for.
        """
        client = cls(store, tenant)
        client.is_open = True
        return client

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
        data = await anyio.to_thread.run_sync(workflow.module)
        if data is None:
            message = f"workflow {workflow.name!r} has no module to deploy; give it one by module="
            raise InvalidArgumentError(message)
        return (
            await control.deploy(self.store, self.tenant, workflow.name, data, workflow.entry, resume=workflow.resume)
        ).module

    async def deploy_absent(self, workflow: Workflow[Any, Any]) -> None:
        """Deploy the workflow's module where its name points at nothing yet; another module under the name stays."""
        present = await control.deployed(self.store, self.tenant, workflow.name)
        data = await anyio.to_thread.run_sync(workflow.module)
        if data is None:
            return
        if present is None:
            present = await control.deploy(
                self.store, self.tenant, workflow.name, data, workflow.entry, resume=workflow.resume, move=False
            )
        if present.module != control.digest(data):
            logger.warning(
                "workflow %r is deployed with another module (%s) than the one at hand; new runs use that one until "
                "`deploy` moves the name",
                workflow.name,
                present.module[:12],
            )

    @overload
    async def start_workflow(
        self,
        workflow: Workflow[In, Out],
        given: In,
        *,
        id: str,
        session: Session | None = None,
        memo: Mapping[str, Any] | None = None,
        search_attributes: Mapping[str, str] | None = None,
        queue: str = "default",
    ) -> WorkflowHandle[Out]: ...

    @overload
    async def start_workflow(
        self,
        workflow: str,
        given: Any = None,
        *,
        id: str,
        result_type: type[Out],
        session: Session | None = None,
        memo: Mapping[str, Any] | None = None,
        search_attributes: Mapping[str, str] | None = None,
        queue: str = "default",
    ) -> WorkflowHandle[Out]: ...

    @overload
    async def start_workflow(
        self,
        workflow: str,
        given: Any = None,
        *,
        id: str,
        session: Session | None = None,
        memo: Mapping[str, Any] | None = None,
        search_attributes: Mapping[str, str] | None = None,
        queue: str = "default",
    ) -> WorkflowHandle[Any]: ...

    async def start_workflow(
        self,
        workflow: Workflow[Any, Any] | str,
        given: Any = None,
        *,
        id: str,
        session: Session | None = None,
        memo: Mapping[str, Any] | None = None,
        search_attributes: Mapping[str, str] | None = None,
        queue: str = "default",
        result_type: Any = Any,
    ) -> WorkflowHandle[Any]:
        """Start a durable instance; it is on disk when this returns, whether or not a worker runs.

        Args:
            workflow: The workflow, or its name where only that is known.
            given: Its input.
            id: The workflow id: 1 to 200 bytes of UTF-8 without "/", ".." or control characters.
            session: How it is bound to the outside world.
            memo: For people; JSON.
            search_attributes: To find it by.
            queue: The task queue whose workers may run it.
            result_type: What `result()` gives, where the workflow is only a name.

        Raises:
            InvalidArgumentError: The id, input or session cannot be used.
            WorkflowAlreadyExistsError: The id is taken.
            WorkflowNotFoundError: Nothing is deployed under the name.
            InvalidModuleError: The workflow's module cannot be run.
        """
        control.validated_id(id)
        if isinstance(workflow, str):
            name, output = workflow, _ANY if result_type is Any else TypeAdapter(result_type)
            payload = Payload.of(_ANY.dump_json(given), JSON)
            options = control.StartOptions()
        else:
            name, output = workflow.name, workflow.output
            payload = workflow.payload(given)
            options = control.StartOptions(resume=workflow.resume, limits=workflow.limits)
        options = evolve(options, memo=memo or {}, attributes=search_attributes or {}, queue=queue)
        stored_session = None
        if session is not None:
            bound, sources, sinks = await bind(session)
            stored_session = Payload.of(bound.model_dump_json(by_alias=True).encode(), JSON)
            options = evolve(options, sources=sources, sinks=sinks)
        try:
            run = await self._start(id, name, payload, stored_session, options)
        except WorkflowNotFoundError:
            if isinstance(workflow, str):
                raise
            await self.deploy_absent(workflow)
            run = await self._start(id, name, payload, stored_session, options)
        return WorkflowHandle(self.store, self.tenant, id, run, name, output)

    async def _start(
        self, id_: str, name: str, given: Payload, session: Payload | None, options: control.StartOptions
    ) -> str:
        return await control.start(self.store, self.tenant, id_, name, given, session, options, self.workers)

    @overload
    async def execute_workflow(
        self, workflow: Workflow[In, Out], given: In, *, id: str, session: Session | None = None
    ) -> Out: ...

    @overload
    async def execute_workflow(
        self, workflow: str, given: Any = None, *, id: str, session: Session | None = None, result_type: type[Out]
    ) -> Out: ...

    @overload
    async def execute_workflow(
        self, workflow: str, given: Any = None, *, id: str, session: Session | None = None
    ) -> Any: ...

    async def execute_workflow(
        self,
        workflow: Workflow[Any, Any] | str,
        given: Any = None,
        *,
        id: str,
        session: Session | None = None,
        result_type: Any = Any,
    ) -> Any:
        """Start an instance and wait for its result; see `start_workflow` and `WorkflowHandle.result`."""
        if isinstance(workflow, str):
            handle = await self.start_workflow(workflow, given, id=id, session=session, result_type=result_type)
        else:
            handle = await self.start_workflow(workflow, given, id=id, session=session)
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
        return WorkflowHandle(self.store, self.tenant, control.validated_id(id), run_id, name, output)

    async def list(
        self,
        *,
        status: str | frozenset[str] | None = None,
        workflow: str | None = None,
        id_prefix: str | None = None,
        search_attributes: Mapping[str, str] | None = None,
    ) -> AsyncIterator[WorkflowDescription]:
        """Instances, newest first, read page by page.

        Args:
            status: One status, or several.
            workflow: The workflow's name.
            id_prefix: How the id begins.
            search_attributes: All of these must match.

        Raises:
            InvalidArgumentError: There is no such status.
        """
        wanted = None
        if status is not None:
            try:
                wanted = frozenset(Status(one) for one in ({status} if isinstance(status, str) else status))
            except ValueError as error:
                message = f"{error}; there are {', '.join(known.value for known in Status)}"
                raise InvalidArgumentError(message) from error
        where = Filter(self.tenant, wanted, workflow, id_prefix, attributes=search_attributes or {})
        cursor: str | None = None
        while True:
            page = await self.store.list(where, _PAGE, cursor)
            for stored in page.rows:
                yield _description(control.describe_stored(stored))
            if page.cursor is None:
                return
            cursor = page.cursor
