"""Guests that lose their memory while they wait: they come back as they were, and leave nothing behind."""

import gc
import json
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests import wat
from tests.lab import Ledger, MemoryLab, SqliteLab, answers
from wasman_host.activity import ActivityCall
from wasman_host.guest import memory
from wasman_host.guest.live import Guest
from wasman_host.guest.memory import PAGE, maps
from wasman_host.images import Images, Restored
from wasman_host.instance import Instance
from wasman_host.machine import Proposal
from wasman_host.residents import Residency
from wasman_host.store import Change, Lost, MemoryStore, Status, Step, Unread, Won


async def test_an_eviction_at_the_end_of_a_timer_is_not_felt_inside_of_a_commit(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger()
    evicted: list[bool] = []
    commit = Instance.commit

    async def evicts(self: Instance, proposal: Proposal) -> None:
        if not evicted and any(one.kind == "fired" for one in proposal.delivered):
            evicted.append(self.evict())
        await commit(self, proposal)

    monkeypatch.setattr(Instance, "commit", evicts)
    await lab.start(wat.script(wat.sleep(1_000_000_000), wat.call("note", b"2")))
    with anyio.fail_after(5):
        result = await lab.complete(ledger.activity())
    assert (result, evicted) == ([0, 2], [True])
    assert ledger.attempts == [1]


async def test_what_interrupts_inside_of_a_commit_waits_for_its_outcome(lab: MemoryLab) -> None:
    class Interrupting:
        """A store inside of whose commit of the first answer the worker is told to leave."""

        def __getattr__(self, name: str) -> Any:
            return getattr(lab.store, name)

        async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
            outcomes = await lab.store.commit(changes)
            if any(change.entries and change.key.id == "w" for change in changes) and not interrupted:
                [instance] = engine._live.values()
                instance.leave()
                interrupted.append(True)
                await anyio.lowlevel.checkpoint()
            return outcomes

    interrupted: list[bool] = []
    ledger = Ledger()
    await lab.start(wat.script(wat.call("note", b"1"), wat.call("note", b"2")))
    async with lab.worker(ledger.activity(), store=Interrupting(), max_instances=1) as engine:
        with anyio.fail_after(5):
            while not interrupted or (await lab.look()).stored.columns.owner == engine.worker:
                await anyio.sleep(0.001)
                if (await lab.look()).status is Status.COMPLETED:
                    break
        assert await lab.result() == [1, 2]
    assert ledger.attempts == [1, 1]


async def test_after_a_week_without_a_worker_timers_fire_in_the_order_of_their_deadlines(lab: MemoryLab) -> None:
    """Of days, of none, of 300 years; each run was given back to the store, and nothing of it is in memory."""
    assert isinstance(lab.store, MemoryStore)
    ledger, hour = Ledger(), 3600 * 10**9
    sleeps = {"d": 72 * hour, "a": hour, "f": 10 * 24 * hour, "c": 48 * hour, "e": 7 * 24 * hour - hour, "b": 2 * hour}
    sleeps |= {"never": 300 * 366 * 24 * hour, "at once": 0}
    async with lab.worker(ledger.activity(), residency=Residency(memory=0)) as engine:
        for name, duration in sleeps.items():
            await lab.start(wat.script(wat.sleep(duration), wat.call("note", json.dumps(name).encode())), id=name)
        for name in sleeps.keys() - {"at once"}:
            found = await lab.until(Status.WAITING, id=name, reason="nothing to do until")
            assert found.stored.columns.owner is None
        assert await lab.result("at once") == [0, "at once"]
        with anyio.fail_after(5):
            while engine._live:
                await anyio.sleep(0.001)
    clock = lab.store._clock
    lab.store._clock = lambda: clock() + 7 * 24 * hour
    async with lab.worker(ledger.activity(), max_instances=1):
        for name in "abcde":
            assert await lab.result(name) == [0, name]
    assert [json.loads(request) for request in ledger.requests] == ["at once", *"abcde"]
    for name in ("f", "never"):
        assert (await lab.look(name)).status is Status.WAITING
    wake = (await lab.look("never")).stored.columns.wake
    assert wake == 2**63 - 1


@pytest.mark.skipif(not maps(), reason="this kernel does not list the pages that were written")
async def test_a_guest_that_was_never_restored_counts_as_the_pages_it_has_written(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.call("wait", b"1"), pages=64))
    called, go_on = anyio.Event(), anyio.Event()

    async def wait(call: ActivityCall) -> bytes:
        called.set()
        await go_on.wait()
        return call.request

    with anyio.fail_after(5):
        # Less than its memory has: only then it is counted.
        async with lab.worker(answers("wait", wait), residency=Residency(memory=1 << 20)) as engine:
            await called.wait()
            engine.residents.look()
            written = engine.residents.written
            go_on.set()
            await lab.result()
    assert 0 < written <= 8 * PAGE  # of 1024


