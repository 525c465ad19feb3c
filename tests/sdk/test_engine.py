"""Direct use: exports are executed on durable instances, over every crash, and failures leave no trace."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests import wat
from wasman_host import control
from wasman_host.store import Key, MemoryStore, SqliteStore
from wasman_sdk import (
    ActivityInfo,
    Client,
    ConcurrentExecutionError,
    Engine,
    GuestLimitError,
    GuestTimeoutError,
    InputMismatchError,
    InvalidArgumentError,
    InvalidModuleError,
    Limits,
    SyncEngine,
    WasmVersionMismatchError,
    WorkflowAlreadyExistsError,
    WorkflowClosedError,
    WorkflowFailedError,
    activity,
)

# A counter: a page of memory and a global hold it. `ask` adds what activity "next" gives, twice.
COUNTER = wat.module(
    """(import "env" "host_call_api" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 4)
    (global $calls (mut i32) (i32.const 0))
    (data (i32.const 0) "next")
    (func (export "add") (param $n i64) (result i64)
      (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
      (i64.store (i32.const 70000) (i64.add (i64.load (i32.const 70000)) (local.get $n)))
      (i64.load (i32.const 70000)))
    (func (export "calls") (result i32) (global.get $calls))
    (func (export "both") (result i64 i32) (i64.load (i32.const 70000)) (global.get $calls))
    (func $next (drop (call $call (i32.const 0) (i32.const 4) (i32.const 70000) (i32.const 1)
                                  (i32.const 100) (i32.const 16)))
      (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
      (i64.store (i32.const 70000) (i64.add (i64.load (i32.const 70000))
                                            (i64.extend_i32_u (i32.sub (i32.load8_u (i32.const 100)) (i32.const 48))))))
    (func (export "ask") (result i64) (call $next) (call $next) (i64.load (i32.const 70000)))
    (func (export "trap") (i64.store (i32.const 70000) (i64.const -1)) (global.set $calls (i32.const 99)) (unreachable))
    (func (export "ask_and_trap") (call $next) (unreachable))
    (func (export "grow") (param $pages i32) (result i32) (memory.grow (local.get $pages)))
    (func (export "size") (result i32) (memory.size))
    (func (export "spin") (loop $l (br $l)))
    (func (export "run") (result i32) (i32.const 7))
    """
)


@pytest.fixture
def made() -> list[str]:
    return []


def next_activity(keys: list[str], value: bytes = b"5") -> Callable[..., Any]:
    @activity(name="next")
    async def following(given: bytes) -> bytes:
        del given
        keys.append("called")
        return value

    return following


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "x.db")
    await store.open()
    yield store
    await store.close()


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_memory_and_globals_last_from_one_execution_to_the_next(store: Any, *, keep_alive: bool) -> None:
    async with Engine.from_bytes(COUNTER, store=store, keep_alive=keep_alive) as engine:
        assert engine.store is store
        assert await engine.execute("a", "add", 5) == 5
        assert await engine.execute("a", "add", -7) == -2
        assert await engine.execute("b", "add", 1) == 1
        assert await engine.execute("a", "both") == [-2, 2]
        assert await engine.execute("a") == 7
        for _ in range(40):  # chains of snapshots are merged
            await engine.execute("a", "add", 1)
    async with Engine.from_bytes(COUNTER, store=store) as engine:
        assert await engine.execute("a", "both") == [38, 42]
        await engine.close_instance("a")
        await engine.close_instance("nobody")
        assert await engine.execute("a", "add", 2) == 40


async def test_the_log_of_executions_goes_to_the_archive(store: Any, made: list[str]) -> None:
    async with Engine.from_bytes(COUNTER, store=store, activities=[next_activity(made)]) as engine:
        for n in range(270):
            assert await engine.execute("a", "add", 1) == n + 1
        assert await engine.execute("a", "ask") == 280
        stored = await control.load(store, Key("default", "a"))
        live = [n for n, _ in await store.read(stored.run)]
        assert live == [0, *range(256, 274)]
        assert [entry.n for entry in await control.history(store, stored)] == list(range(274))
    async with Engine.from_bytes(COUNTER, store=store) as engine:
        assert await engine.execute("a", "add", 1) == 281
    async with Engine.from_bytes(COUNTER, store=store, archive=0) as engine:
        for n in range(256):
            assert await engine.execute("a", "add", 1) == 282 + n
    events = await Client(store, "default").get_handle("a").history()
    assert [event.entry for event in events] == [0, 1, *range(512, 531)]
    assert (events[1].kind, events[1].failure) == (
        "dropped",
        "Dropped: entries 1 to 511 were not kept: the worker's retention of archives has dropped them",
    )


async def test_input_and_result_are_json(store: Any) -> None:
    module = wat.script(wat.call("wasman.input"))
    async with Engine.from_bytes(module, store=store) as engine:
        assert await engine.execute("a", input={"x": ["ü"]}) == [{"x": ["ü"]}]
        assert await engine.execute("b", "run", input=2) == [2]


async def test_an_execution_that_fails_leaves_no_trace(store: Any, made: list[str]) -> None:
    async with Engine.from_bytes(COUNTER, store=store, activities=[next_activity(made)]) as engine:
        await engine.execute("a", "add", 3)
        for _ in range(2):
            with pytest.raises(
                WorkflowFailedError, match="execution of 'trap' on 'a' failed: GuestTrap: wasm trap"
            ) as e:
                await engine.execute("a", "trap")
            assert e.value.failure is not None
            assert await engine.execute("a", "both") == [3, 1]
            with pytest.raises(WorkflowFailedError):
                await engine.execute("a", "ask_and_trap")
            assert await engine.execute("a", "both") == [3, 1]
        assert len(made) == 2
        assert await engine.execute("a", "ask") == 13
    async with Engine.from_bytes(COUNTER, store=store, activities=[next_activity(made)]) as engine:
        assert await engine.execute("a", "both") == [13, 3]


async def test_an_interrupted_execution_is_finished_before_the_next(store: Any, made: list[str]) -> None:
    reached = anyio.Event()

    @activity(name="next")
    async def once(given: bytes) -> bytes:
        del given
        made.append("called")
        if len(made) == 2:
            reached.set()
            await anyio.sleep_forever()
        return b"5"

    async with Engine.from_bytes(COUNTER, store=store, activities=[once]) as engine:
        await engine.execute("a", "add", 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.execute, "a", "ask")
            await reached.wait()
            tasks.cancel_scope.cancel()
    again = next_activity(made, b"4")
    async with Engine.from_bytes(COUNTER, store=store, activities=[again]) as engine:
        assert await engine.recover("a") == 10  # 1, the logged 5, and now 4
        assert await engine.recover("a") is None
        assert await engine.execute("a", "both") == [10, 3]
    assert len(made) == 3
    async with Engine.from_bytes(COUNTER, store=store, activities=[again]) as engine:
        with anyio.move_on_after(5), anyio.CancelScope() as scope:
            scope.cancel()
            await engine.execute("a", "ask")
        assert await engine.execute("a", "add", 0) == 10


async def test_what_is_missing_can_be_given_later(store: Any, made: list[str]) -> None:
    async with Engine.from_bytes(COUNTER, store=store) as engine:
        with pytest.raises(
            InvalidArgumentError, match="the guest of a calls activity 'next', which this engine has not"
        ):
            await engine.execute("a", "ask")
        assert await engine.execute("a", "calls") == 0
    fallback: list[str] = []

    def answer(name: str, request: bytes) -> bytes:
        fallback.append(f"{name} {request!r}")
        return b"2"

    async with Engine.from_bytes(COUNTER, store=store, fallback=answer) as engine:
        assert await engine.execute("a", "ask") == 4
    assert len(fallback) == 2
    assert not made


async def test_limits_are_the_engines_own_and_may_be_raised(store: Any) -> None:
    async with Engine.from_bytes(COUNTER, store=store, limits=Limits(turn_seconds=0.05, memory=5 * 65536)) as engine:
        await engine.execute("a", "add", 3)
        with pytest.raises(GuestTimeoutError):
            await engine.execute("a", "spin")
        with pytest.raises(GuestLimitError, match=r"the guest of a .* bytes of memory"):
            await engine.execute("a", "grow", 4)
        assert await engine.execute("a", "size") == 4
    async with Engine.from_bytes(COUNTER, store=store) as engine:
        assert await engine.execute("a", "grow", 4) == 4
        assert await engine.execute("a", "add", 0) == 3
    async with Engine.from_bytes(COUNTER, store=store) as engine:
        assert await engine.execute("a", "size") == 8


async def test_two_engines_on_one_instance(store: Any) -> None:
    async with Engine.from_bytes(COUNTER, store=store) as one, Engine.from_bytes(COUNTER, store=store) as two:
        assert await one.execute("a", "add", 1) == 1
        assert await two.execute("a", "add", 1) == 2
        with pytest.raises(ConcurrentExecutionError):
            await one.execute("a", "add", 1)
        assert await one.execute("a", "add", 1) == 3


async def test_executions_on_one_instance_are_one_after_the_other(store: Any, made: list[str]) -> None:
    async with Engine.from_bytes(COUNTER, store=store, activities=[next_activity(made)]) as engine:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(engine.execute, "a", "ask")
                tasks.start_soon(engine.execute, "b", "ask")
        assert await engine.execute("a", "both") == [100, 20]
        assert await engine.execute("b", "both") == [100, 20]


async def test_idle_guests_are_evicted_and_come_back(store: Any) -> None:
    async with Engine.from_bytes(COUNTER, store=store, max_guests=2) as engine:
        for round_ in range(1, 4):
            for name in "abcde":
                assert await engine.execute(name, "add", 1) == round_
        assert engine._host is not None
        assert len(engine._host.residents) == 2
        assert sum(one.guest is not None for one in engine._instances.values()) == 2


async def test_what_cannot_be_executed(store: Any, tmp_path: Path) -> None:
    other = wat.module('(memory (export "memory") 1) (func (export "add") (param i64) (result i64) (local.get 0))')
    async with Engine.from_bytes(COUNTER, store=store) as engine:
        with pytest.raises(InvalidModuleError, match="lacks its entry 'nothing'; it exports add, ask"):
            await engine.execute("a", "nothing")
        with pytest.raises(
            InputMismatchError, match=r"'add' takes 1 integers \(i64\), and the execution on a gives none"
        ):
            await engine.execute("a", "add")
        with pytest.raises(InputMismatchError):
            await engine.execute("a", "add", 1 << 64)
        with pytest.raises(InvalidArgumentError, match="the workflow id 'x/y' holds"):
            await engine.execute("x/y", "add", 1)
        assert await engine.execute("a", "add", 1) == 1
    with pytest.raises(InvalidArgumentError, match="the engine is not open: use it inside `async with engine:`"):
        await engine.execute("a", "add", 1)
    async with Engine.from_bytes(other, store=store) as engine:
        with pytest.raises(
            WasmVersionMismatchError, match=r"a was made of module .* its memory means nothing to another"
        ):
            await engine.execute("a", "add", 1)
    with pytest.raises(InvalidModuleError):
        async with Engine.from_bytes(b"no wasm", store=store):
            pass
    with pytest.raises(InvalidArgumentError, match=r"the module .*none\.wasm cannot be read: No such file"):
        Engine.from_path(tmp_path / "none.wasm")
    assert [found.workflow async for found in Client.over(store).list_workflows()] == ["direct"]


async def test_the_id_of_a_workflow_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    from wasman_sdk import Workflow  # noqa: PLC0415

    async with Client.connect(url) as client:
        await client.start_workflow(Workflow("flow", type(None), Any, module=wat.script()), None, id="w")
        async with Engine.from_bytes(COUNTER, store=client.store) as engine:
            with pytest.raises(WorkflowAlreadyExistsError, match="w is an instance of workflow 'flow'; execute under"):
                await engine.execute("w", "add", 1)


def test_without_a_loop(tmp_path: Path) -> None:
    (tmp_path / "guest.wasm").write_bytes(COUNTER)
    url = f"sqlite:///{tmp_path / 'x.db'}"
    with SyncEngine.from_path(tmp_path / "guest.wasm", store=url) as engine:
        assert engine.execute("a", "add", 2) == 2
        engine.close_instance("a")
        assert engine.recover("a") is None
        assert isinstance(engine.store, SqliteStore)
    with SyncEngine.from_bytes(COUNTER, store=url) as engine:
        assert engine.execute("a", "add", 2) == 4
    with pytest.raises(InvalidArgumentError, match="the engine is not open"):
        engine.execute("a")


def test_a_process_that_is_killed_in_an_execution(tmp_path: Path) -> None:
    (tmp_path / "guest.wasm").write_bytes(COUNTER)
    url = f"sqlite:///{tmp_path / 'x.db'}"
    program = textwrap.dedent("""
        import os, signal, sys
        from wasman_sdk import SyncEngine
        path, url = sys.argv[1:]
        made = []
        def answer(name, request):
            made.append(name)
            if len(made) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return b"5"
        with SyncEngine.from_path(path, store=url, fallback=answer) as engine:
            engine.execute("a", "add", 1)
            engine.execute("a", "ask")
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "guest.wasm"), url], env={**os.environ}, check=False, timeout=60
    )
    assert done.returncode == -9
    with SyncEngine.from_bytes(COUNTER, store=url, fallback=lambda *_: b"3") as engine:
        assert engine.execute("a", "both") == [9, 3]


