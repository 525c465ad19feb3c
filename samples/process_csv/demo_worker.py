"""The worker that the demo kills: the application's own, unchanged, beside a store and a ledger that can be watched.

It tells on stdout, in lines of JSON, what the demo's parent could not see from outside:

    {"event": "restored", "entry": 8}               the guest goes on from the checkpoint before log entry 8
    {"event": "batch", "batch": 8, "row": 40000}    the guest has called the activity for a batch that ends at that row
    {"event": "inside", "batch": 8, "row": 40000}   the activity has changed the ledger, and holds there
    {"event": "late", "batch": 8, "row": 40000}     the parent should have killed this worker by now; it holds
    {"event": "dying", "batch": 8, "row": 40000}    the sink is synced; SIGKILL comes before the commit

Nothing in wasman knows of any of it. The worker holds where a kill must hit exactly, so that the demo is the same on
a machine of any speed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from samples.process_csv.app import Batch, Ledger, make_worker
from wasman_host.store import SqliteStore
from wasman_sdk import Client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.store import Change, Lost, Step, Unread, Won
    from wasman_sdk import ActivityInfo

__all__ = ["Plan"]


class Plan(BaseModel):
    """What becomes of one life of the worker.

    Attributes:
        store: The store's file.
        ledger: The ledger's file.
        late: From this batch on it holds: the parent's kill is late.
        inside: It holds inside the activity for this batch, when the ledger has been changed.
        commit: It kills itself before this batch's checkpoint is committed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Path
    ledger: Path
    late: int | None = None
    inside: int | None = None
    commit: int | None = None


def _tell(event: str, **more: int) -> None:
    os.write(1, json.dumps({"event": event, **more}).encode() + b"\n")


class _WatchedLedger(Ledger):
    """Tells of each batch, and holds where the plan says so."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.ledger)
        self._plan = plan
        self.batch = 0
        self.row = 0

    @override
    def record(self, batch: Batch, info: ActivityInfo) -> None:
        self.batch, self.row = batch.batch, batch.first_row + batch.rows - 1
        _tell("batch", batch=self.batch, row=self.row)
        if self._plan.late is not None and self.batch >= self._plan.late:
            self._hold("late")
        super().record(batch, info)
        if self.batch == self._plan.inside:
            self._hold("inside")

    def _hold(self, event: str) -> None:
        _tell(event, batch=self.batch, row=self.row)
        threading.Event().wait()  # until it is killed


class _WatchedStore(SqliteStore):
    """Tells what is restored, and can die between the sink's sync and the commit."""

    def __init__(self, plan: Plan, ledger: _WatchedLedger) -> None:
        super().__init__(str(plan.store))
        self._plan, self._ledger = plan, ledger

    @override
    async def read(self, run: str, start: int = 0, stop: int | None = None) -> list[tuple[int, bytes]]:
        if stop is None:  # a run is taken up: its log is read from where its checkpoint ends
            _tell("restored", entry=start)
        return await super().read(run, start, stop)

    @override
    async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        checkpoint = any(blob.name.startswith("snapshot-") for change in changes for blob in change.blobs)
        if checkpoint and self._plan.commit is not None and self._ledger.batch >= self._plan.commit:
            _tell("dying", batch=self._ledger.batch, row=self._ledger.row)
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().commit(changes)


def _outlive_no_parent() -> None:
    """Exit where stdin ends: it does when the parent does, however it dies."""
    while os.read(0, 1):
        pass
    os._exit(1)


async def _work(plan: Plan) -> None:
    ledger = _WatchedLedger(plan)
    async with Client(_WatchedStore(plan, ledger), "default") as client:
        await make_worker(client, ledger).run()


def main() -> None:
    """Work until told to leave."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s: %(message)s")
    threading.Thread(target=_outlive_no_parent, daemon=True).start()
    anyio.run(_work, Plan.model_validate_json(sys.argv[1]))


if __name__ == "__main__":
    main()
