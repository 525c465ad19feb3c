import gzip
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from samples.process_csv.app import (
    Column,
    CsvSession,
    Ledger,
    Options,
    Report,
    flights_options,
    make_worker,
    process_csv,
    process_csv_plain,
    record_batch,
)
from samples.process_csv.demo import BATCH_ROWS, DemoError, Display, Kill, Run, draw_kills
from tests.doc_pages import run_page
from wasman_host.instance import Instance
from wasman_sdk import ApplicationError, Client, FileSink, FileSource, Workflow, WorkflowFailedError
from wasman_sdk.testing import WorkflowEnvironment, assert_survives

ROOT = Path(__file__).resolve().parents[2]
VERIFY = ROOT / "samples" / "process_csv" / "verify.py"
GUESTS = ROOT / "tests" / "guests"
ROWS = 30_000

ORDERS = """\
name,email,amount
Ann,ann@example.org,12.50
Bob,not an address,3
"Cid, the third",cid@example.org,abc
Dea,dea@example.org,-0.25
Eve,eve@example.org,100000000000.000001
"""


FORMS = pytest.mark.parametrize("form", [process_csv, process_csv_plain], ids=["steps", "plain"])


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def orders(folder: Path) -> CsvSession:
    (folder / "orders.csv").write_text(ORDERS, "utf-8")
    return CsvSession(source=FileSource(path=folder / "orders.csv"), target=FileSink(path=folder / "orders.ndjson"))


def options(*names: str) -> Options:
    kinds = {"email": Column(name="email", type="email"), "amount": Column(name="amount", type="decimal", sum=True)}
    return Options(columns=[kinds.get(name, Column(name=name)) for name in names], batch_rows=2)


@FORMS
async def test_five_rows_with_an_invalid_email_and_an_invalid_amount(
    form: Workflow[Options, Report], tmp_path: Path, anyio_backend: str
) -> None:
    del anyio_backend  # on asyncio and on trio
    session = orders(tmp_path)
    async with Client.connect(f"sqlite:///{tmp_path}/wasman.db") as client, make_worker(client, tmp_path / "ledger.db"):
        given = options("name", "email", "amount")
        report = await client.execute_workflow(form, given, id="orders", session=session)
    total = Decimal("100000000015.250001")
    assert report == Report(rows=5, invalid=2, batches=3, sums={"amount": total})
    lines = (tmp_path / "orders.ndjson").read_text("utf-8").splitlines()
    assert [json.loads(line, parse_float=Decimal) for line in lines] == [
        {"row": 1, "name": "Ann", "email": "ann@example.org", "amount": Decimal("12.5")},
        {
            "row": 2,
            "name": "Bob",
            "email": None,
            "amount": 3,
            "error": "email: 'not an address' is not an email address",
        },
        {
            "row": 3,
            "name": "Cid, the third",
            "email": "cid@example.org",
            "amount": None,
            "error": "amount: 'abc' is not a decimal",
        },
        {"row": 4, "name": "Dea", "email": "dea@example.org", "amount": Decimal("-0.25")},
        {"row": 5, "name": "Eve", "email": "eve@example.org", "amount": Decimal("100000000000.000001")},
    ]
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger:
        batches = ledger.execute("select batch, first_row, rows, invalid, sums from batch order by batch").fetchall()
        keys = ledger.execute("select count(distinct key), count(*) from attempt").fetchone()
    assert [batch[:4] for batch in batches] == [(1, 1, 2, 1), (2, 3, 2, 1), (3, 5, 1, 0)]
    assert sum(Decimal(json.loads(batch[4])["amount"]) for batch in batches) == total
    assert keys == (3, 3)


@FORMS
async def test_a_missing_column_fails_the_run(
    form: Workflow[Options, Report], tmp_path: Path, anyio_backend: str
) -> None:
    del anyio_backend
    session = orders(tmp_path)
    async with Client.connect(f"sqlite:///{tmp_path}/wasman.db") as client, make_worker(client, tmp_path / "ledger.db"):
        handle = await client.start_workflow(form, options("name", "price"), id="orders", session=session)
        with pytest.raises(WorkflowFailedError, match=r"InvalidCSV.*the header has no column 'price'"):
            await handle.result()
        assert (await handle.describe()).status == "failed"
    assert not [path async for path in anyio.Path(tmp_path).glob("*.ndjson*")], "no output, and no part of one"


