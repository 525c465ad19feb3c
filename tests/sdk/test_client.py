"""Clients and workers, in one process and in several."""

import gc
import os
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from wasmtime import wat2wasm

from tests import wat
from tests.go_guests import COMPILERS, guest
from wasman_sdk import (
    Client,
    FileSink,
    FileSource,
    InvalidArgumentError,
    ResultTimeoutError,
    Session,
    Signal,
    Sink,
    Source,
    StoreUnavailableError,
    Worker,
    Workflow,
    WorkflowHandle,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    activity,
)

ROOT = Path(__file__).parents[2]


class Options(BaseModel):
    names: list[str]


class Report(BaseModel):
    names: list[str]


TYPED: Workflow[Options, list[Report]] = Workflow(
    "typed", Options, list[Report], module=wat.script(wat.call("wasman.input"))
)
WAITS: Workflow[None, Any] = Workflow("waits", type(None), Any, module=wat.script(wat.call("missing")))


class Picture(BaseModel):
    pixels: bytes


@COMPILERS
async def test_bytes_go_to_a_guest_and_come_back_as_they_are(client: Client, compiler: str) -> None:
    flow: Workflow[bytes, bytes] = Workflow("bytes", bytes, bytes, module=guest("programs", compiler))
    nothing: Workflow[None, Any] = Workflow("blank", type(None), Any, module=guest("programs", compiler))
    async with Worker(client, workflows=[flow, nothing]):
        for place, given in enumerate([b"", b"null", b"\0\xff", b'"text"', b"\xfe" * 100_000]):
            assert await client.execute_workflow(flow, given, id=f"w{place}") == given
        named = await client.start_workflow("bytes", b"\xff", id="named", result_type=bytes)
        assert await named.result() == b"\xff"
        with pytest.raises(InvalidArgumentError, match="the result of workflow 'bytes' is not of its output type"):
            await client.get_handle("named").result()
        assert await client.execute_workflow(nothing, None, id="nothing") is None


async def test_bytes_that_are_no_integers_are_refused_by_an_entry_that_takes_some(client: Client) -> None:
    text = '(module (memory (export "memory") 1) (func (export "run") (param i32) (result i32) (local.get 0)))'
    flow: Workflow[bytes, int] = Workflow("integers", bytes, int, module=bytes(wat2wasm(text)))
    async with Worker(client, workflows=[flow]):
        assert await client.execute_workflow(flow, b"3", id="three") == 3
    for given in (b"", b"\xff", b"x"):
        with pytest.raises(InvalidArgumentError, match=r"takes 1 integers \(i32\); the input of 'w' is "):
            await client.start_workflow(flow, given, id="w")


async def test_what_json_cannot_hold_is_refused(client: Client) -> None:
    flow: Workflow[Picture, Any] = Workflow("typed", Picture, Any, module=wat.script())
    with pytest.raises(InvalidArgumentError, match=r"the input of workflow 'typed' cannot be stored: .*utf-8"):
        await client.start_workflow(flow, Picture(pixels=b"\xff"), id="w")
    handle = await client.start_workflow(flow, Picture(pixels=b"x"), id="w")
    with pytest.raises(InvalidArgumentError, match=r"the value of signal 'show' cannot be sent: .*utf-8"):
        await handle.signal(Signal("show", Picture), Picture(pixels=b"\xff"))


