"""Interceptors: around each call, in order, typed, and able to change what goes in and out."""

import dataclasses
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from tests import wat
from wasman_sdk import (
    ApplicationError,
    CancelWorkflowInput,
    Client,
    ClientInterceptor,
    CountWorkflowsInput,
    DeployInput,
    DescribeWorkflowInput,
    ExecuteActivityInput,
    GetResultInput,
    HistoryInput,
    Limits,
    ListWorkflowsPageInput,
    RetryPolicy,
    SignalWorkflowInput,
    StartWorkflowInput,
    StartWorkflowOptions,
    SyncClient,
    TerminateWorkflowInput,
    UnblockWorkflowInput,
    Worker,
    WorkerInterceptor,
    Workflow,
    WorkflowClosedError,
    WorkflowHandle,
    activity,
)


class Order(BaseModel):
    item: str
    count: int = 1


ORDER: Workflow[None, Any] = Workflow(
    "order", type(None), Any, module=wat.script(wat.call("place", b'{"item":"book"}'), wat.call("wasman.error"))
)


@activity
async def place(order: Order) -> int:
    """Give what was ordered."""
    return order.count


class Noting(WorkerInterceptor):
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    async def execute_activity(
        self, given: ExecuteActivityInput, call_next: Callable[[ExecuteActivityInput], Awaitable[Any]]
    ) -> Any:
        assert activity.info() == given.info
        self.notes.append(f"{self.name}: {given.info.name} {given.payload!r}")
        try:
            result = await call_next(given)
        except Exception as error:
            self.notes.append(f"{self.name}: {error!r}")
            raise
        self.notes.append(f"{self.name}: {result}")
        return result


class Doubling(WorkerInterceptor):
    async def execute_activity(
        self, given: ExecuteActivityInput, call_next: Callable[[ExecuteActivityInput], Awaitable[Any]]
    ) -> Any:
        order: Order = given.payload
        return 10 * await call_next(dataclasses.replace(given, payload=Order(item=order.item, count=2 * order.count)))


async def test_the_first_is_outermost_and_each_may_change_what_passes() -> None:
    notes: list[str] = []
    inner, outer = Noting("inner", notes), Noting("outer", notes)
    async with (
        Client.connect("memory://") as client,
        Worker(client, activities=[place], interceptors=[outer, Doubling(), inner]),
    ):
        assert (await client.execute_workflow(ORDER, None, id="w"))[0] == 20
    assert notes == [
        "outer: place Order(item='book', count=1)",
        "inner: place Order(item='book', count=2)",
        "inner: 2",
        "outer: 20",
    ]


async def test_around_sync_activities_and_the_fallback() -> None:
    notes: list[str] = []

    @activity(name="place")
    def sync() -> int:
        return 7

    async with Client.connect("memory://") as client:
        async with Worker(client, activities=[sync], interceptors=[Noting("sync", notes)]):
            assert (await client.execute_workflow(ORDER, None, id="sync"))[0] == 7
        async with Worker(
            client, fallback=lambda name, _: f'"{name}"'.encode(), interceptors=[Noting("fallback", notes)]
        ):
            assert (await client.execute_workflow(ORDER, None, id="fallback"))[0] == "place"
    assert notes == ["sync: place None", "sync: 7", 'fallback: place b\'{"item":"book"}\'', "fallback: b'\"place\"'"]


class Refusing(WorkerInterceptor):
    def __init__(self) -> None:
        self.attempts: list[int] = []

    async def execute_activity(
        self, given: ExecuteActivityInput, call_next: Callable[[ExecuteActivityInput], Awaitable[Any]]
    ) -> Any:
        self.attempts.append(given.info.attempt)
        if given.info.attempt < 3:
            raise ApplicationError("not yet", type="Refused")
        return await call_next(given)


async def test_what_it_raises_is_the_attempts_failure() -> None:
    refusing = Refusing()

    @activity(name="place", retry=RetryPolicy(initial_interval=timedelta(0)))
    async def again(order: Order) -> int:
        return order.count

    async with (
        Client.connect("memory://") as client,
        Worker(client, activities=[again], interceptors=[refusing]),
    ):
        assert (await client.execute_workflow(ORDER, None, id="w"))[0] == 1
    assert refusing.attempts == [1, 2, 3]


class Wrong(WorkerInterceptor):
    async def execute_activity(
        self, given: ExecuteActivityInput, call_next: Callable[[ExecuteActivityInput], Awaitable[Any]]
    ) -> Any:
        return f"not {await call_next(given)}"


async def test_what_it_gives_is_validated_like_any_result() -> None:
    async with Client.connect("memory://") as client, Worker(client, activities=[place], interceptors=[Wrong()]):
        code, failure = await client.execute_workflow(ORDER, None, id="w")
    assert (code, failure["type"]) == (-1, "InvalidResult")


