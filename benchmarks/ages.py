"""What age costs: a run of 100,000 calls is taken up by another worker, and 100,000 runs sleep in a store.

The runs are a TinyGo guest of ABI v1, on SQLite. One of them has made 10 calls and the other one 100,000; each is in
the middle of its next one when its worker leaves. A worker that holds nothing takes it up until the guest's call is
made again: looking for it, reading record and snapshot, laying the memory, delivering what the snapshot does not hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from benchmarks.guests import programs
from benchmarks.measure import Figure, median_and_spread
from benchmarks.parked import resident
from wasman_host import control, deployments, starting
from wasman_host.activity import ActivityCall, ActivityDefinition, Retry
from wasman_host.engine import Engine
from wasman_host.guest.engine import SETTINGS
from wasman_host.instance import Instance
from wasman_host.machine import Machine, create
from wasman_host.oplog import encode_tail
from wasman_host.payload import Payload
from wasman_host.record import Pinned
from wasman_host.starting import creation
from wasman_host.store import Key, SqliteStore
from wasman_host.store.protocol import Change
from wasman_host.stored import columns_of, sealed_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.guest.module import GuestModule
    from wasman_host.store import Store
    from wasman_host.store.protocol import Claim

__all__ = ["measure"]

_HERE = "benchmarks.ages"
_YOUNG, _OLD = 10, 100_000  # calls
_BOUND = 1.5
_ROUNDS = 15
_SLEEPERS = 100_000
_AT_ONCE = 1000  # that are written together
_EACH = 1024  # bytes of this process that a sleeping run may cost
_POLL = 1.0  # ms of a look at the store

_KEY = Key("default", "calls")
_compiled: dict[str, GuestModule] = {}  # made once: what is timed is a worker that has the module already
_claimed, _called = 0.0, 0.0
_last = ""  # the call that waits


async def _echo(call: ActivityCall) -> bytes:
    """Give back what was sent; the last call of each run waits for ever, until its worker leaves."""
    global _called  # noqa: PLW0603  one worker at a time
    if call.request.decode() == _last:
        _called = time.perf_counter()
        await anyio.sleep_forever()
    return call.request


async def _taken_up(store: Store, calls: int) -> float:
    """Seconds from the claim of a run by a new worker until its guest makes its last call, and the worker leaves."""
    global _called, _last
    _called, _last = 0.0, json.dumps(str(calls))
    begin = Instance.__init__

    def claimed(self: Instance, *given: Any) -> None:
        global _claimed  # noqa: PLW0603
        _claimed = time.perf_counter()
        begin(self, *given)

    Instance.__init__ = claimed  # type: ignore[assignment, method-assign]
    try:
        engine = Engine(store, {"echo": ActivityDefinition("echo", _echo, Retry(), None)})
        engine._modules = _compiled  # noqa: SLF001
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.run)
            while not _called:
                await anyio.sleep(0.001)
            await engine.leave()
    finally:
        Instance.__init__ = begin  # type: ignore[method-assign]
    assert (await control.load(store, _KEY)).columns.owner is None, "it was given back"
    return _called - _claimed


async def _resumed(folder: Path) -> tuple[dict[int, list[float]], dict[int, int], float]:
    """Seconds that it takes to take each run up, bytes of its log and record, and what living them took."""
    times: dict[int, list[float]] = {_YOUNG: [], _OLD: []}
    sizes: dict[int, int] = {}
    stores = {calls: SqliteStore(folder / f"ages-{calls}.db") for calls in times}
    begin = time.perf_counter()
    for calls, store in stores.items():
        await store.open()
        await deployments.deploy(store, "default", "calls", programs().read_bytes(), entry="calls")
        given = Payload.of_value(calls + 1)
        await starting.start(store, "default", _KEY.id, "calls", given, None, starting.StartOptions())
        await _taken_up(store, calls)
    took = time.perf_counter() - begin
    for _ in range(_ROUNDS):  # in turn, so that both are of the same moment
        for calls, store in stores.items():
            times[calls].append(await _taken_up(store, calls))
    for calls, store in stores.items():
        stored = await control.load(store, _KEY)
        sizes[calls] = sum(len(entry) for _, entry in await store.read(stored.run)) + len(stored.record)
        await store.close()
    return times, sizes, took


async def _sleep(path: Path) -> None:
    """What another process does: runs that sleep for a year, as their worker has given them back."""
    store = SqliteStore(path)
    await store.open()
    wake = store.now() + 365 * 86400 * 10**9
    for start in range(0, _SLEEPERS, _AT_ONCE):
        creations, changes = [], []
        for number in range(start, start + _AT_ONCE):
            key, run = Key("default", f"sleeps-{number}"), f"{number:032x}"
            pinned = Pinned("sleeps", "0" * 64, engine=SETTINGS)
            made = create(key.tenant, key.id, run, pinned, Payload.of_value(None), None, store.now())
            assert made.record is not None, "a run begins with a record"
            creations.append(creation(key, made, owner=None, wake=None))
            asleep = Machine(key.tenant, key.id, made.record, made.tail).sleeps(wake)
            assert asleep.record is not None, "it says until when"
            columns = columns_of(asleep.record, asleep.tail.stored, owner=None, wake=wake)
            record = sealed_record(key, asleep.record)
            changes.append(Change(key, (run, 1), run, "sleeps", record, columns, encode_tail(asleep.tail)))
        await store.commit(creations)
        await store.commit(changes)
    await store.close()


async def _asleep(folder: Path) -> dict[str, float]:
    """Resident bytes of a worker before and after, and ms of each of its looks at the store."""
    path, looks = folder / "asleep.db", []
    store = SqliteStore(path)
    await store.open()
    claim = store.claim

    async def looked(worker: str, queues: Sequence[str], limit: int) -> list[Claim]:
        begin = time.perf_counter()
        claims = await claim(worker, queues, limit)
        looks.append((time.perf_counter() - begin) * 1e3)
        return claims

    store.claim = looked  # type: ignore[method-assign]
    engine = Engine(store, {})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.run)
        await engine.serving.wait()
        await anyio.sleep(2)
        before = resident()
        command = [sys.executable, "-m", _HERE, "sleep", str(path)]
        await anyio.run_process(command, stdout=None)
        looks.clear()
        await anyio.sleep(5)
        grown, seen = resident() - before, sorted(looks)
        await engine.leave()
    await store.close()
    return {"grown": grown, "look": seen[len(seen) // 2], "slowest": seen[-1], "looks": len(seen)}


def _age(folder: Path) -> Figure:
    times, sizes, took = anyio.run(_resumed, folder)
    old, low, high = median_and_spread(times[_OLD])
    young, *_ = median_and_spread(times[_YOUNG])
    ratio, *_ = median_and_spread([a / b for a, b in zip(times[_OLD], times[_YOUNG], strict=True)])
    return Figure(
        name=f"resume at {_OLD:,} calls against at {_YOUNG}, TinyGo guest, SQLite",
        value=f"{old * 1e3:.2f} ms",
        spread=f"{low * 1e3:.2f}-{high * 1e3:.2f}",
        ratio=f"{ratio:.2f} x ({young * 1e3:.2f} ms)",
        bound=f"{_BOUND:g} x",
        holds=ratio <= _BOUND,
        note=f"{_ROUNDS} times each, in turn, from the claim by a worker that holds nothing of it to the guest's next "
        f"call; log and record have {sizes[_OLD]:,} bytes then, against {sizes[_YOUNG]:,}; living both took "
        f"{took:.0f} s",
    )


def _sleepers(folder: Path) -> Figure:
    command = [sys.executable, "-m", _HERE, "measure", str(folder)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    each = found["grown"] / _SLEEPERS
    return Figure(
        name=f"{_SLEEPERS:,} sleeping runs in a store, SQLite: what they cost a worker",
        value=f"{found['look']:.3f} ms a look",
        spread=f"at most {found['slowest']:.3f}",
        ratio=f"{each:.0f} bytes of memory each",
        bound=f"{_POLL:g} ms, {_EACH:,} bytes",
        holds=found["look"] <= _POLL and each <= _EACH,
        note=f"a worker in a process of its own, {found['looks']:.0f} looks for what is due; the runs are written by "
        f"another process, as a worker gives them back until a time that has not come",
    )


def measure() -> list[Figure]:
    """Measure, and say how; the second nowhere but where the system has /proc."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).absolute()
        asleep = [_sleepers(folder)] if Path("/proc/self/status").exists() else []
        return [_age(folder), *asleep]


if __name__ == "__main__":
    if sys.argv[1] == "sleep":
        anyio.run(_sleep, Path(sys.argv[2]))
    else:
        print(json.dumps(anyio.run(_asleep, Path(sys.argv[2]))))
