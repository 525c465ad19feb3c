"""Who goes on alone takes no turn of the event loop that nobody waits for; whoever waits has one."""

import asyncio
import socket
import types
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.store.settings import change, database, one_step
from wasman_host.store import MemoryStore, SqliteStore, Store, memory, sqlite
from wasman_host.wake import turn


def in_memory(_: Path) -> Store:
    return MemoryStore()


def on_disk(folder: Path) -> Store:
    return SqliteStore(database(folder))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # with trio it is not known who waits, and all turns are taken
@pytest.mark.parametrize(("module", "made"), [(memory, in_memory), (sqlite, on_disk)], ids=["memory", "sqlite"])
async def test_one_that_goes_on_alone_takes_no_turn_that_nobody_waits_for(
    module: ModuleType, made: Callable[[Path], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0

    @types.coroutine
    def counted() -> Generator[Any, Any, None]:
        nonlocal turns
        turns += 1
        yield from turn()

    monkeypatch.setattr(module, "turn", counted)
    store = made(tmp_path)
    await store.open()
    try:
        await store.commit([change("a", None, "r")])
        await store.commit([one_step("a", "r", 1)])
        for version in range(2, 12):
            await store.commit([one_step("a", "r", version)])
        assert turns <= 1, "nobody else is there; what the start has left to be done may be done in one of them"
        # Whoever waits for a file has a turn after the commit in which it becomes ready.
        near, far = socket.socketpair()
        served = []
        with near, far:
            loop = asyncio.get_running_loop()
            loop.add_reader(near, lambda: served.append(near.recv(1)))
            for version in range(12, 22):
                far.send(b"%d" % (version % 10))
                await store.commit([one_step("a", "r", version)])
                assert len(served) >= version - 12, "the turn in which the loop sees it, and the next"
            await turn()
            loop.remove_reader(near)
        assert b"".join(served) == b"2345678901"
    finally:
        await store.close()
