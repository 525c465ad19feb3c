"""What a type checker must accept, and what it must know of it: `assert_type` fails where it knows less."""

from datetime import timedelta
from typing import Any, assert_type

from pydantic import BaseModel

from wasman_sdk import Client, RetryPolicy, Session, Signal, Source, Worker, Workflow, WorkflowHandle, activity
from wasman_sdk.testing import (
    ActivityEnvironment,
    ActivityMock,
    Fault,
    How,
    Point,
    Survival,
    WorkflowEnvironment,
    assert_survives,
)


class Order(BaseModel):
    """An input."""

    item: str


class Receipt(BaseModel):
    """A result."""

    number: int


class Shop(Session):
    """A session."""

    catalogue: Source


class Pool:
    """A resource."""


@activity
async def reserve(order: Order, pool: Pool) -> int:
    """Async, bare."""
    del pool
    return len(order.item)


@activity(name="charge", retry=RetryPolicy(maximum_attempts=3), start_to_close_timeout=timedelta(seconds=30))
def charge(order: Order) -> Receipt:
    """Sync, with options."""
    return Receipt(number=len(order.item))


class Warehouse:
    """Activities of an object."""

    @activity
    async def ship(self, order: Order) -> str:
        """A method."""
        return order.item


APPROVE = Signal("approve", Receipt)

ORDERS = Workflow("orders", Order, Receipt, module="orders.wasm")


async def uses(client: Client, session: Shop) -> None:
    """The public surface, as an application uses it."""
    assert_type(ORDERS, Workflow[Order, Receipt])
    handle = await client.start_workflow(ORDERS, Order(item="book"), id="a", session=session, memo={"by": "me"})
    assert_type(handle, WorkflowHandle[Receipt])
    assert_type(await handle.result(), Receipt)
    assert_type(await client.execute_workflow(ORDERS, Order(item="book"), id="b"), Receipt)
    assert_type(await client.start_workflow("orders", id="c"), WorkflowHandle[Any])
    assert_type(
        await client.start_workflow("orders", {"item": "x"}, id="d", result_type=Receipt), WorkflowHandle[Receipt]
    )
    assert_type(await client.execute_workflow("orders", {"item": "x"}, id="e", result_type=Receipt), Receipt)
    assert_type(await client.get_handle("a", workflow=ORDERS).result(), Receipt)
    assert_type(client.get_handle("a"), WorkflowHandle[Any])
    # An activity is still the function that it decorates.
    assert_type(await reserve(Order(item="book"), Pool()), int)
    assert_type(charge(Order(item="book")), Receipt)
    assert_type(await Warehouse().ship(Order(item="book")), str)
    async with Worker(
        client, workflows=[ORDERS], activities=[reserve, charge, Warehouse().ship], resources=[Pool()]
    ) as worker:
        assert_type(worker, Worker)


async def tested(env: WorkflowEnvironment) -> Receipt:
    """As tests use it."""
    assert_type(env.mock_activity(charge, returns=Receipt(number=1)), ActivityMock)
    assert_type(env.mock_activity("reserve", does=lambda order: len(order["item"])), ActivityMock)
    await env.sleep(timedelta(days=30))
    result = await env.client.execute_workflow(ORDERS, Order(item="book"), id="a")
    assert_type(result, Receipt)
    return result


async def survived() -> None:
    """The same, with crashes."""
    assert_type(await ActivityEnvironment().run(reserve, Order(item="book"), Pool()), int)
    assert_type(ActivityEnvironment(attempt=2).run(charge, Order(item="book")), Receipt)
    assert_type(await assert_survives(tested, workflows=[ORDERS], check=print), Survival)
    async with WorkflowEnvironment(activities=[charge], faults=[Fault(Point("commit", 2), How.DIES_AFTER)]) as env:
        assert_type(env.client, Client)


async def a_signal(client: Client) -> None:
    """By its type, or by its name."""
    handle = client.get_handle("a")
    await handle.signal(APPROVE, Receipt(number=1), message_id="m")
    await handle.signal("anything", {"n": 1})
    await handle.signal("nothing")
