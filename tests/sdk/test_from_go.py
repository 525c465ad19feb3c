"""docs/from-go-wasman.md names every exported name of the Go package, and nothing here that there is not."""

import inspect
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import wasman_sdk
from tests.doc_pages import ROOT
from wasman_host.store import open_store

PAGE = ROOT / "docs" / "from-go-wasman.md"
NAMES = Path(__file__).with_name("go_names.txt")
PENDING: frozenset[str] = frozenset()  # names of Python that the page may mention before they are there

CODE = re.compile(r"`([^`]+)`")


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


def parameters(function: Any) -> set[str]:
    """Its parameters; for those that hand options on, these too."""
    found = set(inspect.signature(function).parameters)
    return found | set(wasman_sdk.RunnerOptions.__annotations__) if "options" in found else found


def has(owner: Any, name: str) -> bool:
    """Whether instances have it: of the class, or an attribute that its docstring speaks of."""
    documented = re.search(rf"^\s*{name}: ", inspect.getdoc(owner) or "", re.MULTILINE)
    return hasattr(owner, name) or documented is not None


def guests_export(name: str) -> bool:
    package, _, function = name.partition(".")
    folder = ROOT / "guest_sdk" / ("steps" if package == "steps" else "")
    return any(re.search(rf"^func {function}\(", path.read_text("utf-8"), re.MULTILINE) for path in folder.glob("*.go"))


def check(mentioned: str) -> None:
    if "://" in mentioned:
        open_store(mentioned)
    elif mentioned.startswith(("wasman.", "steps.")):
        assert guests_export(mentioned), f"guests have no {mentioned}"
    else:
        call = re.fullmatch(r"([\w.]+)\((\w+)=\)", mentioned)
        path = call[1] if call else mentioned
        first, *rest = path.split(".")
        assert first in wasman_sdk.__all__, f"wasman_sdk exports no {first}"
        owner = reduce(getattr, rest[:-1], getattr(wasman_sdk, first))
        if rest:
            assert has(owner, rest[-1]), f"{first} has no {rest[-1]}"
        if call:
            assert call[2] in parameters(reduce(getattr, rest, getattr(wasman_sdk, first))), (
                f"{path} takes no {call[2]}"
            )


@pytest.mark.parametrize("mentioned", sorted({name for _, here in rows() for name in here}))
def test_what_stands_for_it_is_there(mentioned: str) -> None:
    if mentioned not in PENDING:
        check(mentioned)


@pytest.mark.parametrize(
    "wrong", ["Nothing", "Runner.walk", "Runner(speed=)", "TestRunner(speed=)", "wasman.Sleep", "steps.Twice", "s3://x"]
)
def test_what_is_not_there_is_noticed(wrong: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(wrong)