async def test_a_guest_that_sleeps_for_ever_is_evicted_until_the_last_time_that_a_store_keeps(disk: SqliteLab) -> None:
    await disk.start(wat.script(wat.sleep(2**64 - 1)))
    async with disk.worker(residency=Residency(memory=1)):
        found = await disk.until(Status.WAITING)
        assert found.reason.startswith("nothing to do until 2262-")
        await disk.terminate()
        await disk.until(Status.TERMINATED)


# Leaks, and growth

EVERY = "WASMAN_LEAKS" in os.environ  # make leaks
CYCLES = 10_000 if EVERY else 900
WARM = 550  # cycles until caches are full: 128 images that hold every page that the guest writes
GROWS = 5  # at which cycle the guest's memory grows for the first time, and every so often

CYCLING = f"""
  (memory (export "memory") 2)
  (func (export "wasman_reentrant"))
  (func $place (param $n i32) (result i32)
    (i32.mul (i32.const 4096) (i32.add (i32.const 2) (i32.rem_u (local.get $n)
      (i32.sub (i32.mul (memory.size) (i32.const 16)) (i32.const 2))))))
  (func (export "run") (param $cycles i32) (result i32) (local $n i32) (local $sum i32)
    (loop $more
      (local.set $n (i32.load (i32.const 16)))
      (if (i32.lt_u (local.get $n) (local.get $cycles)) (then
        (drop (call $host_call_api
          (i32.const 0) (i32.const 4) (i32.const 4) (i32.const 1) (i32.const 32) (i32.const 8)))
        (if (i32.and (i32.eqz (i32.rem_u (local.get $n) (i32.const {GROWS}))) (i32.lt_u (memory.size) (i32.const 24)))
          (then
            (drop (memory.grow (i32.const 1)))
            ;; the last bytes of what has grown are zeros until they are written
            (if (i32.load (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4))) (then (unreachable)))
            (i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (local.get $n))))
        (i32.store (call $place (local.get $n)) (i32.add (local.get $n) (i32.const 1)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (i32.store (i32.const 16) (local.get $n))
        (call $checkpoint)
        (br $more))))
    ;; a sum over all words: whatever was lost on the way is missing here
    (local.set $n (i32.const 64))
    (loop $words
      (local.set $sum (i32.add (i32.mul (local.get $sum) (i32.const 31)) (i32.load (local.get $n))))
      (local.set $n (i32.add (local.get $n) (i32.const 4)))
      (br_if $words (i32.lt_u (local.get $n) (i32.mul (memory.size) (i32.const 65536)))))
    (local.get $sum))
  (data (i32.const 0) "note7")
"""


