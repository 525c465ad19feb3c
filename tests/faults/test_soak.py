"""The short form of `make soak`."""

from pathlib import Path

import pytest

from tests.faults.soak import soak

pytestmark = pytest.mark.once  # processes, which are the same on every version of Python


async def test_f02_workers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    report = await soak(tmp_path, kills=15, workers=2)
    assert not report.problems, report
    assert report.kills == 15
    assert report.workflows >= 30
