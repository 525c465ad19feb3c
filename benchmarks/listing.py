"""The first page of a listing over a store in which 100,000 workflows have finished."""

from __future__ import annotations

import secrets
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
from attrs import evolve

from benchmarks.measure import Figure, median_and_spread
from wasman_host.guest.engine import SETTINGS
from wasman_host.machine import create
from wasman_host.payload import Payload
from wasman_host.record import Pinned
from wasman_host.starting import creation
from wasman_host.store import SqliteStore
from wasman_host.store.protocol import Change, Key, Status
from wasman_sdk import Client

__all__ = ["measure"]

_BOUND = 20.0  # ms
_FINISHED = 100_000
_APART = 10 * 1_000_000_000  # ns between two starts
_BEGAN = 1_760_000_000 * 1_000_000_000
_PAGE = 100
_ROUNDS = 60
_BATCH = 1000


def _finished(number: int) -> Change:
    """The change that makes a workflow which has ended: 1 of 100 failed, 1 of 10,000 is open."""
    began = _BEGAN + number * _APART
    key, run = Key("default", f"order-{number:06d}"), secrets.token_hex(16)
    pinned = Pinned(
        f"flow-{number % 10}",
        "0" * 64,
        memo={"why": "a listing"},
        attributes={"customer": f"{number % 1000}"},
        engine=SETTINGS,
    )
    proposal = create(key.tenant, key.id, run, pinned, Payload.of_value(number), None, began)
    record = proposal.record
    assert record is not None, "a run begins with a record"
    if number % 10_000:
        status = Status.COMPLETED if number % 100 else Status.FAILED
        record = evolve(record, status=status, result=Payload.of_value(number), closed=began + _APART)
    return creation(key, evolve(proposal, record=record), owner=None, wake=None)


async def _make(path: Path) -> float:
    """A store with all of them; the seconds that it took."""
    begin = time.perf_counter()
    store = SqliteStore(path)
    await store.open()
    for first in range(0, _FINISHED, _BATCH):
        await store.commit([_finished(number) for number in range(first, first + _BATCH)])
    await store.close()
    return time.perf_counter() - begin


def _wanted() -> dict[str, dict[str, Any]]:
    """What is asked for, by its name in the report; the first is the one that has the bound."""
    middle = datetime.fromtimestamp((_BEGAN + _FINISHED // 2 * _APART) / 1e9, tz=UTC)
    return {
        "everything": {},
        "completed": {"status": "completed"},
        "failed": {"status": "failed"},
        "running": {"status": "running"},
        "failed or running": {"status": {"failed", "running"}},
        "one workflow": {"workflow": "flow-3"},
        "one workflow, failed": {"workflow": "flow-0", "status": "failed"},
        "one customer": {"search_attributes": {"customer": "77"}},
        "an id prefix of all": {"id_prefix": "order-"},
        "an id prefix of 10": {"id_prefix": "order-00123"},
        "started before the middle": {"started_before": middle},
        "closed in one hour": {"closed_after": middle, "closed_before": middle + timedelta(hours=1)},
        "children": {"parent": "nobody"},
    }


async def _pages(path: Path) -> tuple[dict[str, list[float]], list[float], list[float]]:
    """Milliseconds of the first page by what is asked for; of the page in the middle; of a count."""
    times: dict[str, list[float]] = {}
    async with Client.connect(f"sqlite:///{path}") as client:
        middle = datetime.fromtimestamp((_BEGAN + _FINISHED // 2 * _APART) / 1e9, tz=UTC)
        before = await client.list_workflows_page(page_size=_PAGE, started_before=middle)
        deep, counts = [], []
        for _ in range(_ROUNDS):
            for name, where in _wanted().items():
                begin = time.perf_counter()
                page = await client.list_workflows_page(page_size=_PAGE, **where)
                times.setdefault(name, []).append((time.perf_counter() - begin) * 1e3)
                assert len(page.workflows) == {"one workflow, failed": 100, "running": 10, "children": 0}.get(
                    name, len(page.workflows)
                ), name
            begin = time.perf_counter()
            await client.list_workflows_page(page_size=_PAGE, cursor=before.cursor)
            deep.append((time.perf_counter() - begin) * 1e3)
            begin = time.perf_counter()
            assert await client.count() == _FINISHED, "all of them"
            counts.append((time.perf_counter() - begin) * 1e3)
    return times, deep, counts


def measure() -> list[Figure]:
    """Measure, and say how."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder).absolute() / "listing.db"
        made = anyio.run(_make, path)
        times, deep, counts = anyio.run(_pages, path)
    first = times.pop("everything")
    median, low, high = median_and_spread(first)
    others = ", ".join(f"{name} {median_and_spread(taken)[0]:.1f}" for name, taken in times.items())
    return [
        Figure(
            name=f"list_workflows: the first page of {_PAGE} at {_FINISHED:,} finished workflows, SQLite",
            value=f"{median:.1f} ms",
            spread=f"{low:.1f}-{high:.1f}",
            ratio="",
            bound=f"{_BOUND:g} ms",
            holds=median <= _BOUND,
            note=f"{_ROUNDS} rounds, records opened and described; a page from the middle on "
            f"{median_and_spread(deep)[0]:.1f} ms, count {median_and_spread(counts)[0]:.1f} ms; first pages by filter, "
            f"in ms: {others}; making the store took {made:.0f} s",
        )
    ]


if __name__ == "__main__":
    for figure in measure():
        print(figure)
