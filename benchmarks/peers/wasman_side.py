"""wasman's side: the default store and settings, client and worker in one process."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from importlib.metadata import version

from benchmarks.guests import calling
from benchmarks.peers.lanes import STEPS, serve
from wasman_host.store import SqliteStore
from wasman_sdk import Client, Worker, Workflow, activity


@activity
async def step(number: int) -> int:
    """Do nothing: what is measured is everything else."""
    return number


async def _main(folder: str) -> None:
    ten = Workflow("calling", int, int, module=calling())
    async with (
        Client.connect(f"sqlite:///{folder}/wasman.db") as client,
        Worker(client, workflows=[ten], activities=[step]),
    ):
        store = client.store
        assert isinstance(store, SqliteStore), "the URL says so"
        settings = f"SQLite journal_mode={store.pragma('journal_mode')}, synchronous={store.pragma('synchronous')}"
        about = {"version": version("wasman"), "settings": settings, "processes": {"worker": os.getpid()}}
        await serve(about, lambda name: client.execute_workflow("calling", STEPS, id=name))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(_main(sys.argv[1]))
