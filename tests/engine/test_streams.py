"""The path of a chunk: bytes that are ready park no guest, bytes that are not keep nobody else waiting."""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests import wat
from tests.lab import MemoryLab, sink, source
from wasman_host import streams
from wasman_host.errors import GuestTimeoutError, StreamError
from wasman_host.record import Limits, StreamSpec
from wasman_host.session_streams import SessionStreams
from wasman_host.store import Change, Status, Step
from wasman_host.streams import FileSink, FileSource, SourceReader, StreamTypes

CHUNK = 1000


@pytest.fixture
def parked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stream calls for which a guest was parked."""
    calls: list[str] = []
    for name in ("download", "upload"):
        whole = getattr(SessionStreams, name)

        async def noted(*args: Any, name: str = name, whole: Any = whole) -> Any:
            calls.append(name)
            return await whole(*args)

        monkeypatch.setattr(SessionStreams, name, noted)
    return calls


async def test_a_chunk_that_is_ready_parks_nobody(lab: MemoryLab, tmp_path: Path, parked: list[str]) -> None:
    data = os.urandom(100 * CHUNK)
    (tmp_path / "in").write_bytes(data)
    await lab.start(wat.script(wat.copy(CHUNK)), sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    assert await lab.complete() == [len(data)]
    assert (tmp_path / "out").read_bytes() == data
    assert parked == ["download", "upload"]  # to open them


class Endless(SourceReader):
    """A source of so many bytes at once that all of the time goes into asking."""

    def __init__(self) -> None:
        self.left = 60_000

    async def read_into(self, offset: int, view: memoryview) -> int:
        message = f"{len(view)} bytes at {offset} are always ready"
        raise AssertionError(message)

    def read_now(self, offset: int, view: memoryview) -> int:
        del offset
        self.left -= 1
        return len(view) if self.left > 0 else 0

    async def close(self) -> None:
        pass


async def test_a_guest_that_streams_on_and_on_leaves_others_their_turns(lab: MemoryLab) -> None:
    """And does not run out of its turn's processor time: that begins anew with every chunk."""
    endless = Endless()
    seen: set[int] = set()

    async def opened(_spec: StreamSpec) -> SourceReader:
        return endless

    async def neighbour() -> None:
        while True:
            seen.add(endless.left)
            await anyio.lowlevel.checkpoint()

    drain = wat.raw(f"""(loop $more (br_if $more (i32.gt_s
        (call $stream_data (i32.const 0) (i32.const {wat.BUFFER}) (i32.const 1)) (i32.const 0))))""")
    sources = {"source": StreamSpec("endless", {})}
    await lab.start(wat.script(drain), sources=sources, limits=Limits(turn_seconds=0.1))
    async with lab.worker(streams=StreamTypes({"endless": opened})), anyio.create_task_group() as tasks:
        tasks.start_soon(neighbour)
        assert await lab.result() == []
        tasks.cancel_scope.cancel()
    assert len(seen - {60_000, 0}) > 2


def _preadv(monkeypatch: pytest.MonkeyPatch, answer: Callable[[int, int], int]) -> list[tuple[bool, int]]:
    """Answer reads that must not wait by `answer(length, offset)`; all reads as (might it wait, length)."""
    whole = os.preadv
    seen: list[tuple[bool, int]] = []

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        length = sum(map(len, buffers))
        seen.append((not flags, length))
        if not flags:
            return whole(descriptor, buffers, offset)
        count = answer(length, offset)
        return whole(descriptor, [buffers[0][:count]], offset) if count else 0

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(streams, "_NOWAIT", 8)
    return seen


