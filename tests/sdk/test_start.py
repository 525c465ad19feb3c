"""How runs are started: ids that have a run already, timeouts, a delay, memo and search attributes."""

import math
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from tests import wat
from wasman_host.seal import seal
from wasman_host.store.protocol import CLOSED, Change, Key, Message, Status
from wasman_host.stored import mail_address
from wasman_sdk import (
    Client,
    InvalidArgumentError,
    Worker,
    Workflow,
    WorkflowAlreadyExistsError,
    WorkflowClosedError,
    WorkflowFailedError,
    WorkflowHandle,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
    activity,
)

WAITS: Workflow[None, Any] = Workflow("waits", type(None), Any, module=wat.script(wat.call("missing")))
DONE: Workflow[None, Any] = Workflow("done", type(None), Any, module=wat.script(wat.value("(i32.const 7)")))
FAILS: Workflow[None, Any] = Workflow("fails", type(None), Any, module=wat.script(wat.call("wasman.fail", b"no")))
CLOCK: Workflow[None, Any] = Workflow("clock", type(None), Any, module=wat.script(wat.time()))


@pytest.fixture(params=["sqlite", "directory", "memory"])
async def client(request: pytest.FixtureRequest, anyio_backend: str, tmp_path: Path) -> AsyncIterator[Client]:
    del anyio_backend
    url = {"sqlite": f"sqlite:///{tmp_path}/s.db", "directory": f"file://{tmp_path}/s", "memory": "memory://"}
    async with Client.connect(url[request.param]) as client:
        yield client


async def waiting(handle: WorkflowHandle[Any], status: str = "waiting") -> None:
    """Until it has that status."""
    with anyio.fail_after(10):
        while (await handle.describe()).status != status:
            await anyio.sleep(0.005)


# Ids that have an open run


async def test_an_open_id_is_refused_by_default(client: Client) -> None:
    handle = await client.start_workflow(WAITS, None, id="w")
    with pytest.raises(WorkflowAlreadyExistsError, match=r"'w' is taken by run .*, which is running") as raised:
        await client.start_workflow(WAITS, None, id="w")
    assert raised.value.run_id == handle.run_id


async def test_an_open_run_is_used(client: Client) -> None:
    first = await client.start_workflow(DONE, None, id="w")
    second = await client.start_workflow(DONE, None, id="w", id_conflict_policy="use_existing")
    assert second.run_id == first.run_id
    with pytest.raises(WorkflowAlreadyExistsError, match="of workflow 'done', which is not 'waits', so it is not used"):
        await client.start_workflow(WAITS, None, id="w", id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING)
    async with Worker(client):
        with anyio.fail_after(10):
            assert await second.result() == [7]


async def test_an_open_run_that_nobody_has_gives_way_at_once(client: Client) -> None:
    first = await client.start_workflow(WAITS, None, id="w")
    second = await client.start_workflow(DONE, None, id="w", id_conflict_policy="terminate_existing")
    assert second.run_id != first.run_id
    with pytest.raises(WorkflowTerminatedError, match="another run was started in its place"):
        await first.result()
    assert [(event.kind, event.failure.partition(":")[0]) for event in await first.history()] == [
        ("start", ""),
        ("terminate", "terminated"),
    ]
    found = await second.describe()
    assert (found.status, found.workflow, found.previous_run_id) == ("running", "done", first.run_id)
    async with Worker(client):
        assert await second.result() == [7]


async def test_an_open_run_is_ended_by_its_worker_first(client: Client) -> None:
    begun, gave_up = anyio.Event(), anyio.Event()

    @activity
    async def missing() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            gave_up.set()

    async with Worker(client, activities=[missing]):
        first = await client.start_workflow(WAITS, None, id="w")
        await begun.wait()
        with anyio.fail_after(10):
            second = await client.start_workflow(DONE, None, id="w", id_conflict_policy="terminate_existing")
            assert gave_up.is_set()
            assert await second.result() == [7]
        with pytest.raises(WorkflowTerminatedError):
            await first.result()


