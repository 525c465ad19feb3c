"""A thousand calls in a loop, ABI v1, in other languages: kept in the middle of them at random, they repeat none."""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import define, field

from tests.lab import PATIENCE, MemoryLab, answers
from wasman_host.activity import ActivityCall, ActivityDefinition
from wasman_host.blocking import Blocking
from wasman_host.machine import Machine
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import CLOSED

GUESTS = Path(__file__).parent.parent / "guests" / "asyncified"
pytestmark = pytest.mark.once  # thousands of calls, with guests that are the same on every version of Python

CALLS = 1000
NEVER = SnapshotPolicy(turns=1 << 30, seconds=1e9)  # kept only where its worker leaves
ENDING = 7 + 1  # what waits.c adds at its end: its signal, and that its last call was cancelled


def expected(language: str) -> int:
    total = 0
    for number in range(CALLS):
        total = (total * 31 + number) % (1 << 32)
    return (total + (ENDING if language == "c" else 0)) % (1 << 32)


@define
class Seen:
    """What guests did.

    Attributes:
        asked: The operations that they asked for, those that only the log was asked again included.
        repeated: How many entries of the log each life was given again.
        ends: Memory and globals at the end of each run.
    """

    asked: list[int] = field(factory=list)
    repeated: list[int] = field(factory=list)
    ends: list[tuple[bytes, Any]] = field(factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    run, end, issue = Blocking.run, Blocking._end, Machine.issue

    async def lives(self: Blocking) -> None:
        try:
            await run(self)
        finally:
            found.repeated.append(self._repeated)

    async def ends(self: Blocking) -> None:
        guest = self._instance.guest
        assert guest is not None
        found.ends.append((bytes(guest.memory()), guest.globals()))
        await end(self)

    def issues(self: Machine, *given: str) -> int:
        number = issue(self, *given)
        found.asked.append(number)
        return number

    monkeypatch.setattr(Blocking, "run", lives)
    monkeypatch.setattr(Blocking, "_end", ends)
    monkeypatch.setattr(Machine, "issue", issues)
    return found


@define
class Noting:
    """The activity of the loop: it takes its time, and tells when as many calls were made as its worker is to see."""

    rng: random.Random
    keys: list[str] = field(factory=list)
    until: int = CALLS + 1
    reached: anyio.Event = field(factory=anyio.Event)

    async def __call__(self, call: ActivityCall) -> bytes:
        if len(self.keys) + 1 >= self.until and self.rng.random() < 0.5:
            self.reached.set()  # its worker leaves in this call, or behind it
        for _ in range(self.rng.randrange(3)):
            await anyio.lowlevel.checkpoint()
        self.keys.append(call.idempotency_key)
        if len(self.keys) >= self.until:
            self.reached.set()
        return call.request

    def activities(self) -> tuple[ActivityDefinition, ...]:
        return answers("note", self), answers("slow", _for_ever)


async def _for_ever(_: ActivityCall) -> bytes:
    await anyio.sleep_forever()
    return b""


async def first(*waits: Callable[[], Awaitable[object]]) -> None:
    """Wait until one of them has returned."""
    async with anyio.create_task_group() as tasks:

        async def one(wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            tasks.cancel_scope.cancel()

        for wait in waits:
            tasks.start_soon(one, wait)


@pytest.mark.parametrize("language", ["zig", "as"])
async def test_a_worker_that_leaves_as_its_guest_has_returned_commits_the_end(
    lab: MemoryLab, language: str, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Blocking._settle

    async def settles(self: Blocking, problem: Exception | None) -> None:
        self._instance.leave()
        await settle(self, problem)

    monkeypatch.setattr(Blocking, "_settle", settles)
    noting = Noting(random.Random(7))
    await lab.start((GUESTS / f"waits_{language}.wasm").read_bytes(), 20)
    await lab.signal("mail", 7)
    async with lab.worker(*noting.activities(), snapshots=NEVER) as engine:
        await lab.result()
        await engine.leave()
    assert seen.asked == [*range(20)]
    assert (len(seen.repeated), len(noting.keys)) == (1, 20)


@pytest.mark.parametrize("language", ["c", "zig", "as"])
async def test_a_loop_of_calls_whose_workers_leave_anywhere_repeats_none(
    lab: MemoryLab, language: str, seen: Seen
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # noqa: T201  shown where the test fails
    rng = random.Random(seed)
    module = (GUESTS / f"waits_{language}.wasm").read_bytes()
    operations = list(range(CALLS + (2 if language == "c" else 0)))

    plain, noting = Noting(rng), Noting(rng)
    await lab.start(module, CALLS, id="plain")
    await lab.signal("mail", 7, id="plain")
    async with lab.worker(*plain.activities(), snapshots=NEVER):
        assert await lab.result("plain") == expected(language)
    assert seen.asked == operations
    seen.asked.clear()
    seen.repeated.clear()

    await lab.start(module, CALLS, id="left")
    await lab.signal("mail", 7, id="left")
    cut = 0
    while (await lab.look("left")).status not in CLOSED:
        noting.until, noting.reached = len(noting.keys) + rng.randint(1, 40), anyio.Event()
        async with lab.worker(*noting.activities(), snapshots=NEVER) as engine:
            await first(noting.reached.wait, lambda: lab.ended("left"))
            grace = rng.choice([0.0, PATIENCE])  # a call that is under way is cut short, or ends
            cut += not grace
            await engine.leave(grace)
    assert await lab.result("left") == expected(language)
    lives, run = len(seen.repeated), (await lab.record("left")).run
    assert lives > 20
    assert seen.asked == operations, "nothing was asked for twice"
    assert sum(seen.repeated) <= lives, "only the answer that was durable as its worker left is given again"
    assert list(dict.fromkeys(noting.keys)) == [f"{run}/{number}" for number in range(CALLS)]
    assert len(noting.keys) - CALLS <= cut, "no activity was called twice but those that were cut short"
    assert seen.ends[0] == seen.ends[1], "memory and globals are the same to the last byte"
