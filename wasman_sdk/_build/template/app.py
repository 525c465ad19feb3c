"""The application: what workflows call, what is sent to them, and a worker."""

import asyncio
import uuid
from pathlib import Path

from pydantic import BaseModel

from wasman_sdk import Signal, Worker, Workflow, activity


class Order(BaseModel):
    """What is ordered."""

    item: str
    cents: int


class Receipt(BaseModel):
    """What was paid."""

    item: str
    number: str


class Approval(BaseModel):
    """Whether an order may be charged."""

    ok: bool
    by: str


@activity
async def charge(order: Order) -> Receipt:
    """Charge the card.

    Here you would ask a bank, under the key `activity.info().idempotency_key`: after a crash it may be asked again.
    """
    print(f"charging {order.cents} cents for {order.item}")
    return Receipt(item=order.item, number="r-1")


approve = Signal("approve", Approval)
orders = Workflow("order", Order, Receipt, module=Path(__file__).with_name("guest.wasm"))
worker = Worker("sqlite:///wasman.db", workflows=[orders], activities=[charge])


async def main() -> None:
    """Order something, approve it, and wait for the receipt."""
    async with worker.client as client, worker:
        order = Order(item="tea", cents=450)
        handle = await client.start_workflow(orders, order, id=f"order-{uuid.uuid4()}")
        await handle.signal(approve, Approval(ok=True, by="Ada"))
        receipt = await handle.result()
        print(f"receipt {receipt.number} for {receipt.item}")


if __name__ == "__main__":
    asyncio.run(main())
