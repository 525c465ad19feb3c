"""What happens to instances: the same points in the log, for programs, and for interceptors that trace."""

import logging
from datetime import timedelta
from typing import Any

import anyio
import pytest

from tests import wat
from wasman_sdk import Client, Event, Limits, RetryPolicy, Worker, WorkerInterceptor, Workflow, activity

FLOW: Workflow[None, Any] = Workflow("flow", type(None), Any, module=wat.script(wat.call("work")))
FAILS: Workflow[None, Any] = Workflow(
    "fails", type(None), Any, module=wat.script(wat.call("wasman.fail", b'{"message":"no"}'))
)
CANCELLED: Workflow[None, Any] = Workflow(
    "cancelled",
    type(None),
    Any,
    module=wat.script(wat.call("stuck"), wat.call("wasman.fail", b'{"type":"Cancelled","message":"no"}')),
)
ASKS: Workflow[None, Any] = Workflow("asks", type(None), Any, module=wat.script(wat.call("nobody")))


class Noting(WorkerInterceptor):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    async def until(self, kind: str) -> Event:
        """The newest event, once it is of this kind: whoever waits for a result may hear before."""
        with anyio.fail_after(60):
            while self.events[-1].kind != kind:
                await anyio.sleep(0.001)
        return self.events[-1]

    @property
    def kinds(self) -> list[str]:
        return [f"{event.kind} {event.attempt}" if event.attempt else event.kind for event in self.events]


@activity(name="work", retry=RetryPolicy(initial_interval=timedelta(0)))
def second_time() -> int:
    """Fail once."""
    activity.logger.info("%s here", "I am", extra={"more": "mine"})
    if activity.info().attempt == 1:
        raise OSError("at first")
    return 1


def names(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says besides its text."""
    keys = ("tenant", "workflow", "id", "run", "activity", "attempt", "event", "reason", "more")
    return {key: getattr(record, key) for key in keys if hasattr(record, key)}


async def test_a_run_is_followed_from_its_claim_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wasman")
    noting, other = Noting(), Noting()
    async with (
        Client.connect("memory://") as client,
        Worker(client, activities=[second_time], interceptors=[noting, other]),
    ):
        handle = await client.start_workflow(FLOW, None, id="w")
        assert await handle.result() == [1]
    kinds = [
        "claimed",
        "activity_started 1",
        "activity_failed 1",
        "activity_started 2",
        "activity_completed 2",
        "completed",
    ]
    assert noting.kinds == other.kinds == kinds
    assert [event.time for event in noting.events] == sorted(event.time for event in noting.events)
    failed = noting.events[2]
    assert (failed.tenant, failed.workflow, failed.workflow_id) == ("default", "flow", "w")
    assert (failed.run_id, failed.activity, failed.reason) == (handle.run_id, "work", "OSError: at first")

    run: dict[str, Any] = {"tenant": "default", "workflow": "flow", "id": "w", "run": handle.run_id}
    logged = [record for record in caplog.records if hasattr(record, "event")]
    assert [record.event for record in logged] == [kind.split()[0] for kind in kinds]
    assert logged[2].levelname == "WARNING"
    assert logged[2].getMessage() == "attempt 1 of activity 'work' failed: OSError: at first"
    assert names(logged[2]) == run | {
        "activity": "work", "attempt": 1, "event": "activity_failed", "reason": "OSError: at first"
    }  # fmt: skip
    own = [record for record in caplog.records if record.name == "wasman.activity"]
    assert [names(record) for record in own] == [
        run | {"activity": "work", "attempt": n, "more": "mine"} for n in (1, 2)
    ]
    assert own[0].getMessage() == "I am here"


async def test_how_runs_end_wait_and_stand_still() -> None:
    noting = Noting()
    async with Client.connect("memory://") as client, Worker(client, interceptors=[noting]):
        with pytest.raises(Exception, match="no"):
            await client.execute_workflow(FAILS, None, id="fails")
        assert (await noting.until("failed")).reason == "GuestFailure: no"

        asks = await client.start_workflow(ASKS, None, id="asks")
        assert "activity 'nobody' is registered with no worker" in (await noting.until("waiting")).reason
        await asks.terminate("enough")
        with pytest.raises(Exception, match="enough"):
            await asks.result()
        assert (await noting.until("terminated")).reason == "terminated: enough"

        spins = wat.script(wat.raw("(loop $more (br $more))"))
        busy = Workflow("busy", type(None), Any, module=spins, limits=Limits(turn_seconds=0.01))
        handle = await client.start_workflow(busy, None, id="busy")
        assert "has computed for" in (await noting.until("blocked")).reason
        await handle.terminate()


async def test_a_run_that_is_handed_over_is_released_and_claimed_again() -> None:
    noting = Noting()
    sleeps = Workflow("sleeps", type(None), Any, module=wat.script(wat.sleep(300_000_000)))
    async with Client.connect("memory://") as client:
        async with Worker(client, interceptors=[noting]):
            handle = await client.start_workflow(sleeps, None, id="w")
            while not (await handle.describe()).owner:
                await client.store.watch(None, 0.01)
        assert noting.kinds == ["claimed", "released"]
        async with Worker(client, interceptors=[noting]):
            await handle.result()
    assert noting.kinds == ["claimed", "released", "claimed", "completed"]


class Failing(WorkerInterceptor):
    def on_event(self, event: Event) -> None:
        raise ValueError(event.kind)


async def test_what_a_hook_raises_is_logged_and_hurts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        Client.connect("memory://") as client,
        Worker(client, activities=[second_time], interceptors=[Failing()]),
    ):
        assert await client.execute_workflow(FLOW, None, id="w") == [1]
    assert "what observes the worker has failed at 'completed' of w" in caplog.text


async def test_one_hook_that_raises_does_not_keep_the_others_from_hearing() -> None:
    noting = Noting()
    async with (
        Client.connect("memory://") as client,
        Worker(client, activities=[second_time], interceptors=[Failing(), noting]),
    ):
        await client.execute_workflow(FLOW, None, id="w")
    assert noting.kinds[-1] == "completed"


def test_the_logger_works_outside_of_activities(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "wasman"):
        activity.logger.info("outside")
    assert [names(record) for record in caplog.records] == [{}]


async def test_an_attempt_that_is_given_up_ends_as_well() -> None:
    noting, began = Noting(), anyio.Event()

    @activity
    async def stuck() -> None:
        began.set()
        await anyio.sleep_forever()

    async with Client.connect("memory://") as client, Worker(client, activities=[stuck], interceptors=[noting]):
        handle = await client.start_workflow(CANCELLED, None, id="w")
        await began.wait()
        await handle.cancel()
        assert (await noting.until("cancelled")).workflow_id == "w"
    assert noting.kinds == ["claimed", "activity_started 1", "activity_cancelled 1", "cancelled"]
