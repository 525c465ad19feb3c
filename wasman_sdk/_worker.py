"""The worker: it lives instances and answers their calls."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import anyio

from wasman_host.engine import Engine
from wasman_host.errors import InvalidArgumentError
from wasman_host.residents import Residency
from wasman_host.snapshot import SnapshotPolicy
from wasman_sdk import _collector
from wasman_sdk._client import Client
from wasman_sdk._handlers import definitions, fallback_definition
from wasman_sdk._interceptors import WorkerInterceptor, checked, listens
from wasman_sdk._retry import RetryPolicy
from wasman_sdk._threads import Threads
from wasman_sdk._user_streams import stream_types
from wasman_sdk._watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from types import TracebackType

    from anyio.abc import TaskGroup

    from wasman_host.activity import ActivityDefinition
    from wasman_host.progress import ProgressCallback
    from wasman_sdk._handlers import FallbackHandler
    from wasman_sdk._streams import Sink, Source
    from wasman_sdk._workflow import Workflow

__all__ = ["Lifespan", "Worker"]

logger = logging.getLogger("wasman.worker")

Lifespan: TypeAlias = contextlib.AbstractAsyncContextManager[Any] | contextlib.AbstractContextManager[Any]
"""Opens a worker's resources when it is entered, gives one or a list of them, and closes them when it is left."""