def session_of(folder: Path, name: str, text: str | bytes) -> CsvSession:
    (folder / f"{name}.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return CsvSession(source=FileSource(path=folder / f"{name}.csv"), target=FileSink(path=folder / f"{name}.ndjson"))


def entered(ledger: Path) -> list[tuple[Any, ...]]:
    """What the activity has entered, but for its keys; and that each batch was attempted once."""
    with closing(sqlite3.connect(ledger)) as database:
        assert database.execute("select count(*), max(attempt) from attempt").fetchone()[1] == 1
        assert not database.execute("select key from attempt group by key having count(*) > 1").fetchall()
        return database.execute(
            "select key glob '*/' || (batch - 1), batch, first_row, rows, invalid, sums from batch order by batch"
        ).fetchall()


TOO_LONG = 'name,email,amount\n"' + "x" * (2 << 20)


@pytest.mark.parametrize(
    ("text", "given", "type", "message"),
    [
        (ORDERS, options("price"), "InvalidCSV", "the header has no column 'price'"),
        ("name,name\n", options("name"), "InvalidCSV", "the header has column 'name' twice"),
        ("", options("name"), "InvalidCSV", "the CSV is empty: it has no header"),
        (TOO_LONG, options("name"), "InvalidCSV", "row 1 has over 1048576 bytes: perhaps a quote is not closed"),
        (ORDERS, options("name", "name"), "InvalidOptions", "the output would have 'name' twice"),
        (
            ORDERS,
            Options(columns=[Column(name="name", sum=True)]),
            "InvalidOptions",
            "column 'name' is of type string, which has no sum",
        ),
        (ORDERS, Options(columns=[Column(name="name")], activity=""), "InvalidOptions", "the input names no activity"),
    ],
)
async def test_what_is_wrong_is_said_in_the_same_words(
    text: str, given: Options, type: str, message: str, tmp_path: Path, anyio_backend: str
) -> None:
    """Steps say besides in which of them it was."""
    del anyio_backend
    async with WorkflowEnvironment(
        workflows=[process_csv, process_csv_plain],
        activities=[record_batch],
        resources=[Ledger(tmp_path / "ledger.db")],
    ) as env:
        for form in (process_csv, process_csv_plain):
            session = session_of(tmp_path, form.name, text)
            step = r"(open|rows): " if form is process_csv else ""
            with pytest.raises(WorkflowFailedError, match=f" failed: {type}: {step}{re.escape(message)}$"):
                await env.client.execute_workflow(form, given, id=form.name, session=session)
    assert not [path async for path in anyio.Path(tmp_path).glob("*.ndjson*")]


@FORMS
async def test_an_activity_that_fails_for_good_fails_the_run(
    form: Workflow[Options, Report], tmp_path: Path, anyio_backend: str
) -> None:
    del anyio_backend
    ledger = Ledger(tmp_path / "ledger.db")
    async with WorkflowEnvironment(workflows=[form], activities=[record_batch], resources=[ledger]) as env:
        full = ApplicationError("the ledger is full", type="Full", non_retryable=True)
        env.mock_activity(record_batch, raises=full)
        handle = await env.client.start_workflow(form, options("name"), id="orders", session=orders(tmp_path))
        with pytest.raises(WorkflowFailedError, match="record_batch failed at attempt 1: Full: the ledger is full"):
            await handle.result()
        assert len(env.calls(record_batch)) == 1


@pytest.mark.parametrize("batch_rows", [1, 7, 5000])
@pytest.mark.parametrize("size", [1 << 16, (1 << 16) - 1, (1 << 16) + 1, 1 << 17, 5 * (1 << 16) // 2])
async def test_chunks_may_end_anywhere(size: int, batch_rows: int, tmp_path: Path, anyio_backend: str) -> None:
    """Rows of 9 KiB in a file that ends at a chunk's end, before it and behind it: the line of each is as long."""
    del anyio_backend
    header, row = "name\n", "é" * 4500 + "\n"
    count = size // len(row.encode())
    last = "x" * (size - len(header) - (count - 1) * len(row.encode()))
    text = header + row * (count - 1) + last
    assert len(text.encode()) == size
    names = ["é" * 4500] * (count - 1) + [last]
    expected = "".join(f'{{"row":{n},"name":"{name}"}}\n' for n, name in enumerate(names, 1))
    given = Options(columns=[Column(name="name")], batch_rows=batch_rows)
    async with WorkflowEnvironment(
        workflows=[process_csv, process_csv_plain],
        activities=[record_batch],
        resources=[Ledger(tmp_path / "ledger.db")],
    ) as env:
        for form in (process_csv, process_csv_plain):
            session = session_of(tmp_path, form.name, text)
            report = await env.client.execute_workflow(form, given, id=form.name, session=session)
            assert (report.rows, report.batches) == (count, -(-count // batch_rows))
            assert (tmp_path / f"{form.name}.ndjson").read_text("utf-8") == expected


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("form", "evicted"),
    [(process_csv, False), (process_csv_plain, False), (process_csv_plain, True)],
    ids=["steps", "plain", "plain, evicted at every turn"],
)
@pytest.mark.once
async def test_it_survives_a_crash_at_every_commit(
    form: Workflow[Options, Report],
    *,
    evicted: bool,
    tmp_path: Path,
    anyio_backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """150 KB in 3 batches: chunks of input and of output end within batches, and batches within chunks."""
    del anyio_backend
    if evicted:
        keep = Instance.keep

        async def evicting(self: Instance, *given: Any) -> None:
            await keep(self, *given)
            self.close_guest()

        monkeypatch.setattr(Instance, "keeps", lambda *_: True)
        monkeypatch.setattr(Instance, "keep", evicting)
    draw = random.Random(9)
    rows = [f"{draw.randrange(10_000)},{'x' * draw.randrange(6000)}" for _ in range(50)]
    text = "\n".join(["amount,name", *rows])
    given = Options(columns=[Column(name="amount", type="integer", sum=True), Column(name="name")], batch_rows=17)
    lives: list[Path] = []

    def world() -> list[object]:
        lives.append(tmp_path / str(len(lives)))
        lives[-1].mkdir()
        return [Ledger(lives[-1] / "ledger.db")]

    async def program(env: WorkflowEnvironment) -> object:
        session = session_of(lives[-1], "out", text)
        report = await env.client.execute_workflow(form, given, id="it", session=session)
        with closing(sqlite3.connect(lives[-1] / "ledger.db")) as ledger:
            batches = ledger.execute("select * from batch order by batch").fetchall()
        return report, (lives[-1] / "out.ndjson").read_bytes(), batches

    survived = await assert_survives(program, workflows=[form], activities=[record_batch], resources=world)
    assert survived.struck >= 3 * 3  # at least a commit a batch, in three ways
    assert sum("snapshot-" in commit for commit in survived.commits) >= (2 if form is process_csv or evicted else 0)
    names = [row.split(",")[1] for row in rows]
    lines = [json.loads(line)["name"] for line in (lives[0] / "out.ndjson").read_text("utf-8").splitlines()]
    assert lines == names


@pytest.mark.once
def test_the_readme(tmp_path: Path) -> None:
    page = ROOT / "samples" / "process_csv" / "README.md"
    assert run_page(str(page), page.read_text("utf-8"), tmp_path) > 0


# The demo


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows like those of flights.csv; the suite downloads nothing."""
    draw = random.Random(2013)
    lines = [",".join(column.name for column in flights_options().columns)]
    for row in range(ROWS):
        known = draw.random() > 0.03
        times = [draw.randrange(2400) if known else "NA" for _ in range(6)]
        tail = f"N{draw.randrange(100_000)}" if draw.random() > 0.01 else "NA"
        flight = ["UA", draw.randrange(6000), tail, "EWR", draw.choice(["IAH", "LAX", '"São ""Paulo"""'])]
        last = [draw.randrange(20, 700) if known else "NA", draw.randrange(17, 5000), row % 24, row % 60]
        values = [2013, 1 + row % 12, 1 + row % 28, *times, *flight, *last, "2013-01-01T10:00:00Z"]
        lines.append(",".join(map(str, values)))
    path = tmp_path_factory.mktemp("flights") / "flights.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


async def test_both_forms_give_the_same(flights: Path, tmp_path: Path, anyio_backend: str) -> None:
    del anyio_backend
    found = []
    async with Client.connect(f"sqlite:///{tmp_path}/wasman.db") as client:
        for form in (process_csv, process_csv_plain):
            target, ledger = tmp_path / f"{form.name}.ndjson", tmp_path / f"{form.name}.db"
            session = CsvSession(source=FileSource(path=flights), target=FileSink(path=target))
            async with make_worker(client, ledger):
                report = await client.execute_workflow(form, flights_options(), id=form.name, session=session)
            found.append((report, target.read_bytes(), entered(ledger)))
    steps, plain = found
    assert plain == steps
    assert steps[0].rows == ROWS
    assert len(steps[2]) == ROWS // BATCH_ROWS
    assert all(right for right, *_ in steps[2])


def demo(flights: Path, folder: Path, *words: str) -> str:
    """What the demo prints over these rows; `folder` keeps everything else."""
    seed = str(random.SystemRandom().randrange(1 << 32))
    command = [sys.executable, "-m", "samples.process_csv.demo", "--seed", seed, "--kills", "1", *words]
    command += ["--flights", str(flights), "--keep", str(folder)]
    ended = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    sys.stdout.write(ended.stdout)  # with the seed
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def survived(flights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo over these rows: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "kept"
    return folder, demo(flights, folder)


@pytest.mark.once
def test_the_demo_survives_its_kills(survived: tuple[Path, str]) -> None:
    assert all(again < rows for rows, again in kills_of(survived[1]))


@pytest.mark.once
def test_the_demo_survives_its_kills_in_plain_go(flights: Path, tmp_path: Path) -> None:
    kills_of(demo(flights, tmp_path / "kept", "--plain"))


def kills_of(printed: str) -> list[tuple[int, int]]:
    """The row that was reached before each kill, and the one where the guest went on: at most one batch before."""
    found = re.findall(r"^SIGKILL \d at row +([\d,]+), (.*?) +resumed at row +([\d,]+)", printed, re.MULTILINE)
    assert len(found) == 3
    assert {"inside the activity", "between sync and commit"} <= {place for _, place, _ in found}
    assert "FAILED" not in printed
    assert "the undisturbed run wrote the same bytes" in printed
    kills = [(int(reached.replace(",", "")), int(resumed.replace(",", ""))) for reached, _, resumed in found]
    for rows, again in kills:
        assert rows - BATCH_ROWS <= again <= rows
        assert again > 0
    return kills


def flip_a_byte(folder: Path) -> None:
    with (folder / "flights.ndjson").open("r+b") as file:
        file.seek(1_000_003)
        [byte] = file.read(1)
        file.seek(1_000_003)
        file.write(bytes([byte ^ 1]))


def lose_a_line(folder: Path) -> None:
    lines = (folder / "flights.ndjson").read_bytes().splitlines(keepends=True)
    (folder / "flights.ndjson").write_bytes(b"".join(lines[:-1]))


def repeat_a_line(folder: Path) -> None:
    with (folder / "flights.ndjson").open("ab") as file:
        file.write(b"{}\n")


def change_a_total(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text("utf-8"))
    report["sums"]["distance"] = str(int(report["sums"]["distance"]) + 1)
    (folder / "report.json").write_text(json.dumps(report), "utf-8")


def change_the_ledger(*statements: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "ledger.db")) as ledger, ledger:
            for statement in statements:
                ledger.execute(statement)

    return change


@pytest.mark.once
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (None, ""),
        (flip_a_byte, "output"),
        (lose_a_line, "output"),
        (repeat_a_line, "output"),
        (change_a_total, "totals"),
        (change_the_ledger("delete from batch where batch = 2", "delete from attempt where key like '%/1'"), "ledger"),
        (
            change_the_ledger("insert into batch select 'x', batch, first_row, rows, 0, sums from batch limit 1"),
            "ledger",
        ),
        (change_the_ledger("update batch set rows = rows - 1 where batch = 3"), "ledger"),
        (change_the_ledger("delete from attempt where key in (select key from batch where batch = 3)"), "ledger"),
    ],
)
def test_the_judge_can_say_no(
    harm: Callable[[Path], None] | None, said: str, survived: tuple[Path, str], flights: Path, tmp_path: Path
) -> None:
    for name in ("flights.ndjson", "ledger.db", "report.json"):
        shutil.copy(survived[0] / "killed" / name, tmp_path / name)
    if harm is not None:
        harm(tmp_path)
    files = [flights, *(tmp_path / name for name in ("flights.ndjson", "ledger.db", "report.json"))]
    verdict = subprocess.run(
        [sys.executable, "-I", VERIFY, *files], check=False, capture_output=True, text=True, timeout=60
    )
    assert verdict.stderr == ""
    assert re.findall(r"FAILED  (\w+)", verdict.stdout) == ([said] if said else []), verdict.stdout
    assert verdict.returncode == (1 if said else 0)


@FORMS
@pytest.mark.parametrize("entry", range(6))
def test_the_demo_fails_loudly_when_a_guest_goes_on_too_early(
    entry: int, form: Workflow[Options, Report], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", tmp_path, Display(ROWS), form)
    run._ends, run._furthest = {batch: batch * BATCH_ROWS for batch in range(5)}, 4 * BATCH_ROWS
    life: Any = SimpleNamespace(restored=entry)
    batch = entry - 1 if form is process_csv else entry  # one in plain Go is kept with the next call asked for
    if batch >= 3:
        assert run._resumed(life) == batch * BATCH_ROWS
    else:
        with pytest.raises(DemoError, match=r"must at row 15,000 at least: row 20,000 was reached before"):
            run._resumed(life)


def test_kills_are_drawn_over_the_rows() -> None:
    for seed in range(300):
        kills = draw_kills(seed, 336_776, 5)
        assert sorted(kill.place for kill in kills) == [*["anywhere"] * 5, "commit", "inside"]
        assert kills[0].row >= 16_838
        assert kills[-1].row <= 319_937
        assert all(after.row - before.row >= 2 * BATCH_ROWS for before, after in pairwise(kills))
        assert kills == draw_kills(seed, 336_776, 5)
    with pytest.raises(DemoError, match="20,000 rows are too few for 3 kills"):
        draw_kills(1, 20_000, 1)


# Determinism

YEARS = 365 * 24 * 3600 * 1_000_000_000


def lived(store: Path, folder: Path, how: str, *, ahead: int, **environment: str) -> tuple[bytes, dict[str, Any]]:
    """The guest's memory when it has ended, and what else the process told."""
    folder.mkdir()
    given = {"store": str(store), "memory": str(folder / "memory"), "how": how, "ahead": ahead}
    ended = subprocess.run(
        [sys.executable, ROOT / "tests" / "samples" / "last_memory.py", json.dumps(given)],
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return (folder / "memory").read_bytes(), json.loads(ended.stdout)


@pytest.mark.once
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("guest", ["process_csv", "process_csv_plain", "mixed_tinygo", "mixed_go"])
async def test_two_processes_end_with_byte_identical_memory(
    guest: str, flights: Path, tmp_path: Path, anyio_backend: str
) -> None:
    """One process lives the run and the other replays its whole log.

    Run id and deliveries are part of what a guest computes on, so both must have the same: they share the run, in a
    store whose last commit is never made. All else differs: hash seed, time zone, locale, other variables, working
    directory, and the store's clock, which is 10 years ahead for the second. That one must not call an activity, or
    it would not have replayed. A third one restores the last checkpoint, where there is one.
    """
    del anyio_backend
    store = tmp_path / "wasman.db"
    async with Client.connect(f"sqlite:///{store}") as client:
        if guest.startswith("process_csv"):
            session = CsvSession(source=FileSource(path=flights), target=FileSink(path=tmp_path / "out.ndjson"))
            form = process_csv if guest == "process_csv" else process_csv_plain
            await client.start_workflow(form, flights_options(), id="it", session=session)
        else:
            module = gzip.decompress((GUESTS / "mixed_go.wasm.gz").read_bytes())
            if guest == "mixed_tinygo":
                module = (GUESTS / "mixed_tinygo.wasm").read_bytes()
            await client.start_workflow(Workflow(guest, type(None), object, module=module), None, id="it")

    memory, told = lived(store, tmp_path / "1", "live", ahead=0, PYTHONHASHSEED="1", TZ="UTC", LC_ALL="C")
    assert told["calls"] == (ROWS // BATCH_ROWS if guest.startswith("process_csv") else 12)
    with closing(sqlite3.connect(store)) as database:
        database.execute("vacuum into ?", (str(tmp_path / "copy.db"),))

    changed = {"PYTHONHASHSEED": "2", "TZ": "Pacific/Chatham", "LC_ALL": "C.UTF-8", "GOGC": "1", "HOME": "elsewhere"}
    for path, how in ((store, "replayed"), (tmp_path / "copy.db", "restored")):
        again, told_again = lived(path, tmp_path / how, how, ahead=10 * YEARS, **changed)
        assert told_again == {"globals": told["globals"], "calls": 0}, how
        assert len(again) == len(memory)
        pages = [at for at in range(0, len(memory), 4096) if memory[at : at + 4096] != again[at : at + 4096]]
        assert not pages, f"{how}: pages at {pages} of {len(memory)} bytes differ"


def test_a_kill_before_a_commit_is_drawn_where_there_is_one() -> None:
    last = 30_000 // BATCH_ROWS
    assert Kill(28_500, "commit").plan(30_000) == {"commit": last - 1}, "a guest in plain Go ends with its last batch"
    assert Kill(28_500, "inside").plan(30_000) == {"inside": last}
    assert Kill(28_500, "anywhere").plan(30_000) == {"late": last}