@pytest.fixture(params=["sqlite", "directory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}" if request.param == "sqlite" else f"file://{tmp_path / 'store'}"


@pytest.fixture
async def client(anyio_backend: str, url: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect(url) as client:
        yield client


def worker_locks(url: str) -> list[Path]:
    """The lock files of the workers that live."""
    kind, _, path = url.partition("://")
    return list((Path(path[1:] + "-workers") if kind == "sqlite" else Path(path, "workers")).iterdir())


async def test_typed_and_untyped_starts(client: Client) -> None:
    async with Worker(client, workflows=[TYPED]):
        options = Options(names=["a"])
        assert await client.execute_workflow(TYPED, options, id="typed") == [Report(names=["a"])]
        assert await client.execute_workflow("typed", {"names": ["b"]}, id="untyped") == [{"names": ["b"]}]
        handle = await client.start_workflow("typed", {"names": []}, id="half", result_type=list[Report])
        assert await handle.result() == [Report(names=[])]
        assert await client.get_handle("typed", workflow=TYPED).result() == [Report(names=["a"])]
        assert await client.get_handle("typed").result() == [{"names": ["a"]}]
    with pytest.raises(WorkflowNotFoundError, match="no workflow is deployed under the name 'none'; deploy its module"):
        await client.start_workflow("none", id="w")


async def test_what_the_body_raises_passes_as_it_is(tmp_path: Path) -> None:
    class OwnError(Exception):
        pass

    with pytest.raises(OwnError):
        async with Client.connect(f"sqlite:///{tmp_path / 'store.db'}") as client, Worker(client):
            raise OwnError
    with anyio.move_on_after(0.05) as scope:
        async with Client.connect("memory://") as client, Worker(client):
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_connect_is_not_awaited(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="write `async with Client") as raised:
        await Client.connect(f"sqlite:///{tmp_path}/store.db")
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert (frames[0].filename, frames[0].line) == (
        __file__,
        'await Client.connect(f"sqlite:///{tmp_path}/store.db")',
    )
    assert len(frames) == 2
    gc.collect()  # nothing was "never awaited": warnings are errors here
    assert not (tmp_path / "store.db").exists()


@pytest.mark.parametrize("url", ["sqlite:///store.db", "file://store"])
async def test_a_relative_path_is_resolved_at_once_and_logged(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wasman.client")
    monkeypatch.chdir(tmp_path)
    client = Client.connect(url)
    monkeypatch.chdir("/")
    path = tmp_path / url.rpartition("/")[2]
    assert caplog.messages == [f"the store of this client is {path}"]
    assert repr(client).startswith("Client(")
    assert str(path) in repr(client)
    async with client:
        assert path.exists()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:s3cret@host/base",
        "postgresql://user:s3/cret@host/base",
        "postgresql://user:a@s3cret@host",
        "s3://bucket?secret=s3cret&x=1",
        "postgresql://host/base?password=s3cret",
    ],
)
def test_no_password_is_told(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidArgumentError, match=r"names no store: use sqlite:///") as raised:
        Client.connect(url)
    told = f"{raised.value!r} {caplog.text}"
    assert "***" in told
    assert "cret" not in told.replace("?secret=", "")


async def test_a_client_that_is_closed_while_a_task_waits(url: str) -> None:
    raised: list[BaseException] = []

    async def wait(handle: WorkflowHandle[Any]) -> None:
        with pytest.raises(StoreUnavailableError, match="not open") as error:
            await handle.result()
        raised.append(error.value)

    with anyio.fail_after(3):  # well before the next look without a hint
        async with anyio.create_task_group() as tasks, Client.connect(url) as client:
            tasks.start_soon(wait, await client.start_workflow(WAITS, None, id="w"))
            await anyio.sleep(0.05)
    assert len(raised) == 1


async def test_waiting_ends_by_its_timeout(client: Client) -> None:
    handle = await client.start_workflow(WAITS, None, id="w")
    with pytest.raises(ResultTimeoutError, match=r"has not ended within 0\.02 s: it is running, and goes on"):
        await handle.result(timeout=timedelta(seconds=0.02))
    await handle.terminate()
    async with Worker(client):
        with pytest.raises(WorkflowTerminatedError):
            await handle.result(timeout=timedelta(seconds=10))


async def test_a_handle_of_another_run_or_of_nothing(client: Client) -> None:
    handle = await client.start_workflow(WAITS, None, id="w")
    assert (await client.get_handle("w", run_id=handle.run_id).describe()).run_id == handle.run_id
    with pytest.raises(WorkflowNotFoundError, match="there is no run other of w in this store"):
        await client.get_handle("w", run_id="other").describe()
    for ask in (client.get_handle("x").describe, client.get_handle("x").terminate, client.get_handle("x").unblock):
        with pytest.raises(WorkflowNotFoundError, match="there is no instance 'x' in this store"):
            await ask()
    with pytest.raises(InvalidArgumentError, match="w is running, not blocked"):
        await handle.unblock()


async def test_terminate_is_what_result_raises(client: Client) -> None:
    handle = await client.start_workflow(WAITS, None, id="w")
    await handle.terminate("no longer wanted")
    async with Worker(client):
        with pytest.raises(WorkflowTerminatedError) as raised:
            await handle.result()
    assert str(raised.value) == f"run {handle.run_id} of 'w' was terminated: no longer wanted"
    assert (await handle.describe()).closed is not None


async def test_a_waiting_run_says_for_what(client: Client) -> None:
    handle = await client.start_workflow(WAITS, None, id="w", memo={"why": "test"})
    async with Worker(client):
        with anyio.fail_after(10):
            while (found := await handle.describe()).status != "waiting":
                await anyio.sleep(0.01)
    assert found.reason == "activity 'missing' is registered with no worker that has seen it; start one that has it"
    [pending] = found.pending
    assert (pending.name, pending.attempts, found.memo, found.owner) == ("missing", 0, {"why": "test"}, None)
    assert pending.next_attempt is not None


async def test_listing(client: Client) -> None:
    for n in range(3):
        await client.start_workflow(WAITS, None, id=f"w{n}", search_attributes={"parity": str(n % 2)})
    await client.start_workflow(TYPED, Options(names=[]), id="t")

    async def ids(**where: Any) -> list[str]:
        return [found.id async for found in client.list_workflows(**where)]

    assert await ids() == ["t", "w2", "w1", "w0"]
    assert await ids(workflow="waits") == ["w2", "w1", "w0"]
    assert await ids(search_attributes={"parity": "0"}) == ["w2", "w0"]
    assert await ids(id_prefix="t") == ["t"]
    assert await ids(status="completed") == []
    assert len(await ids(status=frozenset({"running", "completed"}))) == 4
    with pytest.raises(InvalidArgumentError, match="'finished' is not a valid Status; there are running, waiting"):
        await ids(status="finished")


async def test_listing_by_time_and_counting(client: Client) -> None:
    first = await (await client.start_workflow(WAITS, None, id="first")).describe()
    handle = await client.start_workflow(TYPED, Options(names=[]), id="second")
    async with Worker(client, queues=["default"]):
        await handle.result()
    second = await handle.describe()
    assert second.closed is not None

    async def ids(**where: Any) -> list[str]:
        found = [found.id async for found in client.list_workflows(**where)]
        assert await client.count(**where) == len(found)
        return found

    assert await ids(started_before=second.created) == ["first"]
    assert await ids(started_after=second.created) == ["second"]
    assert await ids(started_after=first.created, started_before=second.created + timedelta(seconds=1)) == [
        "second",
        "first",
    ]
    assert await ids(closed_after=second.closed - timedelta(seconds=1)) == ["second"]
    assert await ids(closed_before=second.created) == []
    assert await ids(parent="first") == []
    assert await ids(status=["waiting", "completed"], workflow="typed") == ["second"]
    with pytest.raises(InvalidArgumentError, match="started_after is 2026-01-01 00:00:00, which has no time zone"):
        client.list_workflows(started_after=datetime(2026, 1, 1))  # noqa: DTZ001  that is the point
    with pytest.raises(InvalidArgumentError, match="a page of 0 instances: the size must be at least 1"):
        client.list_workflows(page_size=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'name'"):
        client.list_workflows(name="first")  # type: ignore[call-arg]


async def test_pages_are_read_as_they_are_needed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        await client.start_workflow(WAITS, None, id=f"w{n}")
    store, read = client.store.list, []

    async def counted(where: Any, limit: int, cursor: str | None) -> Any:
        read.append(cursor)
        return await store(where, limit, cursor)

    monkeypatch.setattr(client.store, "list", counted)
    listing = client.list_workflows(page_size=2)
    assert read == []
    assert [(await anext(listing)).id for _ in range(2)] == ["w4", "w3"]
    assert len(read) == 1
    assert [found.id async for found in listing] == ["w2", "w1", "w0"]
    assert len(read) == 3


async def test_pages_by_a_cursor(client: Client) -> None:
    for n in range(4):
        await client.start_workflow(WAITS, None, id=f"w{n}")
    first = await client.list_workflows_page(page_size=2, id_prefix="w")
    assert [found.id for found in first.workflows] == ["w3", "w2"]
    await client.start_workflow(WAITS, None, id="w5")
    second = await client.list_workflows_page(page_size=2, cursor=first.cursor, id_prefix="w")
    assert [found.id for found in second.workflows] == ["w1", "w0"]
    assert second.cursor is None
    with pytest.raises(InvalidArgumentError, match="'x' is not a cursor of this listing"):
        await client.list_workflows_page(cursor="x")


async def test_a_name_moves_only_by_deploy(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    old, new = (Workflow("flow", Any, Any, module=wat.script(wat.value(f"(i32.const {n})"))) for n in (1, 2))
    async with Worker(client, workflows=[old]):
        assert await client.execute_workflow("flow", id="first") == [1]
    async with Worker(client, workflows=[new]):
        assert "workflow 'flow' is deployed with another module" in caplog.text
        assert await client.execute_workflow("flow", id="second") == [1]
        await client.deploy(new)
        assert await client.execute_workflow("flow", id="third") == [2]
    async with Worker(client, workflows=[old]):
        assert await client.execute_workflow("flow", id="fourth") == [2]


async def test_tenants_do_not_see_each_other(url: str) -> None:
    async with Client.connect(url) as one, Client.connect(url, tenant="other") as other:
        await one.start_workflow(WAITS, None, id="w")
        await other.start_workflow(WAITS, None, id="w")
        assert [found.id async for found in other.list_workflows()] == ["w"]
        assert (await one.get_handle("w").describe()).run_id != (await other.get_handle("w").describe()).run_id


class Streams(Session):
    source: Source
    target: Sink


async def test_a_session_comes_back_as_what_it_was(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_bytes(b"abc")

    @activity
    def where(session: Streams) -> list[str]:
        assert isinstance(session.source, FileSource)
        assert isinstance(session.target, FileSink)
        return [str(session.source.path), str(session.target.path)]

    copies: Workflow[None, Any] = Workflow("copies", type(None), Any, module=wat.script(wat.copy(), wat.call("where")))
    session = Streams(source=FileSource(path=Path("in")), target=FileSink(path=Path("out")))
    handle = await client.start_workflow(copies, None, id="w", session=session)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    async with Worker(client, activities=[where]):
        assert await handle.result() == [3, [str(tmp_path / "in"), str(tmp_path / "out")]]
    assert (tmp_path / "out").read_bytes() == b"abc"


WORKER = """
import os, sys
from pathlib import Path
import anyio
from wasman_sdk import RetryPolicy, Worker, activity
from datetime import timedelta

@activity(retry=RetryPolicy(initial_interval=timedelta(0), maximum_attempts=3))
def note(number: int) -> int:
    info = activity.info()
    with Path(sys.argv[2]).open("a") as ledger:
        ledger.write(f"{info.idempotency_key} {info.attempt} {os.getpid()}\\n")
    if sys.argv[3] == "dies":
        os._exit(9)
    return number

async def main() -> None:
    worker = Worker(sys.argv[1], activities=[note])
    print("starts", flush=True)
    await worker.run()

anyio.run(main, backend=sys.argv[4])
"""


def _worker(url: str, ledger: Path, how: str, backend: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, url, str(ledger), how, backend]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.once
async def test_a_client_here_and_workers_elsewhere(
    client: Client, url: str, tmp_path: Path, anyio_backend_name: str
) -> None:
    ledger = tmp_path / "ledger"
    workflow: Workflow[None, Any] = Workflow("flow", type(None), Any, module=wat.script(wat.call("note", b"5")))
    handles = [await client.start_workflow(workflow, None, id=f"w{n}") for n in range(20)]
    workers = [_worker(url, ledger, "lives", anyio_backend_name) for _ in range(2)]
    try:
        with anyio.fail_after(20):
            assert [await handle.result() for handle in handles] == [[5]] * 20
            while len(worker_locks(url)) < len(workers):
                await anyio.sleep(0.01)  # one of them may not have come yet
    finally:
        for worker in workers:
            worker.terminate()  # SIGTERM: it leaves in order
        codes = [await anyio.to_thread.run_sync(worker.wait) for worker in workers]
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.close()
    assert codes == [0, 0]
    rows = [line.split() for line in ledger.read_text().splitlines()]
    assert sorted(row[0] for row in rows) == sorted(f"{handle.run_id}/0" for handle in handles)
    assert not worker_locks(url)


@pytest.mark.once
async def test_an_activity_that_kills_its_worker_runs_out_of_attempts(
    client: Client, url: str, tmp_path: Path, anyio_backend_name: str
) -> None:
    ledger = tmp_path / "ledger"
    module = wat.script(wat.call("note", b"5"), wat.call("wasman.error"))
    workflow: Workflow[None, Any] = Workflow("flow", type(None), Any, module=module)
    handle = await client.start_workflow(workflow, None, id="w")
    for _ in range(3):
        worker = _worker(url, ledger, "dies", anyio_backend_name)
        assert await anyio.to_thread.run_sync(worker.wait) == 9
        assert worker.stdout is not None
        worker.stdout.close()
    worker = _worker(url, ledger, "dies", anyio_backend_name)
    began = time.monotonic()
    with anyio.fail_after(20):
        code, error = await handle.result()
    assert time.monotonic() - began < 8, "death is seen at once, not when the lease ends"
    worker.terminate()
    await anyio.to_thread.run_sync(worker.wait)
    assert worker.stdout is not None
    worker.stdout.close()
    assert (code, error["type"], error["attempt"]) == (-1, "WorkerDied", 3)
    rows = [line.split() for line in ledger.read_text().splitlines()]
    assert [(key, attempt) for key, attempt, _ in rows] == [(f"{handle.run_id}/0", str(n)) for n in (1, 2, 3)]
    assert len({pid for *_, pid in rows}) == 3
    assert os.getpid() not in {int(pid) for *_, pid in rows}
