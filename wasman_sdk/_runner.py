"""Runners: one guest from its start to its result in one call, without a client or worker of the application's own."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import shutil
import tempfile
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, TypedDict
from weakref import WeakKeyDictionary

import anyio
import anyio.from_thread
import anyio.to_thread

from wasman_host import control, errors
from wasman_host.engine import Engine
from wasman_host.errors import (
    BlockedError,
    InvalidArgumentError,
    SimulatedCrashError,
    StoreUnavailableError,
    StreamError,
)
from wasman_host.guest.module import digest
from wasman_host.ids import validated_id
from wasman_host.store import Store, path_of
from wasman_host.store.protocol import CLOSED, Key, Status
from wasman_host.streams import SourceReader
from wasman_sdk._client import Client
from wasman_sdk._handlers import FallbackHandler, definitions, fallback_definition
from wasman_sdk._portal import Portal
from wasman_sdk._session import Session
from wasman_sdk._streams import FileSink, Sink, Source
from wasman_sdk._threads import Threads
from wasman_sdk._user_streams import stream_types
from wasman_sdk._workflow import Workflow

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import TaskGroup
    from typing_extensions import Unpack

    from wasman_host.activity import ActivityDefinition
    from wasman_host.instance import Instance
    from wasman_host.progress import ProgressCallback
    from wasman_host.record import Limits, StreamSpec
    from wasman_sdk._handle import WorkflowHandle
    from wasman_sdk._retry import RetryPolicy

__all__ = ["Runner", "RunnerOptions", "SyncRunner", "SyncTestRunner", "TestRunner"]

Parts: TypeAlias = bytes | Iterable[bytes] | AsyncIterable[bytes]
DownloadHandler: TypeAlias = Callable[[], Parts | Awaitable[Parts]]
UploadHandler: TypeAlias = Callable[[bytes], object]

_LOOK = 5.0  # seconds between two looks at the instance although no hint came
_HANDLER = "handler"  # type tag of a source that a download handler gives


class RunnerOptions(TypedDict, total=False):
    """Options of all runners; see `Runner`."""

    session_id: str
    store: str | Store | Client
    entrypoint: str
    arguments: Sequence[int]
    input: Any
    activities: Sequence[Callable[..., Any]]
    resources: Sequence[object]
    activity_handler: FallbackHandler | None
    retry: RetryPolicy | None
    download_handler: DownloadHandler | None
    upload_handler: UploadHandler | None
    session: Session | None
    streams: Sequence[type[Source | Sink]]
    on_progress: ProgressCallback | None
    resume: Literal["replay", "checkpoint"]
    limits: Limits | None
    keep_alive: bool
    max_sync_activities: int


class Runner:
    """Runs a guest: `result = await Runner("guest.wasm", session_id="job-1", store="sqlite:///wasman.db").run()`.

    What has begun under a session id goes on where it stands, with the module and the arguments that it was started
    with; what has completed gives its result again. A blocked run is taken up again. Workers and clients over the same
    store see the instance, and only runners live it.

    Inside of `async with runner:` the store stays open from one run to the next, and with `keep_alive` the worker too,
    with the module that it has compiled and the images that it holds.

    Attributes:
        crashed: Whether the last run ended by a simulated crash.
    """

    def __init__(
        self,
        module: Path | str | bytes | bytearray,
        *,
        session_id: str = "",
        store: str | Store | Client = "memory://",
        entrypoint: str = "",
        arguments: Sequence[int] = (),
        input: Any = None,
        activities: Sequence[Callable[..., Any]] = (),
        resources: Sequence[object] = (),
        activity_handler: FallbackHandler | None = None,
        retry: RetryPolicy | None = None,
        download_handler: DownloadHandler | None = None,
        upload_handler: UploadHandler | None = None,
        session: Session | None = None,
        streams: Sequence[type[Source | Sink]] = (),
        on_progress: ProgressCallback | None = None,
        resume: Literal["replay", "checkpoint"] = "replay",
        limits: Limits | None = None,
        keep_alive: bool = False,
        max_sync_activities: int = 40,
    ) -> None:
        """Nothing is read or opened yet.

        Args:
            module: The compiled guest, as a path or as bytes.
            session_id: The id of the instance, unless `run` is given one.
            store: A store's URL, a client, or an open store. A client that is not open is opened for each run; the same
                one can be given to several runners, one after the other, so that they share a store in memory.
            entrypoint: The export to call; "" for `run`, else `_start`.
            arguments: Its integers, for an entry that takes some.
            input: What `wasman.input` gives to the guest, else.
            activities: Functions decorated with `@activity`.
            resources: Objects injected into them by their type.
            activity_handler: Called as `activity_handler(name, request)` for all other activities; gives bytes. Async,
                or not: then in a thread.
            retry: When a call of it that has raised is tried again; by default it is not. One whose process has died is
                made again in any case, at most 5 times by default.
            download_handler: Gives what the guest downloads: bytes, or an iterable of bytes, async or not. Called when
                the guest first reads, and again where the run comes back after a crash: it must give the same bytes.
            upload_handler: Called when the run has completed with all that the guest has uploaded, if that is
                anything. If it raises, the next run of the same id calls it again. Its bytes are in memory as a whole:
                what is large goes to a `session` with a sink.
            session: Sources and sinks instead of handlers, and what activities may want to know.
            streams: Classes of sources and sinks of the application's own.
            on_progress: As of `Worker`.
            resume: How the guest comes back; see `Workflow`.
            limits: What it may use; a blocked run that is taken up again gets these.
            keep_alive: Keep the worker between the runs inside of `async with runner:`.
            max_sync_activities: How many sync activities run at once, in threads.

        Raises:
            InvalidArgumentError: Options exclude each other, or an activity or a stream cannot be used.
        """
        if session is not None and (download_handler is not None or upload_handler is not None):
            message = (
                "a runner has a session or handlers for its streams, not both: give the session a source and a sink"
            )
            raise InvalidArgumentError(message)
        if arguments and input is not None:
            message = "a runner has arguments for its entry or an input for its guest, not both"
            raise InvalidArgumentError(message)
        self.crashed: bool = False
        self._module, self._entrypoint = module, entrypoint
        self._id = session_id
        self._given = list(arguments) if arguments else input
        self._activities, self._resources = tuple(activities), tuple(resources)
        self._handler, self._retry = activity_handler, retry
        self._download, self._upload = download_handler, upload_handler
        self._session = session
        self._streams = tuple(streams)
        self._on_progress = on_progress
        stream_types(self._streams, on_progress=on_progress)  # so that a mistake shows where it was made
        self._resume: Literal["replay", "checkpoint"] = resume
        self._limits = limits
        self._keep_alive = keep_alive
        self._threads = max_sync_activities
        self._client = _client_of(store)
        self._answers(Threads(max_sync_activities))  # so that a mistake shows where it was made
        self._stack = contextlib.AsyncExitStack()
        self._tasks: TaskGroup | None = None
        self._engine: Engine | None = None
        self._working: anyio.CancelScope
        self._waiting: anyio.CancelScope
        self._missing = ""

    def _answers(self, threads: Threads) -> tuple[dict[str, ActivityDefinition], ActivityDefinition]:
        """What answers calls: by name, and for all other names."""
        fallback = fallback_definition(self._handler or self._has_none, self._retry, threads)
        return definitions(self._activities, self._resources, threads), fallback

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            if not self._client.is_open:
                await stack.enter_async_context(self._client)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            self._one_at_a_time = anyio.Lock()
            stack.push_async_callback(self._leave)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._tasks = None
        if error is None or isinstance(error, anyio.get_cancelled_exc_class()):
            return await self._stack.__aexit__(kind, error, traceback)
        # The task group would wrap what the body has raised, and the application could not catch it by its class.
        await self._stack.__aexit__(None, None, None)
        return None

    async def run(self, session_id: str = "") -> Any:
        """Bring the run to its end. What the guest gave by `wasman.result`, else its entry's integers, or None.

        Args:
            session_id: Another id than the runner's.

        Raises:
            WorkflowFailedError: The guest failed the run.
            WorkflowTerminatedError: A person ended it.
            BlockedError: It cannot go on; its data is kept, and it goes on at the next `run` of its id. Subclasses say
                why: a limit, damage, a stream.
            InvalidArgumentError: The id or the input cannot be used, keep_alive is used outside of `async with`, or the
                guest calls an activity that the runner has not; the run waits for a runner that has it.
            InvalidModuleError: The module cannot be run.
            SimulatedCrashError: A `TestRunner` has crashed as it was told to.
            StoreUnavailableError: The store does not answer.
        """
        id_ = validated_id(session_id or self._id)
        if self._tasks is None:
            if self._keep_alive:
                message = "keep_alive keeps the worker inside of `async with runner:`, and this run is outside"
                raise InvalidArgumentError(message)
            async with self:
                return await self._run(id_)
            raise StoreUnavailableError(f"the store of {id_!r} was closed in the middle of its run; run it again")
        async with self._one_at_a_time:
            return await self._run(id_)

    async def _run(self, id_: str) -> Any:
        queue = f"runner {id_}"
        self._forget()
        try:
            await self._work(queue)
            handle = await self._begun(id_, queue)
            await self._ended(handle)
            result = await handle.result()
            await self._hand_on(id_)
        finally:
            if not self._keep_alive:
                await self._leave()
        return result

    def _forget(self) -> None:
        """What the last run has seen."""
        self.crashed, self._missing = False, ""
        self._waiting = anyio.CancelScope()

    # The worker

    async def _work(self, queue: str) -> None:
        """Work for the instances of this queue, which is one instance's own."""
        if self._engine is not None:
            self._engine.serve(queue)
            return
        assert self._tasks is not None, "the runner is open"
        threads = Threads(self._threads)
        types = stream_types(self._streams, self._resources, self._on_progress)
        if self._download is not None:
            handler = self._download

            async def downloaded(_spec: StreamSpec) -> SourceReader:
                return _Downloaded(handler)

            types.sources[_HANDLER] = downloaded
        activities, fallback = self._answers(threads)
        engine = Engine(
            self._client.store, activities, streams=types, queues=(queue,), fallback=fallback, codec=self._client.codec
        )
        engine.checkpointed = self._checkpointed
        self._working = anyio.CancelScope(shield=True)
        self._engine = engine

        async def work() -> None:
            # Whoever is cancelled leaves in order first, so that nothing waits for a lease or counts as an attempt.
            with self._working:
                await engine.run()

        self._tasks.start_soon(work, name="wasman runner")
        await engine.serving.wait()
        self._client.workers.append(engine)

    async def _leave(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            if engine in self._client.workers:
                self._client.workers.remove(engine)
            with anyio.CancelScope(shield=True):
                await engine.leave()

    async def _has_none(self, name: str, _request: bytes) -> bytes:
        """The fallback of a runner without one: the call neither fails nor counts; it waits for one that has it."""
        self._missing = name
        self._waiting.cancel()
        await anyio.sleep_forever()
        raise AssertionError("it sleeps until its worker leaves")

    async def _checkpointed(self, instance: Instance) -> None:
        """A guest has come past a checkpoint."""

    async def _crash(self) -> None:
        """Stop as a process does that is killed: nothing is released, nothing is committed."""
        engine, self._engine = self._engine, None
        assert engine is not None, "it works"
        self.crashed = True
        self._client.workers.remove(engine)
        self._working.cancel()
        self._waiting.cancel()
        await anyio.sleep_forever()

    # The run

    async def _begun(self, id_: str, queue: str) -> WorkflowHandle[Any]:
        """Start the run, or find the one that is there."""
        client = self._client
        stored = await client.store.load(Key(client.tenant, id_))
        if stored is None:
            data = await anyio.to_thread.run_sync(Workflow("runner", Any, Any, module=self._module).module)
            assert data is not None, "a runner has a module"
            name = f"runner-{digest(data)[:12]}-{self._entrypoint or 'run'}"
            workflow: Workflow[Any, Any] = Workflow(
                name, Any, Any, module=data, entry=self._entrypoint, resume=self._resume, limits=self._limits
            )
            session = self._session
            if self._download is not None or self._upload is not None:
                session = self._handlers(id_)
            return await client.start_workflow(
                workflow, self._given, id=id_, session=session, queue=queue, id_reuse_policy="reject_duplicate"
            )
        if stored.columns.queue != queue:
            message = (
                f"{id_!r} is an instance of workflow {stored.columns.workflow!r}, and workers live it; give the runner "
                f"another session id"
            )
            raise InvalidArgumentError(message)
        handle = client.get_handle(id_, run_id=stored.run)
        if control.describe_stored(stored).status is Status.BLOCKED:
            await handle.unblock(limits=self._limits)
        return handle

    async def _ended(self, handle: WorkflowHandle[Any]) -> None:
        """Wait for the end of the run, or for what keeps it from coming."""
        client = self._client
        key = Key(client.tenant, handle.id)
        with self._waiting:
            while True:
                found = await control.describe(client.store, key, handle.run_id)
                if found.status in CLOSED:
                    return
                if found.status is Status.BLOCKED:
                    kind = getattr(errors, found.record.error, BlockedError) if found.record else BlockedError
                    message = f"{handle.id!r} is blocked: {found.reason}"
                    raise kind(message)
                await client.store.watch(key, _LOOK)
        if self.crashed:
            await self._after_the_crash()
            message = f"{handle.id!r} has crashed at a checkpoint, as it was told to; run it again, and it goes on"
            raise SimulatedCrashError(message)
        message = (
            f"the guest of {handle.id!r} calls activity {self._missing!r}, which this runner has not; run it with "
            f"activities=[...] that have it, or with an activity_handler"
        )
        raise InvalidArgumentError(message)

    async def _after_the_crash(self) -> None:
        """Others need not wait for the lease of a worker that has crashed inside of a process that goes on."""

    # Uploads

    def _handlers(self, id_: str) -> Session:
        if self._upload is None:
            return _Handlers(download=_HandlerSource())
        path = self._uploaded(id_)
        path.parent.mkdir(parents=True, exist_ok=True)
        return _Handlers(download=_HandlerSource() if self._download is not None else None, upload=FileSink(path=path))

    def _uploaded(self, id_: str) -> Path:
        """Where the upload lies from the guest's first byte until its handler has taken it."""
        key = f"{self._client.tenant}\0{id_}".encode()
        return _folder_beside(self._client.store) / hashlib.sha256(key).hexdigest()

    async def _hand_on(self, id_: str) -> None:
        if self._upload is None:
            return
        path = anyio.Path(self._uploaded(id_))
        try:
            data = await path.read_bytes()
        except FileNotFoundError:
            return  # an earlier run has handed it on
        if data:
            await _called(functools.partial(self._upload, data), self._upload)
        await path.unlink()


class TestRunner(Runner):
    """A `Runner` that crashes, so that a test can see what comes back: `TestRunner(..., crash_at=2)`.

    It stops right behind the n-th checkpoint that its guest asks for in this run, as a process does that is killed:
    nothing is released, and nothing more is written. `run` raises `SimulatedCrashError`. The next runner on the same
    store and session id goes on from what was durable. Checkpoints that a guest repeats from its log do not count.
    """

    __test__ = False  # for pytest: it is no test of its own

    def __init__(
        self,
        module: Path | str | bytes | bytearray,
        *,
        crash_at: int | None = 1,
        **options: Unpack[RunnerOptions],
    ) -> None:
        """As `Runner`.

        Args:
            module: The compiled guest, as a path or as bytes.
            crash_at: At which checkpoint it crashes, from 1; None for a run without a crash.
            options: As of `Runner`.

        Raises:
            InvalidArgumentError: Options exclude each other, or an activity or a stream cannot be used.
        """
        if crash_at is not None and crash_at < 1:
            message = f"a test runner crashes at checkpoint 1 or a later one, not at {crash_at}; None for no crash"
            raise InvalidArgumentError(message)
        super().__init__(module, **options)
        self._crash_at = crash_at
        self._seen = 0
        self._crashed_worker = ""

    def _forget(self) -> None:
        super()._forget()
        self._seen = 0

    async def _checkpointed(self, instance: Instance) -> None:
        del instance
        self._seen += 1
        if self._seen == self._crash_at:
            assert self._engine is not None, "it works"
            self._crashed_worker = self._engine.worker
            await self._crash()

    async def _after_the_crash(self) -> None:
        await self._client.store.leave(self._crashed_worker)


class SyncRunner:
    """A `Runner` for code without an event loop: `result = SyncRunner("guest.wasm", session_id="job-1").run()`.

    Inside of `with runner:` the store stays open between runs, and with `keep_alive` the worker too. Its store is a
    URL, or a client that is not open.
    """

    _kind: ClassVar[type[Runner]] = Runner

    def __init__(self, module: Path | str | bytes | bytearray, **options: Unpack[RunnerOptions]) -> None:
        """As `Runner`."""
        self._begin(self._kind(module, **options), options)

    def _begin(self, runner: Runner, options: RunnerOptions) -> None:
        store = options.get("store", "")
        if isinstance(store, Store) or (isinstance(store, Client) and store.is_open):
            message = "the store of a sync runner is a URL or a client that is not open: an open one has its event loop"
            raise InvalidArgumentError(message)
        self._runner = runner
        self._portal = Portal()

    @property
    def crashed(self) -> bool:
        """Whether the last run ended by a simulated crash."""
        return self._runner.crashed

    def __enter__(self) -> Self:
        self._portal.open(self._runner)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._portal.close(kind, error, traceback)

    def run(self, session_id: str = "") -> Any:
        """As `Runner.run`."""
        if self._portal.is_open:
            return self._portal.call(self._runner.run, session_id)
        return anyio.run(self._runner.run, session_id)


class SyncTestRunner(SyncRunner):
    """A `TestRunner` for code without an event loop."""

    __test__ = False  # for pytest: it is no test of its own

    def __init__(
        self,
        module: Path | str | bytes | bytearray,
        *,
        crash_at: int | None = 1,
        **options: Unpack[RunnerOptions],
    ) -> None:
        """As `TestRunner`."""
        self._begin(TestRunner(module, crash_at=crash_at, **options), options)


def _client_of(store: str | Store | Client) -> Client:
    if isinstance(store, Client):
        return store
    if isinstance(store, str):
        return Client.connect(store)
    return Client.over(store)


# Streams by handlers


class _HandlerSource(Source):
    type_tag: ClassVar[str] = _HANDLER
    known_without_identity: ClassVar[bool] = True


class _Handlers(Session):
    download: _HandlerSource | None = None
    upload: FileSink | None = None


_folders: WeakKeyDictionary[Store, Path] = WeakKeyDictionary()


def _folder_beside(store: Store) -> Path:
    """Where uploads lie: as durable as the store."""
    if (path := path_of(store)) is not None:
        return Path(f"{path}-uploads")
    folder = _folders.get(store)
    if folder is None:
        folder = _folders[store] = Path(tempfile.mkdtemp(prefix="wasman-uploads-"))
        weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return folder


async def _called(call: Callable[[], Any], handler: object) -> Any:
    """What a handler gives: async ones on the event loop, others in a thread."""
    if inspect.isasyncgenfunction(handler):
        return call()
    result = call() if inspect.iscoroutinefunction(handler) else await anyio.to_thread.run_sync(call)
    return await result if inspect.isawaitable(result) else result


class _Downloaded(SourceReader):
    """What a download handler gives, from any offset: an earlier one than the last is reached by calling it again."""

    def __init__(self, handler: DownloadHandler) -> None:
        self._handler = handler
        self._parts: Iterator[bytes] | AsyncIterator[bytes] | None = None
        self._rest = memoryview(b"")
        self._at = 0

    async def read_into(self, offset: int, view: memoryview) -> int:
        """See `SourceReader`."""
        if self._parts is None or offset < self._at:
            await self._begin()
        done = 0
        while done < len(view):
            if not self._rest:
                found = await self._next()
                if found is None:
                    break
                self._rest = memoryview(found).cast("B")
            skipped = min(len(self._rest), offset + done - self._at)
            part = self._rest[skipped : skipped + len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)
            self._rest = self._rest[skipped + len(part) :]
            self._at += skipped + len(part)
        return done

    def read_now(self, offset: int, view: memoryview) -> int | None:
        """See `SourceReader`."""
        count = len(view)
        if offset != self._at or len(self._rest) < count:
            return None
        view[:] = self._rest[:count]
        self._rest = self._rest[count:]
        self._at += count
        return count

    async def _begin(self) -> None:
        await self.close()
        self._rest, self._at = memoryview(b""), 0
        try:
            given = await _called(self._handler, self._handler)
        except Exception as error:
            raise _raised(error) from error
        if isinstance(given, bytes | bytearray | memoryview):
            self._parts = iter((bytes(given),))
        elif isinstance(given, AsyncIterable):
            self._parts = aiter(given)
        elif isinstance(given, Iterable) and not isinstance(given, str):
            self._parts = iter(given)
        else:
            message = f"the download handler gave {type(given).__name__}; it must give bytes or an iterable of bytes"
            raise StreamError(message)

    async def _next(self) -> bytes | None:
        parts = self._parts
        assert parts is not None, "the handler was called"
        try:
            if isinstance(parts, AsyncIterator):
                return await anext(parts, None)
            return await anyio.to_thread.run_sync(next, parts, None)
        except Exception as error:
            raise _raised(error) from error

    async def close(self) -> None:
        """See `SourceReader`."""
        parts: Any
        parts, self._parts = self._parts, None
        if hasattr(parts, "aclose"):
            await parts.aclose()
        elif hasattr(parts, "close"):
            parts.close()


def _raised(error: Exception) -> StreamError:
    return StreamError(f"the download handler raised {error!r}; mend it, and run again")
