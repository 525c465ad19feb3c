"""The least that a durable step costs in Python: SQLite, full sync, one commit a turn of the loop; no wasm, no SDK.

A step is a compare-and-swap of the instance's row and an entry of the log; what one turn of asyncio's loop has gathered
shares a transaction. What wasman's figures are held against: the same disk, the same minute.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["rate"]

_Member = tuple[str, int, bytes, "asyncio.Future[None]"]


class _Bare:
    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.execute("create table if not exists instance (id text primary key, version int) without rowid")
        self._db.execute(
            "create table if not exists log (id text, n int, entry blob, primary key (id, n)) without rowid"
        )
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Member] = []

    def close(self) -> None:
        self._db.close()

    async def commit(self, name: str, version: int, entry: bytes) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append((name, version, entry, future))
        await future

    def _flush(self) -> None:
        group, self._waiting = self._waiting, []
        self._db.execute("begin immediate")
        for name, version, _, _ in group:
            if version:
                swap = "update instance set version = ? where id = ? and version = ?"
                assert self._db.execute(swap, (version, name, version - 1)).rowcount == 1
            else:
                self._db.execute("insert into instance values (?, 0)", (name,))
        self._db.executemany("insert into log values (?, ?, ?)", [member[:3] for member in group])
        self._db.execute("commit")
        for *_, future in group:
            future.set_result(None)


async def _step(number: int) -> int:
    return number


async def _workflow(bare: _Bare, name: str, steps: int) -> None:
    await bare.commit(name, 0, b"start")
    for number in range(steps):
        answer = await _step(json.loads(b"12345"))
        await bare.commit(name, number + 1, json.dumps(answer).encode())
    await bare.commit(name, steps + 1, b"done")


async def rate(path: Path, name: str, width: int, each: int, steps: int) -> float:
    """Steps a second: `width` lanes of `each` workflows of `steps` steps, one process."""
    bare = _Bare(path)

    async def lane(place: int) -> None:
        for turn in range(each):
            await _workflow(bare, f"{name}-{place}-{turn}", steps)

    begin = time.perf_counter()
    await asyncio.gather(*[lane(place) for place in range(width)])
    elapsed = time.perf_counter() - begin
    bare.close()
    return width * each * steps / elapsed
