"""docs/from-go-wasman.md names every exported name of the Go package, and nothing here that there is not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doc_pages import ROOT
from tests.sdk.mapped_names import CODE, check

PAGE = ROOT / "docs" / "from-go-wasman.md"
NAMES = Path(__file__).with_name("go_names.txt")
PENDING: frozenset[str] = frozenset()  # names of Python that the page may mention before they are there


def go_names() -> list[str]:
    lines = (line.strip() for line in NAMES.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def rows() -> Iterator[tuple[list[str], list[str]]]:
    """Of every row of every table: the names of Go, and what stands for them."""
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and cells[0].startswith("`"):
            yield CODE.findall(cells[0]), CODE.findall(cells[1])
            assert CODE.findall(cells[1]) or cells[1] == "—", line
            assert CODE.findall(cells[1]) or cells[2], f"{cells[0]} has no counterpart, and the page does not say why"


def test_every_exported_name_is_there_once() -> None:
    mapped = [name for names, _ in rows() for name in names]
    assert sorted(mapped) == sorted(go_names())
    assert len(set(mapped)) == len(mapped) > 100


@pytest.mark.parametrize("mentioned", sorted({name for _, here in rows() for name in here}))
def test_what_stands_for_it_is_there(mentioned: str) -> None:
    if mentioned not in PENDING:
        check(mentioned)


@pytest.mark.parametrize(
    "wrong", ["Nothing", "Runner.walk", "Runner(speed=)", "TestRunner(speed=)", "wasman.Nap", "steps.Twice", "s3://x"]
)
def test_what_is_not_there_is_noticed(wrong: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(wrong)
