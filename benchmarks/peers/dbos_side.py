"""DBOS on SQLite, as it sets itself up; runs in the peers' environment."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import sqlalchemy
from dbos import DBOS, SetWorkflowID

from benchmarks.peers.lanes import STEPS, serve

if TYPE_CHECKING:
    from dbos import DBOSConfig


@DBOS.step()
async def step(number: int) -> int:
    """Do nothing: what is measured is everything else."""
    return number


@DBOS.workflow()
async def ten(steps: int) -> int:
    """One durable step after the other."""
    done = 0
    for _ in range(steps):
        assert await step(12345) == 12345  # noqa: PLR2004  what it was sent
        done += 1
    return done


async def _run(name: str) -> int:
    with SetWorkflowID(name):
        result: int = await ten(STEPS)
    return result


def _settings(dbos: DBOS) -> str:
    """What its own connections say."""
    with dbos._sys_db.engine.connect() as connection:  # noqa: SLF001  there is no public way to its settings

        def pragma(name: str) -> object:
            return connection.execute(sqlalchemy.text(f"pragma {name}")).scalar()

        return f"SQLite journal_mode={pragma('journal_mode')}, synchronous={pragma('synchronous')}"


def main(folder: str) -> None:
    """Launch it, and answer."""
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": f"sqlite:///{folder}/dbos.db",
        "log_level": "ERROR",
        "enable_otlp": False,
    }
    dbos = DBOS(config=config)

    async def live() -> None:
        DBOS.launch()
        about = {"version": version("dbos"), "settings": _settings(dbos), "processes": {"worker": os.getpid()}}
        await serve(about, _run)

    try:
        asyncio.run(live())
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main(sys.argv[1])
