"""A subscription: a bill a month until somebody ends it. The plan may change; between two bills it costs a row."""

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel

from wasman_sdk import Signal, Workflow, activity

__all__ = ["END", "PLAN", "SUBSCRIPTION", "Bill", "Plan", "Subscription", "Summary", "charge"]


class Subscription(BaseModel):
    """Who pays how much, from when on."""

    customer: str
    cents: int
    from_: datetime

    model_config = {"alias_generator": lambda name: name.rstrip("_"), "populate_by_name": True}


class Bill(BaseModel):
    """One month of it."""

    customer: str
    number: int
    cents: int
    due: datetime


class Plan(BaseModel):
    """What is paid from the next bill on."""

    cents: int


class Summary(BaseModel):
    """What it came to."""

    bills: int
    cents: int
    owed: int


@activity
async def charge(bill: Bill) -> None:
    """Where the bank would be asked."""
    print(f"bill {bill.number} of {bill.customer}: {bill.cents} cents, due {bill.due:%Y-%m-%d}")


SUBSCRIPTION = Workflow("subscription", Subscription, Summary, module=Path(__file__).with_name("subscription.wasm"))
PLAN = Signal("plan", Plan)
END = "end"  # the name of a signal that says nothing
