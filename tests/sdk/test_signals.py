"""Signals, from outside to a guest that receives them: never lost or doubled, in order, and only so many at once."""

import re
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from tests import wat
from tests.go_guests import guest
from wasman_host import control
from wasman_host.store.protocol import Key
from wasman_sdk import (
    Client,
    InvalidArgumentError,
    Limits,
    Signal,
    SignalsFullError,
    SyncClient,
    Worker,
    Workflow,
    WorkflowClosedError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    activity,
)
from wasman_sdk.cli import wasman
from wasman_sdk.testing import WorkflowEnvironment, assert_survives

ROOT = Path(__file__).resolve().parents[2]


class Order(BaseModel):
    id: str
    cents: int = 5


class Approval(BaseModel):
    ok: bool


@activity
async def charge(order: Order) -> dict[str, str]:
    return {"order": order.id, "card": "4"}


@activity
async def refund(receipt: dict[str, str]) -> None:
    del receipt


@activity
async def ship(order: Order) -> dict[str, str]:
    return {"tracking": f"T{order.id}"}


APPROVE = Signal("approve", Approval)
MAIL = Signal("mail", str)
ORDERS: Workflow[Order, dict[str, str]] = Workflow("order", Order, dict[str, str], module=guest("order", "tinygo"))
RECEIVES: Workflow[int, list[str]] = Workflow(
    "receives", int, list[str], module=guest("programs", "tinygo"), entry="receives"
)
ACTIVITIES: list[Callable[..., Any]] = [charge, refund, ship]


@pytest.fixture
async def client(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect(f"sqlite:///{tmp_path / 'store.db'}") as client:
        await client.deploy(RECEIVES)
        await client.deploy(ORDERS)
        yield client


async def test_signals_are_received_in_the_order_in_which_they_were_sent(client: Client) -> None:
    handle = await client.start_workflow(RECEIVES, 20, id="w")
    for n in range(10):
        await handle.signal(MAIL, f"{n}")
    async with Worker(client, workflows=[RECEIVES]):
        for n in range(10, 20):
            await handle.signal("mail", f"{n}")
        assert await handle.result(timeout=timedelta(seconds=20)) == [f"{n}" for n in range(20)]
    assert [event.name for event in await handle.history() if event.kind == "result"] == ["mail"] * 20


async def test_one_that_is_sent_again_under_its_id_changes_nothing(client: Client) -> None:
    handle = await client.start_workflow(RECEIVES, 2, id="w")
    async with Worker(client, workflows=[RECEIVES]):
        for _ in range(3):
            await handle.signal(MAIL, "a", message_id="one")
            await anyio.sleep(0.05)
        await handle.signal(MAIL, "b", message_id="two")
        assert await handle.result(timeout=timedelta(seconds=20)) == ["a", "b"]


async def test_what_waits_is_described_and_what_is_left_over_is_undelivered(client: Client) -> None:
    handle = await client.start_workflow(RECEIVES, 1, id="w")
    async with Worker(client, workflows=[RECEIVES]):
        await handle.signal("other", {"n": 1}, message_id="o1")
        with anyio.fail_after(10):
            while not (found := await handle.describe()).signals:
                await anyio.sleep(0.01)
        [waiting] = found.signals
        assert (waiting.name, waiting.message_id, waiting.size, found.unread) == ("other", "o1", 7, 0)
        await handle.signal(MAIL, "a")
        await handle.result(timeout=timedelta(seconds=20))
    found = await handle.describe()
    assert (found.signals, found.undelivered) == ((), (("o1", "signal"),))


async def test_a_terminated_run_lists_what_it_was_not_given(client: Client) -> None:
    handle = await client.start_workflow(RECEIVES, 1, id="w")
    await handle.signal("other", 1, message_id="o1")
    await handle.terminate()
    async with Worker(client, workflows=[RECEIVES]):
        with anyio.fail_after(10):
            while (found := await handle.describe()).closed is None:
                await anyio.sleep(0.01)
    assert found.undelivered == (("o1", "signal"),)


async def test_no_more_wait_than_may_and_none_of_them_is_lost(client: Client) -> None:
    module = guest("programs", "tinygo")
    few = Workflow("few", int, list[str], module=module, entry="receives", limits=Limits(signals=5))
    await client.deploy(few)
    handle = await client.start_workflow(few, 5, id="w")
    accepted, refused = 0, ""
    for n in range(100):
        try:
            await handle.signal(MAIL, f"{n}")
        except SignalsFullError as error:
            refused = str(error)
        else:
            accepted += 1
    assert accepted == 5
    assert "5 signals wait for w already, and 5 may; this one was not accepted" in refused
    async with Worker(client, workflows=[few]):
        assert await handle.result(timeout=timedelta(seconds=20)) == ["0", "1", "2", "3", "4"]


async def test_a_signal_that_nobody_asks_for_is_kept_without_end(client: Client) -> None:
    handle = await client.start_workflow(RECEIVES, 1, id="w")
    async with Worker(client, workflows=[RECEIVES]):
        full = 0
        for n in range(1100):
            try:
                await handle.signal("nobody", n)
            except SignalsFullError:
                full += 1
        with anyio.fail_after(20):
            while (found := await handle.describe()).unread:
                await anyio.sleep(0.02)
        assert len(found.signals) + full == 1100
        assert full >= 100
        with pytest.raises(SignalsFullError):
            await handle.signal(MAIL, "a")
        await handle.terminate()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("", 1, "a signal's name has 1 to 256 bytes"),
        ("x" * 257, 1, "has 257"),
        ("mail", object(), "cannot be sent"),
        ("mail", b"x" * (16 * 1024 * 1024 + 1), "at most 16,777,216 are allowed"),
    ],
)
async def test_what_cannot_be_sent_is_refused(client: Client, name: str, value: object, why: str) -> None:
    handle = await client.start_workflow(RECEIVES, 1, id="w")
    with pytest.raises(InvalidArgumentError, match=why):
        await handle.signal(name, value)
    with pytest.raises(InvalidArgumentError, match="the value of signal 'approve' does not fit: ok"):
        await handle.signal(Signal[Any]("approve", Approval), {"ok": "perhaps"})
    assert (await handle.describe()).unread == 0