def _refusing(number: int) -> Callable[[int, int], int]:
    def refuse(_length: int, _offset: int) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("answer", [_refusing(errno.EAGAIN), lambda length, _: length // 2])
async def test_bytes_that_are_not_cached_are_read_by_a_thread(
    lab: MemoryLab,
    tmp_path: Path,
    parked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[int, int], int],
) -> None:
    data = os.urandom(5 * CHUNK + 1)
    (tmp_path / "in").write_bytes(data)
    seen = _preadv(monkeypatch, answer)
    await lab.start(wat.script(wat.copy(CHUNK)), sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    assert await lab.complete() == [len(data)]
    assert (tmp_path / "out").read_bytes() == data
    assert parked.count("download") >= 6
    assert seen.count((True, CHUNK)) == 5


async def test_where_the_kernel_cannot_tell_a_file_is_read_at_once(
    lab: MemoryLab, tmp_path: Path, parked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(5 * CHUNK + 1)
    (tmp_path / "in").write_bytes(data)
    seen = _preadv(monkeypatch, _refusing(errno.EOPNOTSUPP))
    await lab.start(wat.script(wat.copy(CHUNK)), sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    assert await lab.complete() == [len(data)]
    assert (tmp_path / "out").read_bytes() == data
    assert parked == ["download", "upload"]
    assert seen == [(False, CHUNK), *[(True, CHUNK)] * 5, (True, 1)]


async def test_a_source_that_cannot_be_read_blocks(
    lab: MemoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(bytes(5 * CHUNK))
    _preadv(monkeypatch, lambda length, offset: length if offset < 2000 else _refusing(errno.EIO)(length, offset))
    await lab.start(wat.script(wat.copy(CHUNK)), sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    async with lab.worker():
        assert (
            "cannot be read (Input/output error); mend that, then unblock" in (await lab.until(Status.BLOCKED)).reason
        )


async def test_a_source_that_is_cut_while_it_is_read_blocks(lab: MemoryLab, tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(bytes(5 * CHUNK))
    opened = FileSource.open

    async def cut(spec: Any) -> FileSource:
        found = await opened(spec)
        os.truncate(path, 2 * CHUNK)
        return found

    types = StreamTypes({"file": cut}, {"file": FileSink.open})
    await lab.start(wat.script(wat.copy(CHUNK)), sources=source(path), sinks=sink(tmp_path / "out"))
    async with lab.worker(streams=types):
        assert "was cut while it was read" in (await lab.until(Status.BLOCKED)).reason


# The digest that is taken behind the writer


@pytest.mark.parametrize("again", [[], [(0, 900)], [(300, 600)], [(900, 1000), (0, 1000)]])
async def test_a_digest_is_taken_while_a_file_is_written(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: list[tuple[int, int]]
) -> None:
    del anyio_backend
    monkeypatch.setattr(streams, "_FOLLOW", 200)
    data = os.urandom(1000)
    out = await FileSink.open(sink(tmp_path / "out")["sink"], "run", None)
    writes = [(at, at + 100) for at in range(0, 1000, 100)]
    for start, end in writes:
        assert out.write_now(start, memoryview(data)[start:end])
    deadline = time.monotonic() + 10
    while not out._running._hashed and time.monotonic() < deadline:
        time.sleep(0.001)  # noqa: ASYNC251  the thread that follows gets its turn
    assert out._running._hashed > 0
    for start, end in again:
        assert out.write_now(start, memoryview(data)[start:end])
        time.sleep(0.001)  # noqa: ASYNC251  the same
    for length in (1000, 1000, 700, 0):
        assert await out.digest(length) == hashlib.sha256(data[:length]).hexdigest()
    assert await out.digest(1001) == ""
    await out.close()


async def test_what_was_hashed_is_hashed_again_where_it_has_changed(anyio_backend: str, tmp_path: Path) -> None:
    del anyio_backend
    target = tmp_path / "out"
    out = await FileSink.open(sink(target)["sink"], "run", None)
    out.write_now(0, memoryview(b"12345"))
    token = await out.sync(5)
    digest = await out.digest(5)
    time.sleep(0.02)  # noqa: ASYNC251  the file system's clock goes on
    (tmp_path / "out.run.part").write_bytes(b"1234x")
    with pytest.raises(StreamError, match="cannot be published"):
        await out.publish(5, digest, token)
    await out.close()


def publishing(change: Change | Step) -> bool:
    return isinstance(change, Change) and change.columns is not None and change.columns.status is Status.PUBLISHING


@pytest.mark.parametrize("after", [False, True])
async def test_a_run_that_dies_between_digest_and_name_is_published_whole(
    lab: MemoryLab,
    tmp_path: Path,
    after: bool,  # noqa: FBT001  pytest passes it by name
) -> None:
    data = os.urandom(50 * CHUNK)
    (tmp_path / "in").write_bytes(data)
    await lab.start(wat.script(wat.copy(CHUNK)), sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    await lab.dies(at=1, after=after, matching=publishing)
    assert not (tmp_path / "out").exists()
    assert await lab.complete() == [len(data)]
    assert (tmp_path / "out").read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]  # noqa: PTH208  a loop over a Path is a lint of its own


@pytest.mark.parametrize("source_is", ["file", "none"])
async def test_a_guest_that_reads_on_behind_the_end_meets_its_limit(
    source_is: str, lab: MemoryLab, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"all there is")
    read = f"(call $stream_data (i32.const 0) (i32.const {wat.BUFFER}) (i32.const 100))"
    module = wat.script(wat.raw(f"(loop $ever (drop {read}) (br $ever))"))
    given = source(tmp_path / "in") if source_is == "file" else {}
    await lab.start(module, sources=given, limits=Limits(turn_seconds=0.1))
    async with lab.worker():
        await lab.blocked(GuestTimeoutError)
