"""The process in which cases are run, one after the other: `python -m tests.fuzz.child KIND FIRST COUNT FOLDER`.

It writes one line of JSON before each case and one behind it, so that whoever reads them knows at which it died.
"""

import contextlib
import faulthandler
import hashlib
import json
import logging
import os
import random
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
from attrs import define

from tests.fuzz import memory
from tests.fuzz.cases import case
from tests.lab import sink, source
from wasman_host import control, deployments, starting
from wasman_host.activity import ActivityCall, ActivityDefinition, Retry
from wasman_host.engine import Engine
from wasman_host.errors import InvalidArgumentError, InvalidModuleError, WorkflowClosedError
from wasman_host.guest import module as modules
from wasman_host.payload import Payload
from wasman_host.record import Limits
from wasman_host.residents import Residency
from wasman_host.store import CLOSED, Key, MemoryStore, SqliteStore, Status, Store

BATCH = 50  # cases of one engine, so that a case has the same surroundings when it is run again
COMMITS = 5000  # after which a guest has checkpointed enough: each time something else, or it would meet its limit
UPLOADED = 8 * 1024 * 1024  # bytes after which a guest has uploaded enough
LONG = 10**8  # ns of a sleep that nobody waits for
HANGS = 20.0  # seconds without a commit or an upload after which a case hangs: its guest's turns are far shorter
SPEAKS = 1.0  # seconds after which a case that goes on says so, and has HANGS anew
LIMITS = Limits(memory=32 * 1024 * 1024, turn_seconds=0.2, stored=4 * 1024 * 1024, request=1024 * 1024)
EXPECTED = {"BlockedError", "GuestLimitError", "GuestTimeoutError"}  # what a guest may be blocked by


@define
class World:
    """What the cases of one batch share."""

    store: Store
    engine: Engine
    folder: Path


async def answer(call: ActivityCall) -> bytes:
    """Whatever activity: what it does depends on what it was asked, and on nothing else."""
    chance = random.Random(hashlib.sha256(call.name.encode() + b"\0" + call.request).digest())
    kind = chance.random()
    if kind < 0.15:
        raise LookupError("no such thing")
    if kind < 0.5:
        return call.request
    return chance.randbytes(chance.choice([0, 1, 7, 300, 5000]))


@contextlib.asynccontextmanager
async def world(number: int) -> AsyncIterator[World]:
    # In every other batch, a guest that waits gives its memory up and is taken up again by its log; half of these are
    # on disk, where not all fits that a process can hold.
    residency = Residency(memory=1) if number % 2 else None
    fallback = ActivityDefinition("any", answer, Retry(initial_interval=0.0, maximum_attempts=2))
    with tempfile.TemporaryDirectory(prefix="wasman-fuzz-") as folder:
        store: Store = SqliteStore(Path(folder) / "store.db") if number % 4 == 3 else MemoryStore()
        await store.open()
        engine = Engine(store, {}, fallback=fallback, residency=residency)
        (Path(folder) / "in").write_bytes(random.Random(number).randbytes(100_000))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.run)
            await engine.serving.wait()
            yield World(store, engine, Path(folder))
            await engine.leave()
        await store.close()


