"""Sources and sinks of a session: bytes in it, and those of the application's own, with a token over a crash."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from attrs import define, field
from pydantic import ValidationError

from tests import wat
from wasman_sdk import (
    BytesSource,
    Client,
    FileSink,
    FileSource,
    InvalidArgumentError,
    Runner,
    Session,
    SimulatedCrashError,
    Sink,
    SinkWriter,
    Source,
    SourceChangedError,
    SourceReader,
    StreamContext,
    StreamError,
    TestRunner,
    Worker,
    Workflow,
    activity,
)

CHUNK = 1000
COPY: Workflow[Any, Any] = Workflow("copy", Any, Any, module=wat.script(wat.copy(CHUNK)))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def moves(direction: int, length: int) -> wat.Step:
    return wat.value(f"(call $stream_data (i32.const {direction}) (i32.const {wat.BUFFER}) (i32.const {length}))")


def pattern(count: int) -> bytes:
    """Bytes of which no two stretches are alike."""
    return b"".join(number.to_bytes(4, "big") for number in range(-(-count // 4)))[:count]


# Bytes in the session


class Given(Session):
    download: Source
    upload: Sink


async def test_bytes_in_the_session_are_downloaded(anyio_backend: str, tmp_path: Path) -> None:
    del anyio_backend
    data = pattern(4321)
    session = Given(download=BytesSource(data=data), upload=FileSink(path=tmp_path / "out"))
    async with Client.connect("memory://") as client, Worker(client):
        assert await client.execute_workflow(COPY, None, id="w", session=session) == [4321]
    assert (tmp_path / "out").read_bytes() == data


async def test_an_activity_sees_the_streams_as_they_were_given(anyio_backend: str, tmp_path: Path) -> None:
    del anyio_backend
    seen: list[Given] = []

    @activity
    async def look(session: Given) -> None:
        seen.append(session)

    given = Given(download=BytesSource(data=b"\xff\x00any"), upload=FileSink(path=tmp_path / "out"))
    workflow: Workflow[Any, Any] = Workflow("look", Any, Any, module=wat.script(wat.call("look")))
    async with Client.connect("memory://") as client, Worker(client, activities=[look]):
        await client.execute_workflow(workflow, None, id="w", session=given)
    assert seen == [given]
    assert Given.model_validate_json(given.model_dump_json()) == given
    assert "any" not in repr(given)


def test_bytes_that_are_too_many_are_refused() -> None:
    BytesSource(data=bytes(65_536))
    told = r"is stored with its session and holds 65,536 bytes, not 65,537; use a file"
    with pytest.raises(ValidationError, match=told):
        BytesSource(data=bytes(65_537))


# Of the application's own


@define
class Bucket:
    """Something with parts elsewhere: a part that is complete stays, what is uploaded only appears when it is named."""

    parts: dict[str, bytes] = field(factory=dict)
    objects: dict[str, bytes] = field(factory=dict)
    opened: list[Mapping[str, Any] | None] = field(factory=list)
    discarded: list[str] = field(factory=list)
    failing: str = ""


class Upload(SinkWriter):
    """Keeps what was written since the last part, and makes a part of it when it is synced."""

    def __init__(self, bucket: Bucket, key: str, context: StreamContext) -> None:
        self.bucket, self.key, self.run = bucket, key, context.run_id
        self.names: list[str] = list(context.token["parts"]) if context.token else []
        self.length = int(context.token["length"]) if context.token else 0
        self.rest = bytearray()

    async def write(self, offset: int, view: memoryview) -> None:
        if self.bucket.failing:
            raise ConnectionResetError(self.bucket.failing)
        assert offset == self.length + len(self.rest)
        self.rest += view

    async def sync(self, length: int) -> Mapping[str, Any]:
        assert length == self.length + len(self.rest)
        if self.rest:
            name = f"{self.run}/{self.length}"
            assert self.bucket.parts.setdefault(name, bytes(self.rest)) == self.rest
            self.names.append(name)
            self.length, self.rest = length, bytearray()
        return {"parts": self.names, "length": length}

    async def publish(self, length: int, digest: str, token: Mapping[str, Any]) -> None:
        assert digest == ""
        data = b"".join(self.bucket.parts[name] for name in token["parts"])
        assert len(data) == length
        self.bucket.objects[self.key] = data

    async def discard(self) -> None:
        self.bucket.discarded.append(self.key)


class ToBucket(Sink):
    type_tag: ClassVar[str] = "bucket"

    key: str

    async def open(self, context: StreamContext) -> SinkWriter:
        bucket = context.resource(Bucket)
        bucket.opened.append(context.token)
        return Upload(bucket, self.key, context)


class Download(SourceReader):
    """Gives less than it is asked for, as many do."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read_into(self, offset: int, view: memoryview) -> int:
        part = self.data[offset : offset + min(len(view), 300)]
        view[: len(part)] = part
        return len(part)


