"""Channels: a guest at one end, a task at the other; back-pressure, the end, coming back, and what is lost."""

import gc
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import anyio
import pytest

from tests import wat
from wasman_host import channels
from wasman_sdk import (
    ActivityInfo,
    Channel,
    ChannelSink,
    ChannelSource,
    Client,
    InvalidArgumentError,
    Session,
    StreamError,
    Worker,
    Workflow,
    WorkflowFailedError,
    activity,
)

CHUNK = 1000


class Copy(Session):
    download: ChannelSource
    upload: ChannelSink


class Down(Session):
    download: ChannelSource


class Up(Session):
    upload: ChannelSink


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect("memory://") as client:
        yield client


def flow(*steps: wat.Step, reentrant: bool = False) -> Workflow[Any, Any]:
    return Workflow("flow", Any, Any, module=wat.script(*steps, reentrant=reentrant))


COPY = flow(wat.copy(CHUNK))


def moves(direction: int, length: int) -> wat.Step:
    """Move bytes in one call, and append how many."""
    return wat.value(f"(call $stream_data (i32.const {direction}) (i32.const {wat.BUFFER}) (i32.const {length}))")


def downloads(length: int) -> wat.Step:
    return moves(0, length)


def uploads(length: int) -> wat.Step:
    return moves(1, length)


