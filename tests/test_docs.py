"""The code blocks of README.md and docs/ are executed, and what they print is what the page shows."""

from pathlib import Path

import pytest

from tests.doc_pages import ROOT, PageError, blocks_of, run_page, steps_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.once
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path) -> None:
    run_page(str(page), page.read_text("utf-8"), tmp_path)


# The rest proves that the above is able to fail.


def fenced(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```", ""])


def page(*parts: str) -> str:
    return "\n".join(parts)


PRINTS = "<!-- prints -->"
HELLO = fenced("python", "print('hello')")


@pytest.mark.parametrize(
    ("source", "steps"),
    [
        (page("prose", "", "`inline`"), 0),
        (fenced("python", "x = 1"), 1),
        (page(HELLO, PRINTS, fenced("text", "hello")), 1),
        (page(HELLO, "It prints:", "", PRINTS, "", fenced("text", "hello")), 1),
        (page(HELLO, PRINTS, fenced("text", "h...o")), 1),
        (page(fenced("python", "x = 1"), fenced("python", "assert x == 1")), 2),
        (page(fenced("python", "x = 1"), "<!-- new -->", fenced("python", "assert 'x' not in globals()")), 2),
        (fenced("python", "import sys", "assert sys.modules['__main__'].__dict__ is globals()"), 1),
        (fenced("python", "assert __name__ == '__main__'"), 1),
        (page("- a list", "", "  ```python", "  if True:", "      x = 1", "  ```"), 1),
        (fenced("text", "a drawing"), 0),
        (page("<!-- not run: it takes a day -->", fenced("bash", "make everything")), 0),
        (page("<!-- not run: it takes a day -->", fenced("python", "1 / 0")), 0),
        (page("<!-- a comment: of the author's -->", "prose", HELLO, PRINTS, fenced("text", "hello")), 1),
        (fenced("console", "$ echo one; echo two >&2", "one", "two", "$ echo three \\", "four", "three four"), 2),
        (page("<!-- exits: 3 -->", fenced("console", "$ exit 3")), 1),
        (page("<!-- file: five.py -->", fenced("python", "print(5)"), fenced("console", "$ python five.py", "5")), 2),
        (page("<!-- file: six.py -->", fenced("python", "SIX = 6"), fenced("python", "from six import SIX")), 2),
        (page("<!-- from: LICENSE -->", fenced("go", "MIT License")), 0),
    ],
)
def test_right_page(source: str, steps: int, tmp_path: Path) -> None:
    assert run_page("page.md", source, tmp_path) == steps


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (fenced("", "what is this"), "page.md:2: this block names no language"),
        (page("", "```python", "x = 1"), "page.md:2: this block is never closed"),
        (fenced("bash", "rm -rf x"), "page.md:2: a bash block is not run here"),
        (page("<!-- not run -->", fenced("bash", "x")), "page.md:3: the mark 'not run' wants a value"),
        (page("<!-- not run: -->", fenced("bash", "x")), "page.md:3: the mark 'not run' wants a value"),
        (page("<!-- new: 1 -->", fenced("python", "x")), "page.md:3: the mark 'new' has no value"),
        (page("<!-- prnts -->", fenced("text", "x")), "page.md:3: unknown mark 'prnts'"),
        (page(PRINTS, fenced("python", "x")), "page.md:3: the mark 'prints' says nothing of a python block"),
        (page("<!-- not run: x -->", "<!-- new -->", fenced("python", "x")), "exclude each other: not run, new"),
        (page(PRINTS, fenced("text", "x")), "page.md:3: `prints` stands behind a python block"),
        (page(HELLO, fenced("text", "x"), PRINTS, fenced("text", "hello")), "page.md:11: `prints` stands behind"),
        (fenced("console", "wasman list"), "page.md:2: a console block begins with a command"),
        (page("<!-- file: five.py -->", fenced("python", "print(5)")), "page.md:3: no later block of the page uses"),
        (page("<!-- from: missing.go -->", fenced("go", "x")), "page.md:3: taken from missing.go, which is not there"),
        (page("<!-- from: LICENSE -->", fenced("go", "GPL")), "page.md:3: LICENSE no longer contains these lines"),
    ],
)
def test_page_that_says_too_little(source: str, message: str) -> None:
    with pytest.raises(PageError) as caught:
        steps_of("page.md", source, ROOT)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (page(HELLO, PRINTS, fenced("text", "bye")), "page.md:2: the page shows\n  bye\nbut printed was\n  hello"),
        (HELLO, "page.md:2: the page shows\n  nothing\nbut printed was\n  hello"),
        (page(fenced("python", "x = 1"), PRINTS, fenced("text", "1")), "the page shows\n  1\nbut printed was\n  no"),
        (page("", "", fenced("python", "x = 1", "1 / 0")), 'File "page.md", line 5, in <module>'),
        (fenced("python", "raise SystemExit(0)"), "SystemExit: 0"),
        (fenced("python", "import warnings", "warnings.warn('old')"), "UserWarning: old"),
        (fenced("python", "import os", "os._exit(0)"), "page.md:2: this block did not end"),
        (fenced("console", "$ echo one", "$ echo two", "too"), "page.md:2: the page shows\n  nothing"),
        (fenced("console", "$ echo one", "one", "$ echo two", "too"), "page.md:4: the page shows\n  too"),
        (fenced("console", "$ exit 3"), "exit status 3, not 0"),
        (page("<!-- exits: 3 -->", fenced("console", "$ true")), "exit status 0, not 3"),
    ],
)
def test_page_that_shows_what_is_not_so(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PageError) as caught:
        run_page("page.md", source, tmp_path)
    assert message in str(caught.value)


def test_page_that_does_not_end(tmp_path: Path) -> None:
    source = page(fenced("python", "x = 1"), fenced("python", "import time", "time.sleep(600)"))
    with pytest.raises(PageError, match=r"page\.md:6: this block did not end"):
        run_page("page.md", source, tmp_path, timeout=2)


def test_block_knows_its_place() -> None:
    (block,) = blocks_of("page.md", page("prose", "", "<!-- new -->", "", "~~~~python title=x", "```", "~~~", "~~~~"))
    assert (block.line, block.language, block.text, block.marks) == (6, "python", "```\n~~~\n", {"new": ""})