class FromBucket(Source):
    type_tag: ClassVar[str] = "bucket"

    key: str
    objects: ClassVar[dict[str, bytes]] = {}

    async def identity(self) -> Mapping[str, Any]:
        return {"sha256": hashlib.sha256(self.objects[self.key]).hexdigest()}

    async def open(self, context: StreamContext) -> SourceReader:
        del context
        return Download(self.objects[self.key])


OWN = (FromBucket, ToBucket)


@pytest.fixture
def bucket() -> Bucket:
    FromBucket.objects.clear()
    FromBucket.objects["in"] = pattern(5 * CHUNK + 1)
    return Bucket()


def session(key: str = "in") -> Given:
    return Given(download=FromBucket(key=key), upload=ToBucket(key="out"))


async def test_a_sink_of_ones_own_goes_on_behind_its_token(anyio_backend: str, bucket: Bucket) -> None:
    del anyio_backend
    both = (moves(0, CHUNK), moves(1, CHUNK))
    module = wat.script(*both, wat.checkpoint(), *both, wat.checkpoint(), wat.copy(CHUNK), reentrant=True)
    client = Client.connect("memory://")
    options: Any = {
        "session_id": "w", "store": client, "session": session(), "streams": OWN, "resources": [bucket],
    }  # fmt: skip
    async with client:
        for crash_at in (1, 1):
            with pytest.raises(SimulatedCrashError):
                await TestRunner(module, crash_at=crash_at, **options).run()
        await Runner(module, **options).run()
    first, second, third = bucket.opened
    assert first is None
    assert second is not None
    assert third is not None
    assert (second["length"], third["length"]) == (CHUNK, 2 * CHUNK)
    assert len(third["parts"]) == 2
    assert bucket.objects == {"out": FromBucket.objects["in"]}


async def test_a_worker_gives_its_resources_to_streams(anyio_backend: str, bucket: Bucket) -> None:
    del anyio_backend
    async with Client.connect("memory://") as client, Worker(client, streams=OWN, resources=[bucket]):
        assert await client.execute_workflow(COPY, None, id="w", session=session()) == [5 * CHUNK + 1]
    assert bucket.objects == {"out": FromBucket.objects["in"]}


async def test_chunks_are_filled_whatever_a_source_of_ones_own_gives(anyio_backend: str, bucket: Bucket) -> None:
    del anyio_backend
    workflow: Workflow[Any, Any] = Workflow(
        "reads", Any, Any, module=wat.script(moves(0, 2000), moves(0, 3000), moves(0, 9), moves(0, 9))
    )
    async with Client.connect("memory://") as client, Worker(client, streams=OWN, resources=[bucket]):
        assert await client.execute_workflow(workflow, None, id="w", session=session()) == [2000, 3000, 1, 0]


async def until_blocked(client: Client, id: str = "w") -> str:
    with anyio.fail_after(10):
        while (found := await client.get_handle(id).describe()).status != "blocked":
            await anyio.sleep(0.01)
    return found.reason


async def test_what_it_raises_blocks_the_run_which_goes_on(anyio_backend: str, bucket: Bucket) -> None:
    del anyio_backend
    bucket.failing = "the network is down"
    async with Client.connect("memory://") as client, Worker(client, streams=OWN, resources=[bucket]):
        handle = await client.start_workflow(COPY, None, id="w", session=session())
        told = "the sink 'bucket' raised ConnectionResetError('the network is down'); mend that, then unblock"
        assert told in await until_blocked(client)
        bucket.failing = ""
        await handle.unblock()
        assert await handle.result() == [5 * CHUNK + 1]
    assert bucket.objects == {"out": FromBucket.objects["in"]}


async def test_a_source_that_has_become_another_blocks_the_run(anyio_backend: str, bucket: Bucket) -> None:
    del anyio_backend
    async with Client.connect("memory://") as client:
        await client.start_workflow(COPY, None, id="w", session=session())
        FromBucket.objects["in"] += b"more"
        async with Worker(client, streams=OWN, resources=[bucket]):
            assert "the source 'bucket' has changed since the run started" in await until_blocked(client)
        with pytest.raises(SourceChangedError):
            await Runner(wat.script(wat.copy(1)), session_id="r", store=client, streams=[Moody], session=Moods()).run()


