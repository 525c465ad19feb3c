"""See it survive: flights.csv goes through a workflow whose worker is killed with SIGKILL again and again.

    python -m samples.process_csv.demo             its guest is in steps
    python -m samples.process_csv.demo --plain     its guest is one loop

The worker is a subprocess (demo_worker.py). It is killed at rows that a seed draws, once while an activity runs, and
once between the sink's sync and the commit of the checkpoint. After each kill another worker takes over; the row where
its guest goes on must be above 0 and at most one checkpoint before the furthest row that was ever reached. In the end
an independent computation (verify.py) judges the output, the totals and the ledger, and an undisturbed run must have
written the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream
from attrs import define, field, frozen
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from samples.process_csv.app import CsvSession, flights_options, process_csv, process_csv_plain
from samples.process_csv.demo_worker import Plan
from wasman_sdk import Client, FileSink, FileSource, WorkflowHandle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from samples.process_csv.app import Options, Report
    from wasman_sdk import Workflow

ROOT = Path(__file__).resolve().parents[2]
FLIGHTS = ROOT / ".cache" / "flights.csv"
VERIFY = Path(__file__).with_name("verify.py")
BATCH_ROWS = 5000

_LOOK = 0.002  # seconds between two looks at the output: how exactly a kill hits its row
_DESCRIBE = 0.5  # seconds between two looks at how the run stands
_LINES = 5.0  # seconds between two lines of progress, where there is no terminal
_STALLED = 60.0  # seconds without a new row after which something is wrong

Place = Literal["anywhere", "inside", "commit"]
PLACES: dict[Place, str] = {
    "anywhere": "at a random moment",
    "inside": "inside the activity",
    "commit": "between sync and commit",
}


class DemoError(Exception):
    """Something did not survive."""


@frozen
class Kill:
    """One kill: when the guest has reached `row`, or at the end of the batch that holds it."""

    row: int
    place: Place

    @property
    def batch(self) -> int:
        """The batch that holds the row."""
        return (self.row - 1) // BATCH_ROWS + 1

    def plan(self, rows: int) -> dict[str, int]:
        """What the worker must know of it, in a run over so many rows; see `Plan`."""
        last = (rows - 1) // BATCH_ROWS + 1
        if self.place == "anywhere":
            return {"late": min(self.batch + 1, last)}
        # A guest in plain Go ends with the answer to its last batch: no checkpoint comes behind that.
        return {self.place: min(self.batch, last - 1) if self.place == "commit" else self.batch}


def draw_kills(seed: int, rows: int, anywhere: int) -> list[Kill]:
    """`anywhere` kills at any row and one of each other kind, over 5 to 95 % of the rows, two batches apart.

    Raises:
        DemoError: There are too few rows.
    """
    draw = random.Random(seed)
    apart = 2 * BATCH_ROWS
    first, last = max(rows * 5 // 100, BATCH_ROWS + 1), rows * 95 // 100
    places: list[Place] = ["anywhere"] * anywhere
    places += ["inside", "commit"]
    room = last - first - apart * (len(places) - 1)
    if room < 0:
        message = f"{rows:,} rows are too few for {len(places)} kills"
        raise DemoError(message)
    draw.shuffle(places)
    drawn = sorted(draw.randint(first, first + room) for _ in places)
    return [Kill(row + n * apart, place) for n, (row, place) in enumerate(zip(drawn, places, strict=True))]


class Display:
    """Lines, and on a terminal the progress below them."""

    def __init__(self, rows: int) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self.rows, self._begun, self._restarts = rows, time.monotonic(), 0
        columns = "[progress.percentage]{task.percentage:>3.0f} %", "{task.completed:>9,} rows", "{task.fields[rest]}"
        self._progress = Progress(
            BarColumn(), *map(TextColumn, columns), console=self._console, transient=True, auto_refresh=False
        )
        self._task = self._progress.add_task("", total=rows, rest="")
        self._next = 0.0

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Show the progress of a run."""
        self._begun, self._restarts = time.monotonic(), 0
        self._next = self._begun + (0 if self._console.is_terminal else _LINES)
        self._progress.reset(self._task)
        with self._progress if self._console.is_terminal else contextlib.nullcontext():
            yield

    def restarted(self) -> None:
        """Another worker takes over."""
        self._restarts += 1

    def line(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def moved(self, rows: int, size: int) -> None:
        """The furthest row, and bytes of output up to there."""
        now = time.monotonic()
        if now < self._next:
            return
        seconds = now - self._begun
        rest = f"{size / 1e6 / seconds:6.1f} MB/s  {self._restarts} restarts"
        if self._console.is_terminal:
            self._next = now + 0.05
            self._progress.update(self._task, completed=rows, rest=rest, refresh=True)
        else:
            self._next = now + _LINES
            self.line(f"  {rows:>9,} rows  {rest}")


@define
class Output:
    """What there is of the output, seen from outside: whole lines in the part beside the target, then in the target."""

    target: Path
    rows: int = 0
    size: int = 0

    def look(self) -> int:
        """Count the lines that have come since the last look; all of them."""
        path = next(self.target.parent.glob(f"{self.target.name}.*.part"), self.target)
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(self.size)
            while piece := file.read(1 << 20):
                self.rows += piece.count(b"\n")
                self.size += len(piece)
        return self.rows


@define
class Life:
    """One life of a worker: its process, and what it has told."""

    process: anyio.abc.Process
    restored: int | None = None  # the first log entry that the checkpoint it restored does not contain
    stopped: bool = False
    late: bool = False
    ends: dict[int, int] = field(factory=dict)  # the last row of each batch that the guest has called for

    async def listen(self) -> None:
        """Take what it tells, to the end."""
        assert self.process.stdout is not None, "its stdout is a pipe"
        lines = BufferedByteReceiveStream(self.process.stdout)
        with contextlib.suppress(anyio.IncompleteRead):
            while True:
                told = json.loads(await lines.receive_until(b"\n", 1000))
                match told["event"]:
                    case "restored":
                        self.restored = told["entry"]
                    case "batch":
                        self.ends[told["batch"]] = told["row"]
                    case other:
                        self.stopped, self.late = True, other == "late"


@contextlib.asynccontextmanager
async def worker(plan: Plan, log: Path) -> AsyncIterator[Life]:
    """A worker in a process of its own; when it is left, all that it has told is known."""
    command = [sys.executable, "-m", "samples.process_csv.demo_worker", plan.model_dump_json()]
    with log.open("ab") as file:
        process = await anyio.open_process(command, stdin=subprocess.PIPE, stderr=file, cwd=ROOT)
    async with process, anyio.create_task_group() as tasks:
        life = Life(process)
        tasks.start_soon(life.listen)
        try:
            yield life
        finally:
            if process.returncode is None:
                process.kill()  # only where something went wrong: it has ended otherwise


class Run:
    """One run of the workflow, in a folder of its own."""

    def __init__(
        self, folder: Path, flights: Path, display: Display, form: Workflow[Options, Report] = process_csv
    ) -> None:
        folder.mkdir(parents=True)
        self._form = form
        self.folder = folder
        self.target = folder / "flights.ndjson"
        self._flights, self._display = flights, display
        self._output = Output(self.target)
        self._ends = {0: 0}  # the last row of each batch
        self._furthest = 0

    async def survive(self, kills: list[Kill]) -> Report:
        """From the start to the result, through all the kills.

        Raises:
            DemoError: It did not survive one of them.
        """
        session = CsvSession(source=FileSource(path=self._flights), target=FileSink(path=self.target))
        async with Client.connect(f"sqlite:///{self.folder}/wasman.db") as client:
            options = flights_options(BATCH_ROWS)
            handle = await client.start_workflow(self._form, options, id="flights", session=session)
            with self._display.live():
                killed = ""
                for number, kill in enumerate(kills, 1):
                    killed = f"SIGKILL {number} at row {await self._life(handle, killed, kill)}"
                await self._life(handle, killed, None)
            return await handle.result()

    async def _life(self, handle: WorkflowHandle[Report], killed: str, kill: Kill | None) -> str:
        """One life of a worker, up to its kill or the end of the run.

        Args:
            handle: The run.
            killed: How the worker before it was killed, "" for the first one.
            kill: How this one is killed.

        Returns:
            Where it was killed, in words.
        """
        files = {"store": self.folder / "wasman.db", "ledger": self.folder / "ledger.db"}
        plan = Plan(**files, **(kill.plan(self._display.rows) if kill else {}))
        begun = time.monotonic()
        async with worker(plan, self.folder / "worker.log") as life:
            if killed:
                await self._until(handle, life, lambda: life.restored is not None)
                resumed = self._resumed(life)
                seconds = time.monotonic() - begun
                self._display.line(f"{killed:<52}  resumed at row {resumed:>7,} after {seconds:.1f} s")
            if kill is None:
                await self._until(handle, life, self.target.exists)
                await handle.result()
                life.process.terminate()
            elif kill.place == "commit":
                await self._until(handle, life, lambda: life.stopped)  # it kills itself
            else:
                anywhere, row = kill.place == "anywhere", kill.row
                await self._until(handle, life, lambda: life.stopped or (anywhere and self._output.look() >= row))
                life.process.kill()
            status = await life.process.wait()
        if status != (-signal.SIGKILL if kill else 0):
            message = f"a worker ended with status {status}; see {self.folder}/worker.log"
            raise DemoError(message)
        self._ends.update(life.ends)
        self._furthest = max(self._output.look(), *self._ends.values())
        self._display.moved(self._furthest, self._output.size)
        place = PLACES[kill.place if not life.late else "inside"] if kill else ""
        return f"{self._furthest:>7,}, {place}"

    def _resumed(self, life: Life) -> int:
        """The row up to which the restored guest had everything.

        Log entry n is the answer to batch n. A guest in steps is kept behind it, before it begins the next batch; one
        in plain Go when it has called for the next one.
        """
        assert life.restored is not None, "it was waited for"
        batch = life.restored if self._form is process_csv_plain else max(life.restored - 1, 0)
        row = self._ends.get(batch, min(batch * BATCH_ROWS, self._display.rows))
        if not row or row < self._furthest - BATCH_ROWS:
            message = (
                f"the guest went on at row {row:,}, and must at row {max(1, self._furthest - BATCH_ROWS):,} at least: "
                f"row {self._furthest:,} was reached before"
            )
            raise DemoError(message)
        self._display.restarted()
        return row

    async def _until(self, handle: WorkflowHandle[Report], life: Life, reached: Callable[[], bool]) -> None:
        """Wait, with an eye on progress.

        Raises:
            DemoError: It will not be reached any more.
        """
        rows, moved, looked = -1, time.monotonic(), time.monotonic()
        while not reached():
            await anyio.sleep(_LOOK)
            now = time.monotonic()
            if self._output.look() != rows:
                rows, moved = self._output.rows, now
                self._display.moved(rows, self._output.size)
            if now - looked < _DESCRIBE and life.process.returncode is None:
                continue
            looked = now
            found = await handle.describe()
            gone = life.process.returncode is not None and not life.stopped
            stands = found.status not in {"running", "publishing", "completed"}
            if not reached() and (gone or stands or now - moved > _STALLED):
                message = f"the run is {found.status} at row {rows:,} {found.reason}; see {self.folder}/worker.log"
                raise DemoError(message)


def attempts_of(ledger: Path, batch: int) -> int:
    """How often the activity was begun for a batch."""
    with contextlib.closing(sqlite3.connect(ledger)) as database:
        query = "select count(*) from attempt join batch using (key) where batch = ?"
        return int(database.execute(query, (batch,)).fetchone()[0])


def digest_of(file: Path) -> str:
    """sha256, in hex."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


async def demonstrate(
    folder: Path, flights: Path, size: int, rows: int, seed: int, kills: int, form: Workflow[Options, Report]
) -> bool:
    """All of it; whether everything survived.

    Raises:
        DemoError: Something did not.
    """
    drawn = draw_kills(seed, rows, kills)
    display = Display(rows)
    display.line(f"{rows:,} rows, {size / 1e6:.1f} MB of CSV; an activity and a checkpoint every {BATCH_ROWS:,} rows")
    begun = time.monotonic()
    undisturbed = Run(folder / "undisturbed", flights, display, form)
    await undisturbed.survive([])
    display.line(f"Undisturbed: {time.monotonic() - begun:.1f} s. Now with {len(drawn)} kills, by seed {seed}:")

    begun = time.monotonic()
    killed = Run(folder / "killed", flights, display, form)
    report = await killed.survive(drawn)
    display.line(f"Done after {time.monotonic() - begun:.1f} s and {len(drawn)} kills. Computed anew, without wasman:")

    result, ledger = killed.folder / "report.json", killed.folder / "ledger.db"
    result.write_text(report.model_dump_json(), "utf-8")
    command = [sys.executable, "-I", str(VERIFY), str(flights), str(killed.target), str(ledger), str(result)]
    verdict = await anyio.run_process(command, check=False, stderr=None)
    display.line(verdict.stdout.decode().rstrip("\n"))
    same = digest_of(killed.target) == digest_of(undisturbed.target)
    display.line(f"  {'ok' if same else 'FAILED'}  the undisturbed run wrote {'the same' if same else 'other'} bytes")
    (inside,) = (kill.batch for kill in drawn if kill.place == "inside")
    attempts = attempts_of(ledger, inside)
    display.line(f"  {'ok' if attempts > 1 else 'FAILED'}  the killed call, batch {inside}, began {attempts} times")
    return verdict.returncode == 0 and same and attempts > 1


def cut(flights: Path, rows: int, target: Path) -> Path:
    """The first rows, as a file of their own."""
    with flights.open("rb") as source, target.open("wb") as file:
        file.writelines(itertools.islice(source, rows + 1))
    return target


def _first(error: BaseException) -> BaseException:
    """The error itself, out of the groups that task groups make."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def main() -> int:
    """Show it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m samples.process_csv.demo", description="See it survive.")
    parser.add_argument("--seed", type=int, help="where it is killed; printed, so that a run can be repeated")
    parser.add_argument("--kills", type=int, default=5, help="besides the two at particular places (default: 5)")
    parser.add_argument("--rows", type=int, help="only so many of the rows")
    parser.add_argument("--flights", type=Path, default=FLIGHTS, help="the CSV (default: %(default)s)")
    parser.add_argument("--plain", action="store_true", help="the guest in plain Go, not the one in steps")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make everything in this new folder, and keep it")
    given = parser.parse_args()
    if not given.flights.exists():
        print(f"{given.flights} is missing; `make demo` fetches it", file=sys.stderr)
        return 1
    seed = secrets.randbelow(1 << 32) if given.seed is None else given.seed
    if given.keep is None:
        folder = Path(tempfile.mkdtemp(prefix="wasman-demo-"))
    else:
        folder = given.keep.absolute()
        folder.mkdir(parents=True)
    flights = given.flights.absolute() if given.rows is None else cut(given.flights, given.rows, folder / "flights.csv")
    with flights.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        rows = sum(piece.count(b"\n") for piece in iter(partial(file.read, 1 << 20), b"")) - 1
    form = process_csv_plain if given.plain else process_csv
    survived = interrupted = False
    try:
        survived = anyio.run(demonstrate, folder, flights, size, rows, seed, given.kills, form)
    except* DemoError as errors:
        print(f"FAILED: {_first(errors)}", file=sys.stderr)
    except* KeyboardInterrupt:
        interrupted = True
    if not survived and not interrupted:
        print(f"It did not end well; repeat it by --seed {seed}. Everything is kept in {folder}", file=sys.stderr)
    elif given.keep is None:
        shutil.rmtree(folder)
    return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
