"""How long an activity may take and wait, how many run at once, and when it is tried again."""

import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import anyio
import pytest

from tests import wat
from wasman_host import calls
from wasman_sdk import (
    ActivityCancelledError,
    ApplicationError,
    Client,
    InvalidArgumentError,
    RetryPolicy,
    Worker,
    Workflow,
    activity,
)

SOON = timedelta(milliseconds=50)
ONCE = RetryPolicy(maximum_attempts=1)
AGAIN = RetryPolicy(initial_interval=timedelta(0), maximum_attempts=3)
LONG = timedelta(hours=1)


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect("memory://") as client:
        yield client


def asks(*names: str, request: bytes = b"null") -> Workflow[Any, Any]:
    return Workflow("flow", Any, Any, module=wat.script(*(wat.call(name, request) for name in names)))


async def failure_of(client: Client, name: str, *activities: Any, **options: Any) -> Any:
    """What the guest hears of an activity that fails."""
    async with Worker(client, activities=activities, **options):
        code, failure = await client.execute_workflow(asks(name, "wasman.error"), None, id="w")
    assert code == -1
    return failure


async def test_start_to_close_is_each_attempts_and_another_one_follows(client: Client) -> None:
    attempts: list[int] = []

    @activity(start_to_close_timeout=SOON, retry=AGAIN)
    async def stuck() -> None:
        attempts.append(activity.info().attempt)
        await anyio.sleep_forever()

    failure = await failure_of(client, "stuck", stuck)
    assert (failure["type"], failure["activity"], failure["attempt"]) == ("StartToCloseTimeout", "stuck", 3)
    assert failure["message"] == "activity 'stuck' did not end within 0.05 s (start_to_close_timeout)"
    assert attempts == [1, 2, 3]


async def test_schedule_to_close_cuts_an_attempt_and_is_final(client: Client) -> None:
    attempts: list[int] = []

    @activity(schedule_to_close_timeout=timedelta(seconds=0.2), retry=AGAIN)
    async def stuck() -> None:
        attempts.append(activity.info().attempt)
        if len(attempts) == 1:
            raise OSError("at first")
        await anyio.sleep_forever()

    failure = await failure_of(client, "stuck", stuck)
    assert (failure["type"], failure["attempt"]) == ("ScheduleToCloseTimeout", 2)
    assert failure["cause"] == {"type": "OSError", "message": "at first", "activity": "stuck", "attempt": 1}
    assert attempts == [1, 2]


async def test_a_backoff_beyond_schedule_to_close_is_not_waited_for(client: Client) -> None:
    @activity(schedule_to_close_timeout=timedelta(minutes=1), retry=RetryPolicy(initial_interval=LONG))
    async def fails() -> None:
        raise OSError("no")

    failure = await failure_of(client, "fails", fails)
    assert (failure["type"], failure["message"], failure["attempt"]) == ("OSError", "no", 1)


async def test_schedule_to_close_goes_on_while_no_worker_is_there(client: Client) -> None:
    called: list[int] = []

    async def hands_over() -> None:
        called.append(activity.info().attempt)
        began.set()
        await anyio.sleep_forever()

    began = anyio.Event()
    first = activity(name="late", schedule_to_close_timeout=LONG)(hands_over)
    async with Worker(client, activities=[first], graceful_shutdown_timeout=timedelta(0)):
        handle = await client.start_workflow(asks("late", "wasman.error"), None, id="w")
        await began.wait()
    await anyio.sleep(0.06)

    async def never() -> None:
        called.append(0)

    async with Worker(client, activities=[activity(name="late", schedule_to_close_timeout=SOON)(never)]):
        code, failure = await handle.result()
    assert (code, failure["type"]) == (-1, "ScheduleToCloseTimeout")
    assert called == [1]


async def test_schedule_to_start_is_the_wait_for_a_worker_that_has_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_UNREGISTERED", 0.01)

    @activity(schedule_to_start_timeout=SOON)
    async def wanted() -> None:
        raise AssertionError("it is too late")

    async with Worker(client):
        handle = await client.start_workflow(asks("wanted", "wasman.error"), None, id="w")
        while (found := await handle.describe()).status != "waiting":
            await anyio.sleep(0.01)
        assert "activity 'wanted' is registered with no worker that has seen it" in found.reason
        assert [(one.name, one.attempts) for one in found.pending] == [("wanted", 0)]
    await anyio.sleep(0.06)
    async with Worker(client, activities=[wanted]):
        code, failure = await handle.result()
    assert (code, failure["type"], failure["attempt"]) == (-1, "ScheduleToStartTimeout", 1)
    assert failure["message"].endswith("did not begin within 0.05 s (schedule_to_start_timeout)")


