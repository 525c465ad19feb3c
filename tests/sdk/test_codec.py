"""A codec of the application's: what is stored is encoded, what guests, activities and clients see is plain."""

import os
import sqlite3
import sys
import zlib
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, field

from tests import wat
from wasman_host import control
from wasman_host.errors import CorruptSnapshotError
from wasman_host.payload import INLINE_LIMIT, Payload
from wasman_host.store.protocol import Key
from wasman_sdk import (
    ActivityInfo,
    Client,
    InvalidArgumentError,
    PayloadCodecError,
    Runner,
    Session,
    SyncClient,
    Worker,
    Workflow,
    activity,
)

PLAIN = "this is to be seen by nobody"


@define
class Hiding:
    """A codec like those that encrypt: a nonce in front, and nothing of what was there can be found."""

    name: str = "test.hiding"
    encodes: int = 0
    decodes: list[int] = field(factory=list)

    def encode(self, data: bytes, /) -> bytes:
        self.encodes += 1
        nonce = os.urandom(8)
        return nonce + bytes(byte ^ nonce[at % 8] for at, byte in enumerate(zlib.compress(data)))

    def decode(self, data: bytes, /) -> bytes:
        self.decodes.append(len(data))
        return zlib.decompress(bytes(byte ^ data[at % 8] for at, byte in enumerate(data[8:])))


class Noted(Session):
    note: str


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


GUEST: Workflow[Any, Any] = Workflow(
    "guest",
    Any,
    Any,
    module=wat.script(
        wat.call("wasman.input"),
        wat.call("wasman.session"),
        wat.call("look", PLAIN.join('""').encode()),
        wat.call("look", b'"again"'),
    ),
)


@activity
async def look(given: str, session: Noted) -> list[str]:
    assert session.note == PLAIN
    return [PLAIN, given]


async def logged(client: Client, id: str) -> Sequence[Payload]:
    """What the log of a run delivers, as it is stored."""
    entries = await control.history(client.store, await control.load(client.store, Key("default", id)))
    return [delivery.payload for entry in entries for delivery in entry.deliveries if delivery.payload]


async def test_nothing_of_a_payload_is_stored_as_it_was(anyio_backend: str) -> None:
    del anyio_backend
    codec = Hiding()
    async with Client.connect("memory://", codec=codec) as client, Worker(client, activities=[look]):
        result = await client.execute_workflow(GUEST, PLAIN, id="w", session=Noted(note=PLAIN))
        assert result == [PLAIN, {"note": PLAIN}, [PLAIN, PLAIN], [PLAIN, "again"]]
        assert codec.encodes == 5  # input, session, two answers, result
        payloads = await logged(client, "w")
        assert [payload.codec for payload in payloads] == ["test.hiding"] * 4
        assert not any(PLAIN.encode() in payload.content for payload in payloads)
        history = await client.get_handle("w").history()
        assert {event.codec for event in history if event.size} == {"test.hiding"}


async def test_a_run_is_replayed_from_what_is_encoded(anyio_backend: str, tmp_path: Path) -> None:
    """By another process, with another object of the same name; what it compares are plain bytes."""
    del anyio_backend
    url = f"sqlite:///{tmp_path}/store.db"
    begun = anyio.Event()

    @activity
    async def wait(info: ActivityInfo) -> str:
        begun.set()
        if info.attempt == 1 and not again:
            await anyio.sleep_forever()
        return PLAIN

    again: list[int] = []
    large = b'"' + os.urandom(INLINE_LIMIT).hex().encode() + b'"'  # still large when it is compressed

    @activity
    async def much() -> bytes:
        return large

    workflow: Workflow[Any, Any] = Workflow(
        "waits",
        Any,
        Any,
        module=wat.script(
            wat.call("look", b'"first"'), wat.call("much", capacity=2 * INLINE_LIMIT + 2), wat.call("wait"), pages=12
        ),
    )
    options: Any = {"activities": [look, wait, much], "graceful_shutdown_timeout": timedelta(0)}
    async with Client.connect(url, codec=Hiding()) as client, Worker(client, **options):
        handle = await client.start_workflow(workflow, None, id="w", session=Noted(note=PLAIN))
        await begun.wait()
    again.append(1)
    codec = Hiding()
    async with Client.connect(url, codec=codec) as client, Worker(client, activities=[look, wait, much]):
        handle = client.get_handle("w")
        result = await handle.result()
        assert (result[0], len(result[1])) == ([PLAIN, "first"], 2 * INLINE_LIMIT)
    assert len(codec.decodes) >= 4
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        # The answer that is large, and the result that holds it.
        assert db.execute("select count(*) from blob where name like 'payload-%'").fetchone() == (2,)
    for path in tmp_path.iterdir():  # noqa: ASYNC240  the test's own folder
        if path.is_file():
            assert PLAIN.encode() not in path.read_bytes()


async def until_blocked(client: Client, id: str = "w") -> str:
    with anyio.fail_after(10):
        while (found := await client.get_handle(id).describe()).status != "blocked":
            await anyio.sleep(0.01)
    return found.reason