async def test_a_worker_that_does_not_end_a_run_is_fenced_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands for one that hangs: the run is its own, and it does not read the mail."""
    first = await client.start_workflow(WAITS, None, id="w")
    await client.store.beat("other", 60, {})
    [claim] = await client.store.claim("other", ["default"], 1)
    monkeypatch.setattr("wasman_host.starting._GRACE", 0.05)
    second = await client.start_workflow(DONE, None, id="w", id_conflict_policy="terminate_existing")
    found = await first.describe()
    assert (found.status, [kind for _, kind in found.undelivered]) == ("terminated", ["terminate"])
    assert (await client.store.load(claim.stored.key)).run == second.run_id  # type: ignore[union-attr]
    async with Worker(client):
        assert await second.result() == [7]


async def test_of_many_who_terminate_each_other_all_get_a_run_of_their_own(client: Client) -> None:
    handles: list[WorkflowHandle[Any]] = []

    async def start() -> None:
        handles.append(await client.start_workflow(WAITS, None, id="w", id_conflict_policy="terminate_existing"))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(start)
    assert len({handle.run_id for handle in handles}) == 8
    found = [(await handle.describe()).status for handle in handles]
    assert sorted(found) == ["running"] + ["terminated"] * 7


async def test_a_run_whose_sinks_are_being_published_does_not_give_way(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await client.start_workflow(WAITS, None, id="w")
    load = client.store.load

    async def publishing(key: Key) -> Any:
        stored = await load(key)
        return stored and evolve(stored, columns=evolve(stored.columns, status=Status.PUBLISHING))

    monkeypatch.setattr("wasman_host.starting._GRACE", 0.05)
    monkeypatch.setattr(client.store, "load", publishing)
    with pytest.raises(WorkflowAlreadyExistsError, match="whose sinks are being published; start again when it has"):
        await client.start_workflow(WAITS, None, id="w", id_conflict_policy="terminate_existing")
    monkeypatch.undo()
    assert (await handle.describe()).status == "running"


async def test_a_damaged_run_gives_way(client: Client) -> None:
    handle = await client.start_workflow(WAITS, None, id="w")
    stored = await client.store.load(Key("default", "w"))
    assert stored is not None
    damaged = Change(stored.key, (stored.run, 1), stored.run, "n", b"damaged", stored.columns, tail=stored.tail)
    await client.store.commit([damaged])
    assert (await handle.describe()).status == "blocked"
    second = await client.start_workflow(DONE, None, id="w", id_conflict_policy="terminate_existing")
    assert (await handle.describe()).status == "terminated"
    async with Worker(client):
        assert await second.result() == [7]


# Ids whose run is closed


async def ended(client: Client, workflow: Workflow[None, Any]) -> WorkflowHandle[Any]:
    handle = await client.start_workflow(workflow, None, id="w")
    async with Worker(client):
        with anyio.fail_after(10):
            while Status((await handle.describe()).status) not in CLOSED:
                await anyio.sleep(0.005)
    return handle


async def test_a_closed_id_is_started_again_and_its_earlier_runs_stay(client: Client) -> None:
    first = await ended(client, DONE)
    second = await client.start_workflow(FAILS, None, id="w")
    async with Worker(client):
        with pytest.raises(WorkflowFailedError):
            await second.result()
    third = await client.start_workflow(WAITS, None, id="w", id_reuse_policy="allow_duplicate_failed_only")
    assert len({first.run_id, second.run_id, third.run_id}) == 3
    assert await client.get_handle("w", run_id=first.run_id).result() == [7]
    found = await first.describe()
    assert (found.status, found.workflow, found.run_id) == ("completed", "done", first.run_id)
    assert [event.kind for event in await first.history()] == ["start"]
    with pytest.raises(WorkflowFailedError):
        await second.result()
    assert (await second.describe()).previous_run_id == first.run_id
    assert (await third.describe()).previous_run_id == second.run_id
    assert (await client.get_handle("w").describe()).run_id == third.run_id
    for end in (first.terminate, first.unblock):
        with pytest.raises(WorkflowClosedError, match="completed"):
            await end()
    assert (await third.describe()).status == "running"
    with pytest.raises(WorkflowNotFoundError, match="there is no run other of w in this store"):
        await client.get_handle("w", run_id="other").result()


async def test_a_completed_id_is_refused_where_only_failed_ones_are_repeated(client: Client) -> None:
    handle = await ended(client, DONE)
    with pytest.raises(
        WorkflowAlreadyExistsError, match=r"has ended \(completed\).* allow_duplicate_failed_only"
    ) as no:
        await client.start_workflow(
            DONE, None, id="w", id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
        )
    assert no.value.run_id == handle.run_id


async def test_a_used_id_is_refused_where_that_is_asked_for(client: Client) -> None:
    await ended(client, FAILS)
    with pytest.raises(WorkflowAlreadyExistsError, match=r"has ended \(failed\), and the start says reject_duplicate"):
        await client.start_workflow(DONE, None, id="w", id_reuse_policy="reject_duplicate")


async def test_a_large_result_of_an_earlier_run_is_there(client: Client) -> None:
    @activity
    async def large() -> str:
        return "x" * 100_000

    workflow: Workflow[None, Any] = Workflow(
        "large", type(None), Any, module=wat.script(wat.call("large", capacity=200_000), pages=8)
    )
    async with Worker(client, activities=[large]):
        first = await client.start_workflow(workflow, None, id="w")
        assert await first.result() == ["x" * 100_000]
        await client.execute_workflow(DONE, None, id="w")
        assert await first.result() == ["x" * 100_000]
        assert sum(event.size for event in await first.history()) > 100_000


async def test_who_waits_for_a_run_gets_its_result_though_the_id_has_another(client: Client) -> None:
    handle = client.get_handle("w")
    first = await client.start_workflow(WAITS, None, id="w")
    raised: list[BaseException] = []

    async def wait(one: WorkflowHandle[Any]) -> None:
        with pytest.raises(WorkflowTerminatedError) as error:
            await one.result()
        raised.append(error.value)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, handle)
            tasks.start_soon(wait, first)
            await anyio.sleep(0.02)
            await client.start_workflow(WAITS, None, id="w", id_conflict_policy="terminate_existing")
    assert [str(error).split()[1] for error in raised] == [first.run_id] * 2


async def test_a_terminate_for_one_run_does_not_end_the_next(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends between the look at it and the sending."""
    first = await client.start_workflow(WAITS, None, id="w")
    send = client.store.send

    async def late(message: Any) -> Any:
        monkeypatch.setattr(client.store, "send", send)
        await client.start_workflow(WAITS, None, id="w", id_conflict_policy="terminate_existing")
        return await send(message)

    monkeypatch.setattr(client.store, "send", late)
    with pytest.raises(WorkflowClosedError, match=r"ended already \(terminated\)"):
        await client.get_handle("w").terminate()
    assert (await first.describe()).status == "terminated"
    assert (await client.get_handle("w").describe()).status == "running"


