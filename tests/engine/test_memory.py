"""Linear memories: their limits, how they are restored, and that nothing of them is left behind."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests import lab as labs
from tests import wat
from tests.lab import Ledger, MemoryLab
from wasman_host.errors import GuestLimitError, InvalidModuleError
from wasman_host.guest import linear, memory
from wasman_host.guest.abi_v0 import Checkpoint
from wasman_host.guest.cache import CodeCache
from wasman_host.guest.limits import STACK, GuestLimits
from wasman_host.guest.live import Ended, Exceeded, Guest, Parked, Trapped, Yielded
from wasman_host.guest.memory import PAGE, Baseline, changed, image_of
from wasman_host.guest.module import compile_module
from wasman_host.guest.world import World
from wasman_host.images import Images, Origin, Restored
from wasman_host.record import Limits
from wasman_host.residents import Residency
from wasman_host.snapshot import Delta, decode_delta, encode_delta, runs_of

CYCLES = int(os.environ.get("WASMAN_LEAK_CYCLES", "500"))
LIMITS = GuestLimits(memory=64 * 1024 * 1024, table_elements=1000, stack=STACK)
MIB = 1024 * 1024
UNCACHED = CodeCache(None)


@pytest.fixture(params=["mapped", "compared"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways in which a memory is restored."""
    way = str(request.param)
    monkeypatch.setattr(labs, "COMPILED", {})
    monkeypatch.delenv("WASMAN_MEMORY", raising=False)
    if way == "compared":
        monkeypatch.setenv("WASMAN_MEMORY", "compare")
    memory._probed.cache_clear()
    if way == "mapped" and not memory.maps():
        pytest.skip("this kernel cannot list the pages that were written")
    yield way
    monkeypatch.undo()
    memory._probed.cache_clear()


def resident() -> int:
    """Bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def peak() -> int:
    """The most bytes that this process has had in memory since `forget_peak`."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# Limits


GREEDY = """(drop (memory.grow (i32.sub (i32.const {pages}) (memory.size))))
  (memory.fill (i32.const 131072) (i32.const 7) (i32.sub (i32.const {last}) (i32.const 131072)))"""


@pytest.mark.skipif(sys.platform != "linux", reason="the most that a process had is read from /proc")
async def test_a_guest_that_takes_all_memory_at_once_is_blocked_before_it_has_any(lab: MemoryLab) -> None:
    greedy = GREEDY.format(pages=65536, last=-1)
    await lab.start(wat.script(wat.call("note", b"1"), wat.raw(greedy)), limits=Limits(memory=MIB))
    forget_peak()
    before = peak()
    async with lab.worker(Ledger().activity()):
        found = await lab.blocked(GuestLimitError)
    assert "the guest of w wants 4,294,967,296 bytes of memory and may use 1,048,576; mend the guest" in found.reason
    assert peak() - before < 32 * MIB


async def test_a_guest_that_was_refused_memory_completes_with_more(lab: MemoryLab, way: str) -> None:
    del way
    greedy = GREEDY.format(pages=512, last=512 * 65536)
    seen = wat.value("(i32.load8_u (i32.const 33554431))")
    await lab.start(wat.script(wat.call("note", b"1"), wat.raw(greedy), seen), limits=Limits(memory=MIB))
    ledger = Ledger()
    async with lab.worker(ledger.activity()):
        await lab.blocked(GuestLimitError, reason="wants 33,554,432 bytes of memory and may use 1,048,576")
        await lab.unblock(limits=Limits(memory=32 * MIB - 1))
        await lab.blocked(GuestLimitError, reason="wants 33,554,432 bytes of memory and may use 33,554,431")
        await lab.unblock(limits=Limits(memory=32 * MIB))
        assert await lab.result() == [1, 7]
    assert len(ledger.rows) == 1


