"""Runners: one call from start to result, crashes on purpose, and going on in the next runner."""

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests import wat
from wasman_host.guest.module import compile_module
from wasman_host.store import MemoryStore, SqliteStore
from wasman_sdk import (
    BlockedError,
    Channel,
    ChannelSink,
    Client,
    FileSink,
    FileSource,
    GuestLimitError,
    InvalidArgumentError,
    InvalidModuleError,
    Limits,
    RetryPolicy,
    Runner,
    Session,
    SimulatedCrashError,
    StreamError,
    SyncRunner,
    SyncTestRunner,
    TestRunner,
    Worker,
    Workflow,
    WorkflowFailedError,
    activity,
)
from wasman_sdk._runner import _Downloaded

CHUNK = 1000


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "sqlite", "folder"])
async def client(request: pytest.FixtureRequest, anyio_backend: str, tmp_path: Path) -> AsyncIterator[Client]:
    del anyio_backend
    urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/wasman.db", "folder": f"file://{tmp_path}/store"}
    url = urls[request.param]
    async with Client.connect(url) as client:
        yield client


@pytest.fixture
def url(anyio_backend: str, tmp_path: Path) -> str:
    del anyio_backend
    return f"sqlite:///{tmp_path}/wasman.db"


def moves(direction: int, length: int) -> wat.Step:
    return wat.value(f"(call $stream_data (i32.const {direction}) (i32.const {wat.BUFFER}) (i32.const {length}))")


def adding() -> bytes:
    return wat.module("""(memory (export "memory") 1)
        (func (export "run") (result i32) (i32.const 1))
        (func (export "add") (param i32 i64) (result i64) (i64.add (i64.extend_i32_s (local.get 0)) (local.get 1)))""")


def echo(name: str, request: bytes) -> bytes:
    return b'["%s", %s]' % (name.encode(), request)


# One call


async def test_a_guest_is_run_from_a_path_and_from_bytes(url: str, tmp_path: Path) -> None:
    path = tmp_path / "guest.wasm"
    path.write_bytes(adding())
    assert await Runner(path, session_id="path", store=url).run() == 1
    assert await Runner(str(path), session_id="text", store=url).run() == 1
    assert await Runner(adding(), session_id="bytes").run() == 1
    assert await Runner(bytearray(adding()), session_id="w", entrypoint="add", arguments=[-2, 2**40]).run() == 2**40 - 2


async def test_an_input_is_given_to_the_guest(anyio_backend: str) -> None:
    del anyio_backend
    module = wat.script(wat.call("wasman.input"), wat.call("wasman.session"))
    assert await Runner(module, session_id="w", input={"a": [1]}).run() == [{"a": [1]}, None]


async def test_activities_and_the_handler_answer(client: Client) -> None:
    threads: list[bool] = []

    @activity
    async def known(number: int) -> int:
        return number + 1

    def handler(name: str, request: bytes) -> bytes:
        threads.append(threading.current_thread() is not threading.main_thread())
        return echo(name, request)

    module = wat.script(wat.call("known", b"4"), wat.call("other", b"5"))
    runner = Runner(module, session_id="w", store=client, activities=[known], activity_handler=handler)
    assert await runner.run() == [5, ["other", 5]]
    assert threads == [True]


async def test_a_handler_that_raises_is_not_tried_again_unless_told(client: Client) -> None:
    calls: list[str] = []

    async def handler(name: str, request: bytes) -> bytes:
        calls.append(name)
        if len(calls) < 4:
            raise OSError("not yet")
        return request

    module = wat.script(wat.call("any"), wat.call("wasman.error"))
    code, error = await Runner(module, session_id="once", store=client, activity_handler=handler).run()
    assert (code, error["type"], error["attempt"], len(calls)) == (-1, "OSError", 1, 1)
    retry = RetryPolicy(initial_interval=timedelta(0))
    again = Runner(module, session_id="again", store=client, activity_handler=handler, retry=retry)
    assert await again.run() == [None, None]
    assert len(calls) == 4