def test_what_is_no_activity_is_refused_where_it_is_given() -> None:
    with pytest.raises(InvalidArgumentError, match="is no activity; decorate it with @activity"):
        Engine.from_bytes(COUNTER, activities=[len])


async def test_a_guest_that_could_not_be_restored_is_not_executed(store: Any) -> None:
    async with Engine.from_bytes(COUNTER, store=store) as engine:
        await engine.execute("a", "add", 3)
        await engine.execute("a", "grow", 4)
    async with Engine.from_bytes(COUNTER, store=store, limits=Limits(memory=5 * 65536)) as engine:
        for _ in range(2):  # the second one finds nothing that the first has left half done
            with pytest.raises(GuestLimitError, match="the snapshot of a holds 524,288 bytes of memory"):
                await engine.execute("a", "add", 1)
    async with Engine.from_bytes(COUNTER, store=store) as engine:
        assert await engine.execute("a", "add", 0) == 3


async def test_a_module_that_cannot_be_executed_directly_says_so_each_time(store: Any) -> None:
    module = wat.module("""(memory (export "memory") 1) (table 1 funcref)
      (func (export "run") (result i32) (table.grow (ref.null func) (i32.const 1)))""")
    async with Engine.from_bytes(module, store=store) as engine:
        for _ in range(2):
            with pytest.raises(InvalidModuleError, match="cannot be executed directly: its tables may change"):
                await engine.execute("a")


