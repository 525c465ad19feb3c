"""What a worker does to the garbage collector of its process."""

import subprocess
import sys

import pytest

_PROGRAM = """
import gc
frozen = gc.get_freeze_count()  # Python itself freezes some hundred objects since 3.12
import anyio
from wasman_sdk import Client, Worker

async def main():
    async with Client.connect("memory://") as client:
        for _ in range(2):
            async with Worker(client{option}):
                pass
            print(gc.get_threshold()[0], gc.get_freeze_count() - frozen)

{before}
anyio.run(main)
"""


def _looked(*, before: str = "", option: str = "") -> list[tuple[int, int]]:
    program = _PROGRAM.format(before=before, option=option)
    lines = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return [(int(young), int(frozen)) for young, frozen in map(str.split, lines.splitlines())]


def test_the_first_worker_tunes_it_and_no_other() -> None:
    (young, frozen), again = _looked()
    assert young == 10_000
    assert frozen > 10_000, "what was imported is frozen"
    assert again == (young, frozen), "the garbage of the first is not"


@pytest.mark.parametrize(
    ("before", "option"), [("", ", tune_gc=False"), ("gc.disable()", ""), ("gc.set_threshold(0)", "")]
)
def test_it_is_left_alone_where_asked(before: str, option: str) -> None:
    for young, frozen in _looked(before=before, option=option):
        assert young < 10_000
        assert not frozen


def test_what_is_set_higher_stays() -> None:
    found, frozen = _looked(before="gc.set_threshold(20_000)")[-1]
    assert found == 20_000
    assert frozen > 10_000
