"""`wasman_sdk.testing`: skipped time, mocked activities, crashes; and that it fails where it should."""

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel

from tests import wat
from wasman_sdk import (
    ActivityCancelledError,
    BlockedError,
    Client,
    ClientInterceptor,
    ExecuteActivityInput,
    InvalidArgumentError,
    RetryPolicy,
    StartWorkflowInput,
    WasmanError,
    WorkerInterceptor,
    Workflow,
    WorkflowFailedError,
    WorkflowHandle,
    WorkflowTimedOutError,
    activity,
)
from wasman_sdk.testing import ActivityEnvironment, Fault, How, Point, WorkflowEnvironment, assert_survives
from wasman_sdk.testing.plugin import OpenEnvironment, wasman_environment

__all__ = ["wasman_environment"]  # the fixture, also where the project is not installed

DAY = 86_400 * 10**9
START = datetime(2026, 1, 1, tzinfo=UTC)


class Order(BaseModel):
    number: int


class Receipt(BaseModel):
    paid: int


class Bank:
    """A resource that no test has."""


@activity(
    retry=RetryPolicy(initial_interval=timedelta(hours=1), maximum_interval=timedelta(days=1), maximum_attempts=3)
)
async def charge(order: Order, bank: Bank) -> Receipt:
    raise AssertionError(f"{order} must not be charged at {bank}")


@activity
async def note(text: str) -> str:
    return text


def flow(*steps: wat.Step, name: str = "flow", reentrant: bool = False, **options: Any) -> Workflow[None, list[Any]]:
    return Workflow(name, type(None), list[Any], module=wat.script(*steps, reentrant=reentrant), **options)


ORDER = flow(wat.call("charge", b'{"number": 7}'))


# Time


async def test_a_sleep_of_thirty_days_is_skipped() -> None:
    began = time.monotonic()
    async with WorkflowEnvironment(workflows=[flow(wat.sleep(30 * DAY), wat.time())], start=START) as env:
        assert await env.client.execute_workflow("flow", id="w") == [0, int(START.timestamp()) * 10**9 + 30 * DAY]
        assert env.now() == START + timedelta(days=30)
    assert time.monotonic() - began < 60


async def test_timers_fire_in_order_and_none_before_its_time() -> None:
    fired: list[tuple[str, timedelta]] = []

    def fire(text: str) -> str:
        fired.append((text, env.now() - START))
        return text

    slow = flow(wat.sleep(2 * DAY), wat.call("note", b'"slow"'), wat.sleep(2 * DAY), wat.call("note", b'"slow"'))
    fast = flow(
        wat.sleep(DAY), wat.call("note", b'"fast"'), wat.sleep(2 * DAY), wat.call("note", b'"fast"'), name="fast"
    )
    async with WorkflowEnvironment(workflows=[slow, fast], start=START) as env:
        env.mock_activity(note, does=fire)
        handle = await env.client.start_workflow("flow", id="slow")
        await env.client.start_workflow("fast", id="fast")
        await handle.result()
        assert fired == [
            (text, timedelta(days=day)) for text, day in [("fast", 1), ("slow", 2), ("fast", 3), ("slow", 4)]
        ]


async def test_time_stands_still_while_an_activity_runs() -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def wait(text: str) -> str:
        begun.set()
        await go_on.wait()
        return text

    busy, idle = flow(wat.call("note", b'"x"')), flow(wat.sleep(DAY), name="idle")
    async with WorkflowEnvironment(workflows=[busy, idle], start=START) as env, anyio.create_task_group() as tasks:
        env.mock_activity(note, does=wait)
        await env.client.start_workflow("flow", id="busy")
        await begun.wait()
        waiting = await env.client.start_workflow("idle", id="idle")
        tasks.start_soon(waiting.result)
        await anyio.sleep(0.05)
        assert env.now() == START
        go_on.set()
        assert await waiting.result() == [0]
        assert env.now() == START + timedelta(days=1)


