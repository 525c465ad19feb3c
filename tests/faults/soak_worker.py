"""A worker that may be killed at any moment. It leaves in order when its standard input ends.

    python -m tests.faults.soak_worker STORE LEDGER

What its activities do to the world is a line in LEDGER each, [key, workflow id, activity, request] as JSON: one write
to a file opened for appending, so whoever is killed has written all of it or nothing.
"""

import json
import os
import sys
from pathlib import Path

import anyio
import anyio.to_thread

from tests.lab import Handler, answers
from wasman_host.activity import ActivityCall, Retry
from wasman_host.engine import Engine
from wasman_host.errors import ApplicationError
from wasman_host.residents import Residency
from wasman_host.store import SqliteStore

__all__ = ["LARGE"]

LARGE = 30_000  # bytes of a result that is kept as a blob of its own


async def _main(path: Path, ledger: Path) -> None:
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def done(call: ActivityCall) -> None:
        line = [call.idempotency_key, call.key.id, call.name, call.request.decode()]
        os.write(file, json.dumps(line).encode() + b"\n")

    def note(call: ActivityCall) -> bytes:
        done(call)
        return call.request

    async def slow(call: ActivityCall) -> bytes:
        done(call)
        await anyio.sleep(0.003)
        return call.request

    def flaky(call: ActivityCall) -> bytes:
        if call.attempt == 1:
            message = "not yet"
            raise ApplicationError(message)
        done(call)
        return call.request

    def large(call: ActivityCall) -> bytes:
        done(call)
        return b'"' + call.request.rjust(LARGE - 2, b"0") + b'"'

    retry = Retry(initial_interval=0.001, maximum_attempts=10_000)
    named: dict[str, Handler] = {"note": note, "slow": slow, "flaky": flaky, "large": large}
    activities = {name: answers(name, handler, retry=retry) for name, handler in named.items()}
    store = SqliteStore(path)
    await store.open()
    engine = Engine(store, activities, residency=Residency(memory=400_000))  # a few guests: some are evicted
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.run)
        await engine.serving.wait()
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        await engine.leave()
    await store.close()


if __name__ == "__main__":
    anyio.run(_main, Path(sys.argv[1]), Path(sys.argv[2]))
