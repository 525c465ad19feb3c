"""What a type checker must refuse: each line that ends with the word, and no other one."""

from datetime import timedelta

from tests.typing.right import APPROVE, ORDERS, Order, Pool, Receipt, Shop, Warehouse, charge, reserve
from wasman_sdk import Client, RetryPolicy, Worker, Workflow, activity
from wasman_sdk.testing import ActivityEnvironment, Fault, WorkflowEnvironment


async def a_wrong_input(client: Client, session: Shop) -> None:
    """Of a workflow."""
    await client.start_workflow(ORDERS, "book", id="a")  # wrong
    await client.start_workflow(ORDERS, Receipt(number=1), id="a", session=session)  # wrong
    await client.execute_workflow(ORDERS, None, id="a")  # wrong
    await client.start_workflow(ORDERS, id="a")  # wrong
    await client.start_workflow(ORDERS, Order(item="book"))  # wrong


async def a_wrong_result(client: Client) -> None:
    """Of a workflow."""
    number: int = await client.execute_workflow(ORDERS, Order(item="book"), id="a")  # wrong
    handle = await client.start_workflow(ORDERS, Order(item="book"), id="a")
    order: Order = await handle.result()  # wrong
    text: str = await client.get_handle("a", workflow=ORDERS).result()  # wrong
    named: Order = await client.execute_workflow("orders", id="a", result_type=Receipt)  # wrong
    del number, order, text, named


async def a_wrong_option(client: Client) -> None:
    """Of a start, or of a worker."""
    await client.start_workflow(ORDERS, Order(item="book"), id="a", sesion=None)  # wrong
    await client.start_workflow(ORDERS, Order(item="book"), id="a", run_timeout=30)  # wrong
    await client.start_workflow(ORDERS, Order(item="book"), id=7)  # wrong
    Worker(client, activities=[7])  # wrong
    Worker(client, workflows=["orders"])  # wrong
    Workflow("orders", Order, Receipt, resume="never")  # wrong


async def a_wrong_argument() -> None:
    """Of an activity, which is still the function that it decorates."""
    await reserve("book", Pool())  # wrong
    await reserve(Order(item="book"))  # wrong
    charge(Receipt(number=1))  # wrong
    await Warehouse().ship(7)  # wrong
    number: int = charge(Order(item="book"))  # wrong
    del number


@activity(start_to_close_timeout=30)  # wrong
async def a_wrong_timeout() -> None:
    """Of an activity."""


@activity(retires=RetryPolicy())  # wrong
async def a_wrong_name() -> None:
    """Of an option."""


@activity(heartbeat_timeout=timedelta(seconds=1))
async def right() -> None:
    """Nothing is wrong with it."""


async def a_wrong_test(env: WorkflowEnvironment) -> None:
    """Of an environment."""
    await env.sleep(30)  # wrong
    env.mock_activity(7, returns=1)  # wrong
    env.mock_activity(charge, raises="closed")  # wrong
    receipt: Order = await env.client.execute_workflow(ORDERS, Order(item="book"), id="a")  # wrong
    del receipt
    Fault("commit", 2)  # wrong
    ActivityEnvironment().run(charge, Receipt(number=1))  # wrong


async def a_wrong_signal(client: Client) -> None:
    """Of a run."""
    handle = client.get_handle("a")
    await handle.signal(7)  # wrong
    await handle.signal("anything", {"n": 1}, id="m")  # wrong
    await handle.signal(APPROVE)  # wrong
    await handle.signal(APPROVE, Receipt(number=1), run_id="r")  # wrong