async def test_what_has_completed_gives_its_result_again(client: Client) -> None:
    calls: list[bytes] = []

    def handler(name: str, request: bytes) -> bytes:
        calls.append(request)
        return echo(name, request)

    module = wat.script(wat.call("any", b"1"))
    for _ in range(2):
        runner = Runner(module, session_id="w", store=client, activity_handler=handler)
        assert await runner.run() == await runner.run() == [["any", 1]]
    assert await Runner(adding(), session_id="w", store=client).run() == [["any", 1]]
    assert calls == [b"1"]


async def test_a_memory_store_lives_as_long_as_its_runner(anyio_backend: str) -> None:
    del anyio_backend
    module = wat.script(wat.time())
    runner = Runner(module, session_id="w")
    first = await runner.run()
    assert await runner.run() == first
    assert await Runner(module, session_id="w").run() != first


async def test_an_open_store_is_left_open(anyio_backend: str, tmp_path: Path) -> None:
    del anyio_backend
    store = SqliteStore(tmp_path / "mine.db")
    await store.open()
    try:
        assert await Runner(adding(), session_id="w", store=store).run() == 1
        assert await Runner(adding(), session_id="w", store=store).run() == 1
    finally:
        await store.close()


async def test_a_runner_lives_nobody_elses_instances(client: Client) -> None:
    module = wat.script(wat.call("any", b"1"))
    flow: Workflow[Any, Any] = Workflow("flow", Any, Any, module=module)
    other = await client.start_workflow(flow, None, id="flow")
    runner = Runner(module, session_id="w", store=client, activity_handler=echo)
    assert await runner.run() == [["any", 1]]
    described = await other.describe()
    assert (described.status, described.owner, described.log_entries) == ("running", None, 1)
    with pytest.raises(InvalidArgumentError, match=r"'flow' is an instance of workflow 'flow', and workers live it"):
        await runner.run("flow")


async def test_workers_live_no_runners_instances(client: Client) -> None:
    module = wat.script(wat.call("any", b"1"))
    with pytest.raises(InvalidArgumentError, match="calls activity 'any', which this runner has not"):
        await Runner(module, session_id="w", store=client).run()
    async with Worker(client, fallback=echo):
        await anyio.sleep(0.05)
    assert (await client.get_handle("w").describe()).log_entries == 1


# What keeps a run from its end


async def test_a_missing_activity_is_told_at_once_and_nothing_is_lost(client: Client) -> None:
    calls: list[str] = []

    def handler(name: str, request: bytes) -> bytes:
        calls.append(name)
        return request

    @activity
    async def first() -> int:
        calls.append("first")
        return 1

    module = wat.script(wat.call("first"), wat.call("second", b"2"))
    with pytest.raises(
        InvalidArgumentError,
        match=r"^the guest of 'w' calls activity 'second', which this runner has not; run it with activities",
    ):
        await Runner(module, session_id="w", store=client, activities=[first]).run()
    assert await Runner(module, session_id="w", store=client, activity_handler=handler).run() == [1, 2]
    assert calls == ["first", "second"]


async def test_a_failed_run_raises(client: Client) -> None:
    module = wat.script(wat.call("wasman.fail", b'{"type": "Bad", "message": "no"}'))
    for _ in range(2):
        with pytest.raises(WorkflowFailedError, match="Bad: no"):
            await Runner(module, session_id="w", store=client).run()


async def test_a_blocked_run_raises_its_reason_and_goes_on_at_the_next(client: Client, tmp_path: Path) -> None:
    class Reading(Session):
        source: FileSource

    path = tmp_path / "in"
    path.write_bytes(b"12345")
    session = Reading(source=FileSource(path=path))
    calls: list[bytes] = []

    def handler(name: str, request: bytes) -> bytes:
        if not calls:
            path.rename(tmp_path / "away")
        calls.append(request)
        return echo(name, request)

    module = wat.script(wat.call("any", b"1"), moves(0, 9))
    runner = Runner(module, session_id="w", store=client, activity_handler=handler, session=session)
    for _ in range(2):
        with pytest.raises(StreamError, match=r"'w' is blocked: the source .*in cannot be opened"):
            await runner.run()
    (tmp_path / "away").rename(path)
    assert await runner.run() == [["any", 1], 5]
    assert calls == [b"1"]


