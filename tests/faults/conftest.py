from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.lab import MemoryLab, SqliteLab


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # what is disturbed is the store; the engine's own tests run on trio as well


@pytest.fixture
async def lab(anyio_backend: str) -> AsyncIterator[MemoryLab]:
    del anyio_backend
    lab = MemoryLab()
    await lab.open()
    yield lab
    await lab.close()


@pytest.fixture
async def disk(anyio_backend: str, tmp_path: Path) -> AsyncIterator[SqliteLab]:
    del anyio_backend
    lab = SqliteLab(tmp_path / "store.db")
    await lab.open()
    yield lab
    await lab.close()