async def test_an_interrupted_execution_with_a_large_input_is_finished(store: Any, made: list[str]) -> None:
    reached = anyio.Event()

    @activity(name="next")
    async def once(given: bytes) -> bytes:
        del given
        made.append("called")
        if len(made) == 2:
            reached.set()
            await anyio.sleep_forever()
        return b"5"

    async with Engine.from_bytes(COUNTER, store=store, activities=[once]) as engine, anyio.create_task_group() as tasks:

        async def ask() -> None:
            await engine.execute("a", "ask", input="x" * 100_000)

        tasks.start_soon(ask)
        await reached.wait()
        tasks.cancel_scope.cancel()
    async with Engine.from_bytes(COUNTER, store=store, activities=[once]) as engine:
        assert await engine.execute("a", "both") == [10, 2]
    assert len(made) == 3


async def test_an_input_over_the_limit_is_refused(store: Any) -> None:
    async with Engine.from_bytes(COUNTER, store=store, limits=Limits(response=100)) as engine:
        with pytest.raises(InvalidArgumentError, match="the input of 'a' has 102 bytes; at most 100 are allowed"):
            await engine.execute("a", "calls", input="x" * 100)
        assert await engine.execute("a", "calls", input="x" * 98) == 0


async def test_an_instance_that_is_closed_while_others_wait_for_it_is_still_executed_one_by_one(
    store: Any, made: list[str]
) -> None:
    reached, go_on = anyio.Event(), anyio.Event()
    inside = most = 0

    @activity(name="next")
    async def following(given: bytes) -> bytes:
        nonlocal inside, most
        del given
        inside += 1
        most = max(most, inside)
        reached.set()
        await go_on.wait()
        await anyio.sleep(0.01)
        inside -= 1
        return b"5"

    del made
    async with Engine.from_bytes(COUNTER, store=store, activities=[following]) as engine:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.execute, "a", "ask")
            await reached.wait()
            tasks.start_soon(engine.close_instance, "a")
            await anyio.sleep(0.01)
            tasks.start_soon(engine.execute, "a", "ask")
            await anyio.sleep(0.01)
            go_on.set()
            for _ in range(20):
                await anyio.sleep(0.002)
                tasks.start_soon(engine.execute, "a", "ask")
        assert most == 1
        assert await engine.execute("a", "both") == [220, 44]


