"""A worker that stops itself (SIGSTOP) once, and goes on when somebody continues it.

    python -m tests.faults.stopped_worker STORE LEDGER PLACE

PLACE is where it stops: `activity` (which has had its effect), `commit` (of that activity's answer, before the store
hears of it), `committed` (of that answer, when it has taken effect), `transaction` (inside of SQLite's, which holds the
write lock), or `statement` (the same, where the transaction is one statement). It leaves in order when its standard
input ends. LEDGER gets a line of JSON for each effect, [pid, key, request].
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from tests.lab import answers
from wasman_host.activity import ActivityCall, ActivityDefinition
from wasman_host.engine import Engine
from wasman_host.store import Change, Lost, SqliteStore, Step, Unread, Won

__all__ = ["LEASE", "noting"]

LEASE = 1.0  # seconds
_INSTRUCTIONS = 1  # of SQLite's machine; it asks at jumps, and its first one is taken with the write lock in hand


def noting(ledger: Path) -> ActivityDefinition:
    """The activity `note`, with a line in the ledger each."""

    def note(call: ActivityCall) -> bytes:
        with ledger.open("a") as file:
            file.write(json.dumps([os.getpid(), call.idempotency_key, call.request.decode()]) + "\n")
        return call.request

    return answers("note", note)


class _Stopping(SqliteStore):
    """Stops its process once it is told to, at one of four places."""

    stops_before = stops_inside = stops_in_statement = stops_after = False

    async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        if self.stops_before:
            self.stops_before = False
            os.kill(os.getpid(), signal.SIGSTOP)
        outcomes = await super().commit(changes)
        if self.stops_after:
            self.stops_after = False
            os.kill(os.getpid(), signal.SIGSTOP)
        return outcomes

    def write_alone(self, step: Step) -> bool:
        if self.stops_inside:
            return False
        if self.stops_in_statement:
            self.stops_in_statement = False
            self._connection.set_progress_handler(self._stop, _INSTRUCTIONS)
        return super().write_alone(step)

    def _stop(self) -> int:
        self._connection.set_progress_handler(None, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    def finish(self) -> None:
        super().finish()
        if self.stops_inside:
            self.stops_inside = False
            os.kill(os.getpid(), signal.SIGSTOP)


async def _main(path: Path, ledger: Path, place: str) -> None:
    store = _Stopping(path)
    await store.open()

    def gate(call: ActivityCall) -> bytes:
        if place == "commit":
            store.stops_before = True
        elif place == "committed":
            store.stops_after = True
        elif place == "transaction":
            store.stops_inside = True
        elif place == "statement":
            store.stops_in_statement = True
        else:
            os.kill(os.getpid(), signal.SIGSTOP)
        return call.request

    activities = {one.name: one for one in (noting(ledger), answers("gate", gate))}
    engine = Engine(store, activities, lease=LEASE)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.run)
        await engine.serving.wait()
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        await engine.leave()
    await store.close()


if __name__ == "__main__":
    anyio.run(_main, Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