def pattern(count: int) -> bytes:
    """Bytes of which no two stretches are alike."""
    return b"".join(number.to_bytes(4, "big") for number in range(-(-count // 4)))[:count]


async def everything(channel: Channel) -> bytes:
    return b"".join([chunk async for chunk in channel])


async def until_blocked(client: Client, id: str) -> str:
    with anyio.fail_after(10):
        while (found := await client.get_handle(id).describe()).status != "blocked":
            await anyio.sleep(0.01)
    return found.reason


async def test_bytes_pass_in_both_directions(client: Client) -> None:
    down, up = Channel(), Channel()
    data = pattern(123_457)
    received: list[bytes] = []

    async def feed() -> None:
        for size in itertools.cycle((1, 700, 5000)):
            if down.sent == len(data):
                break
            await down.send(data[down.sent : down.sent + size])
        await down.send(bytearray())  # an empty chunk is nothing
        await down.send_eof()

    async with Worker(client), anyio.create_task_group() as tasks:
        session = Copy(download=down.source, upload=up.sink)
        handle = await client.start_workflow(COPY, None, id="w", session=session)
        tasks.start_soon(feed)
        received.append(await everything(up))
        assert await handle.result() == [len(data)]
    assert received == [data]
    assert (down.sent, down.received, up.sent, up.received) == (len(data),) * 4


async def test_both_ends_wait_for_each_other(client: Client) -> None:
    down, up = Channel(capacity=10 * CHUNK), Channel(capacity=3 * CHUNK)
    most = [0, 0]

    async def feed() -> None:
        for _ in range(200):
            await down.send(bytes(CHUNK))
            most[0] = max(most[0], down.sent - down.received)
        await down.send_eof()

    async with Worker(client), anyio.create_task_group() as tasks:
        handle = await client.start_workflow(COPY, None, id="w", session=Copy(download=down.source, upload=up.sink))
        tasks.start_soon(feed)
        await anyio.wait_all_tasks_blocked()
        while up.sent < 3 * CHUNK:
            await anyio.sleep(0.001)
        await anyio.sleep(0.02)
        assert up.sent == 3 * CHUNK  # nobody receives, so the guest waits, and with it the sender
        assert 3 * CHUNK <= down.sent <= 14 * CHUNK
        async for _ in up:
            most[1] = max(most[1], up.sent - up.received)
        assert await handle.result() == [200 * CHUNK]
    assert most[0] <= 10 * CHUNK
    assert most[1] <= 3 * CHUNK


async def test_a_guest_that_asks_for_more_than_the_channel_holds_gets_it(client: Client) -> None:
    down = Channel(capacity=10)
    data = pattern(50_000)
    async with Worker(client), anyio.create_task_group() as tasks:
        handle = await client.start_workflow(
            flow(downloads(40_000), downloads(40_000), downloads(1)), None, id="w",
            session=Down(download=down.source),
        )  # fmt: skip

        async def feed() -> None:
            for at in range(0, len(data), 100):
                await down.send(data[at : at + 100])
            await down.send_eof()

        tasks.start_soon(feed)
        assert await handle.result() == [40_000, 10_000, 0]


async def test_the_end_is_told_when_the_run_has_completed_and_not_before(client: Client) -> None:
    up = Channel()
    let_go = anyio.Event()

    @activity
    async def wait() -> None:
        await let_go.wait()

    workflow = flow(uploads(5), uploads(0), wat.call("wait"))
    async with Worker(client, activities=[wait]):
        handle = await client.start_workflow(workflow, None, id="w", session=Up(upload=up.sink))
        assert await up.receive() == bytes(5)
        with anyio.move_on_after(0.05) as waited:
            await up.receive()
        assert waited.cancelled_caught
        let_go.set()
        with pytest.raises(anyio.EndOfStream):
            await up.receive()
        assert await handle.result() == [5, 0, None]


async def test_a_run_without_a_result_breaks_the_channel(client: Client) -> None:
    up = Channel()
    workflow = flow(uploads(5), wat.call("wasman.fail", b'{"message": "no more"}'))
    async with Worker(client):
        handle = await client.start_workflow(workflow, None, id="w", session=Up(upload=up.sink))
        with pytest.raises(WorkflowFailedError):
            await handle.result()
        assert await up.receive() == bytes(5)
        with pytest.raises(anyio.BrokenResourceError, match=r"run \w+, which writes to .*, has ended without a result"):
            await up.receive()


@pytest.mark.parametrize("keep", [0, 2500, None])
async def test_a_run_that_is_taken_up_again_repeats_nothing_of_its_upload(client: Client, keep: int | None) -> None:
    down, up = Channel(keep=keep), Channel()
    data = pattern(5000)
    for at in range(0, len(data), 500):
        await down.send(data[at : at + 500])
    await down.send_eof()
    workers = [0]

    @activity
    async def pause(info: ActivityInfo) -> int:
        workers[0] += 1
        if workers[0] == 1:
            await anyio.sleep_forever()
        return info.attempt

    steps = (downloads(2000), uploads(2000), wat.call("pause"), wat.copy(CHUNK))
    handle = await client.start_workflow(flow(*steps), None, id="w", session=Copy(download=down.source, upload=up.sink))
    async with Worker(client, activities=[pause], graceful_shutdown_timeout=timedelta(0)):
        while not workers[0]:
            await anyio.sleep(0.001)
    assert (down.received, up.sent) == (2000, 2000)
    async with Worker(client, activities=[pause]):
        if keep == 0:
            told = f"channel {down.name[:8]} has bytes 2000 to 5000 of what was sent, and the run goes on at byte 0"
            assert told in await until_blocked(client, "w")
            return
        assert await handle.result() == [2000, 2000, 1, 3000]
    assert await everything(up) == data


async def test_a_re_entrant_run_needs_only_what_came_after_its_checkpoint(client: Client) -> None:
    down, up = Channel(keep=CHUNK), Channel()
    data = pattern(4000)
    for at in range(0, len(data), 100):
        await down.send(data[at : at + 100])
    await down.send_eof()
    workers = [0]

    @activity
    async def pause() -> None:
        workers[0] += 1
        if workers[0] == 1:
            await anyio.sleep_forever()

    both = (downloads(CHUNK), uploads(CHUNK))
    steps = (*both, *both, wat.checkpoint(), *both, wat.call("pause"), wat.copy(CHUNK))
    session = Copy(download=down.source, upload=up.sink)
    handle = await client.start_workflow(flow(*steps, reentrant=True), None, id="w", session=session)
    async with Worker(client, activities=[pause], graceful_shutdown_timeout=timedelta(0)):
        while not workers[0]:
            await anyio.sleep(0.001)
    assert down.received == up.sent == 3000
    async with Worker(client, activities=[pause]):
        await handle.result()
    assert await everything(up) == data


async def test_a_channel_that_has_gone_blocks_its_run_and_says_so(client: Client) -> None:
    down = Channel()
    handle = await client.start_workflow(flow(downloads(9)), None, id="w", session=Down(download=down.source))
    name = down.name[:8]
    del down
    gc.collect()
    async with Worker(client):
        assert f"channel {name} of the session is not in this process" in await until_blocked(client, "w")
        await handle.terminate()


async def test_a_sink_that_has_gone_blocks_its_run_and_says_so(client: Client) -> None:
    up = Channel()
    await client.start_workflow(flow(uploads(9)), None, id="w", session=Up(upload=up.sink))
    name = up.name[:8]
    del up
    gc.collect()
    async with Worker(client):
        assert f"channel {name} of the session is not in this process" in await until_blocked(client, "w")


async def test_a_channel_of_another_process_is_refused_at_the_start(client: Client) -> None:
    unknown = "0" * 32
    for session in (Down(download=ChannelSource(name=unknown)), Up(upload=ChannelSink(name=unknown))):
        with pytest.raises(InvalidArgumentError, match="is channel 00000000, which is not in this process"):
            await client.start_workflow(COPY, None, id="w", session=session)


async def test_two_runs_do_not_write_to_one_channel(client: Client) -> None:
    up = Channel()
    workflow = flow(uploads(9))
    async with Worker(client):
        await client.execute_workflow(workflow, None, id="first", session=Up(upload=up.sink))
        await client.start_workflow(workflow, None, id="second", session=Up(upload=up.sink))
        assert "is written by another run" in await until_blocked(client, "second")
    assert await everything(up) == bytes(9)


async def test_a_source_that_is_closed_before_its_end_blocks_its_run(client: Client) -> None:
    async with Worker(client):
        async with Channel() as down:
            await client.start_workflow(flow(downloads(9)), None, id="w", session=Down(download=down.source))
            await down.send(b"12345")
        assert "was closed before its end was told" in await until_blocked(client, "w")


async def test_a_sink_that_is_closed_blocks_its_run(client: Client) -> None:
    up = Channel(capacity=10)
    async with Worker(client):
        await client.start_workflow(flow(uploads(9), uploads(9), uploads(9)), None, id="w", session=Up(upload=up.sink))
        while up.sent < 18:
            await anyio.sleep(0.001)
        await up.aclose()
        assert "was closed, and the guest still writes to it" in await until_blocked(client, "w")


async def test_a_waiting_guest_can_be_terminated(client: Client) -> None:
    down = Channel()
    async with Worker(client):
        handle = await client.start_workflow(flow(downloads(9)), None, id="w", session=Down(download=down.source))
        while (await handle.describe()).owner is None:
            await anyio.sleep(0.001)
        await anyio.sleep(0.02)
        await handle.terminate()
        with anyio.fail_after(5), pytest.raises(Exception, match="terminated"):
            await handle.result()


async def test_one_guests_sink_is_another_ones_source(client: Client) -> None:
    first, between, last = Channel(), Channel(capacity=2 * CHUNK), Channel()
    data = pattern(20_000)
    async with Worker(client), anyio.create_task_group() as tasks:
        for name, source, sink in (("one", first, between), ("two", between, last)):
            session = Copy(download=source.source, upload=sink.sink)
            await client.start_workflow(COPY, None, id=name, session=session)

        async def feed() -> None:
            await first.send(data)
            await first.send_eof()

        tasks.start_soon(feed)
        assert await everything(last) == data


async def test_an_application_sees_the_usual_errors(anyio_backend: str) -> None:
    del anyio_backend
    channel = Channel(capacity=3)
    await channel.send(b"12345")
    assert [await channel.receive(2), await channel.receive(2), await channel.receive(2)] == [b"12", b"34", b"5"]
    await channel.send_eof()
    with pytest.raises(anyio.EndOfStream):
        await channel.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await channel.send(b"1")
    closed = Channel()
    await closed.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await closed.receive()
    for wrong in ({"capacity": 0}, {"keep": -1}):
        with pytest.raises(InvalidArgumentError, match="a channel has room for a byte at least"):
            Channel(**wrong)


async def test_a_rewound_channel_gives_the_same_bytes(anyio_backend: str) -> None:
    del anyio_backend
    data = pattern(1000)
    channel = channels.Channel(keep=300)
    for at in range(0, 1000, 50):
        await channel.send(data[at : at + 50])
    await channel.send_eof()
    source = channels.ChannelSource(channel)
    for offset, length in [(0, 120), (120, 480), (301, 10), (590, 400), (700, 300), (701, 299), (720, 1), (1000, 5)]:
        view = memoryview(bytearray(length))
        count = await source.read_into(offset, view)
        assert bytes(view[:count]) == data[offset : offset + length]
    with pytest.raises(StreamError, match=r"has bytes \d+ to 1000 of what was sent, and the run goes on at byte 100"):
        await source.read_into(100, memoryview(bytearray(1)))
