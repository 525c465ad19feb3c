"""gzip on the way: plain bytes for the guest, the same bytes outside whatever the run went through."""

import gzip
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests import wat
from wasman_host import gzip_streams
from wasman_host.gzip_streams import GunzipSource, GzipSink, gzip_identity
from wasman_host.record import StreamSpec
from wasman_host.streams import FileSink as HostFileSink
from wasman_host.streams import SourceReader
from wasman_sdk import Client, FileSink, FileSource, Runner, Session, SimulatedCrashError, TestRunner, Worker, Workflow

CHUNK = 30_000
COPY: Workflow[Any, Any] = Workflow("copy", Any, Any, module=wat.script(wat.copy(CHUNK)))


class Files(Session):
    download: FileSource
    upload: FileSink


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect("memory://") as client:
        yield client


def lines(count: int) -> bytes:
    draw = random.Random(count)
    return b"".join(b"line %d of %d\n" % (n, draw.randrange(1000)) for n in range(count // 15))[:count]


def files(tmp_path: Path, **options: str) -> Files:
    given: Any = options
    return Files(
        download=FileSource(path=tmp_path / "in.gz", decompress=given.get("decompress", "gzip")),
        upload=FileSink(path=tmp_path / "out.gz", compress=given.get("compress", "gzip")),
    )


async def until_blocked(client: Client, id: str = "w") -> str:
    with anyio.fail_after(10):
        while (found := await client.get_handle(id).describe()).status != "blocked":
            await anyio.sleep(0.01)
    return found.reason


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 1_000_000])
async def test_a_guest_sees_and_writes_plain_bytes(client: Client, tmp_path: Path, size: int) -> None:
    data = lines(size)
    (tmp_path / "in.gz").write_bytes(gzip.compress(data))
    async with Worker(client):
        assert await client.execute_workflow(COPY, None, id="w", session=files(tmp_path)) == [len(data)]
    assert gzip.decompress((tmp_path / "out.gz").read_bytes()) == data
    assert (await anyio.run_process(["gunzip", "-c", str(tmp_path / "out.gz")])).stdout == data
    assert sorted(os.listdir(tmp_path)) == ["in.gz", "out.gz"]  # noqa: PTH208  a loop over a Path is a lint of its own
    if size > 500_000:
        assert (tmp_path / "out.gz").stat().st_size < size / 2


async def test_a_run_that_crashes_anywhere_writes_the_same_file(anyio_backend: str, tmp_path: Path) -> None:
    """Its boundaries come from the plain bytes alone: not from when it was synced, nor from where it came back."""
    del anyio_backend
    data = lines(400_000)
    (tmp_path / "in.gz").write_bytes(gzip.compress(data[:250_000]) + gzip.compress(data[250_000:]))
    sizes = (1, 30_000, 65_535, 65_536, 10, 60_000)
    both = [
        wat.value(f"(call $stream_data (i32.const {direction}) (i32.const {wat.BUFFER}) (i32.const {size}))")
        for size in sizes
        for direction in (0, 1)
    ]
    steps = [step for at in range(0, len(both), 2) for step in (*both[at : at + 2], wat.checkpoint())]
    module = wat.script(*steps, wat.copy(CHUNK), reentrant=True, pages=5)
    plain = wat.script(*list(both), wat.copy(CHUNK), pages=5)
    written = []
    async with Client.connect("memory://") as client:
        for id_, guest, crashes in (
            ("undisturbed", module, []),
            ("replayed", plain, []),
            ("each", module, [1] * 6),
            ("second", module, [2, 2]),
            ("last", module, [6]),
        ):
            options: Any = {"session_id": id_, "store": client, "session": files(tmp_path)}
            for crash_at in crashes:
                with pytest.raises(SimulatedCrashError):
                    await TestRunner(guest, crash_at=crash_at, **options).run()
            await Runner(guest, **options).run()
            written.append((tmp_path / "out.gz").read_bytes())
            (tmp_path / "out.gz").unlink()
    assert gzip.decompress(written[0]) == data
    assert set(written) == {written[0]}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-1], "ends in the middle of a gzip member, after "),
        (lambda data: data[:9], "ends in the middle of a gzip member, after 9 bytes"),
        (lambda data: data[:5000] + bytes([data[5000] ^ 255]) + data[5001:], "is damaged before its byte "),
        (lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], "is damaged before its byte "),
        (lambda data: data + b"more", "is damaged before its byte "),
        (lambda _: b"no gzip at all", "is damaged before its byte 14 (Error -3"),
        (lambda _: b"", "is empty"),
    ],
)
async def test_what_is_damaged_blocks_the_run(client: Client, tmp_path: Path, damage: Any, told: str) -> None:
    data = random.Random(5).randbytes(100_000)
    (tmp_path / "in.gz").write_bytes(damage(gzip.compress(data)))
    async with Worker(client):
        await client.start_workflow(COPY, None, id="w", session=files(tmp_path))
        assert f"the source {tmp_path / 'in.gz'} is to be inflated, and {told}" in await until_blocked(client)


async def test_zeros_behind_the_last_member_are_nothing(client: Client, tmp_path: Path) -> None:
    (tmp_path / "in.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two") + bytes(999))
    async with Worker(client):
        await client.execute_workflow(COPY, None, id="w", session=files(tmp_path, compress=""))
    assert (tmp_path / "out.gz").read_bytes() == b"one two"


class InPieces(SourceReader):
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads = 0

    async def read_into(self, offset: int, view: memoryview) -> int:
        self.reads += 1
        part = self.data[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)


async def test_any_offset_gives_the_same_bytes(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    del anyio_backend
    monkeypatch.setattr(gzip_streams, "_IN", 1000)
    monkeypatch.setattr(gzip_streams, "_OUT", 777)
    data = lines(50_000) + bytes(20_000) + lines(10_000)  # what is much smaller, too
    whole = b"".join(gzip.compress(data[at : at + 17_000]) for at in range(0, len(data), 17_000))
    source = GunzipSource(InPieces(whole), "it")
    draw = random.Random(3)
    for _ in range(100):
        offset, length = draw.randrange(len(data) + 10), draw.choice([1, 100, 5000, 40_000])
        view = memoryview(bytearray(length))
        count = source.read_now(offset, view)
        if count is None:
            count = await source.read_into(offset, view)
        assert bytes(view[:count]) == data[offset : offset + length]
    await source.close()


async def test_another_zlib_does_not_go_on(anyio_backend: str, tmp_path: Path) -> None:
    del anyio_backend
    for identity, refused in ((gzip_identity(), False), ({"zlib": "0.9"}, True)):
        spec = StreamSpec("file", {"path": str(tmp_path / "out"), "compress": "gzip"}, identity)
        sink = GzipSink(await HostFileSink.open(spec, "run", None), spec, None)
        try:
            if refused:
                with pytest.raises(Exception, match=r"was begun with zlib 0\.9, and this worker has"):
                    await sink.write(0, memoryview(b"x"))
            else:
                await sink.write(0, memoryview(b"x"))
        finally:
            await sink.close()
