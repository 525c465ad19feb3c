"""A guest taken up from its snapshot in another instance of its module, up to its first host call.

The guest has 4 MiB of memory and has written 60 pages of CSV text. What is timed is all that a worker does between its
look at the record and the guest's first instructions: reading log and snapshot from the memory store, checking digests,
unpacking, instantiating, laying the memory, running. Only compilation is done before. In between, the same bytes are
gunzipped.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

import anyio
from isal import isal_zlib
from wasmtime import wat2wasm

from benchmarks.measure import Figure, median_and_spread
from wasman_host import deployments, starting
from wasman_host.activity import ActivityCall, ActivityDefinition, Retry
from wasman_host.engine import Engine
from wasman_host.guest.live import Parked, Yielded
from wasman_host.images import Images
from wasman_host.instance import Instance
from wasman_host.machine import Machine
from wasman_host.payload import Payload
from wasman_host.store import Key, MemoryStore
from wasman_host.stored import open_record, open_tail

if TYPE_CHECKING:
    from wasman_host.store.protocol import Claim

__all__ = ["csv_pages", "filling", "measure"]

_ROUNDS = 400
_PAGES = 60
_READ, _HELD = 400, 150  # us
_KEY = Key("default", "restored")


@functools.cache
def csv_pages(pages: int = _PAGES) -> bytes:
    """So many pages of lines as flight records have them."""
    lines: list[str] = []
    state = 1
    while len(lines) < pages * 4096 // 50:  # each is longer
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        lines.append(
            f"2013,{state % 12 + 1},{state % 28 + 1},{state % 2400},{state // 7 % 2400},{state % 90 - 20},"
            f"{('UA', 'AA', 'B6', 'DL')[state % 4]},{state % 6000},N{state % 99999},{('EWR', 'JFK', 'LGA')[state % 3]},"
            f"{('IAH', 'MIA', 'BQN', 'ATL', 'ORD')[state % 5]},{state % 400},{state % 2500},{state % 24},{state % 60}\n"
        )
    text = "".join(lines).encode()[: pages * 4096]
    assert len(text) == pages * 4096, "the lines are long enough"
    return text


def filling(text: bytes) -> bytes:
    """A re-entrant guest of 4 MiB: `run(n)` writes `text`, then n times two pages and a checkpoint; then it calls."""
    data = "".join(f"\\{byte:02x}" for byte in text)
    return bytes(
        wat2wasm(f"""(module
 (import "env" "host_call_api" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))
 (import "env" "checkpoint" (func $checkpoint))
 (memory (export "memory") 64)
 (data (i32.const 1024) "step")
 (data $text "{data}")
 (func (export "wasman_reentrant"))
 (func (export "run") (param $n i32) (local $i i32)
  (if (i32.load (i32.const 16)) (then (local.set $i (local.get $n))) (else
   (memory.init $text (i32.const 1048576) (i32.const 0) (i32.const {len(text)}))
   (i32.store (i32.const 16) (i32.const 1))))
  (loop $again (if (i32.lt_u (local.get $i) (local.get $n)) (then
   (i32.store (i32.const 2097152) (local.get $i))
   (i32.store (i32.const 3145728) (local.get $i))
   (call $checkpoint)
   (local.set $i (i32.add (local.get $i) (i32.const 1)))
   (br $again))))
  (drop (call $call (i32.const 1024) (i32.const 4) (i32.const 1024) (i32.const 0) (i32.const 8192) (i32.const 4)))))""")
    )


async def _forever(_: ActivityCall) -> bytes:
    await anyio.sleep_forever()
    raise AssertionError


async def _taken_up(engine: Engine, claim: Claim) -> float:
    """Seconds until the guest waits in its first host call."""
    instance = Instance(engine, claim)
    record, tail = open_record(claim.stored), open_tail(claim.stored)
    instance.machine = Machine(_KEY.tenant, _KEY.id, record, tail, deflate=engine.store.deflates)
    begin = time.perf_counter()
    await instance._load()  # noqa: SLF001  what the worker does behind a claim
    guest = instance.guest
    assert guest is not None, "it was loaded"
    guest.enter("run", instance._arguments())  # noqa: SLF001
    while isinstance(outcome := guest.resume(), Yielded):  # where others had the processor in between
        continue
    seconds = time.perf_counter() - begin
    assert isinstance(outcome, Parked), outcome
    assert bytes(guest.memory()[1048576:1048592]) == csv_pages()[:16]
    await instance._let_go()  # noqa: SLF001
    return seconds


async def _rounds() -> tuple[list[float], list[float], list[float]]:
    text = csv_pages()
    packed = isal_zlib.compress(text, 1, 31)
    store = MemoryStore()
    await store.open()
    await deployments.deploy(store, "default", "filling", filling(text))
    await starting.start(store, "default", _KEY.id, "filling", Payload.of(b"1"), None, starting.StartOptions())
    first = Engine(store, {"step": ActivityDefinition("step", _forever, Retry())})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.run)
        while (stored := await store.load(_KEY)) is None or open_record(stored).snapshot is None:
            await anyio.sleep(0.01)
        await first.leave()
    engine = Engine(store, {})
    assert await engine._beat()  # noqa: SLF001  it lives as long as this takes
    while not (claims := await store.claim(engine.worker, ("default",), 1)):
        await anyio.sleep(0.01)
    claim = claims[0]
    read, held, unpacked = [], [], []
    for _ in range(_ROUNDS):
        engine.images = Images(0)
        read.append(await _taken_up(engine, claim))
        begin = time.perf_counter()
        assert isal_zlib.decompress(packed, 31) == text
        unpacked.append(time.perf_counter() - begin)
        engine.images = Images()
        await _taken_up(engine, claim)
        held.append(await _taken_up(engine, claim))
    await store.close()
    return read, held, unpacked


def measure() -> list[Figure]:
    """Measure, and say how."""
    read, held, unpacked = anyio.run(_rounds)
    gunzip, *_ = median_and_spread(unpacked)
    figures = []
    for name, seconds, bound, note in (
        ("read from the memory store", read, _READ, "pages of images that nobody uses any more are written again"),
        ("while this host holds the image", held, _HELD, "the image is only mapped"),
    ):
        median, low, high = median_and_spread(seconds)
        figures.append(
            Figure(
                name=f"a 4 MiB guest with {_PAGES} touched pages restored, first instructions run: {name}",
                value=f"{median * 1e6:.0f} us",
                spread=f"{low * 1e6:.0f}-{high * 1e6:.0f}",
                ratio=f"{median / gunzip:.2f} x gunzip of these pages ({gunzip * 1e6:.0f} us)",
                bound=f"{bound} us",
                holds=median * 1e6 <= bound,
                note=f"{_ROUNDS} times, from its record to its first host call; {note}",
            )
        )
    return figures


if __name__ == "__main__":
    for figure in measure():
        print(figure)
