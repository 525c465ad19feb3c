"""The workflow `order`, and the activities that its guest calls."""

import sqlite3
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from attrs import frozen
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from wasman_sdk import ActivityInfo, ApplicationError, RetryPolicy, Workflow, activity

__all__ = ["ACTIVITIES", "Bank", "Charge", "Fulfilment", "Ledger", "Line", "Order", "order"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Line(_Model):
    """So many pieces of something."""

    sku: Annotated[str, Field(min_length=1, max_length=40)]
    quantity: PositiveInt
    cents: Annotated[PositiveInt, Field(description="The price of one piece.")]


class Order(_Model):
    """What a run of the workflow is started with."""

    card: Annotated[str, Field(pattern=r"^\d{4}$", description="The last four digits.")]
    lines: Annotated[list[Line], Field(min_length=1, max_length=100)]


class Charge(_Model):
    """What the guest asks the bank for."""

    card: str
    cents: int


class Fulfilment(_Model):
    """What a run gives."""

    cents: int
    receipt: str
    tracking: str


order = Workflow("order", Order, Fulfilment, module=Path(__file__).with_name("order.wasm"))


class Ledger:
    """What was done in the world, once for each key. It stands in for warehouse, bank and carrier."""

    def __init__(self, path: Path | str) -> None:
        """Opens or makes the file."""
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False)
        self._database.execute("create table if not exists done (key text primary key, what, of, calls)")

    def close(self) -> None:
        """It is not used any more."""
        self._database.close()

    def once(self, info: ActivityInfo, of: str) -> str:
        """Note what this attempt does, unless an attempt before it has; gives a number for it, the same each time."""
        with self._lock, self._database as database:
            row = (info.idempotency_key, info.name, of)
            database.execute("insert into done values (?, ?, ?, 1) on conflict do update set calls = calls + 1", row)
            query = "select rowid from done where key = ?"
            (number,) = database.execute(query, (info.idempotency_key,)).fetchone()
        return f"{info.name}-{number}"

    def done(self) -> list[tuple[str, str, int]]:
        """All that was done, in order: (what, of what, how often it was asked for under its key)."""
        with self._lock:
            return self._database.execute("select what, of, calls from done order by rowid").fetchall()


@frozen
class Bank:
    """How the bank behaves: so many seconds a charge."""

    seconds: float = 0.0


@activity
def reserve(line: Line, ledger: Ledger, info: ActivityInfo) -> str:
    """Put goods aside."""
    if line.sku.startswith("gone"):
        raise ApplicationError(f"there is no {line.sku} left", type="OutOfStock", non_retryable=True)
    return ledger.once(info, f"{line.quantity} {line.sku}")


@activity(
    retry=RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_attempts=4),
    start_to_close_timeout=timedelta(minutes=1),
)
def charge(asked: Charge, ledger: Ledger, bank: Bank, info: ActivityInfo) -> str:
    """Ask the bank for money: it takes its time, and is cancelled where the run is."""
    if asked.card == "0000":
        raise ApplicationError("the bank refuses the card", type="CardDeclined", non_retryable=True)
    if activity.wait_for_cancelled_sync(timedelta(seconds=bank.seconds)):
        raise ApplicationError("nobody wants it any more", type="Abandoned", non_retryable=True)
    return ledger.once(info, f"{asked.cents} cents of {asked.card}")


@activity
def ship(reservations: list[str], ledger: Ledger, info: ActivityInfo) -> str:
    """Give the goods to the carrier."""
    return ledger.once(info, ", ".join(reservations))


@activity
def release(reservation: str, ledger: Ledger, info: ActivityInfo) -> None:
    """Put goods back."""
    ledger.once(info, reservation)


@activity
def refund(receipt: str, ledger: Ledger, info: ActivityInfo) -> None:
    """Give money back."""
    ledger.once(info, receipt)


ACTIVITIES: tuple[Callable[..., object], ...] = (reserve, charge, ship, release, refund)