async def test_a_blocked_run_goes_on_under_a_higher_limit(client: Client) -> None:
    module = wat.script(wat.raw("(drop (memory.grow (i32.const 10)))"), wat.call("any", b"1"))
    with pytest.raises(GuestLimitError, match=r"'w' is blocked: the guest of w .* bytes of memory and may use 300,000"):
        await Runner(module, session_id="w", store=client, limits=Limits(memory=300_000), activity_handler=echo).run()
    assert await Runner(module, session_id="w", store=client, limits=Limits(), activity_handler=echo).run() == [
        ["any", 1]
    ]


async def test_what_cannot_be_run_is_told_before_anything_is_started(client: Client, tmp_path: Path) -> None:
    async def refused(kind: type[Exception], match: str, module: Any = None, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            await Runner(module or adding(), store=client, **{"session_id": "w", **options}).run()

    await refused(InvalidArgumentError, "a workflow id is a non-empty string", session_id="")
    await refused(InvalidArgumentError, "cannot be read: No such file", module=tmp_path / "none.wasm")
    await refused(InvalidModuleError, "is not wasm", module=b"no wasm")
    await refused(InvalidModuleError, "none", entrypoint="none")
    await refused(InvalidArgumentError, "integers", entrypoint="add", arguments=[1])
    await refused(InvalidArgumentError, "inside of `async with runner:`, and this run is outside", keep_alive=True)
    await refused(InvalidArgumentError, "arguments for its entry or an input", arguments=[1], input=1)
    await refused(
        InvalidArgumentError, "a session or handlers", session=Session(), upload_handler=lambda _payload: None
    )
    assert [found.id async for found in client.list_workflows()] == []


async def test_a_cancelled_run_is_handed_back(client: Client) -> None:
    begun = anyio.Event()
    calls: list[int] = []

    async def handler(_name: str, _request: bytes) -> bytes:
        calls.append(activity.info().attempt)
        if len(calls) == 1:
            begun.set()
            await anyio.sleep_forever()
        return b"7"

    runner = Runner(wat.script(wat.call("any")), session_id="w", store=client, activity_handler=handler)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run)
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert await runner.run() == [7]
    assert calls == [1, 1]


async def test_a_call_whose_process_dies_is_made_again(anyio_backend: str) -> None:
    """Although a call that raises is not: that its worker died says nothing of the call."""
    del anyio_backend
    calls: list[int] = []
    dead: list[str] = []

    async def handler(_name: str, _request: bytes) -> bytes:
        calls.append(activity.info().attempt)
        if len(calls) == 1:
            assert runner._engine is not None
            dead.append(runner._engine.worker)
            await runner._crash()
        return b"7"

    store = MemoryStore()
    await store.open()
    runner = Runner(wat.script(wat.call("any")), session_id="w", store=store, activity_handler=handler)
    with pytest.raises(SimulatedCrashError):
        await runner.run()
    store._leases.pop(dead[0])  # as if it had run out
    assert await runner.run() == [7]
    assert calls == [1, 2]


# Streams by handlers


