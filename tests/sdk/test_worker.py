"""Workers: what they open and close, when they are ready, and how they leave."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests import wat
from tests.go_guests import guest
from wasman_host.store import Key
from wasman_host.stored import open_record
from wasman_sdk import Client, InvalidArgumentError, Worker, Workflow, activity
from wasman_sdk.testing import WorkflowEnvironment

ROOT = Path(__file__).parents[2]
TWICE: Workflow[None, Any] = Workflow(
    "twice", type(None), Any, module=wat.script(wat.call("work", b"1"), wat.call("work", b"2"))
)


class Pool:
    """Something that is opened and closed."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes


@activity(name="work")
async def counted(number: int, pool: Pool) -> int:
    """Note that the pool is there."""
    pool.notes.append(f"work {number}")
    return number


@pytest.mark.parametrize(("turns", "snapshots"), [(1, 13), (4, 3), (32, 0)])
async def test_a_guest_is_kept_after_so_many_turns_as_is_said(turns: int, snapshots: int) -> None:
    calls = Workflow("calls", int, int, module=guest("programs", "tinygo"))
    async with WorkflowEnvironment(workflows=[calls], snapshot_turns=turns) as env:
        env.mock_activity("echo", does=lambda given: given)
        assert await env.client.execute_workflow(calls, 13, id="w") == 13
    assert sum("snapshot-" in commit for commit in env.commits) == snapshots


async def test_a_run_is_pinned_to_the_image_that_its_worker_has_by_the_commit_that_starts_it() -> None:
    notes: list[str] = []
    images = []
    async with (
        Client.connect("memory://") as client,
        Worker(client, workflows=[TWICE], activities=[counted], resources=[Pool(notes)]),
    ):
        for name in ("first", "second"):
            handle = await client.start_workflow(TWICE, None, id=name)
            stored = await client.store.load(Key("default", name))
            assert stored is not None
            images.append(open_record(stored).image)
            await handle.result()
    assert images[0] == "", "its worker had not loaded the module yet"
    assert images[1]


# Resources


async def test_resources_are_opened_before_the_first_call_and_closed_after_the_last() -> None:
    notes: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[list[object]]:
        notes.append("open")
        yield [Pool(notes)]
        await anyio.lowlevel.checkpoint()
        notes.append("closed")

    async with Client.connect("memory://") as client:
        async with Worker(client, workflows=[TWICE], activities=[counted], resources=lifespan):
            assert await client.execute_workflow(TWICE, None, id="w") == [1, 2]
        assert notes == ["open", "work 1", "work 2", "closed"]


async def test_a_worker_that_is_entered_again_opens_its_resources_again() -> None:
    notes: list[str] = []

    @contextlib.contextmanager
    def lifespan() -> Iterator[Pool]:
        notes.append("open")
        yield Pool(notes)
        notes.append("closed")

    async with Client.connect("memory://") as client:
        worker = Worker(client, workflows=[TWICE], activities=[counted], resources=lifespan)
        for number in range(2):
            async with worker:
                await client.execute_workflow(TWICE, None, id=f"w{number}")
    assert notes == ["open", "work 1", "work 2", "closed"] * 2


async def test_resources_that_cannot_be_opened_are_the_workers_error_and_nothing_runs() -> None:
    notes: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[list[object]]:
        if notes == []:
            raise ConnectionError("the database is down")
        yield []

    async with Client.connect("memory://") as client:
        with pytest.raises(ConnectionError, match="the database is down"):
            async with Worker(client, workflows=[TWICE], activities=[counted], resources=lifespan):
                pytest.fail("it has started")  # pragma: no cover
        handle = await client.start_workflow(TWICE, None, id="w")
        await anyio.sleep(0.05)
        assert (await handle.describe()).owner is None


@pytest.mark.parametrize("given", [lambda: [Pool([])], lambda: None], ids=["a list", "nothing"])
async def test_a_function_that_opens_nothing_is_refused(given: Any) -> None:
    async with Client.connect("memory://") as client:
        with pytest.raises(InvalidArgumentError, match="resources= is a list of objects, or a function that gives a"):
            async with Worker(client, activities=[counted], resources=given):
                pytest.fail("it has started")  # pragma: no cover


async def test_a_resource_that_the_lifespan_does_not_give_is_named() -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[list[object]]:
        yield ["not a pool"]

    async with Client.connect("memory://") as client:
        with pytest.raises(InvalidArgumentError, match="parameter 'pool' wants one Pool and the worker has 0"):
            async with Worker(client, activities=[counted], resources=lifespan):
                pytest.fail("it has started")  # pragma: no cover


# Leaving


