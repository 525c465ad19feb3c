"""Guests whose stack is unwound into memory: evicted wherever they wait, they go on there, and nothing runs twice."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import define, evolve, field

from tests.lab import Lab, Ledger, MemoryLab, SqliteLab, answers
from wasman_host.activity import ActivityCall
from wasman_host.errors import CorruptSnapshotError, GuestLimitError, InvalidModuleError
from wasman_host.guest.asyncify import SECTION, asyncified, mark
from wasman_host.guest.binary import section, with_section, without_section
from wasman_host.guest.inspection import inspect
from wasman_host.guest.limits import GuestLimits
from wasman_host.guest.module import check
from wasman_host.instance import Instance
from wasman_host.machine import Machine
from wasman_host.payload import Payload
from wasman_host.record import Limits
from wasman_host.residents import Residency
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import Status

GUESTS = Path(__file__).parent.parent / "guests" / "asyncified"
LANGUAGES = ("c", "zig", "as")
NEVER = SnapshotPolicy(turns=1 << 30, seconds=1e9)  # kept only where it is given up
CALLS = 1000


def guest(language: str) -> bytes:
    return (GUESTS / f"loop_{language}.wasm").read_bytes()


@define
class Watched:
    """What guests did: operations that they asked for, answers that were repeated from the log, memories at the end."""

    asked: list[int] = field(factory=list)
    again: int = 0
    repeated: int = 0
    ends: list[tuple[bytes, Any]] = field(factory=list)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    seen = Watched()
    issue, replayed, finish = Machine.issue, Machine.replayed, Instance._finish

    def issues(self: Machine, kind: str, name: str, request: str) -> int:
        again = self._asks_again
        number = issue(self, kind, name, request)
        seen.again += again
        if not again:
            seen.asked.append(number)
        return number

    def repeats(self: Machine, number: int) -> Any:
        found = replayed(self, number)
        seen.repeated += found is not None
        return found

    async def finishes(self: Instance, result: Payload) -> None:
        assert self.guest is not None
        seen.ends.append((bytes(self.guest.memory()), self.guest.globals()))
        await finish(self, result)

    monkeypatch.setattr(Machine, "issue", issues)
    monkeypatch.setattr(Machine, "replayed", repeats)
    monkeypatch.setattr(Instance, "_finish", finishes)
    return seen


@contextlib.contextmanager
def seeded() -> Iterator[random.Random]:
    """A generator whose seed is printed where the test fails."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    yield random.Random(seed)


def evicting(evictions: list[int], lab: Lab, chance: float, rng: random.Random, at: Any) -> Any:
    """An activity that gives its request back, and evicts its instance first now and then."""

    async def note(call: ActivityCall) -> bytes:
        await anyio.lowlevel.checkpoint()
        if rng.random() < chance:
            instance = at()._live[call.key]
            assert instance.evict()
            with anyio.fail_after(5):
                while instance.guest is not None:
                    await anyio.sleep(0)
                await instance.settled()
            evictions.append(call.operation)
        return call.request

    return answers("note", note)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_loop_of_calls_that_is_evicted_anywhere_repeats_none(
    lab: MemoryLab, language: str, watched: Watched
) -> None:
    with seeded() as rng:
        plain = Ledger()
        async with lab.worker(plain.activity(), snapshots=NEVER):
            await lab.start(guest(language), CALLS, id="plain", entry="run")
            expected = await lab.result("plain")
        assert watched.asked == list(range(CALLS))
        watched.asked.clear()
        evictions: list[int] = []
        async with lab.worker(evicting(evictions, lab, 0.2, rng, lambda: engine), snapshots=NEVER) as engine:
            await lab.start(guest(language), CALLS, id="evicted", entry="run")
            with anyio.fail_after(120):
                while (await lab.look("evicted")).status is Status.RUNNING:
                    await anyio.sleep(0.02)
            assert await lab.result("evicted") == expected
        assert len(evictions) > CALLS / 10
        assert watched.asked == list(range(CALLS)), "nothing was asked for twice"
        assert (watched.again, watched.repeated) == (len(evictions), len(evictions)), "but the call that it waited in"
        assert watched.ends[0] == watched.ends[1], "memory and globals are the same to the last byte"
