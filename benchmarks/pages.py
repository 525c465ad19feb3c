"""Where figures are kept: JSON in benchmarks/results, and the tables of docs/benchmarks.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ROOT", "keep", "show", "table"]

ROOT = Path(__file__).resolve().parents[1]
_RESULTS = ROOT / "benchmarks" / "results"
_PAGE = ROOT / "docs" / "benchmarks.md"


def keep(name: str, results: Any) -> None:
    """Write `results` as JSON."""
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def show(part: str, text: str) -> None:
    """Put `text` between the page's comments `begin part` and `end part`."""
    begin, end = f"<!-- begin {part}: written by the program -->", f"<!-- end {part}: written by the program -->"
    page = _PAGE.read_text("utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    assert pattern.search(page), f"{_PAGE} has no part {part!r}"
    _PAGE.write_text(pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page), "utf-8")