def test_what_is_no_interceptor_is_refused() -> None:
    wrong: Any = object()
    with pytest.raises(TypeError, match="interceptors"):
        Worker("memory://", interceptors=[wrong])


# Around a client's calls


class Watching(ClientInterceptor):
    """Notes each call that passes, whichever method it is of."""

    def __init__(self, name: str, notes: list[tuple[str, str, Any]]) -> None:
        self.name, self.notes = name, notes

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in {"name", "notes"}:
            return super().__getattribute__(name)

        async def noted(given: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
            self.notes.append((self.name, name, given))
            return await call_next(given)

        return noted


async def test_each_call_of_a_client_passes_each_interceptor() -> None:
    notes: list[tuple[str, str, Any]] = []
    around = [Watching("outer", notes), Watching("inner", notes)]
    async with (
        Client.connect("memory://", interceptors=around) as client,
        Worker(client, activities=[place]),
    ):
        await client.deploy(ORDER)
        handle = await client.start_workflow(ORDER, None, id="w", memo={"by": "me"})
        await handle.result(timeout=timedelta(seconds=60))
        await handle.describe()
        await handle.history()
        sent = handle.signal("go", 1, message_id="m")
        for refused in (sent, handle.cancel("enough"), handle.terminate("enough"), handle.unblock(limits=Limits())):
            with pytest.raises(WorkflowClosedError):
                await refused
        assert [found.id async for found in client.list_workflows(page_size=7, status="completed")] == ["w"]
        assert await client.count(workflow="order") == 1
        assert await client.execute_workflow("order", id="other") is not None
    run: dict[str, Any] = {"id": "w", "run_id": handle.run_id}
    expected: list[tuple[str, object]] = [
        ("deploy", DeployInput(workflow=ORDER)),
        ("start_workflow", StartWorkflowInput(workflow=ORDER, given=None, id="w", options={"memo": {"by": "me"}})),
        ("get_result", GetResultInput(**run, timeout=timedelta(seconds=60))),
        ("describe_workflow", DescribeWorkflowInput(**run)),
        ("history", HistoryInput(**run)),
        ("signal_workflow", SignalWorkflowInput(**run, signal="go", value=1, message_id="m")),
        ("cancel_workflow", CancelWorkflowInput(**run, reason="enough")),
        ("terminate_workflow", TerminateWorkflowInput(**run, reason="enough")),
        ("unblock_workflow", UnblockWorkflowInput(**run, limits=Limits())),
        ("list_workflows_page", ListWorkflowsPageInput(page_size=7, cursor=None, where={"status": "completed"})),
        ("count_workflows", CountWorkflowsInput(where={"workflow": "order"})),
        ("start_workflow", StartWorkflowInput(workflow="order", given=None, id="other", options={})),
    ]
    seen = [(who, name, given) for who, name, given in notes if getattr(given, "id", "") != "other" or "start" in name]
    assert seen == [(who, *call) for call in expected for who in ("outer", "inner")]
    assert [name for _, name, given in notes[-2:]] == ["get_result"] * 2
    methods = {name for name in vars(ClientInterceptor) if not name.startswith("_")}
    assert methods == {name for name, _ in expected}, "there is one for each call"


class Elsewhere(ClientInterceptor):
    """Starts under another id, with more noted, and hides what a run has given."""

    async def start_workflow(
        self, given: StartWorkflowInput, call_next: Callable[[StartWorkflowInput], Awaitable[WorkflowHandle[Any]]]
    ) -> WorkflowHandle[Any]:
        options: StartWorkflowOptions = {**given.options, "memo": {"trace": "abc"}}
        return await call_next(dataclasses.replace(given, id=f"tenant-{given.id}", options=options))

    async def get_result(self, given: GetResultInput, call_next: Callable[[GetResultInput], Awaitable[Any]]) -> Any:
        await call_next(given)
        return "hidden"


async def test_an_interceptor_changes_what_is_asked_for_and_what_is_given() -> None:
    async with Client.connect("memory://", interceptors=[Elsewhere()]) as client, Worker(client, activities=[place]):
        handle = await client.start_workflow(ORDER, None, id="w")
        assert await handle.result() == "hidden"
        found = await client.get_handle("tenant-w").describe()
    assert (handle.id, found.run_id, found.memo) == ("tenant-w", handle.run_id, {"trace": "abc"})


def test_around_a_client_without_an_event_loop() -> None:
    notes: list[tuple[str, str, Any]] = []
    with SyncClient.connect("memory://", interceptors=[Watching("sync", notes)]) as client:
        assert client.count() == 0
    assert [name for _, name, _ in notes] == ["count_workflows"]


def test_what_is_no_interceptor_of_a_client_is_refused() -> None:
    wrong: Any = WorkerInterceptor()
    with pytest.raises(TypeError, match="subclasses of ClientInterceptor"):
        Client.connect("memory://", interceptors=[wrong])
