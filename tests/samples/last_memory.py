"""One process of the test of determinism: lives a run up to its last commit, and keeps the guest's memory instead.

    python last_memory.py '{"store": ..., "memory": ..., "how": "live", "ahead": 0}'

Prints, as JSON, the globals and how often activities were called. The last commit is not made, so another process can
live the same run after it.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import time_ns
from typing import Any

import anyio
from attrs import evolve

from wasman_host.activity import ActivityCall, ActivityDefinition
from wasman_host.engine import Engine
from wasman_host.guest.module import GuestModule
from wasman_host.store import Change, Lost, SqliteStore, Status, Step, Unread, Won


class Replayer(Engine):
    """Takes every guest for one that is not re-entrant, so its whole log is replayed."""

    async def module(self, digest: str) -> GuestModule:
        return evolve(await super().module(digest), reentrant=False)


class LastStore(SqliteStore):
    """Ends the process at the commit that would end the guest."""

    engine: Engine
    memory: Path
    calls = 0

    async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        for change in changes:
            if isinstance(change, Step):
                continue
            assert change.columns is not None
            if change.columns.status in {Status.PUBLISHING, Status.COMPLETED}:
                guest = self.engine._live[change.key].guest
                assert guest is not None
                self.memory.write_bytes(guest.memory())
                values = [[kind, value.hex()] for kind, value in guest.globals()]
                os.write(1, json.dumps({"globals": values, "calls": self.calls}).encode())
                os._exit(0)
            assert change.columns.status is Status.RUNNING, change.columns.status
        return await super().commit(changes)


async def live(given: dict[str, Any]) -> None:
    store = LastStore(given["store"], clock=lambda: time_ns() + given["ahead"])

    async def answer(call: ActivityCall) -> bytes:
        store.calls += 1
        return call.request if call.name == "echo" else b"null"

    activities = {name: ActivityDefinition(name, answer) for name in ("echo", "record_batch")}
    await store.open()
    store.engine = (Replayer if given["how"] == "replayed" else Engine)(store, activities)
    store.memory = Path(given["memory"])
    with anyio.fail_after(60):
        await store.engine.run()


if __name__ == "__main__":
    anyio.run(live, json.loads(sys.argv[1]))
