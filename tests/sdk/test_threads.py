"""Threads of sync activities, and the event loop that an async one keeps to itself."""

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from tests import wat
from wasman_sdk import (
    Client,
    ExecuteActivityInput,
    RetryPolicy,
    Worker,
    WorkerInterceptor,
    Workflow,
    _watchdog,
    activity,
)
from wasman_sdk._threads import Threads


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect("memory://") as client:
        yield client


def asks(name: str) -> Workflow[Any, Any]:
    return Workflow(name, Any, Any, module=wat.script(wat.call(name)))


async def eventually(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not holds():
            await anyio.sleep(0.005)


async def test_an_activity_that_was_given_up_keeps_its_thread(client: Client) -> None:
    goes_on = threading.Event()
    running: list[int] = []
    most: list[int] = []

    @activity(
        start_to_close_timeout=timedelta(milliseconds=20),
        retry=RetryPolicy(initial_interval=timedelta(0), maximum_attempts=4),
    )
    def hangs() -> int:
        running.append(1)
        most.append(len(running))
        goes_on.wait()
        running.pop()
        return 7

    async with Worker(client, activities=[hangs], max_sync_activities=2):
        handle = await client.start_workflow(asks("hangs"), None, id="w")
        assert await handle.result() == [-1]  # two attempts began, and two found no thread
        assert (most, len(running)) == ([1, 2], 2)
        goes_on.set()
        await eventually(lambda: not running)
        assert await client.execute_workflow(asks("hangs"), None, id="again") == [7]  # the places were given back


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_places_are_given_back_however_a_call_ends(anyio_backend: str) -> None:
    del anyio_backend
    threads = Threads(1)

    def fails() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await threads.run(fails)
    for turns in range(6):  # one of them before its thread begins
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(threads.run, lambda: None)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(10):
            await threads.run(lambda: None)
    ended = threading.Event()
    began = threading.Event()

    def waits() -> None:
        began.set()
        ended.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(threads.run, waits)
        await anyio.to_thread.run_sync(began.wait)
        tasks.cancel_scope.cancel()
    with anyio.move_on_after(0.05) as scope:
        await threads.run(lambda: None)
    assert scope.cancelled_caught  # its thread runs on
    ended.set()
    with anyio.fail_after(10):
        assert await threads.run(lambda: 5) == 5


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "wasman.worker"]


class Around(WorkerInterceptor):
    async def execute_activity(self, given: ExecuteActivityInput, proceed: Any) -> Any:
        return await proceed(given)


@pytest.mark.parametrize("interceptors", [[], [Around()]], ids=["alone", "intercepted"])
async def test_an_activity_that_keeps_the_loop_is_named_once(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    interceptors: list[WorkerInterceptor],
) -> None:
    monkeypatch.setattr(_watchdog, "BLOCKED", 0.1)
    monkeypatch.setattr(_watchdog, "_LOOK", 0.02)

    async def inner() -> None:
        time.sleep(0.4)  # noqa: ASYNC251  the mistake that is looked for

    @activity
    async def greedy() -> None:
        await anyio.sleep(0.05)
        await inner()

    with caplog.at_level(logging.WARNING, "wasman.worker"):
        async with Worker(client, activities=[greedy], interceptors=interceptors):
            await client.execute_workflow(asks("greedy"), None, id="w")
    [message] = told(caplog)
    assert message.startswith("activity 'greedy' of w has kept the event loop of its worker for 0.")
    assert "test_threads.py:" in message
    assert " in greedy): nothing else goes on meanwhile; let it await there, or make it a plain `def`" in message


async def test_nobody_is_named_for_what_runs_in_a_thread_or_awaits(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_watchdog, "BLOCKED", 1.0)  # longer than a busy machine keeps the loop from going on
    monkeypatch.setattr(_watchdog, "_LOOK", 0.02)

    @activity
    def sleeps() -> None:
        time.sleep(1.5)

    @activity
    async def awaits() -> None:
        await anyio.sleep(1.5)

    with caplog.at_level(logging.WARNING, "wasman.worker"):
        async with Worker(client, activities=[sleeps, awaits]):
            await client.execute_workflow(asks("sleeps"), None, id="one")
            await client.execute_workflow(asks("awaits"), None, id="two")
            time.sleep(1.5)  # noqa: ASYNC251  the application itself, which no activity is to be blamed for
    assert told(caplog) == []


async def test_the_thread_ends_with_its_worker(client: Client) -> None:
    def watchdogs() -> int:
        return sum(thread.name == "wasman watchdog" for thread in threading.enumerate())

    await eventually(lambda: watchdogs() == 0)
    async with Worker(client):
        await eventually(lambda: watchdogs() == 1)
    await eventually(lambda: watchdogs() == 0)