async def test_schedule_to_start_is_the_wait_for_a_turn(client: Client) -> None:
    running = anyio.Event()
    done = anyio.Event()

    @activity(max_concurrent=1, schedule_to_start_timeout=SOON)
    async def one() -> int:
        running.set()
        await done.wait()
        return 1

    async with Worker(client, activities=[one]):
        flow = asks("one", "wasman.error")
        first = await client.start_workflow(flow, None, id="first")
        await running.wait()
        second = await client.start_workflow(flow, None, id="second")
        code, failure = await second.result()
        done.set()
        assert await first.result() == [1, None]
        assert (code, failure["type"]) == (-1, "ScheduleToStartTimeout")
        assert await client.execute_workflow(flow, None, id="third") == [1, None]  # its turn was given back


@pytest.mark.parametrize(
    ("options", "worker"),
    [({"max_concurrent": 2}, {}), ({}, {"max_activities": 2}), ({"max_concurrent": 2}, {"max_activities": 3})],
)
async def test_no_more_run_at_once_than_they_may(
    client: Client, options: dict[str, Any], worker: dict[str, Any]
) -> None:
    running: set[str] = set()
    most: list[int] = []

    @activity(**options)
    async def counted() -> int:
        running.add(activity.info().workflow_id)
        most.append(len(running))
        await anyio.sleep(0.002)
        running.discard(activity.info().workflow_id)
        return len(most)

    async with Worker(client, activities=[counted], **worker):
        handles = [await client.start_workflow(asks("counted", "counted"), None, id=f"w{n}") for n in range(20)]
        for handle in handles:
            assert len(await handle.result()) == 2
    assert len(most) == 40
    assert max(most) == 2


async def test_a_rate_spaces_the_attempts(client: Client) -> None:
    began: list[float] = []

    @activity(max_per_second=50)
    async def counted() -> None:
        began.append(anyio.current_time())

    async with Worker(client, activities=[counted]):
        for handle in [await client.start_workflow(asks("counted"), None, id=f"w{n}") for n in range(5)]:
            await handle.result()
    assert all(after - before > 0.01 for before, after in pairwise(began))


async def test_what_waits_for_its_turn_shows_and_can_be_terminated(client: Client) -> None:
    running = anyio.Event()

    @activity
    async def blocks() -> None:
        running.set()
        await anyio.sleep_forever()

    async with Worker(client, activities=[blocks], max_activities=1):
        first = await client.start_workflow(asks("blocks"), None, id="first")
        await running.wait()
        second = await client.start_workflow(asks("blocks"), None, id="second")
        while not (pending := (await second.describe()).pending):
            await anyio.sleep(0.01)
        assert [(one.name, one.attempts) for one in pending] == [("blocks", 0)]
        await second.terminate()
        await first.terminate()
        while {(await handle.describe()).status for handle in (first, second)} != {"terminated"}:
            await anyio.sleep(0.01)


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="max_activities is a number from 1 on, or None for no limit, not 0"):
        Worker("memory://", max_activities=0)


async def test_heartbeats_that_stay_away_end_the_attempt(client: Client) -> None:
    seen: list[tuple[int, tuple[Any, ...]]] = []

    @activity(heartbeat_timeout=timedelta(seconds=0.5), retry=AGAIN)
    async def copies() -> str:
        seen.append((activity.info().attempt, activity.info().heartbeat_details))
        for n in range(30):
            activity.heartbeat("row", n)
            await anyio.sleep(0.01)
        if len(seen) < 2:
            await anyio.sleep_forever()
        return "done"

    async with Worker(client, activities=[copies]):
        assert await client.execute_workflow(asks("copies"), None, id="w") == ["done"]
    assert seen == [(1, ()), (2, ("row", 29))]


