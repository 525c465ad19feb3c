"""The samples in plain Go: a saga, a subscription over three years, a fan-out."""

import calendar
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from samples.fan_out import app as fan_out
from samples.order_saga import app as saga
from samples.subscription import app as subscription
from samples.subscription.app import END, PLAN, SUBSCRIPTION, Bill, Plan, Subscription, Summary
from tests.doc_pages import ROOT, run_page
from wasman_sdk import ApplicationError, WorkflowCancelledError, WorkflowFailedError
from wasman_sdk.testing import WorkflowEnvironment, assert_survives

START = datetime(2026, 1, 31, tzinfo=UTC)
READMES = [f"samples/{name}/README.md" for name in ("order_saga", "subscription", "fan_out")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.once
@pytest.mark.parametrize("page", READMES)
def test_the_readme_does_what_it_says(page: str, tmp_path: Path) -> None:
    assert run_page(page, (ROOT / page).read_text("utf-8"), tmp_path) > 0


def test_the_saga_is_small_and_has_the_names_of_its_functions() -> None:
    module = (ROOT / "samples" / "order_saga" / "order.wasm").read_bytes()
    assert len(module) < 250_000
    assert b"main.order" in module


async def test_an_order_that_nobody_approves_within_a_day_is_refunded() -> None:
    async with WorkflowEnvironment(workflows=[saga.ORDER], activities=saga.ACTIVITIES, start=START) as env:
        refunds = env.mock_activity(saga.refund, does=lambda _: None)
        handle = await env.client.start_workflow(saga.ORDER, saga.Order(id="1", cents=5), id="1")
        with pytest.raises(WorkflowFailedError, match="deadline exceeded"):
            await handle.result()
        assert env.now() >= START + timedelta(days=1)
        assert len(refunds.calls) == 1


async def test_an_order_that_is_cancelled_is_refunded() -> None:
    async with WorkflowEnvironment(workflows=[saga.ORDER], activities=saga.ACTIVITIES, start=START) as env:
        refunds = env.mock_activity(saga.refund, does=lambda _: None)
        handle = await env.client.start_workflow(saga.ORDER, saga.Order(id="1", cents=5), id="1")
        await env.sleep(timedelta(hours=1))
        await handle.cancel("changed my mind")
        with pytest.raises(WorkflowCancelledError, match="changed my mind"):
            await handle.result()
        assert len(refunds.calls) == 1


def due(month: int) -> datetime:
    """As Go counts months: what a month has not got goes into the next one."""
    year, number = divmod(START.month - 1 + month, 12)
    first = datetime(START.year + year, number + 1, 1, tzinfo=UTC)
    assert calendar.monthrange(first.year, first.month)
    return first + timedelta(days=START.day - 1)


async def test_a_subscription_bills_each_month_of_three_years() -> None:
    async with WorkflowEnvironment(workflows=[SUBSCRIPTION], activities=[subscription.charge], start=START) as env:
        paid: list[Bill] = []
        times: list[datetime] = []

        def pay(bill: Bill) -> None:
            if bill.number == 7:
                raise ApplicationError("declined", type="Declined", non_retryable=True)
            paid.append(bill)
            times.append(env.now())

        env.mock_activity(subscription.charge, does=pay)
        given = Subscription(customer="ada", cents=500, from_=START)
        handle = await env.client.start_workflow(SUBSCRIPTION, given, id="ada")
        await env.sleep(timedelta(days=730))
        await handle.signal(PLAN, Plan(cents=700))
        await env.sleep(timedelta(days=366))
        await handle.signal(END)
        summary = await handle.result()
    assert summary == Summary(bills=len(paid), cents=sum(bill.cents for bill in paid), owed=1)
    assert [bill.due for bill in paid] == [due(month) for month in range(37) if month != 6][: len(paid)]
    assert len(paid) in {35, 36}
    assert {bill.cents for bill in paid[:20]} == {500}
    assert paid[-1].cents == 700
    assert all(abs(time - bill.due) < timedelta(seconds=5) for time, bill in zip(times, paid, strict=True))


async def test_no_more_are_at_work_at_once_than_may_and_failures_are_told() -> None:
    under_way, most = 0, 0
    async with WorkflowEnvironment(workflows=[fan_out.BATCH], activities=[fan_out.work], start=START) as env:

        async def work(item: int) -> int:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await env.sleep(timedelta(seconds=1))
            under_way -= 1
            if item % 10 == 3:
                raise ApplicationError("three", type="Three", non_retryable=True)
            return item

        env.mock_activity(fan_out.work, does=work)
        given = fan_out.Batch(items=list(range(100)), at_once=7, tolerates=10)
        report = await env.client.execute_workflow(fan_out.BATCH, given, id="b")
        assert (report.sum, len(report.failed), most) == (sum(n for n in range(100) if n % 10 != 3), 10, 7)
        with pytest.raises(WorkflowFailedError, match="the batch was given up"):
            await env.client.execute_workflow(fan_out.BATCH, given.model_copy(update={"tolerates": 2}), id="c")


async def test_a_saga_survives_a_crash_at_every_commit() -> None:
    async def program(env: WorkflowEnvironment) -> object:
        handle = await env.client.start_workflow(saga.ORDER, saga.Order(id="1", cents=5), id="1")
        await handle.signal(saga.APPROVE, saga.Approval(ok=True), message_id="yes")
        return await handle.result()

    assert (await assert_survives(program, workflows=[saga.ORDER], activities=saga.ACTIVITIES)).struck > 10