def parts(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def handlers(kind: str, data: bytes, calls: list[str]) -> Any:
    """A download handler of every kind there is."""

    def plain() -> bytes:
        calls.append(kind)
        return data

    async def coroutine() -> bytes:
        calls.append(kind)
        return data

    def iterable() -> list[bytes]:
        calls.append(kind)
        return [*parts(data, 700), b""]

    def generator() -> Iterator[bytes]:
        calls.append(kind)
        yield from parts(data, 1700)

    async def stream() -> AsyncIterator[bytes]:
        calls.append(kind)
        for part in parts(data, 300):
            yield part

    async def awaited() -> AsyncIterator[bytes]:
        return stream()

    return locals()[kind]


@pytest.mark.parametrize("kind", ["plain", "coroutine", "iterable", "generator", "stream", "awaited"])
async def test_handlers_give_and_take_what_the_guest_streams(client: Client, kind: str) -> None:
    data = os.urandom(10 * CHUNK + 7)
    calls: list[str] = []
    uploads: list[bytes] = []
    runner = Runner(
        wat.script(wat.copy(CHUNK)),
        session_id="w",
        store=client,
        download_handler=handlers(kind, data, calls),
        upload_handler=uploads.append,
    )
    assert await runner.run() == [len(data)]
    assert await runner.run() == [len(data)]  # it has completed: nothing is downloaded or uploaded again
    assert uploads == [data]
    assert len(calls) == 1


async def test_an_upload_handler_that_raises_is_called_again(client: Client) -> None:
    uploads: list[bytes] = []

    async def upload(payload: bytes) -> None:
        uploads.append(payload)
        if len(uploads) == 1:
            raise OSError("not there")

    runner = Runner(wat.script(moves(1, 5)), session_id="w", store=client, upload_handler=upload)
    with pytest.raises(OSError, match="not there"):
        await runner.run()
    assert await runner.run() == await runner.run() == [5]
    assert uploads == [bytes(5)] * 2


async def test_an_upload_of_nothing_calls_no_handler(client: Client) -> None:
    uploads: list[bytes] = []
    runner = Runner(wat.script(moves(1, 0)), session_id="w", store=client, upload_handler=uploads.append)
    assert await runner.run() == [0]
    assert uploads == []


async def test_a_guest_without_handlers_is_told_so(client: Client) -> None:
    module = wat.script(moves(0, 1), wat.call("wasman.error"), moves(1, 1), wat.call("wasman.error"))
    first, source, second, sink = await Runner(module, session_id="w", store=client).run()
    assert (first, source["type"], second, sink["type"]) == (-1, "NoSource", -1, "NoSink")


async def test_a_download_is_read_again_from_any_offset(anyio_backend: str) -> None:
    del anyio_backend
    data = os.urandom(5000)
    calls: list[str] = []
    source = _Downloaded(handlers("iterable", data, calls))
    for offset, length in [(0, 100), (100, 1500), (1700, 10), (50, 3000), (50, 1), (4990, 100), (5000, 1)]:
        view = memoryview(bytearray(length))
        now = source.read_now(offset, view)
        count = await source.read_into(offset, view) if now is None else now
        assert bytes(view[:count]) == data[offset : offset + length]
    assert len(calls) == 3
    await source.close()


@pytest.mark.parametrize("given", [5, "text", None])
async def test_a_download_handler_that_gives_nothing_useful_blocks(client: Client, given: Any) -> None:
    runner = Runner(wat.script(moves(0, 1)), session_id="w", store=client, download_handler=lambda: given)
    with pytest.raises(StreamError, match=r"the download handler gave .*; it must give bytes or an iterable of bytes"):
        await runner.run()


async def test_a_download_handler_that_raises_blocks_and_is_called_again(client: Client) -> None:
    calls: list[int] = []

    def download() -> Iterator[bytes]:
        calls.append(1)
        yield bytes(CHUNK)
        if len(calls) == 1:
            raise OSError("line cut")
        yield bytes(5)

    runner = Runner(
        wat.script(moves(0, CHUNK), moves(0, CHUNK)), session_id="w", store=client, download_handler=download
    )
    with pytest.raises(StreamError, match=r"the download handler raised OSError\('line cut'\); mend it, and run again"):
        await runner.run()
    assert await runner.run() == [CHUNK, 5]


async def test_a_session_takes_files_and_channels(client: Client, tmp_path: Path) -> None:
    class Copy(Session):
        source: FileSource
        target: FileSink

    class Up(Session):
        target: ChannelSink

    (tmp_path / "in").write_bytes(b"12345")
    session = Copy(source=FileSource(path=tmp_path / "in"), target=FileSink(path=tmp_path / "out"))
    assert await Runner(wat.script(wat.copy()), session_id="files", store=client, session=session).run() == [5]
    assert (tmp_path / "out").read_bytes() == b"12345"
    channel = Channel()
    runner = Runner(wat.script(moves(1, 5)), session_id="channel", store=client, session=Up(target=channel.sink))
    assert await runner.run() == [5]
    assert [chunk async for chunk in channel] == [bytes(5)]


# Crashes


def stepping(steps: int) -> bytes:
    """A re-entrant guest: a call and a checkpoint a step."""
    done = (step for number in range(steps) for step in (wat.call("note", b"%d" % number), wat.checkpoint()))
    return wat.script(*done, reentrant=True)


@pytest.mark.parametrize("at", [1, 2, 4])
async def test_it_crashes_at_the_nth_checkpoint_and_the_next_goes_on(client: Client, at: int) -> None:
    seen: list[bytes] = []

    def note(_name: str, request: bytes) -> bytes:
        seen.append(request)
        return request

    options: Any = {"session_id": "w", "store": client, "activity_handler": note}
    runner = TestRunner(stepping(4), crash_at=at, **options)
    with pytest.raises(SimulatedCrashError, match="'w' has crashed at a checkpoint, as it was told to; run it again"):
        await runner.run()
    assert runner.crashed
    assert len(seen) == at
    described = await client.get_handle("w").describe()
    assert (described.status, described.snapshots) == ("running", at)
    with anyio.fail_after(5):  # nobody waits for a lease
        assert await Runner(stepping(4), **options).run() == [0, 1, 2, 3]
    assert seen == [b"0", b"1", b"2", b"3"]


async def test_it_crashes_again_and_again(client: Client) -> None:
    seen: list[bytes] = []

    def note(_name: str, request: bytes) -> bytes:
        seen.append(request)
        return request

    runner = TestRunner(stepping(4), session_id="w", store=client, activity_handler=note)
    crashes = 0
    while not (result := None):
        try:
            result = await runner.run()
            break
        except SimulatedCrashError:
            crashes += 1
    assert (crashes, result, runner.crashed) == (4, [0, 1, 2, 3], False)
    assert seen == [b"0", b"1", b"2", b"3"]


async def test_a_guest_that_is_replayed_crashes_as_well(client: Client) -> None:
    """Its checkpoints keep nothing: its log does, and those that it repeats from there do not count."""
    seen: list[bytes] = []

    def note(_name: str, request: bytes) -> bytes:
        seen.append(request)
        return request

    steps = (wat.call("note", b"0"), wat.checkpoint(), wat.call("note", b"1"), wat.checkpoint(), wat.call("note", b"2"))
    options: Any = {"session_id": "w", "store": client, "activity_handler": note}
    for number in (1, 2):
        with pytest.raises(SimulatedCrashError):
            await TestRunner(wat.script(*steps), crash_at=number, **options).run()
        assert len(seen) == number
    assert await TestRunner(wat.script(*steps), crash_at=2, **options).run() == [0, 1, 2]  # it has one that is new
    assert seen == [b"0", b"1", b"2"]


async def test_a_run_with_fewer_checkpoints_does_not_crash(client: Client) -> None:
    runner = TestRunner(
        stepping(2), crash_at=3, session_id="w", store=client, activity_handler=lambda _name, data: data
    )
    assert await runner.run() == [0, 1]
    assert not runner.crashed


async def test_streams_go_on_after_a_crash(client: Client) -> None:
    data = os.urandom(4 * CHUNK)
    calls: list[str] = []
    uploads: list[bytes] = []
    both = (moves(0, CHUNK), moves(1, CHUNK))
    module = wat.script(*both, wat.checkpoint(), *both, wat.checkpoint(), *both, *both, moves(0, 1), reentrant=True)
    options: Any = {
        "session_id": "w",
        "store": client,
        "download_handler": handlers("generator", data, calls),
        "upload_handler": uploads.append,
    }
    for _ in range(2):
        with pytest.raises(SimulatedCrashError):
            await TestRunner(module, **options).run()
    assert uploads == []
    await Runner(module, **options).run()
    assert uploads == [data]
    assert len(calls) == 3


async def test_a_store_of_its_own_is_left_behind_by_a_crash(url: str) -> None:
    options: Any = {"session_id": "w", "store": url, "activity_handler": lambda _name, data: data}
    with pytest.raises(SimulatedCrashError):
        await TestRunner(stepping(3), **options).run()
    with anyio.fail_after(5):
        assert await Runner(stepping(3), **options).run() == [0, 1, 2]


def test_a_crash_is_at_a_checkpoint() -> None:
    with pytest.raises(InvalidArgumentError, match="crashes at checkpoint 1 or a later one, not at 0"):
        TestRunner(adding(), crash_at=0)


# Kept alive


async def test_a_kept_worker_runs_one_after_the_other(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    whole = compile_module

    def noted(data: bytes, name: str) -> Any:
        compiled.append(name)
        return whole(data, name)

    monkeypatch.setattr("wasman_host.engine.compile_module", noted)
    module = wat.script(wat.call("any", b"1"))
    async with Runner(module, store=url, activity_handler=echo, keep_alive=True) as runner:
        for number in range(3):
            assert await runner.run(f"w{number}") == [["any", 1]]
        assert len(compiled) == 1
    async with Runner(module, store=url, activity_handler=echo) as runner:
        for number in range(3, 5):
            assert await runner.run(f"w{number}") == [["any", 1]]
    assert len(compiled) == 3


async def test_a_kept_worker_that_crashes_is_replaced(client: Client) -> None:
    options: Any = {"session_id": "w", "store": client, "activity_handler": lambda _name, data: data}
    async with TestRunner(stepping(2), keep_alive=True, **options) as runner:
        for _ in range(2):
            with pytest.raises(SimulatedCrashError):
                await runner.run()
        assert await runner.run() == [0, 1]
        with pytest.raises(SimulatedCrashError):
            await runner.run("other")


async def test_a_body_that_raises_is_not_wrapped(client: Client) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  the context manager is what is tested
        async with Runner(adding(), session_id="w", store=client, keep_alive=True) as runner:
            await runner.run()
            raise ZeroDivisionError


# Without an event loop


@pytest.mark.parametrize("store", ["sqlite:///{}/wasman.db", "file://{}/store"])
def test_a_sync_runner_does_the_same(tmp_path: Path, store: str) -> None:
    url = store.format(tmp_path)
    uploads: list[bytes] = []
    runner = SyncRunner(
        wat.script(wat.copy(), wat.call("any", b"1")),
        session_id="w",
        store=url,
        activity_handler=echo,
        download_handler=lambda: b"12345",
        upload_handler=uploads.append,
    )
    assert runner.run() == [5, ["any", 1]]
    assert runner.run() == [5, ["any", 1]]
    assert uploads == [b"12345"]
    assert SyncRunner(adding(), session_id="sum", store=url, entrypoint="add", arguments=[1, 2]).run() == 3
    with pytest.raises(InvalidArgumentError, match="which this runner has not"):
        SyncRunner(wat.script(wat.call("any")), session_id="missing", store=url).run()


def test_sync_runners_share_a_store_in_memory() -> None:
    options: Any = {
        "session_id": "w",
        "store": Client.connect("memory://"),
        "activity_handler": lambda _name, data: data,
    }
    runner = SyncTestRunner(stepping(3), crash_at=2, **options)
    with pytest.raises(SimulatedCrashError):
        runner.run()
    assert runner.crashed
    last = SyncRunner(stepping(3), **options)
    assert last.run() == [0, 1, 2]
    assert not last.crashed


def test_a_sync_runner_keeps_its_worker_alive() -> None:
    with SyncRunner(wat.script(wat.call("any", b"1")), activity_handler=echo, keep_alive=True) as runner:
        assert [runner.run(f"w{number}") for number in range(3)] == [[["any", 1]]] * 3
    with SyncTestRunner(stepping(2), activity_handler=lambda _name, data: data, keep_alive=True) as crashing:
        for _ in range(2):
            with pytest.raises(SimulatedCrashError):
                crashing.run("w")
        assert crashing.run("w") == [0, 1]


async def test_a_sync_runner_refuses_a_store_of_an_event_loop(client: Client) -> None:
    for store in (client, client.store):
        with pytest.raises(InvalidArgumentError, match="a sync runner is a URL or a client that is not open"):
            SyncRunner(adding(), session_id="w", store=store)


def test_blocked_is_what_all_reasons_have_in_common() -> None:
    with contextlib.suppress(BlockedError):
        SyncRunner(wat.script(moves(0, 1)), session_id="w", download_handler=lambda: 5).run()  # type: ignore[arg-type, return-value]
