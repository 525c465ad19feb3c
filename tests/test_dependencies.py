"""What an installation without the tools of this repository has: only what pyproject.toml says."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.doc_pages import ROOT

COME_ALONG = {"pydantic_core": "pydantic", "typing_extensions": "pydantic"}  # what pydantic itself cannot do without
OPTIONAL = {"http": "httpx", "trio": "trio"}  # by the name of the extra; imported where it is needed
PLUGIN = {"wasman_sdk/testing/plugin.py": {"pytest"}}  # pytest loads it


def imported(source: str) -> set[str]:
    """The top-level packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"wasman_sdk", "wasman_host"}


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None, requirement
    return found[0].lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {name_of(one) for extra in OPTIONAL for one in project["optional-dependencies"][extra]}
    assert extras == set(OPTIONAL.values())
    return {name_of(one) for one in project["dependencies"]} | extras


def modules() -> list[Path]:
    return sorted(path for folder in ("wasman_sdk", "host/wasman_host") for path in (ROOT / folder).rglob("*.py"))


def undeclared(packages: set[str]) -> set[str]:
    distributions, known = packages_distributions(), declared()
    return {
        package
        for package in packages
        if package not in COME_ALONG and not known & {name.lower() for name in distributions.get(package, ())}
    }


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_declared(path: Path) -> None:
    packages = imported(path.read_text("utf-8")) - PLUGIN.get(str(path.relative_to(ROOT)), set())
    assert not undeclared(packages), f"{path.name} imports what pyproject.toml does not name"


def test_what_is_not_declared_is_noticed() -> None:
    assert undeclared(imported("import pytest\nfrom anyio import abc\nimport json\ndef f(): import hypothesis.x")) == {
        "pytest",
        "hypothesis",
    }