@pytest.mark.parametrize(("other", "has"), [(None, "none"), (Hiding("test.other"), "'test.other'")])
async def test_another_codec_blocks_the_run_which_goes_on_with_the_right_one(
    anyio_backend: str, other: Hiding | None, has: str
) -> None:
    del anyio_backend
    async with Client.connect("memory://", codec=Hiding()) as client:
        handle = await client.start_workflow(GUEST, PLAIN, id="w", session=Noted(note=PLAIN))
        stranger = Client.over(client.store, codec=other)
        async with Worker(stranger, activities=[look]):
            told = f"was encoded by the codec 'test.hiding', and this process has {has}; give it to its client"
            assert told in await until_blocked(stranger)
        async with Worker(client, activities=[look]):
            await handle.unblock()
            await handle.result()
        with pytest.raises(PayloadCodecError, match=r"was encoded by the codec 'test.hiding'"):
            await stranger.get_handle("w").result()


async def test_the_command_says_what_is_encoded_and_cannot_decode_it(anyio_backend: str, tmp_path: Path) -> None:
    del anyio_backend
    url = f"sqlite:///{tmp_path}/store.db"
    async with Client.connect(url, codec=Hiding()) as client, Worker(client, activities=[look]):
        await client.execute_workflow(GUEST, PLAIN, id="w", session=Noted(note=PLAIN))
    wasman = [sys.executable, "-m", "wasman_sdk"]
    shown = (await anyio.run_process([*wasman, "show", "w", "--store", url])).stdout.decode()
    assert shown.count(" encoded by test.hiding") == 4
    refused = await anyio.run_process([*wasman, "result", "w", "--store", url], check=False)
    assert (refused.returncode != 0, refused.stdout) == (True, b"")
    assert b"was encoded by the codec 'test.hiding', and this process has none" in refused.stderr
    assert b"Traceback" not in refused.stderr


async def test_what_was_stored_before_there_was_a_codec_is_read(anyio_backend: str) -> None:
    del anyio_backend
    async with Client.connect("memory://") as client:
        await client.start_workflow(GUEST, PLAIN, id="w", session=Noted(note=PLAIN))
        later = Client.over(client.store, codec=Hiding())
        async with Worker(later, activities=[look]):
            assert (await later.get_handle("w").result())[0] == PLAIN
        payloads = await logged(client, "w")
        assert [payload.codec for payload in payloads] == ["", "", "test.hiding", "test.hiding"]


@define
class Failing(Hiding):
    """A codec that cannot go on."""

    fails: str = ""

    def encode(self, data: bytes, /) -> bytes:
        if self.fails == "encode" and b"again" in data:
            message = "the key is not here"
            raise LookupError(message)
        return Hiding.encode(self, data)

    def decode(self, data: bytes, /) -> bytes:
        return "text" if self.fails == "decode" else Hiding.decode(self, data)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        ("encode", "the codec 'test.hiding' cannot encode a payload of 40 bytes (LookupError('the key is not here'))"),
        ("decode", "the codec 'test.hiding' has to decode to bytes, and gave str; mend it, then unblock"),
    ],
)
async def test_a_codec_that_fails_blocks_the_run_which_goes_on_when_it_is_mended(
    anyio_backend: str, fails: str, told: str
) -> None:
    del anyio_backend
    codec = Failing(fails=fails)
    async with Client.connect("memory://", codec=codec) as client, Worker(client, activities=[look]):
        handle = await client.start_workflow(GUEST, PLAIN, id="w", session=Noted(note=PLAIN))
        assert told in await until_blocked(client)
        codec.fails = ""
        await handle.unblock()
        assert (await handle.result())[3] == [PLAIN, "again"]


async def test_a_codec_that_fails_at_the_start_starts_nothing(anyio_backend: str) -> None:
    del anyio_backend
    async with Client.connect("memory://", codec=Failing(fails="encode")) as client:
        with pytest.raises(PayloadCodecError, match=r"cannot encode"):
            await client.start_workflow(GUEST, "again", id="w")
        assert await client.count() == 0


async def test_a_runner_uses_the_codec_of_its_client(anyio_backend: str) -> None:
    del anyio_backend
    codec = Hiding()
    client = Client.connect("memory://", codec=codec)
    async with client:
        module = wat.script(wat.call("wasman.input"))
        assert await Runner(module, session_id="r", store=client, input=PLAIN).run() == [PLAIN]
        payloads = await logged(client, "r")
        assert [payload.codec for payload in payloads] == ["test.hiding"]
    assert issubclass(PayloadCodecError, Exception)
    assert not issubclass(PayloadCodecError, CorruptSnapshotError)


def test_a_sync_client_has_one_too(tmp_path: Path) -> None:
    codec = Hiding()
    with SyncClient.connect(f"sqlite:///{tmp_path}/store.db", codec=codec) as client:
        client.deploy(GUEST)
        client.start_workflow(GUEST, PLAIN, id="w")
    assert codec.encodes == 1


@pytest.mark.parametrize("given", [object(), Hiding(""), Hiding("x" * 101), type("No", (), {"name": "no"})()])
def test_what_is_no_codec_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="codec"):
        Client.connect("memory://", codec=given)
