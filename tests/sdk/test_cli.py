"""The command `wasman`, as a shell sees it: what it prints where, its exit codes, and its errors read aloud."""

import json
import os
import pty
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from wasman_sdk import Limits

pytestmark = pytest.mark.once  # a process for each command, and not much in it that a version of Python could change

ROOT = Path(__file__).resolve().parents[2]

APP = f"""
import anyio
from pathlib import Path
from pydantic import BaseModel
from wasmtime import wat2wasm
from wasman_sdk import Client, FileSource, Limits, RetryPolicy, Session, Sink, Source, Worker, Workflow, activity

MODULE = Path({str(ROOT)!r}) / "tests/guests/sdk_tour.wasm"

class Given(BaseModel):
    names: list[str] = []
    copy_: bool = False
    fail: str = ""

class Greeting(BaseModel):
    name: str

class Report(BaseModel):
    greetings: list[str]
    errors: list[str]

class Remark(Session):
    remark: str

class Token(Session):
    token: str

class Reads(Session):
    source: Source

@activity(retry=RetryPolicy(maximum_attempts=2, initial_interval="PT0.01S"))
async def greet(greeting: Greeting) -> str:
    attempt = activity.info().attempt
    with Path("begun").open("a") as file:
        file.write(f"{{attempt}}\\n")
    while Path("gate").exists():
        await anyio.sleep(0.01)
    if not greeting.name:
        raise ValueError("nobody has no name")
    return f"Hello {{greeting.name}} at attempt {{attempt}}"

tour = Workflow("tour", Given, Report, module=MODULE)
raw = Workflow("raw", Given, bytes, module=MODULE)
copying = Workflow("copying", dict, Report, module=MODULE)
small = Workflow("small", Given, Report, module=MODULE, limits=Limits(memory=65536))
trapping = Workflow(
    "trapping", type(None), int,
    module=bytes(wat2wasm('(module (memory (export "memory") 1) (func (export "run") unreachable))')),
)

def worker(url: str) -> Worker:
    return Worker(url, workflows=[tour, raw, copying, small], activities=[greet])

def elsewhere() -> Worker:
    return Worker("sqlite:///elsewhere.db", activities=[greet])

def idle(url: str) -> Worker:
    return Worker(url)

fixed = Worker("sqlite:///fixed.db", workflows=[tour], activities=[greet])
beside = Worker(Client.connect("sqlite:///beside.db"), workflows=[tour], activities=[greet])
passing = Worker("memory://", workflows=[tour], activities=[greet])

async def later(url: str) -> Worker:
    return worker(url)

def greedy(url: str, more: int) -> Worker:
    return worker(url)
"""

BARE = """
from pathlib import Path
from wasman_sdk import Workflow
import app

tour = Workflow("tour", app.Given, app.Report, module=app.MODULE)
"""


# Runs many commands in one process, where nothing but their outcome matters; starting one takes most of a second.
BATCH = """
import contextlib, io, json, sys
from wasman_sdk.cli import main

for sys.argv in json.loads(sys.stdin.read()):
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as exit:
            code = exit.code
    print(json.dumps([code, output.getvalue(), errors.getvalue()]))
"""