class Worker:
    """Lives instances of some queues, until it is left.

    Use it beside its client, `async with Client.connect(url) as client, Worker(client, ...):`, or give it a store's
    URL and let `await worker.run()` or `wasman worker module:attribute` run it until SIGINT or SIGTERM.
    """

    def __init__(
        self,
        client: Client | str,
        *,
        workflows: Sequence[Workflow[Any, Any]] = (),
        activities: Sequence[Callable[..., Any]] = (),
        fallback: FallbackHandler | None = None,
        fallback_retry: RetryPolicy | None = None,
        resources: Sequence[object] | Callable[[], Lifespan] = (),
        streams: Sequence[type[Source | Sink]] = (),
        on_progress: ProgressCallback | None = None,
        interceptors: Sequence[WorkerInterceptor] = (),
        queues: Sequence[str] = ("default",),
        max_instances: int = 10_000,
        max_guests: int | None = None,
        max_guest_memory: int = 2 * 1024**3,
        max_activities: int | None = None,
        max_sync_activities: int = 40,
        archive: int | None = None,
        snapshot_turns: int = 32,
        graceful_shutdown_timeout: timedelta = timedelta(seconds=10),
        lease_seconds: float = 10.0,
        tune_gc: bool = True,
    ) -> None:
        """Nothing is opened yet.

        Args:
            client: The client of its store, or the store's URL; a client that is not open yet is opened and closed
                here.
            workflows: Deployed where their names point at nothing yet.
            activities: Functions decorated with `@activity`.
            fallback: Called as `fallback(name, request)`, with the guest's own bytes, where a guest calls an activity
                that is not among these; gives the response's bytes. Async, or not: then in a thread.
            fallback_retry: When a call of it is tried again; see `RetryPolicy` for the default.
            resources: Objects injected into activities by their type; or a function that gives a context manager,
                async or not, which gives them (one, or a list): it is entered before the first call and left after the
                last, each time that the worker is.
            streams: Classes of sources and sinks of the application's own; see `Source` and `Sink`.
            on_progress: Called as `on_progress(workflow id, field of the session, "download" or "upload", bytes so far,
                bytes in all or None)`, every half second while bytes pass, and at the end. A plain function, on the
                event loop: it must be quick. What it raises is logged, and hurts nothing.
            interceptors: What is put around each attempt of an activity, the first outermost.
            queues: Task queues to serve.
            max_instances: How many instances live here at once, in memory or evicted.
            max_guests: How many of them are in memory; by default as many as the kernel's limit of mappings allows. Of
                those that wait, the least recently used are evicted: they cost no memory, and are replayed or restored
                when they go on.
            max_guest_memory: Bytes that they may have written together, evicted likewise beyond it.
            max_activities: How many attempts of activities run at once; None for as many as guests call. The others
                wait, in the order of their calls.
            max_sync_activities: How many sync activities run at once, in threads of this worker's own.
            archive: How many log entries of a run are kept that it needs no more, the newest ones, for `history`; None
                for all, as long as the instance is there.
            snapshot_turns: After how many turns, or answers, a guest that waits is kept by a snapshot: so many are
                repeated after a crash, at most. It is kept after 50 ms of its processor time anyway. Guests that are
                replayed, and those that say themselves when they are kept, do not care.
            graceful_shutdown_timeout: When the worker is left in order, how long activities that have begun may take to
                end, so that their answers are kept; what has not ended then begins again elsewhere.
            lease_seconds: After this time without a sign of life others take over.
            tune_gc: Whether Python's garbage collector lets 50,000 young objects come together before it looks at
                them, not 700, in this process and from now on. What the application has set higher, or switched off,
                stays.

        Raises:
            InvalidArgumentError: An activity, the fallback or a class of streams cannot be used, or a limit makes no
                sense.
        """
        self.client: Client = Client.connect(client) if isinstance(client, str) else client
        self.workflows: tuple[Workflow[Any, Any], ...] = tuple(workflows)
        self.activities: tuple[Callable[..., Any], ...] = tuple(activities)
        self._interceptors = checked(interceptors, WorkerInterceptor)
        self._queues = tuple(queues)
        self._max_instances = max_instances
        self._residency = Residency(max_guests, max_guest_memory)
        self._snapshots = SnapshotPolicy(turns=snapshot_turns, archive=archive)
        self._lease = lease_seconds
        if max_activities is not None and max_activities < 1:
            message = f"max_activities is a number from 1 on, or None for no limit, not {max_activities!r}"
            raise InvalidArgumentError(message)
        self._threads = max_sync_activities
        self._most = max_activities
        self._tune_gc = tune_gc
        self._grace = graceful_shutdown_timeout.total_seconds()
        self._resources = resources if callable(resources) else tuple(resources)
        self._streams = tuple(streams)
        self._fallback, self._fallback_retry = fallback, fallback_retry or RetryPolicy()
        self._engine: Engine | None = None
        self._tasks: TaskGroup | None = None
        self._in_order = False
        # Looked at now, so that a mistake shows where it was made and not when the worker starts.
        self._on_progress = on_progress
        stream_types(self._streams, on_progress=on_progress)
        if not callable(self._resources):
            self._definitions(self._resources)
        self._stack = contextlib.AsyncExitStack()

    @property
    def is_ready(self) -> bool:
        """Whether it takes instances up: it has started, its store answers, and it is not leaving."""
        return self._engine is not None and self._engine.is_ready

    def _definitions(
        self, resources: Sequence[object]
    ) -> tuple[dict[str, ActivityDefinition], ActivityDefinition | None]:
        """What answers calls: by name, and for all other names."""
        threads = Threads(self._threads)
        room = None if self._most is None else anyio.Semaphore(self._most)
        fallback = None
        if self._fallback is not None:
            fallback = fallback_definition(self._fallback, self._fallback_retry, threads, room, self._interceptors)
        return definitions(self.activities, resources, threads, room, self._interceptors), fallback

    async def _opened(self, stack: contextlib.AsyncExitStack) -> Sequence[object]:
        """The resources, which `stack` closes."""
        if not callable(self._resources):
            return self._resources
        manager: object = self._resources()
        if isinstance(manager, contextlib.AbstractAsyncContextManager):
            given = await stack.enter_async_context(manager)
        elif isinstance(manager, contextlib.AbstractContextManager):
            given = stack.enter_context(manager)
        else:
            message = (
                f"resources= is a list of objects, or a function that gives a context manager of them "
                f"(@contextlib.asynccontextmanager); {self._resources!r} gave {type(manager).__name__}"
            )
            raise InvalidArgumentError(message)
        return given if isinstance(given, list | tuple) else [given]

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            if not self.client.is_open:
                await stack.enter_async_context(self.client)
            for workflow in self.workflows:
                await self.client.deploy_absent(workflow)
            resources = await self._opened(stack)
            activities, fallback = self._definitions(resources)
            engine = Engine(
                self.client.store,
                activities,
                streams=stream_types(self._streams, resources, self._on_progress),
                queues=self._queues,
                max_instances=self._max_instances,
                lease=self._lease,
                residency=self._residency,
                snapshots=self._snapshots,
                fallback=fallback,
                codec=self.client.codec,
                observers=[one.on_event for one in self._interceptors if listens(one)],
            )
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(engine.run, name="wasman worker")
            tasks.start_soon(Watchdog().run, name="wasman watchdog")
            self._engine, self._tasks, self._in_order = engine, tasks, False
            stack.push_async_callback(self._leave, engine, tasks)
            await engine.serving.wait()
            self._in_order = True
            self.client.workers.append(engine)
            stack.callback(self.client.workers.remove, engine)
            self._stack = stack.pop_all()
        if self._tune_gc:
            _collector.tune()
        return self

    async def _leave(self, engine: Engine, tasks: TaskGroup) -> None:
        try:
            await engine.leave(self._grace if self._in_order else 0.0)
        finally:
            self._engine = self._tasks = None
            tasks.cancel_scope.cancel()  # whoever listens for a second signal

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._in_order = error is None
        if error is None or isinstance(error, anyio.get_cancelled_exc_class()):
            return await self._stack.__aexit__(kind, error, traceback)
        # The task group would wrap what the body has raised, and the application could not catch it by its class.
        await self._stack.__aexit__(None, None, None)
        return None

    async def run(self, *, ready_file: Path | str | None = None) -> None:
        """Work until SIGINT or SIGTERM, then give everything up in order; a second signal does not wait for activities.

        Args:
            ready_file: Written, with the process's id, as long as the worker takes instances up: for whoever asks
                whether it is ready.
        """
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with self:
                assert self._tasks is not None, "it was entered"
                logger.info("worker %s serves %s", self.client.store, ", ".join(self._queues))
                with _written(ready_file):
                    number = await anext(signals)
                logger.info("worker leaves on %s", signal.Signals(number).name)
                self._tasks.start_soon(self._hurry, signals)

    async def _hurry(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            logger.info("worker does not wait any longer: %s", signal.Signals(number).name)
            if self._engine is not None:
                self._engine.hurry()


@contextlib.contextmanager
def _written(path: Path | str | None) -> Iterator[None]:
    """The file is there, with this process's id, whole from the first moment on."""
    if path is None:
        yield
        return
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(f"{os.getpid()}\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        message = f"the ready file {path} cannot be written: {error.strerror}; give a path in a folder that is there"
        raise InvalidArgumentError(message) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
