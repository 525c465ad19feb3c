"""How long after the commit a client knows that its workflow has ended, which waits for it in another process.

The other process waits by `WorkflowHandle.result`. This one makes runs and ends them, so that the moment is known at
which the commit that ends one is on disk; both read the same clock.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from benchmarks.measure import Figure, median_and_spread
from wasman_host.guest.engine import SETTINGS
from wasman_host.machine import Machine, create
from wasman_host.oplog import encode_tail
from wasman_host.payload import Payload
from wasman_host.record import Pinned, encode_record
from wasman_host.seal import Address, seal
from wasman_host.starting import creation
from wasman_host.store import SqliteStore
from wasman_host.store.protocol import Change, Key
from wasman_host.stored import columns_of
from wasman_sdk import Client

if TYPE_CHECKING:
    from wasman_host.store import Store

__all__ = ["measure"]

_BOUND = 20.0  # ms
_ROUNDS = 60
_SHORTEST, _LONGEST = 0.1, 3.0  # seconds that the other process waits: looking gets slower after a while


async def _waits(url: str) -> None:
    """What the other process does: wait for one run after the other, and say when it was woken."""
    async with Client.connect(url) as client:
        for line in sys.stdin:
            handle = client.get_handle(line.strip())
            print("waits", flush=True)
            result = await handle.result()
            print(json.dumps([time.time(), result]), flush=True)


async def _begun(store: Store, number: int) -> Machine:
    key, run = Key("default", f"waking-{number}"), f"{number:032x}"
    pinned = Pinned("waking", "0" * 64, engine=SETTINGS)
    proposal = create(key.tenant, key.id, run, pinned, Payload.of_value(None), None, store.now())
    await store.commit([creation(key, proposal, owner="this process", wake=None)])
    assert proposal.record is not None, "a run begins with a record"
    return Machine(key.tenant, key.id, proposal.record, proposal.tail)


async def _end(store: Store, machine: Machine, result: int) -> float:
    """Complete the run; the time at which that was on disk."""
    proposal = machine.completed(Payload.of_value(result), None, store.now())
    record, key = proposal.record, Key(machine.tenant, machine.id)
    assert record is not None, "a run's end is written down"
    sealed = seal(Address(key.tenant, key.id, machine.run, "record"), encode_record(record))
    columns = columns_of(record, proposal.tail.stored, owner=None, wake=None)
    expected = (machine.run, 1)
    await store.commit([Change(key, expected, machine.run, "end", sealed, columns, encode_tail(proposal.tail))])
    return time.time()


async def _rounds(path: Path) -> list[float]:
    """Milliseconds from the commit to the result, of each round."""
    store = SqliteStore(path)
    await store.open()
    command = [sys.executable, "-m", __name__, f"sqlite:///{path}"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert child.stdin is not None, "piped"
    assert child.stdout is not None, "piped"
    times = []
    try:
        for number in range(_ROUNDS):
            machine = await _begun(store, number)
            child.stdin.write(f"{machine.id}\n")
            child.stdin.flush()
            assert child.stdout.readline() == "waits\n", "the other process waits"
            await anyio.sleep(random.uniform(_SHORTEST, _LONGEST))
            ended = await _end(store, machine, number)
            woken, result = json.loads(child.stdout.readline())
            assert result == number, "a wrong result"
            times.append((woken - ended) * 1e3)
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()
        await store.close()
    return times


def measure() -> Figure:
    """Measure, and say how."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        times = anyio.run(_rounds, Path(folder).absolute() / "waking.db")
    median, low, high = median_and_spread(times)
    return Figure(
        name="a client waiting for a result in another process, SQLite: woken after the commit",
        value=f"{median:.1f} ms",
        spread=f"{low:.1f}-{high:.1f}",
        ratio="",
        bound=f"{_BOUND:g} ms",
        holds=median <= _BOUND,
        note=f"{_ROUNDS} runs that are waited for by {_SHORTEST:g} to {_LONGEST:g} s, from the commit that ends one to "
        f"its result in the other process; the slowest took {max(times):.1f} ms",
    )


if __name__ == "__main__":
    anyio.run(_waits, sys.argv[1])
