"""What holds for every test, and the stores that they work over."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.lab import DirectoryLab, MemoryLab, SqliteLab

pytest_plugins = ["tests.hangs"]

# Compiled code goes to the checkout and not to the cache of whoever runs the tests; processes that they start follow.
os.environ["WASMAN_CACHE"] = str(Path(__file__).resolve().parent.parent / ".cache" / "code")

# A job in the background of a shell ignores SIGINT, and so would all commands that tests start, and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
async def lab(anyio_backend: str) -> AsyncIterator[MemoryLab]:
    del anyio_backend  # the loop that the store belongs to
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


@pytest.fixture
async def folder(anyio_backend: str, tmp_path: Path) -> AsyncIterator[DirectoryLab]:
    del anyio_backend
    lab = DirectoryLab(tmp_path / "store")
    await lab.open()
    yield lab
    await lab.close()