async def test_nobody_there_and_nobody_any_more(client: Client) -> None:
    with pytest.raises(WorkflowNotFoundError):
        await client.get_handle("nobody").signal("mail", "a")
    handle = await client.start_workflow(RECEIVES, 1, id="w")
    async with Worker(client, workflows=[RECEIVES]):
        await handle.signal(MAIL, "a")
        await handle.result(timeout=timedelta(seconds=20))
    with pytest.raises(WorkflowClosedError, match="so it cannot be signalled"):
        await handle.signal(MAIL, "b")


@pytest.mark.parametrize("codec", [False, True])
async def test_a_large_value_is_kept_beside_the_record_until_it_is_received(tmp_path: Path, codec: bool) -> None:  # noqa: FBT001
    class Squeezing:
        name = "test.squeezing"

        def encode(self, data: bytes, /) -> bytes:
            return zlib.compress(data, 0)

        def decode(self, data: bytes, /) -> bytes:
            return zlib.decompress(data)

    large = "x" * 200_000
    async with Client.connect(f"sqlite:///{tmp_path / 's.db'}", codec=Squeezing() if codec else None) as client:
        await client.deploy(RECEIVES)
        handle = await client.start_workflow(RECEIVES, 2, id="w")
        await handle.signal(MAIL, large, message_id="big")
        async with Worker(client, workflows=[RECEIVES]):
            await handle.signal("other", large, message_id="kept")
            with anyio.fail_after(10):
                while [one.message_id for one in (await handle.describe()).signals] != ["kept"]:
                    await anyio.sleep(0.01)
            record = control.describe_stored(await control.load(client.store, Key("default", "w"))).record
            assert record is not None
            [kept] = record.signals
            assert await client.store.blob(record.run, kept.payload.blob) is not None
            await handle.signal(MAIL, "end")
            assert await handle.result(timeout=timedelta(seconds=20)) == [large, "end"]


async def test_a_guest_of_abi_v0_receives_none_and_they_are_told(client: Client) -> None:
    called = anyio.Event()
    go_on = anyio.Event()

    @activity
    async def waits() -> None:
        called.set()
        await go_on.wait()

    old = Workflow("old", type(None), object, module=wat.script(wat.call("waits")))
    async with Worker(client, workflows=[old], activities=[waits]):
        handle = await client.start_workflow(old, None, id="w")
        await called.wait()
        await handle.signal("mail", "a", message_id="a")
        with anyio.fail_after(10):
            while not (await handle.describe()).signals:
                await anyio.sleep(0.01)
        go_on.set()
        await handle.result(timeout=timedelta(seconds=20))
    assert (await handle.describe()).undelivered == (("a", "signal"),)