async def test_the_failure_says_that_there_was_no_heartbeat(client: Client) -> None:
    @activity(heartbeat_timeout=SOON, retry=ONCE)
    async def silent() -> None:
        await anyio.sleep_forever()

    failure = await failure_of(client, "silent", silent)
    assert failure["type"] == "HeartbeatTimeout"
    assert failure["message"] == "activity 'silent' gave no heartbeat for 0.05 s (heartbeat_timeout)"


async def test_a_sync_activity_heartbeats_and_learns_that_it_is_over(client: Client) -> None:
    learned: list[object] = []
    ended = threading.Event()

    @activity(start_to_close_timeout=timedelta(seconds=0.1), retry=AGAIN)
    def copies() -> Any:
        if activity.info().attempt > 1:
            return list(activity.info().heartbeat_details)
        rows = 0
        while not activity.is_cancelled():
            rows += 1
            activity.heartbeat({"rows": rows})
            time.sleep(0.001)
        learned.append(activity.wait_for_cancelled_sync(timedelta(0)))
        try:
            activity.heartbeat(-1)
        except ActivityCancelledError as error:
            learned.append(str(error))
        learned.append(rows)
        ended.set()
        return None

    async with Worker(client, activities=[copies]):
        [[details]] = await client.execute_workflow(asks("copies"), None, id="w")
        await anyio.to_thread.run_sync(ended.wait)
    over, message, rows = learned
    assert over is True
    assert "attempt 1 of activity 'copies' is over" in str(message)
    assert details == {"rows": rows}


async def test_a_sync_activity_can_wait_until_it_is_over(client: Client) -> None:
    over: list[bool] = []
    waits, ended = threading.Event(), threading.Event()

    @activity
    def waits_for_it() -> None:
        over.append(activity.wait_for_cancelled_sync(timedelta(milliseconds=1)))
        waits.set()
        over.append(activity.wait_for_cancelled_sync())
        ended.set()

    async with Worker(client, activities=[waits_for_it]):
        handle = await client.start_workflow(asks("waits_for_it"), None, id="w")
        await anyio.to_thread.run_sync(waits.wait)
        await handle.terminate()
        await anyio.to_thread.run_sync(ended.wait)
    assert over == [False, True]


async def test_details_are_checked(client: Client) -> None:
    problems: list[str] = []

    @activity
    async def tries() -> None:
        for details in ({"rows": [object()]}, "x" * 70_000):
            try:
                activity.heartbeat(details)
            except InvalidArgumentError as error:
                problems.append(str(error))

    async with Worker(client, activities=[tries]):
        await client.execute_workflow(asks("tries"), None, id="w")
    assert "holds details that JSON cannot: 0.rows.0: JSON has no object" in problems[0]
    assert "has details of 70,004 bytes, and may have 65,536" in problems[1]


@pytest.mark.parametrize("ask", [activity.heartbeat, activity.is_cancelled, activity.wait_for_cancelled_sync])
def test_outside_of_an_activity_nothing_is_asked(ask: Any) -> None:
    with pytest.raises(RuntimeError, match=rf"activity.{ask.__name__}\(\) is called outside of an activity"):
        ask()


async def test_an_activity_says_when_it_wants_to_be_tried_again(client: Client) -> None:
    @activity(retry=RetryPolicy(initial_interval=LONG, maximum_attempts=2))
    async def busy() -> int:
        if activity.info().attempt == 1:
            raise ApplicationError("busy", next_retry_delay=timedelta(milliseconds=1))
        return 1

    async with Worker(client, activities=[busy]):
        assert await client.execute_workflow(asks("busy"), None, id="w") == [1]


async def test_the_guest_is_given_what_brought_a_failure_about(client: Client) -> None:
    @activity(retry=ONCE)
    async def pays() -> None:
        refused = ApplicationError("no card", type="NoCard", details=[1])
        refused.__cause__ = KeyError("card")
        raise OSError("cannot pay") from refused

    failure = await failure_of(client, "pays", pays)
    assert (failure["type"], failure["attempt"], failure["activity"]) == ("OSError", 1, "pays")
    assert failure["cause"]["type"] == "NoCard"
    assert failure["cause"]["details"] == [1]
    assert failure["cause"]["cause"] == {"type": "KeyError", "message": "'card'"}
