"""Who has lost an instance, or its lease, does nothing more for it; and what was dropped is taken up again."""

from typing import Any

import anyio
import pytest

from tests import wat
from tests.lab import DirectoryLab, Lab, Ledger, MemoryLab, SqliteLab, answers
from wasman_host import starting
from wasman_host.activity import ActivityCall
from wasman_host.errors import InvalidArgumentError, StoreUnavailableError, WasmVersionMismatchError
from wasman_host.guest.module import digest
from wasman_host.payload import Payload
from wasman_host.store import Key, Status, Store


class Unreachable:
    """A store that does not answer while `gone` is set."""

    def __init__(self, store: Store) -> None:
        self.store, self.gone = store, False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name == "now":
            return method

        async def answer(*given: Any, **named: Any) -> Any:
            if self.gone:
                await anyio.sleep(0.005)
                message = f"the store does not answer ({name})"
                raise StoreUnavailableError(message)
            return await method(*given, **named)

        return answer


@pytest.mark.parametrize("kind", ["memory", "sqlite", "directory"])
async def test_a_lost_lease_stops_activities_and_the_worker_comes_back(
    kind: str, lab: MemoryLab, disk: SqliteLab, folder: DirectoryLab
) -> None:
    where: Lab = {"memory": lab, "sqlite": disk, "directory": folder}[kind]
    store = Unreachable(await where.handle())
    first, cut, proceed = anyio.Event(), anyio.Event(), anyio.Event()
    done: list[int] = []

    async def wait(call: ActivityCall) -> bytes:
        if not first.is_set():
            first.set()
            try:
                await proceed.wait()
            finally:
                cut.set()
        done.append(call.attempt)
        return b"1"

    await where.start(wat.script(wat.call("wait")))
    async with where.worker(answers("wait", wait), store=store, lease=0.4) as engine:
        worker = engine.worker
        await first.wait()
        store.gone = True
        with anyio.fail_after(5):
            await cut.wait()  # without a lease it must not go on
        assert not engine.lease_is_valid
        proceed.set()
        await anyio.sleep(0.1)
        assert not done
        store.gone = False
        assert await where.result() == [1]  # by the same worker, under another id
        assert engine.worker != worker
    assert len(done) == 1


async def test_a_store_that_is_gone_for_less_than_a_lease_costs_nothing(lab: MemoryLab) -> None:
    store, ledger = Unreachable(lab.store), Ledger()

    async def note(call: ActivityCall) -> bytes:
        if call.request == b"2":
            store.gone = True
        return ledger.note(call)

    await lab.start(wat.script(*(wat.call("note", b"%d" % n) for n in range(4))))
    async with lab.worker(answers("note", note), store=store, lease=5.0):
        with anyio.fail_after(5):
            while len(ledger.rows) < 3:
                await anyio.sleep(0.01)
        await anyio.sleep(0.2)
        assert len(ledger.rows) == 3
        store.gone = False
        assert await lab.result() == [0, 1, 2, 3]
    assert ledger.attempts == [1, 1, 1, 1]


async def test_a_worker_that_was_given_up_drops_its_copies_and_takes_them_again(lab: MemoryLab) -> None:
    reached = anyio.Event()
    attempts: list[int] = []

    async def wait(call: ActivityCall) -> bytes:
        attempts.append(call.attempt)
        if len(attempts) == 1:
            reached.set()
            await anyio.sleep_forever()
        return b"1"

    await lab.start(wat.script(wat.call("wait")))
    async with lab.worker(answers("wait", wait), lease=0.4) as engine:
        worker = engine.worker
        await reached.wait()
        await lab.bury(lab.store, worker)  # as if its lease had ended in the store alone
        with anyio.fail_after(5):
            assert await lab.result() == [1]
        assert engine.worker != worker
    assert attempts == [1, 2]


async def test_an_unblock_that_loses_says_so(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.call("note")))
    with pytest.raises(InvalidArgumentError, match="w is running, not blocked"):
        await lab.unblock()


async def test_another_module_for_a_run_is_a_mismatch(lab: MemoryLab) -> None:
    old, new = (wat.script(wat.value(f"(i32.const {n})")) for n in (1, 2))
    await lab.deploy(old, "flow")
    options = starting.StartOptions(module=digest(new))
    with pytest.raises(WasmVersionMismatchError) as raised:
        await starting.start(lab.store, "default", "w", "flow", Payload.of(b"null"), None, options)
    assert str(raised.value) == (
        f"workflow 'flow' points at module {digest(old)[:12]}, and the start of 'w' expects "
        f"{digest(new)[:12]}; deploy the new module, or start with the old one"
    )
    assert await lab.store.load(Key("default", "w")) is None
    await lab.deploy(new, "flow")
    await starting.start(lab.store, "default", "w", "flow", Payload.of(b"null"), None, options)
    assert await lab.complete() == [2]


async def test_any_number_of_names_lives_in_one_file(disk: SqliteLab) -> None:
    modules = {f"flow{n}": wat.script(wat.value(f"(i32.const {n})")) for n in range(3)}
    for name, module in modules.items():
        await disk.deploy(module, name)
    await disk.deploy(modules["flow0"], "flow1")  # and any of them moves
    for n, expected in enumerate([0, 0, 2]):
        await starting.start(
            disk.store, "default", f"w{n}", f"flow{n}", Payload.of(b"null"), None, starting.StartOptions()
        )
        assert await disk.complete(id=f"w{n}") == [expected]


async def test_a_start_section_runs_once_and_never_at_a_restore(lab: MemoryLab) -> None:
    fields = f"""(func $begin (i32.store (i32.const {wat.SCRATCH}) (i32.add (i32.load (i32.const {wat.SCRATCH}))
      (i32.const 1)))) (start $begin)"""
    tell = wat.value(f"(i32.load (i32.const {wat.SCRATCH}))")
    module = wat.script(tell, wat.checkpoint(), wat.call("note", b"0"), tell, reentrant=True, fields=fields)
    await lab.start(module)
    await lab.dies(Ledger().activity(), at=2)
    assert await lab.complete(Ledger().activity()) == [1, 0, 1]
    assert (await lab.look()).status is Status.COMPLETED
