"""The short form of `make soak`."""

from pathlib import Path

import pytest

from tests.faults.soak import Workers, soak

pytestmark = pytest.mark.once  # processes, which are the same on every version of Python


async def test_f02_workers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    report = await soak(tmp_path, kills=15, workers=2)
    assert not report.problems, report
    assert report.kills == 15
    assert report.workflows >= 30


def test_a_worker_that_is_told_to_leave_before_it_serves_leaves_in_order(tmp_path: Path) -> None:
    workers = Workers(tmp_path / "store.db", tmp_path / "ledger", tmp_path / "log")
    workers.begin()
    (process,) = workers.processes
    assert workers.end(process, kill=False) == 0, (tmp_path / "log").read_text()
