"""A store in memory, a client and a worker, whose time is skipped."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import anyio
from typing_extensions import override

from wasman_host.control import describe_stored
from wasman_host.errors import BlockedError, InvalidArgumentError
from wasman_host.store import SkippingStore, Status, Step
from wasman_sdk import errors
from wasman_sdk._attempt import current
from wasman_sdk._client import Client
from wasman_sdk._worker import Worker
from wasman_sdk.testing._faults import FaultyStore
from wasman_sdk.testing._mocks import UNSET, Activities, ActivityMock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from anyio.abc import TaskStatus

    from wasman_host.activity import ActivityDefinition
    from wasman_host.codec import PayloadCodec
    from wasman_host.store import Change, Key
    from wasman_sdk._handlers import FallbackHandler
    from wasman_sdk._interceptors import ClientInterceptor
    from wasman_sdk._worker import Lifespan
    from wasman_sdk._workflow import Workflow
    from wasman_sdk.testing._faults import Fault
    from wasman_sdk.testing._mocks import RecordedCall

__all__ = ["WorkflowEnvironment"]


class WorkflowEnvironment:
    """A store in memory, a client and a worker: `async with WorkflowEnvironment(workflows=[...], activities=[...])`.

    Its clock stands still while the test does other things, and jumps to the next time that an instance waits for while
    the test waits for a result or sleeps (`sleep`), as soon as nothing is under way: no activity runs, no guest
    computes. A test that waits for something else lets it pass as quickly as elsewhere.

    Waiting for a result never hangs for what a test cannot see: it raises `BlockedError` where the run is blocked, and
    `InvalidArgumentError` where a guest calls an activity that nobody has, or a mock gave what its activity cannot.

    Attributes:
        client: The client.
        crashes: How often a worker has died.
        struck: How many of the faults have come about.
        commits: What the workers have committed, in words, in order.
    """

    client: Client

    def __init__(
        self,
        *,
        workflows: Sequence[Workflow[Any, Any]] = (),
        activities: Sequence[Callable[..., Any]] = (),
        resources: Sequence[object] | Callable[[], Lifespan] = (),
        fallback: FallbackHandler | None = None,
        start: datetime | None = None,
        faults: Sequence[Fault] = (),
        tenant: str = "default",
        client_interceptors: Sequence[ClientInterceptor] = (),
        codec: PayloadCodec | None = None,
        **worker: Any,
    ) -> None:
        """Nothing is opened yet.

        Args:
            workflows: What is deployed.
            activities: Functions decorated with `@activity`; one that is mocked need not be among them.
            resources: Objects injected into activities by their type, or a function that gives a context manager of
                them, entered anew for each worker.
            fallback: Answers activities that are not among them.
            start: What the clock shows at first; now by default.
            faults: What goes wrong: the first one for the first worker, the second one for the worker that comes after
                its death, and so on.
            tenant: Whose instances the client sees.
            client_interceptors: Those of the client.
            codec: What payloads are encoded by, by the client and by the workers.
            worker: Other options of `Worker`, its own `interceptors` for example.
        """
        now = datetime.now(UTC) if start is None else start
        self._store = _Store(_nanoseconds(now), self._problem)
        self._activities = Activities(activities, worker.get("interceptors", ()), self._store.tell)
        self._activities.stuck = self._store.wake_watchers
        self.crashes: int = 0
        self.commits: list[str] = []
        self.struck: int = 0
        self._workflows, self._faults, self._tenant = tuple(workflows), list(faults), tenant
        self._options = {
            "activities": activities,
            "resources": resources,
            "fallback": fallback,
            "graceful_shutdown_timeout": timedelta(0),
            **worker,
        }
        self._client_interceptors, self._codec = tuple(client_interceptors), codec
        self._stack = contextlib.AsyncExitStack()
        self._leaving, self._left, self._serving = anyio.Event(), anyio.Event(), anyio.Event()
        self._life = anyio.CancelScope()

    async def __aenter__(self) -> Self:
        problem: Exception | None = None
        async with contextlib.AsyncExitStack() as stack:
            await self._store.open()
            stack.push_async_callback(self._store.close)
            self.client = Client.over(
                self._store, self._tenant, interceptors=self._client_interceptors, codec=self._codec
            )
            for workflow in self._workflows:
                await self.client.deploy_absent(workflow)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._store.tick, name="wasman clock")
            try:
                await tasks.start(self._work, name="wasman workers")
            except Exception as error:  # noqa: BLE001  the task group would wrap it; it is raised below
                problem = error
            else:
                stack.push_async_callback(self._leave)
                self._stack = stack.pop_all()
        if problem is not None:
            raise problem
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return await self._stack.__aexit__(kind, error, traceback)
        # The task group would wrap what the body has raised, and the test could not catch it by its class.
        await self._stack.__aexit__(None, None, None)
        if error is None and self._activities.problems:
            raise self._activities.problems[0]
        return None

    # Time

    def now(self) -> datetime:
        """What the environment's clock shows."""
        return datetime.fromtimestamp(self._store.now() / 1e9, tz=UTC)

    async def sleep(self, duration: timedelta) -> None:
        """Skip time: what is due until then happens first, in order.

        In an activity, time is skipped as for a workflow that waits: as soon as nothing else is under way.
        """
        due, call = self._store.now() + duration // timedelta(microseconds=1) * 1000, current.get(None)
        if call is None:
            await self._store.sleep_until(due, None)
            return
        self._store.tell(-1)
        try:
            await self._store.sleep_until(due, call.key)
        finally:
            self._store.tell(1)

    @contextlib.contextmanager
    def auto_time_skipping_disabled(self) -> Iterator[None]:
        """Inside of it, waiting for a result skips no time; `sleep` does."""
        before, self._store.skips = self._store.skips, False
        try:
            yield
        finally:
            self._store.skips = before

    # Activities

    def mock_activity(
        self,
        activity: Callable[..., Any] | str,
        *,
        returns: Any = UNSET,
        raises: BaseException | type[BaseException] | None = None,
        does: Callable[..., Any] | None = None,
    ) -> ActivityMock:
        """Put something in the place of an activity, from its next attempt on; one of the three answers is given.

        Args:
            activity: The function that is decorated with `@activity`, or its name.
            returns: What each call gives.
            raises: What each attempt fails with; retries go on as the activity's policy says.
            does: Is called with the payload, if the activity has one; async or not. `activity.info()` works in it.

        Raises:
            InvalidArgumentError: It is no activity, not exactly one answer is given, or `returns` does not fit what the
                activity is annotated to return.
        """
        return self._activities.mock(activity, returns, raises, does)

    def calls(self, activity: Callable[..., Any] | str | None = None) -> list[RecordedCall]:
        """All attempts so far, mocked or not, in the order they began: of one activity, or of all."""
        name = activity if isinstance(activity, str) or activity is None else self._activities.name_of(activity)
        return [call for call in self._activities.calls if name is None or call.name == name]

    # Workers

    async def crash_worker(self) -> None:
        """The worker dies, and releases nothing; another one is there when this returns."""
        self._serving = serving = anyio.Event()
        self._life.cancel()
        await serving.wait()

    async def _work(self, *, task_status: TaskStatus[None]) -> None:
        """One worker after the other, until the last one is told to leave."""
        started = False
        while True:
            store = FaultyStore(self._store, self._faults.pop(0) if self._faults else None)
            ids: set[str] = set()
            store.seen = partial(self._seen, ids)
            with anyio.CancelScope() as self._life:
                store.die = self._life.cancel
                client = Client.over(store.as_store, self._tenant, codec=self._codec)
                async with _Worker(self._activities, client, **self._options):
                    self._serving.set()
                    if not started:
                        started = True
                        task_status.started()
                    await self._leaving.wait()
            self.struck += store.struck
            if self._leaving.is_set():
                break
            self.crashes += 1
            for worker in ids:
                self._store.bury(worker)
        self._left.set()

    async def _leave(self) -> None:
        self._leaving.set()
        await self._left.wait()

    def _seen(self, ids: set[str], operation: str, given: tuple[Any, ...]) -> None:
        if operation == "beat":
            ids.add(given[0])
        elif operation == "commit":
            self.commits.append(", ".join(map(_words, given[0])))

    # What a test would wait for in vain

    def _problem(self, key: Key) -> Exception | None:
        if self._activities.problems:
            return self._activities.problems[0]
        for name in self._activities.missing:
            return InvalidArgumentError(
                f"a guest calls activity {name!r}, which this environment has not: "
                f"give it by WorkflowEnvironment(activities=[...]), or mock it by mock_activity"
            )
        stored = self._store.current(key)
        if stored is None or stored.columns.status is not Status.BLOCKED:
            return None
        found = describe_stored(stored)
        kind = getattr(errors, found.record.error, BlockedError) if found.record else BlockedError
        return kind(f"{key} is blocked: {found.reason}")


