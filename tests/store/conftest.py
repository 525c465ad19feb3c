from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.store.settings import Clock, Setting, database, directory
from wasman_host.store import MemoryStore, SkippingStore, SqliteStore, Store


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sqlite", "memory", "skipping", "directory"])
async def setting(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Setting]:
    del anyio_backend  # the loop that the stores belong to
    clock = Clock()
    if request.param == "memory":
        store: Store = MemoryStore(clock=clock)
        other = store
    elif request.param == "skipping":
        store = skipping = SkippingStore(clock.time)
        skipping._clock = skipping._lease_clock = clock  # moved by the tests, not by what instances wait for
        other = store
    elif request.param == "directory":
        store, other = (directory(tmp_path, clock=clock) for _ in range(2))
    else:
        store, other = (SqliteStore(database(tmp_path), clock=clock) for _ in range(2))
    await store.open()
    if other is not store:
        await other.open()
    yield Setting(store, other, clock)
    await other.close()
    await store.close()