class Shell:
    """A working directory with an application in it, and the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "app.py").write_text(APP)
        (folder / "bare.py").write_text(BARE)
        (folder / "broken.py").write_text("import app\n\napp.nothing\n")
        self.environment = {**os.environ, "PYTHONPATH": "", "PYTHONUTF8": "1"}
        for name in ("WASMAN_STORE", "COLUMNS"):
            self.environment.pop(name, None)

    def start(self, *words: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "wasman_sdk", *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def __call__(self, *words: str, code: int = 0) -> tuple[str, str]:
        """(stdout, stderr) of a command that ends with `code`."""
        child = self.start(*words)
        try:
            output, errors = child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            raise AssertionError(f"{words} does not end: {child.communicate()}") from None
        assert child.returncode == code, (child.returncode, output, errors)
        assert "Traceback" not in errors
        return output, errors

    def refused(self, code: int, *words: str) -> str:
        """The one line that a command says before it ends with `code`."""
        output, errors = self(*words, code=code)
        assert output == ""
        assert errors.startswith("wasman: ")
        assert errors.count("\n") == 1
        return errors.removeprefix("wasman: ").removesuffix("\n")

    def batch(self, *commands: Sequence[str]) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each command."""
        child = subprocess.run(
            [sys.executable, "-W", "error", "-c", BATCH],
            input=json.dumps([["wasman", *words] for words in commands]),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return [tuple(json.loads(line)) for line in child.stdout.splitlines()]

    def shown(self, id_: str, *words: str) -> dict[str, Any]:
        described = json.loads(self("show", id_, "--json", *words)[0])
        assert isinstance(described, dict)
        return described


@pytest.fixture
def wasman(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


# run


def test_run_prints_the_result_and_nothing_else(wasman: Shell) -> None:
    output, errors = wasman("run", "app:tour", "--id", "one", "--input", '{"names": ["Ada"]}')
    assert (output, errors) == ('{"greetings":["Hello Ada at attempt 1"],"errors":[]}\n', "")
    assert (wasman.folder / "wasman.db").is_file()  # the default store
    raw, _ = wasman("run", "app:raw", "--id", "raw", "--input", "{}")  # bytes, as the guest gave them
    assert re.fullmatch(r'\{"greetings":\[\],"errors":\[\],"bytes":0,"session":null,"nanos":\d+\}', raw)


def test_input_may_be_a_file_or_absent(wasman: Shell) -> None:
    (wasman.folder / "given.json").write_text('{"names": ["Grace"]}')
    assert "Hello Grace" in wasman("run", "app:tour", "--id", "one", "--input", "@given.json")[0]
    assert wasman.refused(2, "run", "app:tour", "--id", "two") == ("the input does not fit: Input should be an object")
    assert wasman.refused(2, "run", "app:tour", "--id", "two", "--input", "@nothing.json") == (
        "the input cannot be read from nothing.json: No such file or directory"
    )


def test_taken_id_is_refused_or_attached_to(wasman: Shell) -> None:
    first, _ = wasman("run", "app:tour", "--id", "one", "--input", '{"names": ["Ada"]}')
    refusal = wasman.refused(4, "run", "app:tour", "--id", "one", "--input", '{"names": ["Grace"]}')
    assert re.fullmatch(
        r"workflow id 'one' is taken by run [0-9a-f]{32}, which has ended \(completed\), and the start says "
        r"reject_duplicate; use another id, or its handle "
        r"\(--attach goes on with the one that is there\)",
        refusal,
    )
    assert wasman("run", "app:tour", "--id", "one", "--attach")[0] == first
    assert wasman.refused(2, "run", "app:small", "--id", "one", "--input", "{}", "--attach") == (
        "'one' is an instance of workflow 'tour', not of 'small'"
    )


def test_failed_run(wasman: Shell) -> None:
    line = wasman.refused(1, "run", "app:tour", "--id", "one", "--input", '{"fail": "the\\u001b[31m reason"}')
    assert re.fullmatch(r"run [0-9a-f]{32} of 'one' failed: Requested: the\\x1b\[31m reason", line)


def test_trap_is_shown_with_its_backtrace(wasman: Shell) -> None:
    line = wasman.refused(1, "run", "app:trapping", "--id", "one")
    assert line.endswith(" of 'one' failed: GuestTrap: wasm trap: wasm `unreachable` instruction executed")
    assert re.search(r"\nbacktrace +0: ", wasman("show", "one")[0])
    assert "0:" in wasman.shown("one")["backtrace"]


def test_failed_activity_is_told_on_stderr(wasman: Shell) -> None:
    output, errors = wasman("run", "app:tour", "--id", "one", "--input", '{"names": [""]}')
    assert json.loads(output)["errors"] == ["greet failed at attempt 2: ValueError: nobody has no name"]
    assert errors.count("WARNING wasman.instance: attempt") == 2


def test_terminated_run(wasman: Shell) -> None:
    (wasman.folder / "gate").touch()
    child = wasman.start("run", "app:tour", "--id", "one", "--input", '{"names": ["Ada"]}')
    wait_for((wasman.folder / "begun").exists)
    output, _ = wasman("terminate", "one", "--reason", "not needed any more")
    assert output == "one is to be terminated, by the worker that has it or the next one that runs\n"
    output, errors = child.communicate(timeout=30)
    assert (child.returncode, output) == (1, "")
    assert re.fullmatch(r"wasman: run [0-9a-f]{32} of 'one' was terminated: not needed any more\n", errors)
    assert wasman.refused(4, "terminate", "one", "--reason", "again") == (
        "one has ended already (terminated), so it cannot be terminated"
    )
    assert wasman.shown("one")["log"][-1]["kind"] == "terminate"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_run_is_left_by_a_signal_and_gone_on_with(wasman: Shell, number: int, code: int) -> None:
    (wasman.folder / "gate").touch()
    words = ("run", "app:tour", "--id", "one", "--input", '{"names": ["Ada"]}')
    child = wasman.start(*words)
    wait_for((wasman.folder / "begun").exists)
    child.send_signal(number)
    output, errors = child.communicate(timeout=30)
    assert (child.returncode, output) == (code, "")
    assert errors == "wasman: left one, which is not done; the same command with --attach goes on\n"
    assert wasman.shown("one")["owner"] is None
    (wasman.folder / "gate").unlink()
    assert "Hello Ada at attempt 1" in wasman(*words, "--attach")[0]


def test_progress_is_for_terminals(wasman: Shell) -> None:
    (wasman.folder / "gate").touch()
    master, slave = pty.openpty()
    child = wasman.start("run", "app:tour", "--id", "one", "--input", '{"names": ["Ada"]}', stderr=slave)
    os.close(slave)
    wait_for((wasman.folder / "begun").exists)
    time.sleep(1)
    (wasman.folder / "gate").unlink()
    output, _ = child.communicate(timeout=30)
    assert json.loads(output)["greetings"] == ["Hello Ada at attempt 1"]
    assert b"one: running, 1 log entries" in os.read(master, 65536)
    os.close(master)


def test_run_without_a_worker_waits_for_one_elsewhere(wasman: Shell) -> None:
    child = wasman.start("run", "bare:tour", "--id", "one", "--input", '{"names": ["Ada"]}')
    wait_for(lambda: (wasman.folder / "wasman.db").exists() and wasman("list", "--prefix", "one")[0].count("\n") == 2)
    worker = wasman.start("worker", "app:worker")
    output, errors = child.communicate(timeout=30)
    assert "Hello Ada" in output
    assert errors == "wasman: no worker runs here; waiting for one elsewhere (--worker names one)\n"
    worker.terminate()
    worker.communicate(timeout=30)


def test_run_says_which_activity_is_missing(wasman: Shell) -> None:
    child = wasman.start("run", "app:tour", "--id", "one", "--input", '{"names": ["Ada"]}', "--worker", "app:idle")
    assert child.stderr is not None
    said = child.stderr.readline() + child.stderr.readline()
    assert "activity 'greet' is registered with no worker that has seen it; start one that has it" in said
    pending = wasman.shown("one")["pending"]
    assert [one["name"] for one in pending] == ["greet"]
    assert "pending     greet, 0 attempts begun, next at " in wasman("show", "one")[0]
    child.terminate()
    child.communicate(timeout=30)


@pytest.mark.parametrize("name", ["app:fixed", "app:beside", "app:passing"])
def test_worker_that_brings_its_store(wasman: Shell, name: str) -> None:
    words = ("run", "app:tour", "--id", "one", "--input", "{}", "--worker", name)
    assert wasman(*words)[0] == '{"greetings":[],"errors":[]}\n'
    assert not (wasman.folder / "wasman.db").exists()
    wasman.environment["WASMAN_STORE"] = "sqlite:///other.db"
    assert wasman.refused(2, *words).endswith(
        ", and --store or WASMAN_STORE says sqlite:///other.db; make it a function that takes the URL, or say none"
    )


def test_tenants_are_apart(wasman: Shell) -> None:
    wasman("run", "app:tour", "--id", "one", "--input", "{}", "--tenant", "blue")
    assert wasman.refused(4, "show", "one") == "there is no instance 'one' in this store"
    assert wasman.shown("one", "--tenant", "blue")["status"] == "completed"
    assert wasman("list", "--json")[0] == "[]\n"


def test_session(wasman: Shell) -> None:
    secret = "xyzzy-9"
    words = ["run", "app:tour", "--input", "{}", "--session", json.dumps({"remark": secret}), "--id"]
    assert wasman.refused(2, *words, "one") == "--session and --session-type MODULE:CLASS come together"
    assert wasman.refused(2, *words, "one", "--session-type", "app:Given") == "'app:Given' is no Session class"
    line = wasman.refused(2, *words, "one", "--session-type", "app:Reads")
    assert line == "the session does not fit: source: Field required (and 1 more)"
    token = ["run", "app:tour", "--input", "{}", "--session", json.dumps({"token": secret}), "--id", "two"]
    line = wasman.refused(2, *token, "--session-type", "app:Token")
    assert line.startswith("the session's 'token' is called as credentials are")
    assert secret not in line
    wasman(*words, "one", "--session-type", "app:Remark")
    for look in (["show", "one"], ["show", "one", "--json"], ["list"], ["list", "--json"]):
        assert secret not in wasman(*look)[0]
    assert [event["kind"] for event in wasman.shown("one")["log"]] == ["start", "session"]


# blocked, and unblock


def test_blocked_run_and_the_limit_that_unblocks_it(wasman: Shell) -> None:
    run = ("run", "app:small", "--id", "one", "--input", '{"names": ["Ada"]}')
    _, errors = wasman(*run, code=3)
    *_, last = errors.splitlines()
    assert last.startswith("wasman: one is blocked: the module wants ")
    assert last.endswith(
        " bytes of memory to begin with and the instance may have 65,536; raise the limit and unblock "
        "(wasman unblock one --memory BYTES)"
    )
    assert wasman.shown("one")["status"] == "blocked"
    assert (
        "limits      memory 65,536 bytes, tables 1,000,000 elements, stack 524,288 bytes, turn 10 s, "
        in (wasman("show", "one")[0])
    )

    _, errors = wasman(*run, "--attach", code=3)
    assert errors.splitlines()[-1] == last
    output, _ = wasman("unblock", "one", "--memory", "33554432", "--turn-seconds", "2.5", "--response", "100000")
    assert output == "one goes on from where it stands, as soon as a worker claims it\n"
    assert wasman.shown("one")["limits"] == {
        "memory": 33554432,
        "table_elements": 1_000_000,
        "stack": 524288,
        "turn_seconds": 2.5,
        "stored": 1073741824,
        "request": 16777216,
        "response": 100000,
        "signals": 1000,
    }
    assert wasman.refused(2, "unblock", "one") == "one is running, not blocked"
    assert "Hello Ada" in wasman(*run, "--attach")[0]
    assert wasman.refused(4, "unblock", "one") == "one has ended (completed), so there is nothing to unblock"


def test_blocked_run_whose_cause_is_mended(wasman: Shell) -> None:
    source, away = wasman.folder / "source", wasman.folder / "away"
    source.write_text("text")
    session = json.dumps({"source": {"type": "file", "path": "source"}})
    (wasman.folder / "gate").touch()
    run = ("run", "app:copying", "--id", "one", "--input", '{"names": ["Ada"], "copy": true}')
    given = ("--session", session, "--session-type", "app:Reads")
    child = wasman.start(*run, *given)
    wait_for((wasman.folder / "begun").exists)
    source.rename(away)
    (wasman.folder / "gate").unlink()
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 3
    assert errors.splitlines()[-1].endswith(
        "source cannot be opened (No such file or directory); put it back, then unblock"
    )
    away.rename(source)
    wasman("unblock", "one")
    line = wasman("run", "app:copying", "--id", "one", "--attach", code=1)[1].splitlines()[-1]
    assert (
        "the session has no single sink" in line
    )  # it went on behind the source: the rest is this guest's own failure


# list and show


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Three instances to look at."""
    wasman = Shell(tmp_path_factory.mktemp("cli"))
    wasman("run", "app:tour", "--id", "shop-1", "--input", '{"names": ["Ada", ""]}')
    wasman("run", "app:tour", "--id", "shop-2", "--input", '{"fail": "why"}', code=1)
    wasman("run", "app:small", "--id", "other", "--input", "{}", code=3)
    return wasman


def ids(output: str) -> list[str]:
    return [row["id"] for row in json.loads(output)]


def test_list_is_a_table(looked_at: Shell) -> None:
    output, errors = looked_at("list")
    head, *rows = output.splitlines()
    assert head.split() == ["ID", "WORKFLOW", "STATUS", "STARTED", "ENDED", "LOG", "REASON"]
    assert [row.split()[:3] for row in rows] == [
        ["other", "small", "blocked"],
        ["shop-2", "tour", "failed"],
        ["shop-1", "tour", "completed"],
    ]
    assert rows[0].endswith("(wasman unblock other --memory BYTES)")  # nothing is cut off in a pipe
    assert rows[1].endswith("  Requested: why")
    assert errors == ""


def test_list_is_filtered(looked_at: Shell) -> None:
    filters: tuple[list[str], ...] = (
        [],
        ["--status", "failed", "--status", "blocked"],
        ["--workflow", "small"],
        ["--prefix", "shop-"],
        ["--limit", "1"],
    )
    outcomes = looked_at.batch(*(["list", "--json", *words] for words in filters))
    assert [ids(output) for _, output, _ in outcomes] == [
        ["other", "shop-2", "shop-1"],
        ["other", "shop-2"],
        ["other"],
        ["shop-2", "shop-1"],
        ["other"],
    ]
    assert [errors for _, _, errors in outcomes[:-1]] == [""] * 4
    assert outcomes[-1][2] == "wasman: there are more than these 1; --limit shows more\n"


def test_show(looked_at: Shell) -> None:
    output, _ = looked_at("show", "shop-1")
    fields, _, log = output.partition("\n\n")
    assert [line.split()[0] for line in fields.splitlines()] == [
        *("id", "run", "workflow", "module", "status", "started", "ended", "limits")
    ]
    assert [line.split()[0::2] for line in log.splitlines()[1:3]] == [["0", "start"], ["1", "result", "greet"]]
    assert log.splitlines()[3].endswith(
        "failed          1  greet      0  ValueError: nobody has no name (activity 'greet', attempt 2)"
    )
    described = looked_at.shown("shop-1")
    assert (described["status"], described["log_entries"], described["snapshots"]) == ("completed", 3, 0)
    assert [(one["kind"], one["operation"], one["name"]) for one in described["log"]] == [
        ("start", None, ""),
        ("result", 0, "greet"),
        ("failed", 1, "greet"),
    ]


def test_show_of_a_long_log(wasman: Shell) -> None:
    wasman("run", "app:tour", "--id", "one", "--input", json.dumps({"names": ["Ada"] * 25}))
    output, _ = wasman("show", "one")
    assert output.endswith("\n6 earlier entries are not shown; --all shows them\n")
    assert output.count("greet") == 20
    assert wasman("show", "one", "--all")[0].count("greet") == 25
    assert len(wasman.shown("one")["log"]) == 26


def test_limits_of_the_default_are_those_of_the_sdk(looked_at: Shell) -> None:
    assert Limits(**looked_at.shown("shop-1")["limits"]) == Limits()


# Errors, read aloud


ERRORS = [
    ("show nope", 4, "there is no instance 'nope' in this store"),
    ("show a/b", 2, "the workflow id 'a/b' holds '/'; ids hold no '/', no '..' and no control characters"),
    ("show ''", 2, "a workflow id is a non-empty string, not ''"),
    ("terminate nope --reason x", 4, "there is no instance 'nope' in this store"),
    ("unblock nope", 4, "there is no instance 'nope' in this store"),
    (
        "list --store memory://",
        2,
        "memory:// lives and ends with one process, so there is nothing to look at from another",
    ),
    (
        "list --store postgres://me:secret@host/db",
        2,
        (
            "'postgres://me:***@host/db' names no store: "
            "use sqlite:///relative.db, sqlite:////absolute/path.db, file://relative/folder, file:///absolute/folder "
            "or memory://"
        ),
    ),
    ("worker app", 2, "'app' names nothing: write module:attribute, such as app:worker"),
    ("worker app:nope", 2, "'app:nope' names nothing: 'app' has no attribute 'nope'"),
    ("worker nope:app", 2, "there is no module 'nope' in the working directory or on the path"),
    (
        "worker broken:app",
        2,
        "'broken' cannot be imported: AttributeError: module 'app' has no attribute 'nothing' (broken.py, line 3)",
    ),
    ("worker app:tour", 2, "'app:tour' gives a Workflow, not a Worker"),
    ("worker app:Given", 2, "'app:Given' gives a Given, not a Worker"),
    ("worker app:later", 2, "'app:later' is async; what makes a worker is a plain function"),
    (
        "worker app:greedy",
        2,
        "'app:greedy' takes 2 arguments; what makes a worker takes the store's URL, or nothing",
    ),
    ("run app:greet --id x", 2, "'app:greet' is a function, not a Workflow"),
    (
        "run app:tour --id x --input '{'",
        2,
        "the input does not fit: Invalid JSON: EOF while parsing an object at line 1 column 1",
    ),
    (
        """run app:tour --id x --input '{"names": [1]}'""",
        2,
        "the input does not fit: names.0: Input should be a valid string",
    ),
    (
        "run bare:tour --id x --input {} --store memory://",
        2,
        "memory:// needs a worker in this process: name one by --worker",
    ),
    (
        "run app:tour --id .. --input {}",
        2,
        "the workflow id '..' holds '..'; ids hold no '/', no '..' and no control characters",
    ),
]


def test_every_error_is_one_line(looked_at: Shell) -> None:
    outcomes = looked_at.batch(*(shlex.split(words) for words, _, _ in ERRORS))
    for (words, code, line), outcome in zip(ERRORS, outcomes, strict=True):
        assert (words, *outcome) == (words, code, "", f"wasman: {line}\n")


@pytest.mark.parametrize(("url", "name"), [("sqlite:///typo.db", "typo.db"), ("file://typo", "typo")])
def test_looking_makes_no_store(wasman: Shell, url: str, name: str) -> None:
    place = wasman.folder / name
    for words in (["list"], ["show", "x"], ["terminate", "x", "--reason", "y"], ["unblock", "x"]):
        line = wasman.refused(4, *words, "--store", url)
        assert line == f"there is no store {place}; name another by --store or WASMAN_STORE"
    assert not place.exists()


def test_a_folder_as_the_store(wasman: Shell) -> None:
    wasman.environment["WASMAN_STORE"] = "file://store"
    for name in ("one", "two"):
        assert wasman("run", "app:tour", "--id", name, "--input", "{}")[0] == '{"greetings":[],"errors":[]}\n'
    assert wasman.shown("one")["status"] == "completed"
    (wasman.folder / "store" / "i" / "default" / "one" / "rec").write_bytes(b"dear reader")
    rows = {row["id"]: row["status"] for row in json.loads(wasman("list", "--json")[0])}
    assert rows == {"one": "blocked", "two": "completed"}
    line = wasman.refused(4, "show", "one")
    assert line.startswith(f"the instance one in {wasman.folder / 'store'}: ")
    assert "restore it from a backup" in line
    (wasman.folder / "elsewhere").mkdir()
    (wasman.folder / "elsewhere" / "letter.txt").write_text("dear reader")
    line = wasman.refused(4, "list", "--store", "file://elsewhere")
    assert line.startswith(f"{wasman.folder / 'elsewhere'} is the folder of another program (letter.txt is in it)")


def test_store_that_is_none(wasman: Shell) -> None:
    (wasman.folder / "other.db").write_bytes(b"no database " * 1000)
    wasman.environment["WASMAN_STORE"] = "sqlite:///other.db"
    line = f"{wasman.folder / 'other.db'} is the file of another program: give the store a file of its own"
    assert wasman.refused(4, "list") == line
    assert wasman.refused(4, "worker", "app:worker") == line
    assert wasman.refused(4, "run", "app:tour", "--id", "x", "--input", "{}", "--store", "sqlite:///no/where.db") == (
        f"the store {wasman.folder / 'no/where.db'} cannot be opened: its folder must exist and be writable, and it "
        f"must be a file (SQLite: unable to open database file)"
    )


def test_damaged_log_is_shown_as_such(wasman: Shell) -> None:
    wasman("run", "app:tour", "--id", "one", "--input", '{"names": ["Ada"]}')
    with closing(sqlite3.connect(wasman.folder / "wasman.db")) as database, database:
        database.execute("delete from log where n = 1")
    output, errors = wasman("show", "one", code=4)
    assert "status      completed" in output
    assert re.fullmatch(
        r"wasman: the log cannot be read: the log of run [0-9a-f]{32} of one holds 1 entries from 0 on, not the 2 that "
        r"its record was written over; restore it from a backup, then unblock\n",
        errors,
    )
    output, _ = wasman("show", "one", "--json", code=4)
    assert json.loads(output)["log"] is None
    with closing(sqlite3.connect(wasman.folder / "wasman.db")) as database, database:
        row = "(select number from instance where id = 'one')"
        database.execute(f"update record set data = zeroblob(100) where instance = {row}")  # noqa: S608  the test's own
    output, errors = wasman("show", "one", code=4)
    assert "status      blocked" in output
    assert errors.endswith(" does not begin as a sealed gzip member; restore it from a backup, then unblock\n")
    assert "blocked" in wasman("list")[0]


def test_usage_and_version(wasman: Shell) -> None:
    assert re.fullmatch(r"wasman \d+\.\d+\.\d+\n", wasman("--version")[0])
    commands = ("list", "run", "show", "terminate", "unblock", "worker")
    [(_, output, _), *outcomes] = wasman.batch(["--help"], *([command, "--help"] for command in commands))
    for command, (code, usage, _) in zip(commands, outcomes, strict=True):
        assert f"\n  {command} " in output
        assert code == 0
        assert usage.startswith(f"Usage: wasman {command} ")
    assert "Missing option '--reason'" in wasman("terminate", "x", code=2)[1]
    assert "'bogus' is not one of 'running'" in wasman("list", "--status", "bogus", code=2)[1]


# worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_leaves_in_order(wasman: Shell, number: int) -> None:
    assert life_of_two_workers(wasman, number) == "Hello Ada at attempt 1"


def test_worker_that_is_killed_counts_as_an_attempt(wasman: Shell) -> None:
    assert life_of_two_workers(wasman, signal.SIGKILL) == "Hello Ada at attempt 2"


def life_of_two_workers(wasman: Shell, number: int) -> str:
    """What the workflow gives whose first worker is ended by a signal in the middle of its activity."""
    (wasman.folder / "gate").touch()
    waiting = wasman.start("run", "bare:tour", "--id", "one", "--input", '{"names": ["Ada"]}')
    first = wasman.start("worker", "app:worker")
    wait_for((wasman.folder / "begun").exists)
    first.send_signal(number)
    output, errors = first.communicate(timeout=30)
    assert output == ""
    if number == signal.SIGKILL:
        assert first.returncode == -number
    else:
        assert first.returncode == 0
        assert f"INFO wasman.worker: worker leaves on {signal.Signals(number).name}\n" in errors
        assert wasman.shown("one")["owner"] is None
    (wasman.folder / "gate").unlink()
    second = wasman.start("worker", "app:worker", "--quiet")
    result, _ = waiting.communicate(timeout=30)
    second.terminate()
    assert second.communicate(timeout=30) == ("", "")
    assert second.returncode == 0
    greeting = json.loads(result)["greetings"][0]
    assert isinstance(greeting, str)
    return greeting
