"""A checkpoint with 2 dirty pages of a guest of 4 MiB, committed to the memory store.

What is timed is from one commit to the next: the guest runs, writes two pages and asks for a checkpoint; its dirty
pages are found, compared, sealed and committed. Every 17th checkpoint merges its chain into one delta over the module's
image.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import anyio
from isal import isal_zlib

from benchmarks.measure import Figure, median_and_spread
from benchmarks.restore import csv_pages, filling
from wasman_host import deployments, starting
from wasman_host.activity import ActivityCall, ActivityDefinition, Retry
from wasman_host.engine import Engine
from wasman_host.payload import Payload
from wasman_host.store import Key, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.store import Change, Lost, Step, Unread, Won

__all__ = ["measure"]

_CHECKPOINTS = 2000
_BOUND = 250  # us
_KEY = Key("default", "checkpoints")


class _Noting(MemoryStore):
    """Notes when a checkpoint was committed."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[float] = []

    async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        outcome = await super().commit(changes)
        self.moments.append(time.perf_counter())
        return outcome


async def _run() -> tuple[list[float], list[float]]:
    text = csv_pages()
    store = _Noting()
    await store.open()
    await deployments.deploy(store, "default", "filling", filling(text))
    done = anyio.Event()

    async def step(_: ActivityCall) -> bytes:
        done.set()
        return b""

    engine = Engine(store, {"step": ActivityDefinition("step", step, Retry())})
    given = Payload.of(str(_CHECKPOINTS).encode())
    await starting.start(store, "default", _KEY.id, "filling", given, None, starting.StartOptions())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.run)
        await done.wait()
        moments = store.moments[-_CHECKPOINTS:]
        await engine.leave()
    await store.close()
    packed = isal_zlib.compress(text, 1, 31)
    unpacked = []
    for _ in range(100):
        begin = time.perf_counter()
        isal_zlib.decompress(packed, 31)
        unpacked.append(time.perf_counter() - begin)
    return [after - before for before, after in itertools.pairwise(moments)], unpacked


def measure() -> Figure:
    """Measure, and say how."""
    seconds, unpacked = anyio.run(_run)
    median, low, high = median_and_spread(seconds)
    gunzip, *_ = median_and_spread(unpacked)
    mean = sum(seconds) / len(seconds)
    return Figure(
        name="a checkpoint with 2 dirty pages of 4 MiB, committed to the memory store",
        value=f"{median * 1e6:.0f} us",
        spread=f"{low * 1e6:.0f}-{high * 1e6:.0f}",
        ratio=f"{median / gunzip:.2f} x gunzip of 60 pages ({gunzip * 1e6:.0f} us)",
        bound=f"{_BOUND} us",
        holds=median * 1e6 <= _BOUND,
        note=f"{_CHECKPOINTS} in a row, from commit to commit; {mean * 1e6:.0f} us on average, merged chains included",
    )


if __name__ == "__main__":
    print(measure())
