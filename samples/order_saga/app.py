"""An order as a saga: charged, approved by a person within a day, shipped; where that fails, the money goes back.

python -m samples.order_saga.app approve      or: reject
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
from pydantic import BaseModel

from wasman_sdk import Client, Signal, Worker, Workflow, WorkflowFailedError, activity

__all__ = ["ACTIVITIES", "APPROVE", "ORDER", "Approval", "Order", "Receipt", "Shipped", "main"]


class Order(BaseModel):
    """What is bought."""

    id: str
    cents: int


class Receipt(BaseModel):
    """What was paid."""

    order: str
    card: str


class Approval(BaseModel):
    """What a person says."""

    ok: bool


class Shipped(BaseModel):
    """Where it is."""

    tracking: str


@activity
async def charge(order: Order) -> Receipt:
    print(f"charged {order.cents} cents for {order.id}, once, by the key ...{activity.info().idempotency_key[-2:]}")
    return Receipt(order=order.id, card="4711")


@activity
async def refund(receipt: Receipt) -> None:
    print(f"refunded {receipt.order} to card {receipt.card}")


@activity
async def ship(order: Order) -> Shipped:
    return Shipped(tracking=f"T-{order.id}")


ACTIVITIES: list[Callable[..., Any]] = [charge, refund, ship]
ORDER = Workflow("order", Order, Shipped, module=Path(__file__).with_name("order.wasm"))
APPROVE = Signal("approve", Approval)


async def main(store: str = "sqlite:///orders.db", *, approves: bool = True, id: str = "order-1") -> None:
    """Place an order and decide on it."""
    async with Client.connect(store) as client, Worker(client, workflows=[ORDER], activities=ACTIVITIES):
        handle = await client.start_workflow(ORDER, Order(id=id, cents=1250), id=id)
        await handle.signal(APPROVE, Approval(ok=approves))
        try:
            print((await handle.result()).tracking)
        except WorkflowFailedError as error:
            print(error)


if __name__ == "__main__":
    wish = sys.argv[1] if len(sys.argv) > 1 else "approve"
    anyio.run(lambda: main(approves=wish == "approve", id=f"order-{wish}"))
