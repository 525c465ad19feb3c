"""docs/reference.md is what the docstrings say, and says something of every public name."""

import ast
import re

import pytest

import wasman_sdk
from tools import reference
from wasman_sdk import testing

pytestmark = pytest.mark.once


def test_the_page_is_what_the_docstrings_say() -> None:
    assert reference.PAGE.read_text("utf-8") == reference.page(), "`make docs` makes it anew"


def test_every_public_name_has_its_heading_once() -> None:
    headings = re.findall(r"^### (\w+)$", reference.PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted([*(set(wasman_sdk.__all__) - {"errors"}), *testing.__all__])


def test_groups_name_what_there_is() -> None:
    named = [name for names in reference.GROUPS.values() for name in names]
    assert set(named) <= set(wasman_sdk.__all__)
    assert len(named) == len(set(named))


DOC = """\
One.

    code: here

Args:
    id: What, and
        more.
    **rest: Others.

Returns:
    It.

End."""
MARKDOWN = """\
One.

    code: here

**Parameters**

- `id`: What, and
  more.
- `**rest`: Others.

**Returns**

It.

End.
"""


def test_sections_become_lists_and_the_rest_stays() -> None:
    assert reference.prose(DOC) == MARKDOWN


def test_signatures_are_as_they_are_written() -> None:
    (node,) = ast.parse("async def f(self, a: int, /, b=None, *c: str, d: bool = True, **e: int) -> int: ...").body
    assert isinstance(node, ast.AsyncFunctionDef)
    assert list(reference.signature("f", node)) == [
        "await f(a: int, b = None, *c: str, d: bool = True, **e: int) -> int"
    ]