class _Store(SkippingStore):
    """Tells those who wait for an instance what they would wait for in vain."""

    def __init__(self, start: int, problem: Callable[[Key], Exception | None]) -> None:
        super().__init__(start)
        self._problem = problem

    def tell(self, difference: int) -> None:
        """An activity begins (1) or ends (-1)."""
        self.activities += difference
        self._something()

    @override
    async def watch(self, key: Key | None, timeout: float) -> None:
        problem = None if key is None else self._problem(key)
        if problem is not None:
            raise problem
        await super().watch(key, timeout)


class _Worker(Worker):
    """A worker that lets an environment answer its guests' calls."""

    def __init__(self, answers: Activities, client: Client, /, **options: Any) -> None:
        self._answers = answers
        super().__init__(client, **options)

    @override
    def _definitions(
        self, resources: Sequence[object]
    ) -> tuple[dict[str, ActivityDefinition], ActivityDefinition | None]:
        return self._answers.over(*super()._definitions(resources))


def _nanoseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def _words(change: Change | Step) -> str:
    """A change, for people."""
    if isinstance(change, Step):
        return f"{change.key}: log entry {change.entries[-1][0]}" if change.entries else f"{change.key}: a blob"
    words = [] if change.columns is None else [change.columns.status.value]
    words += [f"log entry {n}" for n, _ in change.entries] + [blob.name for blob in change.blobs]
    return f"{change.key}: {', '.join(words)}"