async def run(world: World, kind: str, seed: int, folder: Path | None) -> str:
    """Run one case; how it ended."""
    given, key, name = case(kind, seed, folder), Key("default", f"case-{seed}"), f"module-{seed}"
    options = starting.StartOptions(
        resume=given.resume,
        limits=LIMITS,
        sources=source(world.folder / "in") if given.streams else {},
        sinks=sink(world.folder / f"out-{seed}") if given.streams else {},
    )
    try:
        params = (await deployments.deploy(world.store, "default", name, given.module)).params
        payload = Payload.of(json.dumps(fitted(params, given.integers)).encode() if params else given.given)
        await starting.start(world.store, "default", key.id, name, payload, None, options, workers=[world.engine])
    except InvalidModuleError:
        return "refused"
    except InvalidArgumentError:
        return "not started"
    ended, before = False, (0, 0)
    with anyio.fail_after(HANGS) as patience:
        while True:
            stored = await control.load(world.store, key)
            live = world.engine._live.get(key)
            if live is None and (stored.columns.status in CLOSED or stored.columns.status is Status.BLOCKED):
                break
            if live is not None and live._until is not None:
                world.engine.residents.look()  # evicts it, where that is the batch's way
            due = stored.columns.wake if live is None else live._until
            if due is not None and due > world.store.now() + LONG and not ended:
                await _terminate(world.store, key, "it sleeps for long")
                ended = True
            machine = getattr(live, "machine", None)
            moved = (stored.version, max(before[1], getattr(machine, "written", 0)))
            if moved != before and not ended and patience.deadline < anyio.current_time() + HANGS - SPEAKS:
                # How long COMMITS take is the disk's affair, and no hang.
                before, patience.deadline = moved, anyio.current_time() + HANGS
                tell(goes_on=seed)
            if machine is not None and machine.written > UPLOADED and not ended:
                # Each chunk that it moves begins its turn's time anew, as long as the disk lasts.
                await _terminate(world.store, key, "it uploads for ever")
                ended = True
            if stored.version > COMMITS and not ended:
                # Each of them keeps something new, and is progress for all that anybody can tell.
                await _terminate(world.store, key, "it checkpoints for ever")
                ended = True
            await anyio.sleep(0.0005)
    found = await control.describe(world.store, key)
    assert found.record is not None, found.reason
    if found.status is Status.BLOCKED:
        # What was flipped may say that it can be entered anew, and then not do so.
        expected = EXPECTED | ({"NondeterminismError"} if kind == "flipped" else set())
        if found.record.error not in expected or "internal error" in found.reason:
            memory.problems.append(f"blocked by {found.record.error}: {found.reason}")
        return f"blocked by {found.record.error}"
    return found.status.value


async def _terminate(store: Store, key: Key, reason: str) -> None:
    with contextlib.suppress(WorkflowClosedError):  # it may have ended since it was looked at
        await control.terminate(store, key, reason)


def fitted(kinds: Sequence[str], integers: Sequence[int]) -> Sequence[int]:
    """Integers for an entry that takes these, signed; none for what takes something else."""
    widths = {"i32": 32, "i64": 64}
    cut = [number % (1 << widths[kind]) for kind, number in zip(kinds, integers, strict=False) if kind in widths]
    return [number - (number >> widths[kind] - 1 << widths[kind]) for kind, number in zip(kinds, cut, strict=False)]


class Errors(logging.Handler):
    """What is logged as an error is a problem of the present case."""

    def emit(self, record: logging.LogRecord) -> None:
        memory.problems.append(logging.Formatter().format(record))


def tell(**said: Any) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def seed_ids(seed: int) -> None:
    """Make the run's id repeatable, of which its random bytes are drawn."""
    chance = random.Random(seed)

    def token_hex(nbytes: int | None = None) -> str:
        return chance.randbytes(nbytes or 16).hex()

    secrets.token_hex = token_hex


async def main(kind: str, first: int, count: int, folder: Path | None) -> None:
    for number in range(first // BATCH, (first + count - 1) // BATCH + 1):
        async with world(number) as present:
            for seed in range(max(first, number * BATCH), min((number + 1) * BATCH, first + count)):
                tell(begins=seed)
                seed_ids(seed)
                verdict = await run(present, kind, seed, folder)
                tell(ended=seed, verdict=verdict, problems=memory.problems)
                memory.problems.clear()


if __name__ == "__main__":
    faulthandler.enable()
    os.environ["WASMAN_CACHE"] = "off"
    memory.watch()
    modules._INITIALISATION_SECONDS = 0.2
    logging.getLogger().addHandler(Errors(logging.ERROR))
    logging.getLogger("wasman").setLevel(logging.ERROR)
    sys.unraisablehook = lambda found: memory.problems.append(f"{found.err_msg}: {found.exc_value!r}")
    _, chosen, number, cases, place = sys.argv
    anyio.run(main, chosen, int(number), int(cases), Path(place) if place else None)