async def test_an_activity_that_sleeps_by_the_environment_has_its_time_skipped() -> None:
    async def wait(text: str) -> str:
        await env.sleep(timedelta(days=3))
        return f"{text} {(env.now() - START).days}"

    flows = [flow(wat.sleep(day * DAY), wat.call("note", b'"%d"' % day), name=f"flow-{day}") for day in (0, 1)]
    async with WorkflowEnvironment(workflows=flows, start=START) as env:
        env.mock_activity(note, does=wait)
        handle = await env.client.start_workflow("flow-1", id="1")
        with anyio.fail_after(30):
            assert await env.client.execute_workflow("flow-0", id="0") == [0, "0 3"]
            assert await handle.result() == [0, "1 4"]


async def test_time_stands_still_while_the_test_does_something_else() -> None:
    async with WorkflowEnvironment(workflows=[flow(wat.sleep(30 * DAY))], start=START) as env:
        handle = await env.client.start_workflow("flow", id="w")
        await anyio.sleep(0.05)
        assert (env.now(), (await handle.describe()).status) == (START, "running")
        await env.sleep(timedelta(days=29))
        assert (env.now(), (await handle.describe()).status) == (START + timedelta(days=29), "running")
        await env.sleep(timedelta(days=1))
        assert (await handle.result(), env.now()) == ([0], START + timedelta(days=30))


async def test_what_the_test_does_not_wait_for_takes_its_time() -> None:
    tries: list[datetime] = []
    again = anyio.Event()

    def fail_once(_: str) -> str:
        tries.append(env.now())
        if len(tries) == 1:
            raise ValueError("not yet")
        again.set()
        return "done"

    async with WorkflowEnvironment(workflows=[flow(wat.call("note", b'"x"'))], start=START) as env:
        env.mock_activity(note, does=fail_once)
        await env.client.start_workflow("flow", id="w")
        await again.wait()  # no result is waited for: the second goes by
        assert tries == [START, START + timedelta(seconds=1)]


async def test_skipping_can_be_switched_off() -> None:
    async with WorkflowEnvironment(workflows=[flow(wat.sleep(30 * DAY))], start=START) as env:
        with env.auto_time_skipping_disabled():
            with anyio.move_on_after(0.1) as given_up:
                await env.client.execute_workflow("flow", id="w")
            assert given_up.cancelled_caught
            assert env.now() == START
        assert await env.client.get_handle("w").result() == [0]


async def test_backoffs_are_skipped_and_evicted_guests_come_back_in_time() -> None:
    tries: list[timedelta] = []

    def closed(_: Order) -> Receipt:
        tries.append(env.now() - START)
        raise ValueError("the bank is closed")

    evicted, other = flow(wat.sleep(30 * DAY), name="evicted"), flow(wat.sleep(60 * 10**9), name="other")
    async with WorkflowEnvironment(workflows=[ORDER, evicted, other], start=START, max_guest_memory=0) as env:
        mock = env.mock_activity(charge, does=closed)
        handle = await env.client.start_workflow("evicted", id="evicted")
        await env.client.start_workflow("other", id="other")  # its timer fires in the middle of a backoff
        assert await env.client.execute_workflow("flow", id="w") == [-1]
        assert [call.attempt for call in mock.calls] == [1, 2, 3]
        assert tries == [timedelta(0), timedelta(hours=1), timedelta(hours=3)]
        assert (await handle.result(), env.now()) == ([0], START + timedelta(days=30))


async def test_start_delays_and_timeouts_are_skipped() -> None:
    workflows = [flow(wat.time()), flow(wat.sleep(30 * DAY), name="long")]
    async with WorkflowEnvironment(workflows=workflows, start=START) as env:
        later = await env.client.start_workflow("flow", id="later", start_delay=timedelta(days=7))
        long = await env.client.start_workflow("long", id="long", run_timeout=timedelta(days=3))
        with pytest.raises(WorkflowTimedOutError):
            await long.result()
        assert env.now() == START + timedelta(days=3)
        assert (await later.describe()).status == "waiting"
        assert await later.result() == [int(START.timestamp()) * 10**9 + 7 * DAY]


