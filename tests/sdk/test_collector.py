"""What a worker does to the garbage collector of its process."""

import subprocess
import sys

import pytest

_PROGRAM = """
import gc
{before}
usual, frozen = gc.get_threshold()[0], gc.get_freeze_count()
import anyio
from wasman_sdk import Client, Worker

async def main():
    async with Client.connect("memory://") as client, Worker(client{option}):
        print(gc.get_threshold()[0], usual, gc.get_freeze_count() - frozen)

anyio.run(main)
"""


def _looked(*, before: str = "", option: str = "") -> tuple[int, int]:
    """How many young objects the collector waits for under a worker, and before it."""
    program = _PROGRAM.format(before=before, option=option)
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    young, usual, frozen = map(int, found.split())
    assert not frozen, "libraries count on gc.get_referrers, which does not see what is frozen"
    return young, usual


def test_a_worker_lets_more_objects_come_together() -> None:
    young, usual = _looked()
    assert young == 50_000
    assert usual < young


@pytest.mark.parametrize(
    ("before", "option"),
    [("", ", tune_gc=False"), ("gc.disable()", ""), ("gc.set_threshold(0)", ""), ("gc.set_threshold(100_000)", "")],
)
def test_it_is_left_alone_where_asked(before: str, option: str) -> None:
    young, usual = _looked(before=before, option=option)
    assert young == usual