OBSERVED = {
    "nothing": lambda _: "",
    "a call": wat.call("note", b"2"),
    "its own failure": wat.call("wasman.fail", b'{"message": "out of memory"}'),
    "its result": wat.call("wasman.result", b"0"),
    "a checkpoint": wat.checkpoint(),
    "a sleep": wat.sleep(3_600_000_000_000),
    "a trap": wat.raw("(unreachable)"),
    "an endless loop": wat.raw("(loop $ever (br $ever))"),
    "an access out of bounds": wat.raw("(i32.store (i32.const 67108864) (i32.const 1))"),
    "a smaller growth": wat.raw("(if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then (unreachable)))"),
    "its output": lambda program: (
        "(i32.store (i32.const 44) (i32.const 0x0a6968)) (i32.store (i32.const 32) (i32.const 44))"
        "(i32.store (i32.const 36) (i32.const 3))"
        f"(drop (call {program.import_wasi('fd_write', 'wwww')} (i32.const 1) (i32.const 32) (i32.const 1) "
        f"(i32.const 40)))"
    ),
    "an exit": lambda program: f"(call {program.import_wasi('proc_exit', 'w')} (i32.const 3))",
    "a return": wat.raw("(return)"),
}


@pytest.mark.parametrize("then", OBSERVED.values(), ids=OBSERVED)
async def test_nothing_is_seen_of_a_guest_that_was_refused_memory(
    lab: MemoryLab, then: wat.Step, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wasman.instance")
    refused = wat.raw("(drop (memory.grow (i32.const 16)))")
    await lab.start(wat.script(wat.call("note", b"1"), refused, then), limits=Limits(memory=MIB))
    ledger = Ledger()
    async with lab.worker(ledger.activity()):
        await lab.blocked(GuestLimitError, reason="wants 1,310,720 bytes of memory and may use 1,048,576")
    assert ledger.requests == [b"1"]
    record = await lab.record()
    assert (record.snapshot, record.result, record.failure) == (None, None, None)
    assert not [one for one in caplog.messages if one.startswith("stdout")]


def outcome_of(guest: Guest) -> Parked | Ended | Trapped | Exceeded:
    """How the guest goes on; on a busy machine it yields on its way."""
    while isinstance(outcome := guest.resume(), Yielded):
        continue
    return outcome


def growing() -> Guest:
    module = compile_module(
        wat.module(
            '(memory (export "memory") 1) (func (export "grow") (param i32) (result i32)(memory.grow (local.get 0)))'
        ),
        "it",
    )
    return Guest(module, World(b""), LIMITS)


def test_memory_that_the_system_refuses_is_told_from_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = growing()
    guest.enter("grow", [3])
    assert outcome_of(guest) == Ended([1])
    monkeypatch.setattr(linear, "_mprotect", lambda *_: -1)
    guest.enter("grow", [1])
    outcome = outcome_of(guest)
    assert isinstance(outcome, Exceeded)
    assert (outcome.limit, outcome.used) == ("memory", 5 * 65536)
    assert outcome.refused
    guest.close()


def test_an_interrupt_while_memory_grows_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    guest = growing()
    guest.enter("grow", [3])
    with monkeypatch.context() as patched:
        patched.setattr(linear.LinearMemory, "grow", interrupted)
        with pytest.raises(KeyboardInterrupt):
            outcome_of(guest)
    guest.close()


async def test_a_guest_without_addresses_is_blocked(lab: MemoryLab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.start(wat.script())

    def none_left() -> None:
        raise OSError(12, "Cannot allocate memory")

    async with lab.worker():
        with monkeypatch.context() as patched:
            patched.setattr(linear._ranges, "take", none_left)
            found = await lab.blocked(GuestLimitError)
        assert "this machine refuses the 262,144 bytes of memory that the module wants to begin with" in found.reason
        await lab.unblock()
        assert await lab.result() == []


TABLES = "(table 10 funcref) (func $many (param i32) (drop (table.grow (ref.null func) (local.get 0))))"


async def test_a_table_beyond_the_limit_blocks_before_anything_is_seen(lab: MemoryLab) -> None:
    module = wat.script(
        wat.call("note", b"1"),
        wat.raw("(call $many (i32.const 990)) (call $many (i32.const 1))"),
        wat.call("note", b"2"),
        fields=TABLES,
    )
    await lab.start(module, limits=Limits(table_elements=1000))
    ledger = Ledger()
    async with lab.worker(ledger.activity()):
        await lab.blocked(GuestLimitError, reason="has a table of 1,001 elements and may have 1,000; mend the guest")
        assert ledger.requests == [b"1"]
        await lab.unblock(limits=Limits(table_elements=1001))
        assert await lab.result() == [1, 2]


@pytest.mark.parametrize("fields", ["(table 1001 funcref)", TABLES.replace("table 10", "table 1001")])
async def test_a_table_that_begins_beyond_the_limit_is_blocked(lab: MemoryLab, fields: str) -> None:
    await lab.start(wat.script(fields=fields), limits=Limits(table_elements=1000))
    async with lab.worker():
        await lab.blocked(GuestLimitError, reason="larger tables to begin with than the 1,000 elements")
        await lab.unblock(limits=Limits(table_elements=1001))
        assert await lab.result() == []


@pytest.mark.parametrize(("tables", "most"), [(1, 10_000_000), (3, 3_333_333)])
async def test_tables_have_an_end_that_no_limit_moves(lab: MemoryLab, tables: int, most: int) -> None:
    refused = wat.value(f"(table.grow (ref.null func) (i32.const {most + 1 - 10}))")
    module = wat.script(refused, fields=TABLES + "(table 1 funcref)" * (tables - 1))
    for limit in (1000, 100_000_000):
        await lab.start(module, id=f"w{limit}", limits=Limits(table_elements=limit))
        assert await lab.complete(id=f"w{limit}") == [-1]


# Data that lies in a memory from the beginning


PASSIVE = """(data (i32.const 70000) "a\\00b") (data $p "xc")
  (func (export "run") (memory.init $p (i32.const 70002) (i32.const 1) (i32.const 1)))"""


@pytest.mark.parametrize(
    ("fields", "mapped"),
    [
        ('(data (i32.const 70000) "a\\00b") (data (i32.const 70002) "c")', True),
        (PASSIVE, True),
        ('(data (offset (i32.add (i32.const 69999) (i32.const 1))) "a\\00c")', False),
        ('(data (i32.const 70000) "a\\00c") (data (i32.const 131072) "")', True),
    ],
    ids=["overlapping", "passive", "computed", "empty at the end"],
)  # fmt: skip
def test_data_lies_where_the_module_says(fields: str, mapped: bool, way: str) -> None:  # noqa: FBT001
    del way
    run = "" if "run" in fields else '(func (export "run"))'
    module = compile_module(wat.module(f'(memory (export "memory") 2) {fields} {run}'), "it")
    assert (module.initial is not None) is mapped
    guest = Guest(module, World(b""), LIMITS)
    guest.enter("run")
    assert isinstance(outcome_of(guest), Ended)
    expected = bytearray(131072)
    expected[70000:70003] = b"a\0c"
    assert bytes(guest.memory()) == expected
    guest.close()


def test_a_segment_is_empty_once_the_module_has_begun() -> None:
    run = '(func (export "run") (memory.init 0 (i32.const 0) (i32.const 0) (i32.const {n})))'
    for n, ends in ((0, True), (1, False)):
        text = f'(memory (export "memory") 1) (data (i32.const 8) "abc") {run.format(n=n)}'
        guest = Guest(compile_module(wat.module(text), "it", UNCACHED), World(b""), LIMITS)
        guest.enter("run")
        assert isinstance(outcome_of(guest), Ended) is ends
        guest.close()


def test_data_outside_of_memory_is_told() -> None:
    text = '(memory (export "memory") 1) (data (i32.const 65535) "ab") (func (export "run"))'
    module = compile_module(wat.module(text), "it", UNCACHED)
    with pytest.raises(InvalidModuleError, match="out of bounds"):
        Guest(module, World(b""), LIMITS)


# Restoring


WORKING_DATA = wat.module("""(memory (export "memory") 2) (global $n (mut i32) (i32.const 5))
  (data (i32.const 5000) "data")
  (func (export "wasman_reentrant"))
  (func (export "run") (param $pages i32) (local $at i32)
    (global.set $n (i32.add (global.get $n) (i32.const 1)))
    (if (local.get $pages) (then
      (local.set $at (i32.mul (memory.size) (i32.const 65536)))
      (if (i32.eq (memory.grow (local.get $pages)) (i32.const -1)) (then (unreachable)))
      (i32.store (local.get $at) (global.get $n))))
    (i32.store (i32.const 12288) (global.get $n))
    (i32.store (i32.const 5000) (global.get $n))
    (call $checkpoint))""")
WORKING = compile_module(WORKING_DATA, "it")


def origin() -> Origin:
    guest = Guest(WORKING, World(b""), LIMITS)
    held = bytes(guest.memory())
    runs = changed(b"", held)
    pages = b"".join(held[first * PAGE : (first + count) * PAGE] for first, count in runs)
    values = guest.globals()
    guest.close()
    return Origin.of(Delta("", len(held), runs, pages, values, {"unfinished": ""}), "origin")


class Life:
    """A guest that is restored, runs, grows, is kept and is evicted, again and again, as a worker does it."""

    def __init__(self) -> None:
        self.origin = origin()
        self.chain: list[bytes] = []
        self.images = Images(4 * MIB)
        self.expected = b""
        self.turn = 0

    def cycle(self, pages: int, *, held: bool = False) -> None:
        deltas = [decode_delta(one, "it") for one in self.chain]
        restored = Restored.of(self.origin, deltas) if deltas else None
        if restored is not None and held:
            self.images.hold(str(self.turn), restored)
            assert self.images.get(str(self.turn)) is restored
        guest = Guest(WORKING, World(b""), LIMITS, restored.image if restored else self.origin.image)
        if restored is not None:
            guest.restore(restored.image, restored.globals)
            assert bytes(guest.memory()) == self.expected
            baseline = Baseline(restored.image, restored.touched)
        else:
            guest.lay(self.origin.image)
            baseline = Baseline(self.origin.image)
        guest.enter("run", [pages])
        outcome = outcome_of(guest)
        assert isinstance(outcome, Parked)
        assert isinstance(outcome.request, Checkpoint)
        self.turn += 1
        view = guest.memory()
        self.expected = bytes(view)
        found = baseline.difference(guest.base, view)
        assert [
            page for first, count in changed(self._before(restored), view) for page in range(first, first + count)
        ] == [*found]
        if len(self.chain) > 3:
            found, self.chain = baseline.fold(guest.base, view, self.origin.image), []
        state = Delta("", len(view), runs_of(found), b"".join(found.values()), guest.globals(), {})
        self.chain.append(encode_delta(state))
        del view
        guest.close()

    def _before(self, restored: Restored | None) -> bytes:
        return bytes((restored or self.origin).image.view)


def test_a_memory_is_restored_grows_and_is_kept(way: str) -> None:
    del way
    life = Life()
    for turn in range(40):
        life.cycle(turn % 3)
    assert len(life.expected) == (2 + 39) * 65536
    assert life.expected[5000:5004] == (45).to_bytes(4, "little")
    assert life.expected[5004:5006] == b"\0\0"


def test_a_guest_counts_for_what_it_has_written(way: str) -> None:
    guest = Guest(compile_module(WORKING_DATA, "it"), World(b""), LIMITS)
    assert guest.written() == (0 if way == "mapped" else 2 * 65536)
    guest.enter("run", [0])
    assert isinstance(outcome_of(guest), Parked)
    assert guest.written() == (2 * PAGE if way == "mapped" else 2 * 65536)
    guest.close()


def test_an_image_is_taken_anew_when_much_differs(way: str) -> None:
    del way
    first = origin()
    guest = Guest(WORKING, World(b""), LIMITS, first.image)
    guest.lay(first.image)
    guest.enter("run", [60])
    assert isinstance(outcome_of(guest), Parked)
    baseline = Baseline(first.image)
    view = guest.memory()
    for page in range(600):
        view[page * PAGE + 100] = 1 + page % 200
    found = baseline.difference(guest.base, view)
    assert len(found) == 600
    baseline.kept(found)
    rebased = baseline.rebased(view)
    assert rebased is not None
    before = bytes(view)
    guest.lay(rebased.image)
    assert bytes(guest.memory()) == before
    assert rebased.difference(guest.base, guest.memory()) == {}
    view[7 * PAGE] ^= 255
    assert [*rebased.difference(guest.base, guest.memory())] == [7]
    assert len(rebased.fold(guest.base, guest.memory(), first.image)) == 600
    guest.close()


def test_threads_have_their_guests_beside_each_other(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    del way
    monkeypatch.setattr(memory, "_DESCRIPTORS", 4)
    interval, before = sys.getswitchinterval(), 0
    sys.setswitchinterval(1e-5)

    def live() -> None:
        life = Life()
        for turn in range(30):
            life.cycle(turn % 3, held=turn % 2 == 0)

    try:
        for _ in range(3):
            with ThreadPoolExecutor(4) as threads:
                for done in [threads.submit(live) for _ in range(4)]:
                    done.result()
            before = before or footprint()[1]
        assert footprint()[1] <= before
    finally:
        sys.setswitchinterval(interval)


def test_pages_that_are_used_again_hold_nothing_of_before(way: str) -> None:
    del way
    for turn in range(4):
        parts = [(PAGE * page, bytes([1 + turn]) * PAGE) for page in range(turn, 9, 2)]
        image = image_of(16 * PAGE, parts)
        expected = bytearray(16 * PAGE)
        for offset, data in parts:
            expected[offset : offset + PAGE] = data
        assert bytes(image.view) == expected
        del image


def test_an_image_is_not_used_again_while_it_lies_under_a_guest(way: str) -> None:
    del way
    guest = Guest(WORKING, World(b""), LIMITS)
    size = len(guest.memory())
    guest.lay(image_of(size, [(0, b"\1" * size)]))
    others = [image_of(size, [(0, b"\2" * size)]) for _ in range(3)]
    assert bytes(guest.memory()) == b"\1" * size
    guest.close()
    del others


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc")
def test_images_leave_descriptors_to_others(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    del way
    monkeypatch.setattr(memory, "_DESCRIPTORS", 4)
    _, before, _ = footprint()
    size = 2 * 65536
    images = [image_of(size, [(PAGE, bytes([number]) * PAGE)]) for number in range(20)]
    guests = []
    for number in [*range(20), *range(20)]:
        guest = Guest(WORKING, World(b""), LIMITS)
        guest.lay(images[number])
        guests.append(guest)
    _, now, _ = footprint()
    assert now - before <= 4
    for number, guest in enumerate(guests):
        assert bytes(guest.memory()) == bytes(PAGE) + bytes([number % 20]) * PAGE + bytes(size - 2 * PAGE)
        assert images[number % 20].view == guest.memory()
        guest.close()
    del images
    monkeypatch.undo()


def test_a_view_of_a_guest_that_is_gone_never_shows_another(way: str) -> None:
    del way
    linear._ranges._free.clear()
    guest = Guest(WORKING, World(b""), LIMITS)
    base, view = guest.base, guest.view(0, 100)
    guest.close()
    other = Guest(WORKING, World(b""), LIMITS)
    assert other.base != base
    other.close()
    del view
    again = [Guest(WORKING, World(b""), LIMITS) for _ in range(2)]
    assert base in [one.base for one in again]
    for one in again:
        one.close()


def test_a_guest_that_was_closed_is_neither_answered_nor_entered() -> None:
    """An answer was written to where its stack had been."""
    data = wat.script(wat.call("note", b"1"))
    guest = Guest(compile_module(data, "closed"), World(b""), LIMITS)
    guest.enter("run")
    assert isinstance(guest.resume(), Parked)
    assert guest._slot
    guest.close()
    guest.answer(1)
    assert guest._slot == 0
    for use in (partial(guest.enter, "run"), guest.globals):
        with pytest.raises(RuntimeError, match="the guest was closed"):
            use()


def test_a_forked_child_leaves_the_images_of_its_parent_alone(way: str) -> None:
    del way
    script = """
import os, sys
from wasman_host.guest.memory import PAGE, image_of
size = 4 * PAGE
mine = image_of(size, [(0, b"p" * size)])
spare = image_of(size, [(0, b"s" * size)])
del spare
child = os.fork()
if child == 0:
    del mine
    others = [image_of(size, [(0, b"c" * size)]) for _ in range(3)]
    os._exit(0 if all(bytes(one.view) == b"c" * size for one in others) else 1)
assert os.waitpid(child, 0)[1] == 0
assert bytes(mine.view) == b"p" * size
assert bytes(image_of(size, [(0, b"q" * PAGE)]).view) == b"q" * PAGE + bytes(3 * PAGE)
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ))


# Leaks. WASMAN_LEAK_CYCLES=10000 (`make leaks`) runs them for long.


def footprint() -> tuple[int, int, int]:
    """(mappings, descriptors, bytes in memory) of this process."""
    gc.collect()
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    return maps, len(os.listdir("/proc/self/fd")), resident()  # noqa: PTH208  as cheap as can be


@pytest.mark.skipif(sys.platform != "linux", reason="mappings and descriptors are counted in /proc")
def test_nothing_leaks_by_restoring_growing_keeping_and_evicting(way: str) -> None:
    del way
    life = Life()

    def cycles(count: int) -> None:
        for turn in range(count):
            if turn % 20 == 0:
                life.chain.clear()
            life.cycle(turn % 2, held=turn % 3 == 0)

    cycles(100)
    maps, descriptors, size = footprint()
    cycles(CYCLES)
    maps_now, descriptors_now, size_now = footprint()
    assert maps_now - maps < 20
    assert descriptors_now - descriptors < 10
    assert size_now - size < 4 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="mappings and descriptors are counted in /proc")
async def test_nothing_leaks_by_instances_that_come_and_go(lab: MemoryLab, way: str) -> None:
    del way
    step = (
        wat.raw("(drop (memory.grow (i32.const 1)))"),
        wat.raw("(i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 8)) (i32.const 1))"),
        wat.checkpoint(),
        wat.sleep(1_000_000),
    )
    module = wat.script(*step * 5, wat.call("note", b"1"), reentrant=True)
    width = 10

    async def rounds(name: str, count: int) -> None:
        for number in range(count):
            for place in range(width):
                await lab.start(module, id=f"{name}-{number}-{place}")
            for place in range(width):
                assert (await lab.result(f"{name}-{number}-{place}"))[-1] == 1

    async with lab.worker(Ledger().activity(), residency=Residency(guests=2)) as engine:
        engine.images = Images(4 * MIB)
        await rounds("before", 3)
        maps, descriptors, _ = footprint()
        await rounds("then", max(1, CYCLES // 5 // width))
        maps_now, descriptors_now, _ = footprint()
    assert maps_now - maps < 60
    assert descriptors_now - descriptors < 30