async def test_a_run_is_cancelled_in_the_middle_of_a_sleep() -> None:
    async with WorkflowEnvironment(workflows=[flow(wat.sleep(DAY), wat.call("note", b'"x"'))], start=START) as env:
        mock = env.mock_activity(note, returns="x")
        handle = await env.client.start_workflow("flow", id="w")
        await env.sleep(timedelta(hours=1))
        await handle.cancel()
        assert await handle.result() == [0, -1]  # this guest goes on without the call, which fails
        assert (mock.calls, env.now()) == ([], START + timedelta(days=1))


# Mocks


async def test_a_mock_needs_neither_the_function_nor_its_resources_and_records_what_it_is_asked() -> None:
    async with WorkflowEnvironment(workflows=[ORDER]) as env:
        mock = env.mock_activity(charge, returns=Receipt(paid=3))
        mock.assert_not_called()
        assert await env.client.execute_workflow("flow", id="w") == [{"paid": 3}]
        mock.assert_called_once_with(Order(number=7))
        [call] = env.calls(charge)
        assert (call.name, call.attempt, call.workflow_id, call.answered) == ("charge", 1, "w", True)
        assert call.idempotency_key == f"{call.run_id}/0"
        assert env.calls(note) == []
        with pytest.raises(AssertionError, match="activity 'charge' was called with"):
            mock.assert_called_once_with(Order(number=8))


async def test_a_mock_by_name_is_typed_as_the_activity_of_that_name() -> None:
    async with WorkflowEnvironment(
        workflows=[flow(wat.call("note", b'"x"'), wat.call("else", b"[1]"))], activities=[note]
    ) as env:
        with pytest.raises(InvalidArgumentError, match=r"mock of activity 'note': .* does not fit its annotation"):
            env.mock_activity("note", returns=3)
        env.mock_activity("else", does=lambda given: {"given": given})
        assert await env.client.execute_workflow("flow", id="w") == ["x", {"given": [1]}]
        assert [call.request for call in env.calls()] == ["x", [1]]


async def test_a_mock_may_be_replaced_and_ask_for_the_attempt() -> None:
    async with WorkflowEnvironment(workflows=[flow(wat.call("note", b'"x"'))], activities=[note]) as env:

        async def attempt(text: str) -> str:
            return f"{text} {activity.info().attempt}"

        env.mock_activity(note, raises=ValueError)
        assert await env.client.execute_workflow("flow", id="1") == [-1]
        env.mock_activity(note, does=attempt)
        assert await env.client.execute_workflow("flow", id="2") == ["x 1"]


async def test_a_mock_whose_result_does_not_fit_fails_the_test() -> None:
    with pytest.raises(InvalidArgumentError, match="paid"):
        async with WorkflowEnvironment(workflows=[ORDER]) as env:
            env.mock_activity(charge, returns={"paid": "much"})
    with pytest.raises(InvalidArgumentError, match=r"mock of activity 'charge': .* paid"):  # noqa: PT012  where it ends
        async with WorkflowEnvironment(workflows=[ORDER]) as env:
            env.mock_activity(charge, does=lambda _: {"paid": "much"})
            await env.client.execute_workflow("flow", id="w")
    seen = anyio.Event()
    with pytest.raises(InvalidArgumentError, match=r"mock of activity 'charge'"):  # noqa: PT012  the same
        async with WorkflowEnvironment(workflows=[ORDER]) as env:
            env.mock_activity(charge, does=lambda _: seen.set())
            await env.client.start_workflow("flow", id="w")
            await seen.wait()  # nobody waits for the result, and the test fails all the same