class Moody(Source):
    type_tag: ClassVar[str] = "moody"
    count: ClassVar[list[int]] = []

    async def identity(self) -> Mapping[str, Any]:
        self.count.append(0)
        return {"n": len(self.count)}

    async def open(self, context: StreamContext) -> SourceReader:
        raise AssertionError(context)


class Moods(Session):
    download: Moody = Moody()


async def test_a_worker_without_the_type_blocks_the_run_and_names_it(anyio_backend: str, bucket: Bucket) -> None:
    del anyio_backend, bucket
    async with Client.connect("memory://") as client, Worker(client):
        await client.start_workflow(COPY, None, id="w", session=session())
        assert "no source type 'bucket' is registered with this worker" in await until_blocked(client)


async def test_a_run_without_a_result_discards_its_part(anyio_backend: str, bucket: Bucket) -> None:
    del anyio_backend
    workflow: Workflow[Any, Any] = Workflow(
        "fails", Any, Any, module=wat.script(moves(1, 5), wat.call("wasman.fail", b'{"message": "no"}'))
    )
    async with Client.connect("memory://") as client, Worker(client, streams=OWN, resources=[bucket]):
        handle = await client.start_workflow(workflow, None, id="w", session=session())
        with pytest.raises(Exception, match="no"):
            await handle.result()
        with anyio.fail_after(5):
            while not bucket.discarded:
                await anyio.sleep(0.01)
    assert (bucket.discarded, len(bucket.opened), bucket.objects) == (["out"], 1, {})


class Heavy(Upload):
    async def sync(self, length: int) -> Mapping[str, Any]:
        return {"tail": "x" * 300_000, "length": length}


class ToHeavy(ToBucket):
    type_tag: ClassVar[str] = "heavy"

    async def open(self, context: StreamContext) -> SinkWriter:
        return Heavy(context.resource(Bucket), self.key, context)


async def test_a_token_is_bounded(anyio_backend: str, bucket: Bucket) -> None:
    del anyio_backend
    with pytest.raises(StreamError, match=r"gave a token of 300,0.. bytes, and 262,144 are allowed"):
        await Runner(
            wat.script(moves(1, 5)), session_id="w", streams=[ToHeavy], resources=[bucket],
            session=Given(download=BytesSource(data=b""), upload=ToHeavy(key="out")),
        ).run()  # fmt: skip


# What cannot be used


class Nameless(Source):
    async def open(self, context: StreamContext) -> SourceReader:
        raise AssertionError(context)


class Closed(Source):
    type_tag: ClassVar[str] = "closed"


class Twice(Sink):
    type_tag: ClassVar[str] = "file"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Nameless, "Nameless has no type_tag"),
        (Closed, "Closed has no method open(context)"),
        (Twice, "Twice has the type_tag 'file', and so has another class"),
        (Session, "is no class of sources or sinks"),
        (BytesSource(data=b""), "is no class of sources or sinks"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_with_the_worker(given: Any, told: str) -> None:
    for make in (lambda: Worker("memory://", streams=[given]), lambda: Runner(b"", streams=[given])):
        with pytest.raises(InvalidArgumentError, match=re.escape(told)):
            make()


def test_a_stream_without_a_tag_cannot_be_made() -> None:
    for kind in (Nameless, Source):
        with pytest.raises(ValidationError, match=f"{kind.__name__} has no type_tag to be stored under"):
            kind()


class Unknown(Source):
    type_tag: ClassVar[str] = "unknown"

    async def open(self, context: StreamContext) -> SourceReader:
        raise AssertionError(context)


class Broken(Unknown):
    type_tag: ClassVar[str] = "broken"

    async def identity(self) -> Mapping[str, Any]:
        message = "no route to host"
        raise OSError(message)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (Unknown(), "the session's 'download' is a Unknown, which has no identity: after a crash nobody could tell"),
        (Broken(), "the session's 'download' cannot be used: Broken raised OSError('no route to host')"),
        (FileSource(path=Path("/nowhere/at/all")), "the source /nowhere/at/all cannot be opened"),
    ],
)
async def test_a_source_that_cannot_be_used_is_refused_at_the_start(
    source: Source, told: str, anyio_backend: str, tmp_path: Path
) -> None:
    del anyio_backend
    async with Client.connect("memory://") as client:
        with pytest.raises(InvalidArgumentError, match=re.escape(told)):
            await client.start_workflow(
                COPY, None, id="w", session=Given(download=source, upload=FileSink(path=tmp_path / "out"))
            )
        assert await client.count() == 0
