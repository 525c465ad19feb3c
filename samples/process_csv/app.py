"""The application: what goes into the workflow and comes out of it, its activity, and its worker.

Copy this file to begin your own.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from wasman_sdk import ActivityInfo, Client, Session, Sink, Source, Worker, Workflow, activity

__all__ = [
    "Batch",
    "Column",
    "CsvSession",
    "Ledger",
    "Options",
    "Report",
    "flights_options",
    "make_worker",
    "process_csv",
    "process_csv_plain",
    "record_batch",
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Model):
    """One column of the output.

    Attributes:
        name: In the CSV's header, and in the output.
        type: What its values are; others are reported in the line's "error" and are null.
        null: The text that means null, or None where none does.
        sum: Whether it is summed up; of integers and decimals only.
    """

    name: str
    type: Literal["string", "integer", "decimal", "email"] = "string"
    null: str | None = None
    sum: bool = False


class Options(_Model):
    """What the guest computes on.

    Attributes:
        columns: In the order of the output; columns that are not named are dropped.
        batch_rows: Rows from one call of the activity, and one checkpoint, to the next.
        activity: Called once a batch.
    """

    columns: list[Column] = Field(min_length=1)
    batch_rows: PositiveInt = 5000
    activity: str = "record_batch"


class Batch(_Model):
    """What the guest reports after each batch.

    Attributes:
        batch: Counted from 1.
        first_row: Counted from 1.
        rows: How many.
        invalid: How many of them have an error.
        sums: By column; exact, so the JSON has them as strings.
    """

    batch: PositiveInt
    first_row: PositiveInt
    rows: PositiveInt
    invalid: NonNegativeInt
    sums: dict[str, Decimal]


class Report(_Model):
    """What the run gives: the totals."""

    rows: NonNegativeInt
    invalid: NonNegativeInt
    batches: NonNegativeInt
    sums: dict[str, Decimal]


class CsvSession(Session):
    """Where the rows come from and the lines go to: the host's business, not the guest's."""

    source: Source
    target: Sink


process_csv = Workflow("process-csv", Options, Report, module=Path(__file__).parent / "process_csv.wasm")
process_csv_plain = Workflow("process-csv-plain", Options, Report, module=Path(__file__).parent / "plain.wasm")


# fmt: off
_FLIGHTS = (
    "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay",
    "carrier", "flight", "tailnum", "origin", "dest", "air_time", "distance", "hour", "minute", "time_hour",
)
# fmt: on
_TEXTS = {"carrier", "tailnum", "origin", "dest", "time_hour"}
_SUMS = {"air_time", "distance"}


def flights_options(batch_rows: int = 5000) -> Options:
    """Options for flights.csv, all 19 columns of it: what it does not know is "NA"."""
    columns = [
        Column(name=name, type="string" if name in _TEXTS else "integer", null="NA", sum=name in _SUMS)
        for name in _FLIGHTS
    ]
    return Options(columns=columns, batch_rows=batch_rows)


class Ledger:
    """Stands for the system that your own activities change: a database of its own that knows nothing of wasman.

    A batch is unique by its idempotency key, so a repeated attempt changes nothing. Attempts are counted apart.
    """

    def __init__(self, path: Path) -> None:
        """Make the ledger at `path`, unless it is there."""
        self.path = path
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.executescript(
                """
                pragma journal_mode = wal;
                create table if not exists batch (
                    key text primary key, batch integer, first_row integer, rows integer, invalid integer, sums text
                ) strict;
                create table if not exists attempt (key text, attempt integer, started text) strict;
                """
            )

    def record(self, batch: Batch, info: ActivityInfo) -> None:
        """Enter the batch, unless it is there already."""
        sums = json.dumps({name: str(value) for name, value in batch.sums.items()})
        attempt = (info.idempotency_key, info.attempt, info.started.isoformat())
        row = (info.idempotency_key, batch.batch, batch.first_row, batch.rows, batch.invalid, sums)
        with contextlib.closing(sqlite3.connect(self.path)) as database, database:
            database.execute("insert into attempt values (?, ?, ?)", attempt)
            database.execute("insert into batch values (?, ?, ?, ?, ?, ?) on conflict (key) do nothing", row)


@activity
def record_batch(batch: Batch, ledger: Ledger) -> None:
    """Enter one batch into the ledger: the worker's own, injected by its type."""
    ledger.record(batch, activity.info())


def make_worker(client: Client | str = "sqlite:///wasman.db", ledger: Ledger | Path = Path("ledger.db")) -> Worker:
    """A worker that runs the pipeline.

    Args:
        client: The client beside which it works, or its store's URL.
        ledger: Where `record_batch` enters what it is given, or the file for it.
    """
    resource = Ledger(ledger) if isinstance(ledger, Path) else ledger
    return Worker(client, workflows=[process_csv, process_csv_plain], activities=[record_batch], resources=[resource])