async def test_another_process_sends(client: Client, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom wasman_sdk import SyncClient\n"
        "with SyncClient.connect(sys.argv[1]) as client:\n"
        "    for n in range(5): client.get_handle('w').signal('mail', f'{n}')\n"
    )
    handle = await client.start_workflow(RECEIVES, 5, id="w")
    async with Worker(client, workflows=[RECEIVES]):
        command = [sys.executable, "-c", program, f"sqlite:///{tmp_path / 'store.db'}"]
        await anyio.run_process(command)
        assert await handle.result(timeout=timedelta(seconds=20)) == [f"{n}" for n in range(5)]


def test_a_sync_client_and_the_command_send(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with SyncClient.connect(url) as client:
        client.deploy(RECEIVES)
        handle = client.start_workflow(RECEIVES, 2, id="w")
        handle.signal(MAIL, "a")
    runner = CliRunner()
    sent = runner.invoke(wasman, ["signal", "w", "mail", '"b"', "--store", url, "--message-id", "m"])
    assert (sent.exit_code, sent.output) == (0, "w was sent mail\n"), sent.output
    wrong = runner.invoke(wasman, ["signal", "w", "mail", "{", "--store", url])
    assert wrong.exit_code == 2
    assert "the value does not fit" in wrong.output
    shown = runner.invoke(wasman, ["show", "w", "--store", url])
    assert "2 messages that no worker has taken yet" in shown.output

    async def lives() -> Any:
        async with Client.connect(url) as client, Worker(client, workflows=[RECEIVES]):
            return await client.get_handle("w", workflow=RECEIVES).result(timeout=timedelta(seconds=20))

    assert anyio.run(lives) == ["a", "b"]


def test_the_command_shows_which_signals_wait(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"

    async def taken() -> None:
        async with Client.connect(url) as client:
            await client.deploy(RECEIVES)
            handle = await client.start_workflow(RECEIVES, 1, id="w")
            for name in ("once", *["often"] * 30, *(f"n{n}" for n in range(20))):
                await handle.signal(name, 1)
            async with Worker(client, workflows=[RECEIVES]):
                with anyio.fail_after(20):
                    while (await handle.describe()).unread:
                        await anyio.sleep(0.01)

    anyio.run(taken)
    shown = CliRunner().invoke(wasman, ["show", "w", "--store", url]).output
    since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, "
    names = "".join(f"n{n} {since}" for n in range(8))
    assert re.search(rf"^signals +once {since}often \(30\) {since}{names}and 12 more names$", shown, re.MULTILINE), (
        shown
    )
    assert "no worker has taken yet" not in shown


async def test_a_saga_waits_a_day_of_skipped_time_for_its_signal() -> None:
    async with WorkflowEnvironment(workflows=[ORDERS], activities=ACTIVITIES) as env:
        handle = await env.client.start_workflow(ORDERS, Order(id="1"), id="w")
        with pytest.raises(WorkflowFailedError, match="deadline exceeded"):
            await handle.result()


async def test_no_crash_at_any_commit_loses_or_doubles_a_signal() -> None:
    async def program(env: WorkflowEnvironment) -> Any:
        keys: set[str] = set()

        def shipped(order: Order) -> dict[str, str]:
            keys.add(activity.info().idempotency_key)
            return {"tracking": order.id}

        env.mock_activity(ship, does=shipped)
        handle = await env.client.start_workflow(ORDERS, Order(id="1"), id="saga")
        receiving = await env.client.start_workflow(RECEIVES, 2, id="receives")
        await receiving.signal(MAIL, "a", message_id="a")
        await handle.signal(APPROVE, Approval(ok=True), message_id="yes")
        await receiving.signal(MAIL, "b", message_id="b")
        return await handle.result(), await receiving.result(), len(keys)

    survival = await assert_survives(program, workflows=[ORDERS, RECEIVES], activities=ACTIVITIES)
    assert survival.struck > 20
