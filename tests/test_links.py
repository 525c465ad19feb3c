"""The links of all pages: each leads somewhere, and the first day's pages are two clicks from the README."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doc_pages import ROOT

pytestmark = pytest.mark.once

README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "guest_sdk" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "samples").glob("*/README.md")),
]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^()\s]+(?:\([^()\s]*\))?)\)")
FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n.*?^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")


def links(source: str) -> list[str]:
    """Where a page's links lead; what only looks like one, in code, is none."""
    return LINK.findall(CODE.sub("``", FENCED.sub("", source)))


def anchors(source: str) -> set[str]:
    """The names of a page's headings, as forges make them, and those that it gives itself."""
    found: dict[str, int] = {}
    names = set(re.findall(r'<a id="([^"]+)">', source))
    for heading in re.findall(r"^#{1,6} (.+)$", FENCED.sub("", source), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip())
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def broken(page: Path, source: str) -> Iterator[str]:
    """What is wrong with the links of `page`."""
    for link in links(source):
        if re.match(r"[a-z]+:", link):
            continue  # elsewhere: tests reach no network
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: there is no such file"
        elif not target.is_relative_to(ROOT):
            yield f"{link}: leads out of the repository"
        elif anchor and anchor not in anchors(source if target == page else target.read_text("utf-8")):
            yield f"{link}: the page has no such heading"


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken(page, page.read_text("utf-8"))) == []


def clicks(pages: set[Path]) -> set[Path]:
    """Where one click leads from these pages; a folder shows its README."""
    found = set()
    for page in pages:
        for link in links(page.read_text("utf-8")) if page.suffix == ".md" else ():
            if not re.match(r"[a-z]+:", link):
                target = (page.parent / link.partition("#")[0]).resolve()
                found.add(target / "README.md" if (target / "README.md").exists() else target)
    return found


@pytest.mark.parametrize("page", PAGES[1:], ids=named)
def test_a_page_is_two_clicks_from_the_readme_at_most(page: Path) -> None:
    first = clicks({README})
    assert page in first | clicks(first)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=named)
def test_the_index_lists_every_page(page: Path) -> None:
    index = ROOT / "docs" / "README.md"
    assert page == index or page in clicks({index})


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("[a](LICENSE) and [b](docs/README.md#documentation) and [c](https://example.org)", []),
        ("# Two words\n\n## Two words\n[a](#two-words) [b](#two-words-1)", []),
        ('<a id="here"></a>\n[a](#here)', []),
        ("`[a](missing)`\n\n```text\n[a](missing)\n```\n", []),
        ("[a](missing.md)", ["missing.md: there is no such file"]),
        ("[a](docs/README.md#nothing)", ["docs/README.md#nothing: the page has no such heading"]),
        ("[a](#nothing)", ["#nothing: the page has no such heading"]),
        ("[a](../..)", ["../..: leads out of the repository"]),
    ],
)
def test_a_broken_link_is_noticed(source: str, wrong: list[str]) -> None:
    assert list(broken(README, source)) == wrong