async def test_no_two_executions_call_under_one_key(store: Any) -> None:
    keys: list[str] = []
    reached = anyio.Event()

    @activity(name="next")
    async def first(given: bytes, info: ActivityInfo) -> bytes:
        del given
        keys.append(info.idempotency_key)
        reached.set()
        await anyio.sleep_forever()
        return b""

    @activity(name="next")
    async def then(given: bytes, info: ActivityInfo) -> bytes:
        del given
        keys.append(info.idempotency_key)
        return b"5"

    async with (
        Engine.from_bytes(COUNTER, store=store, activities=[first]) as engine,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(engine.execute, "a", "ask")
        await reached.wait()
        tasks.cancel_scope.cancel()  # what it has done to the world is not known
    async with Engine.from_bytes(COUNTER, store=store, activities=[then]) as engine:
        with pytest.raises(WorkflowFailedError):
            await engine.execute("a", "ask_and_trap")
        assert await engine.execute("a", "both") == [10, 2]
    assert keys[1] == keys[0], "the interrupted call is made again under its own key"
    assert len(set(keys)) == len(keys) - 1 == 3, "and the call of another execution under another"


async def test_an_instance_that_is_terminated_is_executed_no_more(store: Any) -> None:
    client = Client.over(store)
    async with Engine.from_bytes(COUNTER, store=store) as engine:
        await engine.execute("a", "add", 1)
        await client.get_handle("a").terminate("enough")
        await engine.execute("a", "add", 1)  # it was in memory, and learns of it by its commit
        for _ in range(2):
            with pytest.raises(WorkflowClosedError, match=r"a (was terminated|has ended .terminated.); execute under"):
                await engine.execute("a", "add", 1)
        assert (await client.get_handle("a").describe()).status == "terminated"
