"""The code blocks of a documentation page: found, checked for their marks, run, and compared with what the page shows.

What an author writes is described in docs/contributing.md ("Code blocks"). In short: a `python` block is executed and
a `console` block's `$ ` lines are run, in the page's order and in one temporary folder; `text` is shown only; whatever
else there is names the file that it was taken from, or says why it is not run. Marks are HTML comments right above.

One child process runs a page (this file as a program), so examples have a `__main__` of their own, as a reader's would.
"""

import contextlib
import doctest
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300.0  # seconds for all blocks of one page

COMMENT = re.compile(r"\s*<!--\s*(?P<name>[\w ]+?)\s*(?::\s*(?P<value>.*?)\s*)?-->\s*")
FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[^\s`]*).*")
# The marks of a block, and whether each says something behind a colon.
MARKS = {"new": False, "prints": False, "file": True, "from": True, "not run": True, "exits": True}
ALLOWED = {
    "python": {"new", "file", "from", "not run"},
    "console": {"not run", "exits"},
    "text": {"prints", "file", "from"},
}
ALLOWED_ELSE = {"file", "from", "not run"}


class PageError(Exception):
    """A block that its page does not say enough about, or that does not do what the page shows."""


@attrs.frozen
class Block:
    """A fenced code block and the marks above it; `line` is its first line of code, counted from 1."""

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str]

    def error(self, message: str) -> PageError:
        return PageError(f"{self.page}:{self.line}: {message}")


@attrs.frozen
class Step:
    """One thing to do with a page. `shown` is what the page says it prints, or None if it shows nothing."""

    kind: str  # python, console, file
    page: str
    line: int
    text: str
    new: bool = False
    name: str = ""
    status: int = 0
    shown: str | None = None


def blocks_of(page: str, source: str) -> Iterator[Block]:
    """Every fenced block of `source`, with the marks that stand above it (blank lines between them do not matter)."""
    lines = iter(enumerate(source.splitlines(), start=1))
    marks: dict[str, str] = {}
    for number, line in lines:
        if comment := COMMENT.fullmatch(line):
            marks[comment["name"]] = comment["value"] or ""
        elif (fence := FENCE.fullmatch(line)) is None:
            marks = marks if not line.strip() else {}
        else:
            code = []
            for _, inner in lines:
                if inner.strip().startswith(fence["fence"]) and not inner.strip().strip(fence["fence"][0]):
                    break
                code.append(inner.removeprefix(fence["indent"]))
            else:
                raise PageError(f"{page}:{number}: this block is never closed")
            text = "".join(f"{inner}\n" for inner in code)
            block = Block(page, number + 1, fence["language"], text, marks)
            check_marks(block)
            yield block
            marks = {}


def check_marks(block: Block) -> None:
    """Raises PageError if the block's language is missing, or its marks are unknown, empty or at odds with it."""
    if not block.language:
        raise block.error("this block names no language; `text` is for what is only shown")
    for mark, value in block.marks.items():
        if mark not in MARKS:
            raise block.error(f"unknown mark {mark!r}, known are {', '.join(MARKS)}")
        if MARKS[mark] != bool(value):
            wanted = "wants a value behind a colon" if MARKS[mark] else "has no value"
            raise block.error(f"the mark {mark!r} {wanted}")
        if mark not in ALLOWED.get(block.language, ALLOWED_ELSE):
            raise block.error(f"the mark {mark!r} says nothing of a {block.language} block")
    if len(block.marks.keys() & {"new", "file", "from", "not run"}) > 1:
        raise block.error(f"marks that exclude each other: {', '.join(block.marks)}")
    if block.language not in ALLOWED and not block.marks:
        raise block.error(
            f"a {block.language} block is not run here: say where it comes from (`from`, `file`) or why not (`not run`)"
        )


def steps_of(page: str, source: str, root: Path) -> list[Step]:
    """What is to be done with the page's blocks, in order. Excerpts of files under `root` are compared at once."""
    steps: list[Step] = []
    printer: Step | None = None  # the block that a `prints` right behind it belongs to
    for block in blocks_of(page, source):
        previous, printer = printer, None
        if "prints" in block.marks:
            if previous is None:
                raise block.error("`prints` stands behind a python block that is run, and nothing is there")
            steps[-1] = attrs.evolve(previous, shown=block.text)
        elif "from" in block.marks:
            check_excerpt(block, root)
        elif "file" in block.marks:
            steps.append(Step("file", page, block.line, block.text, name=block.marks["file"]))
        elif "not run" in block.marks:
            continue
        elif block.language == "python":
            printer = Step("python", page, block.line, block.text, new="new" in block.marks)
            steps.append(printer)
        elif block.language == "console":
            steps.extend(commands_of(block))
    check_files_used(steps)
    return steps


def commands_of(block: Block) -> Iterator[Step]:
    """The commands of a console block, each with what it is shown to print."""
    status = int(block.marks.get("exits", "0"))
    if not block.text.startswith("$ "):
        raise block.error("a console block begins with a command, `$ ...`")
    for match in re.finditer(r"^\$ (?P<command>(?:.*\\\n)*.*\n)(?P<shown>(?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
        line = block.line + block.text[: match.start()].count("\n")
        yield Step("console", block.page, line, match["command"], status=status, shown=match["shown"])


def check_excerpt(block: Block, root: Path) -> None:
    """Raises PageError unless the block stands, line by line, in the file that it says it was taken from."""
    file = root / block.marks["from"]
    if not file.is_file():
        raise block.error(f"taken from {block.marks['from']}, which is not there")
    source, wanted = ([line.strip() for line in text.splitlines()] for text in (file.read_text("utf-8"), block.text))
    if not any(source[start : start + len(wanted)] == wanted for start in range(len(source))):
        raise block.error(f"{block.marks['from']} no longer contains these lines")


def check_files_used(steps: list[Step]) -> None:
    """Raises PageError for a file that no later block names: it would be code that nothing runs."""
    for position, step in enumerate(steps):
        if step.kind == "file" and not any(Path(step.name).stem in later.text for later in steps[position + 1 :]):
            raise PageError(f"{step.page}:{step.line}: no later block of the page uses the file {step.name}")


def run_page(page: str, source: str, folder: Path, *, root: Path = ROOT, timeout: float = TIMEOUT) -> int:
    """Runs the page's blocks in `folder`; gives how many there were, raises PageError at the first that is wrong."""
    steps = steps_of(page, source, root)
    outcomes = folder / ".outcomes"
    # What the page's commands start is what was installed beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    try:
        child = subprocess.run(
            [sys.executable, "-W", "error", __file__, str(outcomes)],
            input=json.dumps([attrs.asdict(step) for step in steps]),
            cwd=folder,
            env={
                **os.environ,
                "PATH": path,
                "CHECKOUT": str(root),
                "COLUMNS": "120",
                "NO_COLOR": "1",
                "PYTHONUTF8": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        tail = child.stdout
    except subprocess.TimeoutExpired:
        tail = f"nothing more happened within {timeout:.0f} seconds"
    done = [json.loads(line) for line in outcomes.read_text("utf-8").splitlines()] if outcomes.exists() else []
    for step, outcome in zip(steps, done, strict=False):
        compare(step, outcome["output"], outcome["error"])
    if len(done) < len(steps):
        step = steps[len(done)]
        raise PageError(f"{step.page}:{step.line}: this block did not end\n{tail}")
    return len(steps)


def compare(step: Step, output: str, error: str) -> None:
    """Raises PageError unless the step went well and printed what the page shows; `...` stands for anything."""
    where = f"{step.page}:{step.line}"
    if error:
        raise PageError(f"{where}: this block failed\n{textwrap.indent(output + error, '  ')}")
    shown, printed = trimmed(step.shown or ""), trimmed(output)
    flags = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1 | doctest.DONT_ACCEPT_BLANKLINE
    if not doctest.OutputChecker().check_output(shown, printed, flags):
        shown = shown or "nothing\n"
        printed = printed or "nothing\n"
        page_says = textwrap.indent(shown, "  ")
        raise PageError(f"{where}: the page shows\n{page_says}but printed was\n{textwrap.indent(printed, '  ')}")


def trimmed(text: str) -> str:
    """`text` without blanks at the ends of lines and without blank lines at its end."""
    return "".join(f"{line.rstrip()}\n" for line in text.rstrip().splitlines())


def run_steps(steps: list[Step], outcomes: Path) -> None:
    """The child's part: does the steps until one fails, writing a line of JSON for each."""
    main = new_main()
    for step in steps:
        if step.kind == "file":
            Path(step.name).parent.mkdir(parents=True, exist_ok=True)
            Path(step.name).write_text(step.text, encoding="utf-8")
            output, error = "", ""
        elif step.kind == "console":
            output, error = run_command(step)
        else:
            main = new_main() if step.new else main
            output, error = run_python(step, main)
        with outcomes.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"output": output, "error": error}) + "\n")
        if error:
            return


def new_main() -> types.ModuleType:
    """A fresh `__main__`: what examples define can be looked up there, as in a script."""
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    return main


def run_python(step: Step, main: types.ModuleType) -> tuple[str, str]:
    """Executes a block and gives what it printed and the traceback if it raised; line numbers are the page's."""
    output = io.StringIO()
    try:
        code = compile("\n" * (step.line - 1) + step.text, step.page, "exec", dont_inherit=True)
        with contextlib.redirect_stdout(output):
            exec(code, main.__dict__)  # noqa: S102 the page's examples are this repository's own code
    except BaseException:  # noqa: BLE001 an example may also leave by SystemExit; the parent reports whatever it was
        return output.getvalue(), traceback.format_exc()
    return output.getvalue(), ""


def run_command(step: Step) -> tuple[str, str]:
    """Runs a command line by the shell and gives what it printed, stderr included, and a complaint about its status."""
    run = subprocess.run(
        ["sh", "-c", step.text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if run.returncode != step.status:
        return run.stdout, f"exit status {run.returncode}, not {step.status}"
    return run.stdout, ""


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # noqa: PTH109 as a string: files that the page writes can be imported
    run_steps([Step(**fields) for fields in json.load(sys.stdin)], Path(sys.argv[1]))