class Gate:
    """An activity that says that it has begun, and waits to be let through."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.open = anyio.Event()
        self.attempts: list[int] = []

    @activity
    async def work(self, number: int) -> int:
        """Wait at the first call."""
        self.attempts.append(number)
        self.begun.set()
        await self.open.wait()
        return number


async def test_a_worker_that_leaves_waits_for_the_activities_that_it_has_begun() -> None:
    gate = Gate()
    async with Client.connect("memory://") as client, anyio.create_task_group() as tasks:
        worker = Worker(client, workflows=[TWICE], activities=[gate.work], graceful_shutdown_timeout=timedelta(hours=1))
        async with worker:
            handle = await client.start_workflow(TWICE, None, id="w")
            await gate.begun.wait()
            assert worker.is_ready

            async def opens() -> None:
                while worker.is_ready:
                    await anyio.sleep(0.001)
                await anyio.sleep(0.02)
                gate.open.set()

            tasks.start_soon(opens)
        found = await handle.describe()
        assert (found.log_entries, found.owner) == (2, None), "the first answer is kept, and the second call not begun"
        assert gate.attempts == [1]
        async with Worker(client, activities=[gate.work]):
            assert await handle.result() == [1, 2]
    assert gate.attempts == [1, 2]


async def test_an_activity_that_takes_longer_is_cut_and_begins_again_elsewhere() -> None:
    gate = Gate()
    async with Client.connect("memory://") as client:
        async with Worker(
            client, workflows=[TWICE], activities=[gate.work], graceful_shutdown_timeout=timedelta(milliseconds=20)
        ):
            handle = await client.start_workflow(TWICE, None, id="w")
            await gate.begun.wait()
        assert (await handle.describe()).log_entries == 1
        gate.open.set()
        async with Worker(client, activities=[gate.work]):
            assert await handle.result() == [1, 2]
    assert gate.attempts == [1, 1, 2]


async def test_a_worker_whose_body_fails_does_not_wait() -> None:
    gate = Gate()
    async with Client.connect("memory://") as client:
        hour = timedelta(hours=1)

        async def body() -> None:
            async with Worker(client, workflows=[TWICE], activities=[gate.work], graceful_shutdown_timeout=hour):
                await client.start_workflow(TWICE, None, id="w")
                await gate.begun.wait()
                raise RuntimeError("the body")

        with anyio.fail_after(60), pytest.raises(RuntimeError, match="the body"):
            await body()
        assert (await client.get_handle("w").describe()).owner is None


_APP = """
import anyio
from datetime import timedelta
from pathlib import Path
from tests.sdk.test_worker import TWICE
from wasman_sdk import Worker, activity

@activity
async def work(number: int) -> int:
    Path("begun").touch()
    while not Path("open").exists():
        await anyio.sleep(0.005)
    return number

hour = timedelta(hours=1)
worker = Worker("sqlite:///wasman.db", workflows=[TWICE], activities=[work], graceful_shutdown_timeout=hour)
"""


def _until(there: Path) -> None:
    ends = time.monotonic() + 60
    while not there.exists():
        assert time.monotonic() < ends, f"{there} was never there"
        time.sleep(0.01)


@pytest.mark.parametrize("patient", [True, False])
async def test_a_first_signal_drains_and_a_second_one_does_not_wait(
    anyio_backend: str, tmp_path: Path, *, patient: bool
) -> None:
    if anyio_backend != "asyncio":
        pytest.skip("the process is the same whatever this side runs on")
    (tmp_path / "app.py").write_text(_APP)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "host")])}
    command = [sys.executable, "-m", "wasman_sdk", "worker", "app:worker", "--ready-file", "ready"]
    async with Client.connect(f"sqlite:///{tmp_path / 'wasman.db'}") as client:
        handle = await client.start_workflow(TWICE, None, id="w")
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as process:  # noqa: ASYNC220  it returns at once
            await anyio.to_thread.run_sync(_until, tmp_path / "ready")
            await anyio.to_thread.run_sync(_until, tmp_path / "begun")
            assert (tmp_path / "ready").read_text() == f"{process.pid}\n"
            process.send_signal(signal.SIGTERM)
            while (tmp_path / "ready").exists():  # it says that it is not ready before it waits
                await anyio.sleep(0.01)
            if patient:
                (tmp_path / "open").touch()
            else:
                process.send_signal(signal.SIGTERM)
            _, errors = await anyio.to_thread.run_sync(process.communicate)
        assert process.returncode == 0
        assert b"waits for activities that have begun" in errors
        found = await handle.describe()
        assert (found.log_entries, found.owner) == (2 if patient else 1, None)


# Readiness


async def test_a_worker_says_when_it_is_ready() -> None:
    async with Client.connect("memory://") as client:
        worker = Worker(client)
        ready = [worker.is_ready]
        async with worker:
            ready.append(worker.is_ready)
        ready.append(worker.is_ready)
    assert ready == [False, True, False]


async def test_a_ready_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    worker = Worker("memory://")
    with pytest.raises(InvalidArgumentError, match=r"the ready file .* cannot be written: No such file or directory"):
        await worker.run(ready_file=tmp_path / "missing" / "ready")