@pytest.mark.parametrize("answers", [{}, {"returns": Receipt(paid=1), "raises": ValueError}])
async def test_a_mock_has_one_answer(answers: dict[str, Any]) -> None:
    async with WorkflowEnvironment() as env:
        with pytest.raises(InvalidArgumentError, match="takes one of returns=, raises= and does="):
            env.mock_activity(charge, **answers)
        with pytest.raises(InvalidArgumentError, match="is no activity"):
            env.mock_activity(print, returns=1)


async def test_a_call_that_nobody_answers_is_told_and_waits_for_a_mock() -> None:
    async with WorkflowEnvironment(workflows=[ORDER]) as env:
        handle = await env.client.start_workflow("flow", id="w")
        with pytest.raises(InvalidArgumentError, match="calls activity 'charge', which this environment has not"):
            await handle.result()
        mock = env.mock_activity(charge, returns=Receipt(paid=1))
        assert await handle.result() == [{"paid": 1}]
        assert [call.attempt for call in mock.calls] == [1]


async def test_a_blocked_run_is_told() -> None:
    loop = flow(wat.raw("(loop $more (br $more))"))
    async with WorkflowEnvironment(workflows=[loop]) as env:
        handle = await env.client.start_workflow(Workflow("flow", type(None), list), None, id="w")
        await handle.terminate("enough")
    wide = flow(wat.raw("(drop (memory.grow (i32.const 60000)))"))
    async with WorkflowEnvironment(workflows=[wide]) as env:
        with pytest.raises(BlockedError, match=r"w is blocked: .*bytes of memory"):
            await env.client.execute_workflow("flow", id="w")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"activities": [note, note]}, "two activities are called 'note'"),
        ({"activities": [charge]}, "wants one Bank"),
        ({"max_activities": 0}, "max_activities"),
        ({"workflows": [Workflow("broken", type(None), list, module=b"no wasm")]}, "is not wasm"),
    ],
)
async def test_an_environment_that_cannot_work_says_why(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(WasmanError, match=problem):
        async with WorkflowEnvironment(**options):
            raise AssertionError("it was opened")


async def test_interceptors_are_around_mocks_as_well() -> None:
    class Counts(WorkerInterceptor):
        def __init__(self) -> None:
            self.names: list[str] = []

        async def execute_activity(
            self, given: ExecuteActivityInput, call_next: Callable[[ExecuteActivityInput], Awaitable[Any]]
        ) -> Any:
            self.names.append(given.info.name)
            return await call_next(given)

    class Starts(ClientInterceptor):
        async def start_workflow(
            self, given: StartWorkflowInput, call_next: Callable[[StartWorkflowInput], Awaitable[WorkflowHandle[Any]]]
        ) -> WorkflowHandle[Any]:
            counts.names.append(f"start {given.id}")
            return await call_next(given)

    counts, workflows = Counts(), [flow(wat.call("note", b'"x"'), wat.call("else", b"1"))]
    async with WorkflowEnvironment(
        workflows=workflows, activities=[note], interceptors=[counts], client_interceptors=[Starts()]
    ) as env:
        env.mock_activity("else", returns=2)
        assert await env.client.execute_workflow("flow", id="w") == ["x", 2]
    assert counts.names == ["start w", "note", "else"]


async def test_client_and_workers_share_a_codec() -> None:
    class Backwards:
        name = "backwards"

        def __init__(self) -> None:
            self.encoded = 0

        def encode(self, data: bytes) -> bytes:
            self.encoded += 1
            return data[::-1]

        def decode(self, data: bytes) -> bytes:
            return data[::-1]

    codec = Backwards()
    fault = Fault(Point("commit", 1), How.DIES_AFTER)
    async with WorkflowEnvironment(
        workflows=[flow(wat.call("note", b'"x"'))], activities=[note], codec=codec, faults=[fault]
    ) as env:
        assert await env.client.execute_workflow("flow", id="w") == ["x"]
    assert codec.encoded == 3  # input, answer, result


async def test_what_a_test_raises_is_not_wrapped() -> None:
    with pytest.raises(ZeroDivisionError):
        async with WorkflowEnvironment():
            raise ZeroDivisionError
    failing = flow(wat.raw("unreachable"))
    with pytest.raises(WorkflowFailedError):
        async with WorkflowEnvironment(workflows=[failing]) as env:
            await env.client.execute_workflow("flow", id="w")


# Crashes


@pytest.mark.parametrize("how", How)
async def test_a_worker_dies_at_the_commit_that_is_said(how: How) -> None:
    twice = flow(wat.call("note", b'"1"'), wat.call("note", b'"2"'))
    fault = Fault(Point("commit", 2), how)
    async with WorkflowEnvironment(workflows=[twice], activities=[note], faults=[fault]) as env:
        assert await env.client.execute_workflow("flow", id="w") == ["1", "2"]
        assert env.crashes == (1 if how.kills else 0)
        # The second answer was logged before the death, or its call was made again.
        assert [call.request for call in env.calls()] == ["1", "2", "2"] if how is How.DIES_BEFORE else ["1", "2"]


async def test_a_worker_dies_when_it_is_told_to() -> None:
    calls: list[str] = []

    def call(text: str) -> str:
        calls.append(text)
        return text

    async with WorkflowEnvironment(workflows=[flow(wat.call("note", b'"1"'), wat.sleep(DAY))], start=START) as env:
        env.mock_activity(note, does=call)
        handle = await env.client.start_workflow("flow", id="w")
        await env.sleep(timedelta(hours=1))
        await env.crash_worker()
        assert await handle.result() == ["1", 0]
        assert (calls, env.crashes, env.now()) == (["1"], 1, START + timedelta(days=1))


STEPS: Sequence[wat.Step] = (
    wat.call("note", b'"1"'),
    wat.sleep(DAY),
    wat.checkpoint(),
    wat.call("note", b'"2"'),
    wat.time(),
)


async def run(env: WorkflowEnvironment) -> Any:
    return await env.client.execute_workflow("flow", id="w")


@pytest.mark.parametrize("reentrant", [False, True])
async def test_a_good_workflow_survives_everywhere(*, reentrant: bool) -> None:
    survival = await assert_survives(
        run, workflows=[flow(*STEPS, reentrant=reentrant)], activities=[note], hows=list(How)
    )
    assert len(survival.commits) == 4 + reentrant  # two answers, a timer, perhaps a snapshot, the end
    assert survival.lives == survival.struck == len(survival.commits) * len(How)


async def test_a_workflow_that_draws_random_bytes_and_retries_survives() -> None:
    def random(program: wat.Program) -> str:
        get = program.import_wasi("random_get", "ww")
        return (
            f"(drop (call {get} (i32.const {wat.SCRATCH}) (i32.const 8)))"
            f"(call $number (i64.load32_u (i32.const {wat.SCRATCH}))) (call $comma)"
        )

    async def flaky(env: WorkflowEnvironment) -> Any:
        failed: set[str] = set()

        def once(text: str) -> str:
            if activity.info().idempotency_key not in failed:
                failed.add(activity.info().idempotency_key)
                raise ValueError("not yet")
            return text

        env.mock_activity(note, does=once)
        return await run(env)

    # Without the clock: an attempt that its worker's death has cut has no backoff.
    survival = await assert_survives(flaky, workflows=[flow(random, *STEPS[:-1], random)])
    assert survival.struck == survival.lives > 15


async def test_a_workflow_that_does_its_work_again_does_not_survive() -> None:
    # It claims that it skips what is done when it is entered anew, and does not.
    false = flow(*STEPS, resume="checkpoint")
    with pytest.raises(
        AssertionError, match=r"dies .* commit .*activity 'note' is called with \"1\" under key .*undisturbed"
    ):
        await assert_survives(run, workflows=[false], activities=[note])


async def test_an_activity_whose_effect_is_not_idempotent_does_not_survive() -> None:
    def scenario(*, by_key: bool) -> Any:
        async def lives(env: WorkflowEnvironment) -> Any:
            account: dict[str, int] = {}

            def pay(text: str) -> str:
                key = activity.info().idempotency_key if by_key else f"{len(account)}"
                account[key] = 10
                return text

            env.mock_activity(note, does=pay)
            await run(env)
            return sum(account.values())

        return lives

    await assert_survives(scenario(by_key=True), workflows=[flow(*STEPS)])
    with pytest.raises(
        AssertionError,
        match=r"dies before its commit 1 of 4 \(w: running, log entry 1\).* gives 30, undisturbed it is 20",
    ):
        await assert_survives(scenario(by_key=False), workflows=[flow(*STEPS)])


async def test_a_check_of_the_users_own_may_fail_it() -> None:
    seen: list[Any] = []

    def check(result: Any) -> None:
        seen.append(result)
        assert len(seen) < 3, "the third is one too many"

    with pytest.raises(AssertionError, match="is not survived: AssertionError: the third is one too many"):
        await assert_survives(run, workflows=[flow(*STEPS)], activities=[note], check=check)


async def test_a_run_that_does_not_end_is_told() -> None:
    worlds: list[int] = []

    async def stalls(env: WorkflowEnvironment) -> Any:
        worlds.append(len(worlds))
        if len(worlds) > 1:
            await anyio.sleep_forever()
        return await run(env)

    with pytest.raises(AssertionError, match="it did not end"):
        await assert_survives(stalls, workflows=[flow(*STEPS)], activities=[note], timeout=0.5)


# One activity by itself


async def test_an_activity_runs_by_itself_with_its_info_and_heartbeats() -> None:
    @activity
    async def counts(upto: int, step: int = 1) -> str:
        info = activity.info()
        for done in range(info.heartbeat_details[0], upto, step):
            activity.heartbeat(done, {"of": upto})
        await checkpoint()
        return f"{info.name} {info.attempt} {info.idempotency_key} {info.workflow_id} {info.started.isoformat()}"

    env = ActivityEnvironment(
        name="counts", attempt=2, heartbeat_details=[3], workflow_id="w", run_id="r", started=START
    )
    assert await env.run(counts, 7, step=2) == "counts 2 r/0 w 2026-01-01T00:00:00+00:00"
    assert env.heartbeats == [(3, {"of": 7}), (5, {"of": 7})]
    with pytest.raises(RuntimeError, match="outside of an activity"):
        activity.info()


async def test_a_sync_activity_runs_by_itself_and_sees_that_it_is_cancelled() -> None:
    @activity
    def sync(text: str) -> str:
        activity.heartbeat()
        return f"{text} {activity.is_cancelled()}"

    env = ActivityEnvironment()
    assert env.run(sync, "x") == "x False"
    assert env.heartbeats == [()]
    env.cancel()
    with pytest.raises(ActivityCancelledError, match="is over"):
        env.run(sync, "x")


async def test_an_async_activity_by_itself_is_cancelled() -> None:
    tidied: list[str] = []

    @activity
    async def waits(text: str) -> str:
        try:
            await anyio.sleep_forever()
        finally:
            tidied.append(text)
        return text

    env = ActivityEnvironment(name="waits")
    async with anyio.create_task_group() as tasks:

        async def expect() -> None:
            with pytest.raises(ActivityCancelledError, match="activity 'waits' was cancelled"):
                await env.run(waits, "x")

        tasks.start_soon(expect)
        await anyio.wait_all_tasks_blocked()
        env.cancel()
    assert tidied == ["x"]
    with pytest.raises(ActivityCancelledError):  # and one that begins after that
        await env.run(waits, "y")


# The fixture


async def test_the_fixture_opens_environments(wasman_environment: OpenEnvironment) -> None:
    env = await wasman_environment(workflows=[flow(wat.call("note", b'"x"'))], activities=[note])
    assert isinstance(env.client, Client)
    assert await env.client.execute_workflow("flow", id="w") == ["x"]