@pytest.fixture(params=["mapped", "compared"])
def memory_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to restore a memory, and to find what was written."""
    if request.param == "compared":
        monkeypatch.setenv("WASMAN_MEMORY", "compare")
    memory._probed.cache_clear()
    if request.param == "mapped" and not memory.maps():
        pytest.skip("this kernel does not map")
    yield request.param
    memory._probed.cache_clear()


def held() -> tuple[int, int, int]:
    """Open descriptors, mappings, and bytes in memory."""
    gc.collect()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    mappings = len(Path("/proc/self/maps").read_bytes().splitlines())
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return descriptors, mappings, resident


def cycled(cycles: int) -> int:
    """What the guest gives that was never evicted, counted here."""
    size, words = 2, dict[int, int]()
    for n in range(cycles):
        if n % GROWS == 0 and size < 24:
            size += 1
            words[size * 65536 - 4] = n
        words[4096 * (2 + n % (size * 16 - 2))] = n + 1
    total = 0
    for at in range(64, size * 65536, 4):
        total = (total * 31 + words.get(at, 0)) & 0xFFFFFFFF
    return total - (1 << 32) if total >> 31 else total


async def test_cycles_of_restore_and_eviction_leak_nothing(lab: MemoryLab, memory_path: str) -> None:
    """At each cycle a guest is restored, writes, grows at times, is snapshotted, and loses its memory as it waits."""
    seen: list[tuple[int, int, int]] = []
    calls = evictions = 0

    async def note(call: ActivityCall) -> bytes:
        nonlocal calls, evictions
        calls += 1
        instance = engine._live[call.key]
        await anyio.lowlevel.checkpoint()
        evictions += instance.evict()
        if calls in {WARM, CYCLES}:
            seen.append(held())
        return b"1"

    async with lab.worker(answers("note", note)) as engine:
        engine.images = Images(8 * 1024 * 1024)  # full before the first look, else what it holds looks like a leak
        await lab.start(wat.module(CYCLING), CYCLES)
        with anyio.fail_after(500):
            while (await lab.look()).status is Status.RUNNING:
                await anyio.sleep(0.05)
        assert await lab.result() == cycled(CYCLES), memory_path
    assert (calls, evictions) == (CYCLES, CYCLES)
    (descriptors, mappings, resident), after = seen
    assert after[0] <= descriptors + 2, "descriptors"
    assert after[1] <= mappings + 20, "mappings"
    assert after[2] <= resident + 16 * 1024 * 1024, "memory"


async def test_small_snapshots_do_not_use_the_descriptors_up(lab: MemoryLab, memory_path: str) -> None:
    """Each image that is held costs a descriptor and a mapping, however small it is."""
    before = held()
    images = Images(max_bytes=1 << 40)  # it is their number that counts: 4,096 of them would also be all the bytes
    for n in range(5000):
        image = memory.image_of(65536, [(0, b"%d" % n)])
        images.hold(f"{n}", Restored(image, (), {}, frozenset()))
    after = held()
    assert images.get("4999") is not None
    assert images.get("0") is None
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = max(16, min(4096, allowed // 4))
    assert after[0] <= before[0] + files + 2, (lab, memory_path)
    assert after[1] <= before[1] + files + 600


async def test_a_guest_that_grows_after_it_was_restored_keeps_both(lab: MemoryLab, memory_path: str) -> None:
    """What was there before the restore, what grew after it, and zeros between, over two more snapshots."""
    grow = "(if (i32.ne (memory.grow (i32.const 3)) (i32.const {})) (then (unreachable)))"
    peek = "(i32.load8_u (i32.const {}))"
    module = wat.script(
        wat.raw("(i32.store8 (i32.const 262143) (i32.const 41))"),
        wat.checkpoint(),
        wat.call("note", b"1"),
        wat.raw(grow.format(4) + "(i32.store8 (i32.const 458751) (i32.const 42))"),
        wat.value(peek.format(262143)),
        wat.value(peek.format(262144)),
        wat.checkpoint(),
        wat.call("note", b"2"),
        wat.raw(grow.format(7) + "(i32.store8 (i32.const 458752) (i32.const 43))"),
        wat.checkpoint(),
        wat.call("note", b"3"),
        wat.value(peek.format(262143)),
        wat.value(peek.format(458751)),
        wat.value(peek.format(458752)),
        wat.value(peek.format(655359)),
        reentrant=True,
    )
    evicted = 0

    async def note(call: ActivityCall) -> bytes:
        nonlocal evicted
        evicted += engine._live[call.key].evict()
        return call.request

    async with lab.worker(answers("note", note)) as engine:
        await lab.start(module)
        assert await lab.result() == [1, 41, 0, 2, 3, 41, 42, 43, 0], memory_path
    assert evicted == 3


async def test_the_room_of_guests_is_kept_by_the_one_that_waited_longest(lab: MemoryLab) -> None:
    """With room for two guests, ten that wait for an activity all end right, and never more than two are there."""
    opened, waiting = anyio.Event(), 0

    async def gate(call: ActivityCall) -> bytes:
        nonlocal waiting
        waiting += 1
        if waiting == 10:
            opened.set()
        await opened.wait()
        assert len(engine.residents) <= 3  # the one that is just made is counted before another goes
        return call.request

    module = wat.script(wat.call("gate", b"1"), wat.call("gate", b"2"))
    async with lab.worker(answers("gate", gate), residency=Residency(guests=2)) as engine:
        for n in range(10):
            await lab.start(module, id=f"w{n}")
        for n in range(10):
            assert await lab.result(f"w{n}") == [1, 2]
    assert waiting == 20, "no activity was called again because its guest had no memory"


async def test_a_guest_that_was_laid_over_a_new_image_is_folded_whole(lab: MemoryLab, memory_path: str) -> None:
    """Past 512 changed pages a guest gets its own image; a later merge still writes all that the module has not."""
    fill = "(memory.fill (i32.const 262144) (i32.const {}) (i32.const 2621440))"  # 640 pages
    steps: list[wat.Step] = [wat.raw(fill.format(9)), wat.checkpoint()]
    for n in range(17):  # a merge comes after 16
        steps += [wat.call("note", b"%d" % n), wat.checkpoint()]
    module = wat.script(
        *steps, wat.call("last", b"99"), wat.value("(i32.load8_u (i32.const 2883583))"), reentrant=True, pages=44
    )
    gate = anyio.Event()

    async def stop(_: ActivityCall) -> bytes:
        gate.set()
        await anyio.sleep_forever()
        return b""

    await lab.start(module)
    await lab.dies(Ledger().activity(), answers("last", stop), when=gate)
    snapshot = (await lab.record()).snapshot
    assert snapshot is not None
    assert len(snapshot.deltas) == 2, "it was merged"
    assert await lab.complete(Ledger().activity("last"), cold=True) == [*range(17), 99, 9], memory_path


async def test_a_full_worker_takes_what_waits_as_soon_as_a_run_ends(
    disk: SqliteLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger()
    for name in "abc":
        await disk.start(wat.script(wat.call("note", b"1")), id=name)
    monkeypatch.setattr("wasman_host.engine._POLL", 60.0)
    with anyio.fail_after(20):
        async with disk.worker(ledger.activity(), max_instances=1):
            for name in "abc":
                assert await disk.result(name) == [1]


async def test_the_kernel_is_not_asked_what_guests_have_written_that_fit_in_any_case(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Guest] = []
    written = Guest.written

    def ask(self: Guest) -> int:
        asked.append(self)
        return written(self)

    monkeypatch.setattr(Guest, "written", ask)
    for memory_allowed, is_asked in ((1 << 30, False), (1, True)):
        name, looks = f"of-{memory_allowed}", 0

        def look(_: ActivityCall) -> bytes:
            nonlocal looks
            looks += 1
            engine.residents.look()  # while its guest is there
            return b""

        await lab.start(wat.script(wat.call("look", b"1"), wat.call("look", b"2")), id=name)
        async with lab.worker(answers("look", look), residency=Residency(memory=memory_allowed)) as engine:
            await lab.result(name)
        assert looks >= 2
        assert bool(asked) == is_asked
