"""Streams: 256 MiB down from a cached file, up into a channel, and from file to file with its syncs, against cp.

Every round runs all of them, so that they share their minutes. What a run takes is timed from its start to its result,
commits included. How much memory the process had at most is asked of the kernel, for runs of two lengths.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from benchmarks.guests import streaming
from benchmarks.measure import Figure, median_and_spread
from wasman_sdk import Channel, ChannelSink, Client, FileSink, FileSource, Session, Worker, Workflow

__all__ = ["measure"]

_MIB = 1024 * 1024
_SIZE = 256 * _MIB
_CHUNK = 64 * 1024
_ROUNDS = 9
_BOUND = 500  # MiB/s


class _Down(Session):
    source: FileSource


class _Up(Session):
    sink: ChannelSink


class _Copy(Session):
    source: FileSource
    sink: FileSink


def _workflow(entry: str) -> Workflow[Any, int]:
    return Workflow(entry, Any, int, module=streaming(), entry=entry)


_DOWN, _UP, _COPY = (_workflow(entry) for entry in ("down", "up", "copy"))


class _Rounds:
    """Runs over one store and one folder."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._count = 0

    def _id(self) -> str:
        self._count += 1
        return f"run-{self._count}"

    async def down(self, path: Path, size: int) -> float:
        """Seconds for a guest to read a file."""
        begin = time.perf_counter()
        moved = await self._client.execute_workflow(_DOWN, _CHUNK, id=self._id(), session=_Down(source=_file(path)))
        assert moved == size
        return time.perf_counter() - begin

    async def up(self, size: int) -> float:
        """Seconds for a guest to write into a channel that a task of this process empties."""
        channel = Channel()
        begin = time.perf_counter()
        handle = await self._client.start_workflow(
            _UP, [_CHUNK, size // _CHUNK], id=self._id(), session=_Up(sink=channel.sink)
        )
        received = 0
        async for chunk in channel:
            received += len(chunk)
        assert received == await handle.result() == size
        return time.perf_counter() - begin

    async def copy(self, path: Path) -> float:
        """Seconds from a file to a file that is there, synced, with its name."""
        target = self._folder / "ours"
        session = _Copy(source=_file(path), sink=FileSink(path=target))
        begin = time.perf_counter()
        await self._client.execute_workflow(_COPY, _CHUNK, id=self._id(), session=session)
        seconds = time.perf_counter() - begin
        _check_and_drop(target, path)
        return seconds

    def cp(self, path: Path) -> float:
        """Seconds of cp and fsync."""
        target = self._folder / "theirs"
        begin = time.perf_counter()
        subprocess.run([shutil.which("cp") or "cp", "--reflink=never", str(path), str(target)], check=True)
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        seconds = time.perf_counter() - begin
        _check_and_drop(target, path)
        return seconds


def _check_and_drop(target: Path, source: Path) -> None:
    assert target.stat().st_size == source.stat().st_size
    target.unlink()


def _file(path: Path) -> FileSource:
    return FileSource(path=path)


def _fill(path: Path, size: int) -> None:
    block = os.urandom(_MIB)
    with path.open("wb") as file:
        for _ in range(size // _MIB):
            file.write(block)
        os.fsync(file.fileno())
    path.read_bytes()  # it is in the page cache now


_RESET = Path("/proc/self/clear_refs")


def _forget_peak() -> bool:
    """Whether the kernel can forget how much memory this process has had."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def _peak() -> float:
    """MiB that this process has had in memory at most since `_forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


async def _measure(folder: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds by what was moved; MiB of memory for a quarter of the bytes and for all of them."""
    whole, quarter = folder / "whole", folder / "quarter"
    _fill(whole, _SIZE)
    _fill(quarter, _SIZE // 4)
    seconds: dict[str, list[float]] = {"down": [], "up": [], "copy": [], "cp": []}
    peaks: dict[str, list[float]] = {"down": [], "up": []}
    async with (
        Client.connect(f"sqlite:///{folder}/streams.db") as client,
        Worker(client, workflows=[_DOWN, _UP, _COPY]),
    ):
        rounds = _Rounds(client, folder)
        await rounds.down(quarter, _SIZE // 4)
        await rounds.up(_SIZE // 4)
        for path, size in ((quarter, _SIZE // 4), (whole, _SIZE)):
            for name, found in peaks.items():
                if _forget_peak():
                    await (rounds.down(path, size) if name == "down" else rounds.up(size))
                    found.append(_peak())
        for _ in range(_ROUNDS):
            seconds["down"].append(await rounds.down(whole, _SIZE))
            seconds["up"].append(await rounds.up(_SIZE))
            seconds["copy"].append(await rounds.copy(whole))
            seconds["cp"].append(rounds.cp(whole))
    return seconds, peaks


def _told(peaks: list[float]) -> str:
    if not peaks:
        return "memory not looked at: no /proc here"
    return f"at most {peaks[0]:.1f} MiB of the process for {_SIZE // 4 // _MIB} MiB, {peaks[1]:.1f} for all"


def measure() -> list[Figure]:
    """Measure, and say how."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        seconds, peaks = anyio.run(_measure, Path(folder).absolute())
    size = _SIZE // _MIB
    figures = []
    for name, words in (("down", "down from a cached file"), ("up", "up into a channel")):
        rate, low, high = median_and_spread([size / taken for taken in seconds[name]])
        figures.append(
            Figure(
                name=f"{size} MiB {words}, chunks of {_CHUNK // 1024} KiB",
                value=f"{rate:,.0f} MiB/s",
                spread=f"{low:,.0f}-{high:,.0f}",
                ratio="",
                bound=f"{_BOUND} MiB/s",
                holds=rate >= _BOUND,
                note=f"{_ROUNDS} rounds, a run from its start to its result; {_told(peaks[name])}",
            )
        )
    rate, low, high = median_and_spread([size / taken for taken in seconds["copy"]])
    theirs = statistics.median(size / taken for taken in seconds["cp"])
    ratio, *_ = median_and_spread([a / b for a, b in zip(seconds["copy"], seconds["cp"], strict=True)])
    figures.append(
        Figure(
            name=f"{size} MiB from file to file, synced and named",
            value=f"{rate:,.0f} MiB/s",
            spread=f"{low:,.0f}-{high:,.0f}",
            ratio=f"{ratio:.2f} x the time of cp and fsync ({theirs:,.0f} MiB/s)",
            bound="none",
            holds=True,
            note=f"{_ROUNDS} rounds, cp in between; ours takes a sha256 of what it has written as well",
        )
    )
    return figures


if __name__ == "__main__":
    for figure in measure():
        print(figure)