async def test_a_worker_begins_a_run_whose_predecessor_it_still_lives(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run before is fenced off, and its task finds that out when its activity has ended."""
    begun, go_on = anyio.Event(), anyio.Event()

    @activity
    async def missing() -> None:
        begun.set()
        await go_on.wait()

    async def no_mail(*_: object) -> None:
        return

    monkeypatch.setattr("wasman_host.engine._AGAIN", 3600.0)  # so that it is not simply tried again
    monkeypatch.setattr("wasman_host.starting._GRACE", 0.0)
    monkeypatch.setattr("wasman_host.control.terminate", no_mail)
    async with Worker(client, activities=[missing]):
        first = await client.start_workflow(WAITS, None, id="w")
        await begun.wait()
        second = await client.start_workflow(DONE, None, id="w", id_conflict_policy="terminate_existing")
        with anyio.fail_after(10):
            assert await second.result() == [7]
            go_on.set()
    assert (await first.describe()).status == "terminated"
    assert [event.kind for event in await first.history()] == ["start", "terminate"]


async def test_runs_that_replace_each_other_while_a_worker_lives_them_are_all_whole(client: Client) -> None:
    seed = random.randrange(10**9)
    draw = random.Random(seed)
    keys: list[str] = []

    @activity
    async def note(number: int) -> int:
        keys.append(f"{activity.info().idempotency_key} {activity.info().attempt}")
        await anyio.sleep(draw.random() * 0.004)
        return number

    steps = [wat.call("note", b"%d" % n) for n in range(4)]
    workflow: Workflow[None, Any] = Workflow("steps", type(None), Any, module=wat.script(*steps))
    handles: list[WorkflowHandle[Any]] = []

    async def replace(times: int) -> None:
        for _ in range(times):
            handles.append(await client.start_workflow(workflow, None, id="w", id_conflict_policy="terminate_existing"))
            await anyio.sleep(draw.random() * 0.02)

    with anyio.fail_after(60):
        async with Worker(client, workflows=[workflow], activities=[note]):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(replace, 8)
            assert await client.get_handle("w").result() == [0, 1, 2, 3], seed
    assert len({handle.run_id for handle in handles}) == 24, seed
    ends = {str(handle.run_id): await handle.describe() for handle in handles}
    assert {found.status for found in ends.values()} <= {"completed", "terminated"}, seed
    for handle in handles:
        events = await handle.history()  # which checks the chain of its log
        answered = sum(event.kind == "result" for event in events)
        assert answered == 4 if ends[str(handle.run_id)].status == "completed" else answered <= 4, seed
        assert (events[-1].kind == "terminate") == (ends[str(handle.run_id)].status == "terminated"), seed
    # Each run has the one before it, back to the first.
    run, order = str((await client.get_handle("w").describe()).run_id), []
    while run:
        order.append(run)
        run = ends[run].previous_run_id
    assert sorted(order) == sorted(ends), seed
    assert len(set(keys)) == len(keys), "no attempt was made twice"


async def test_policies_that_are_none_or_exclude_each_other(client: Client) -> None:
    with pytest.raises(
        InvalidArgumentError, match="'kill' is no id_conflict_policy; there are fail, use_existing, term"
    ):
        await client.start_workflow(DONE, None, id="w", id_conflict_policy="kill")  # type: ignore[call-overload]
    with pytest.raises(InvalidArgumentError, match="'x' is no id_reuse_policy; there are allow_duplicate, "):
        await client.start_workflow(DONE, None, id="w", id_reuse_policy="x")  # type: ignore[call-overload]
    with pytest.raises(InvalidArgumentError, match="terminate_existing and reject_duplicate exclude each other"):
        await client.start_workflow(
            DONE, None, id="w", id_conflict_policy="terminate_existing", id_reuse_policy="reject_duplicate"
        )
    with pytest.raises(TypeError, match="unexpected keyword argument 'policy'"):
        await client.execute_workflow(DONE, None, id="w", policy="x")  # type: ignore[call-overload]
    assert await client.store.load(Key("default", "w")) is None


# Timeouts and a delay


@pytest.mark.parametrize("which", ["execution", "run"])
async def test_a_run_that_meets_its_timeout_ends(client: Client, which: str) -> None:
    timeout: Any = {f"{which}_timeout": timedelta(milliseconds=50)}
    handle = await client.start_workflow(WAITS, None, id="w", **timeout)
    async with Worker(client):
        with (
            anyio.fail_after(10),
            pytest.raises(WorkflowTimedOutError, match=f"timed out: the {which} timeout is over"),
        ):
            await handle.result()
    found = await handle.describe()
    assert (found.status, found.expires) == ("timed_out", found.created + timedelta(milliseconds=50))
    assert [event.kind for event in await handle.history()][-1] == "timed_out"


async def test_a_run_in_an_activity_meets_its_timeout(client: Client) -> None:
    gave_up = anyio.Event()

    @activity
    async def missing() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            gave_up.set()

    async with Worker(client, activities=[missing]):
        with anyio.fail_after(10), pytest.raises(WorkflowTimedOutError, match="run timeout"):
            await client.execute_workflow(
                WAITS, None, id="w", run_timeout=timedelta(seconds=0.1), execution_timeout=timedelta(days=1)
            )
        assert gave_up.is_set()


async def test_a_run_begins_after_its_delay(client: Client) -> None:
    async with Worker(client, workflows=[CLOCK]):
        before = datetime.now(UTC)
        handle = await client.start_workflow(CLOCK, None, id="w", start_delay=timedelta(seconds=0.3))
        found = await handle.describe()
        assert (found.status, found.owner) == ("waiting", None)
        assert found.reason.startswith("begins at ")
        with anyio.fail_after(10):
            [time] = await handle.result()
    assert time / 1e9 >= before.timestamp() + 0.3
    assert (await handle.describe()).created < before + timedelta(seconds=0.3)


async def test_a_run_can_be_ended_before_it_begins(client: Client) -> None:
    handle = await client.start_workflow(DONE, None, id="w", start_delay=timedelta(days=1))
    later = await client.start_workflow(
        DONE, None, id="later", start_delay=timedelta(seconds=0.2), run_timeout=timedelta(hours=1)
    )
    await handle.terminate("not wanted")
    async with Worker(client):
        with anyio.fail_after(10):
            with pytest.raises(WorkflowTerminatedError, match="not wanted"):
                await handle.result()
            assert await later.result() == [7]
    found = await later.describe()
    assert found.expires == found.created + timedelta(seconds=3600.2)


async def test_mail_does_not_begin_a_run_early(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is claimed for its mail, and waits in the worker."""
    store, now, ahead = client.store, client.store.now, 0
    sleeps = anyio.Event()

    async def sleeping(time: int, _: Key) -> None:
        sleeps.set()
        while store.now() < time:
            await anyio.sleep(0.005)

    # The delay is over when the test says so: the machine may be slow.
    monkeypatch.setattr(store, "now", lambda: now() + ahead)
    monkeypatch.setattr(store, "sleep_until", sleeping)
    handle = await client.start_workflow(DONE, None, id="w", start_delay=timedelta(seconds=5))
    key = Key("default", "w")
    await store.send(Message(key, "m", "other", seal(mail_address(key, "other", "m"), b"{}")))
    async with Worker(client):
        with anyio.fail_after(10):
            await sleeps.wait()
        await anyio.sleep(0.1)
        assert (await handle.describe()).status == "waiting"
        ahead = 5_000_000_000
        with anyio.fail_after(10):
            assert await handle.result() == [7]
    assert (await handle.describe()).undelivered == (("m", "other"),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_timeout": timedelta(0)}, "run_timeout of 'w' is 0 s; it must be more than 0, and at most 100 years"),
        ({"execution_timeout": timedelta(seconds=-1)}, "execution_timeout of 'w' is -1 s; it must be more than 0"),
        ({"start_delay": timedelta(seconds=-1)}, "start_delay of 'w' is -1 s; it must be not negative"),
        ({"start_delay": timedelta.max}, "and at most 100 years"),
        ({"run_timeout": 5}, r"run_timeout of 'w' is a int; give a timedelta, such as timedelta\(hours=1\)"),
    ],
)
async def test_times_that_cannot_be_kept(client: Client, options: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        await client.start_workflow(DONE, None, id="w", **options)
    assert await client.store.load(Key("default", "w")) is None


# Memo and search attributes


async def test_memo_and_attributes_come_back(client: Client) -> None:
    memo = {"why": ["a", 1, 2.5, None, True, {"deep": "\u00e4"}]}
    handle = await client.start_workflow(WAITS, None, id="w", memo=memo, search_attributes={"customer": "4711"})
    found = await handle.describe()
    assert (found.memo, found.search_attributes) == (memo, {"customer": "4711"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memo": {"at": datetime.now(UTC)}}, r"memo\['at'\] of 'w' is a datetime; a memo holds JSON, so convert it"),
        ({"memo": {"a": [{"b": math.nan}]}}, r"memo\['a'\]\[0\]\['b'\] of 'w' is nan, which JSON cannot hold"),
        ({"memo": {"a": "\ud800"}}, r"memo\['a'\] of 'w' holds a lone surrogate"),
        ({"memo": {"a": {1: 2}}}, r"memo\['a'\] of 'w' has the key 1; keys of JSON are strings"),
        ({"memo": {"a": "x" * 65_537}}, "the memo of 'w' has 65,546 bytes of JSON; at most 65,536 are allowed"),
        ({"memo": [1]}, "the memo of 'w' is a list; it is a dict of JSON by name"),
        ({"search_attributes": {"n": 1}}, "search attribute 'n' of 'w': its value is a int; names and values are str"),
        ({"search_attributes": {1: "n"}}, "search attribute 1 of 'w': its name is a int; names and values are strings"),
        ({"search_attributes": {"": "n"}}, "a search attribute of 'w' has no name"),
        ({"search_attributes": {"n": "a\0b"}}, "search attribute 'n' of 'w': its value holds a NUL or a lone surrog"),
        ({"search_attributes": {"n": "x" * 2001}}, "search attribute 'n' of 'w': its value has more than 2,000 bytes"),
        ({"search_attributes": {str(n): "" for n in range(101)}}, "'w' has 101 search attributes; at most 100 are"),
        ({"search_attributes": ["n"]}, "the search attributes of 'w' are a list; they are a dict of strings by name"),
    ],
)
async def test_what_cannot_be_noted(client: Client, options: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        await client.start_workflow(DONE, None, id="w", **options)
    assert await client.store.load(Key("default", "w")) is None


async def test_an_input_that_cannot_be_stored(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match=r"the input of workflow 'done' cannot be stored: .*object"):
        await client.start_workflow("done", object(), id="w")
