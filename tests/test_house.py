"""The house's directions, which no linter knows: who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOST, SDK = ROOT / "host" / "wasman_host", ROOT / "wasman_sdk"

pytestmark = pytest.mark.once


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def importers(of: str, *folders: Path) -> set[str]:
    """The files below these folders that import the package `of`, or something of it."""
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in folder.rglob("*.py")
        if "template" not in path.parts  # an application, which `wasman new` writes
        if any(name == of or name.startswith(f"{of}.") for name in imported(path))
    }


def test_the_host_knows_nothing_of_the_sdk() -> None:
    assert importers("wasman_sdk", HOST) == set()
    assert importers("wasman_host", SDK) > {"wasman_sdk/_client.py"}, "the test sees imports"


def test_one_file_knows_asyncio_and_trio() -> None:
    assert importers("asyncio", HOST, SDK) == {"host/wasman_host/wake.py"}
    assert importers("trio", HOST, SDK) <= {"host/wasman_host/wake.py"}


def test_one_room_knows_wasmtime() -> None:
    users = importers("wasmtime", HOST, SDK)
    assert {str(Path(user).parent) for user in users} == {"host/wasman_host/guest"}, users


def test_only_the_stores_know_sqlite() -> None:
    users = importers("sqlite3", HOST, SDK) - {"wasman_sdk/cli/doctor.py"}  # which says its version
    assert {str(Path(user).parent) for user in users} == {"host/wasman_host/store"}
