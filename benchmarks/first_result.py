"""What `process_start` starts: a worker over a new store and its first workflow, with an application's imports."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from wasman_sdk import Client, Worker, Workflow, activity

_CALLS = 3


@activity
async def step(number: int) -> int:
    """Give back what was sent."""
    return number


async def _first(module: Path, store: Path) -> None:
    workflow = Workflow("first", int, int, module=module)
    async with (
        Client.connect(f"sqlite:///{store}") as client,
        Worker(client, workflows=[workflow], activities=[step]),
    ):
        print(await client.execute_workflow("first", _CALLS, id="first"), flush=True)


anyio.run(_first, Path(sys.argv[1]), Path(sys.argv[2]))
