"""A run is disturbed at each operation of its store, and ends as the undisturbed run does.

What must be the same: the result, the guest's memory and globals when it has ended, what activities have done to the
world (by idempotency key), and the bytes that are published. In `make test` a few operations are left out for time;
`make faults` leaves none out, and disturbs the workers that come after as well.
"""

import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.scenario import SHAPES, Lived, Shape, live, quickly
from tests.lab import DirectoryLab, Lab, MemoryLab, SqliteLab
from wasman_sdk.testing import Fault, How, Point

pytestmark = pytest.mark.once  # hundreds of runs, which wait for syncs

EVERY = "WASMAN_FAULTS" in os.environ  # make faults
# Of how many operations one is disturbed in the short form: what each costs is mostly the syncs of its store.
STRIDE = {"replayed": 3, "re-entrant": 2, "evicted": 5}
IDLE = {"load", "watch", "claim", "mailed", "mail", "beat"}  # how often they are asked for is a matter of time
TWICE = 150  # runs whose second worker is disturbed as well

STORES: dict[str, Callable[[Path], Lab]] = {
    "memory": lambda _: MemoryLab(),
    "sqlite": lambda folder: SqliteLab(folder / "store.db"),
    "directory": lambda folder: DirectoryLab(folder / "store"),
}


@asynccontextmanager
async def lab_of(kind: str, folder: Path) -> AsyncIterator[Lab]:
    """A new store of its kind."""
    folder.mkdir(parents=True)  # noqa: ASYNC240  a folder of this test
    lab = STORES[kind](folder)
    await lab.open()
    yield lab
    await lab.close()


async def lived(kind: str, folder: Path, shape: Shape, *faults: Fault) -> Lived:
    async with lab_of(kind, folder) as lab:
        return await live(lab, folder, shape, *faults)


def points(undisturbed: Lived) -> Sequence[Point]:
    """Every operation of a run, in order; of those that are asked for while nothing happens there may be more."""
    [store] = undisturbed.stores
    counts = {point.operation: point.n for point in store.passed}
    assert counts["commit"] > 10
    return store.passed


def possible(fault: Fault) -> bool:
    """Whether a store may do so: of a claim that took effect it must find out itself, for its worker cannot."""
    return fault != Fault(Point("claim", fault.point.n), How.ERROR_AFTER)


def differences(found: Lived, right: Lived) -> list[str]:
    """What is not as it should be."""
    names = [
        name
        for name in ("result", "pages", "done", "sink", "left")
        if getattr(found.outcome, name) != getattr(right.outcome, name)
    ]
    # An activity that had taken effect is begun once more for each fault at most: only when its answer was lost.
    times = sum(map(len, found.world.attempts.values())) - sum(map(len, right.world.attempts.values()))
    if times > sum(store.struck for store in found.stores):
        names.append(f"{times} attempts too many: {found.world.attempts}")
    return names


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", STORES)
async def test_f01_a_run_ends_the_same_whatever_fails(
    kind: str, shape: str, how: How, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck, wrong = [], []
    with quickly(monkeypatch):
        right = await lived(kind, tmp_path / "right", SHAPES[shape])
        assert right.outcome.left == []
        assert len(right.outcome.pages) == 1
        stride = 1 if EVERY or kind == "memory" else STRIDE[shape]
        every = [Fault(point, how) for point in points(right)[::stride]]
        every = [fault for fault in every if possible(fault)]
        for place, fault in enumerate(every):
            found = await lived(kind, tmp_path / f"{place}", SHAPES[shape], fault)
            if found.stores[0].struck:
                struck.append(fault)
            if different := differences(found, right):
                wrong.append(f"{fault}: {', '.join(different)}")
    assert not wrong
    busy = [fault for fault in every if fault.point.operation not in IDLE]
    again = [fault for fault in struck if fault.point.operation not in IDLE]
    # How often a guest is evicted, and so how often its snapshot is read, the clock says: a sample may miss some.
    least = len(busy) * 3 // 4 if stride == 1 else len(busy) // 3
    assert len(again) >= least, "too few of the operations were asked for again"
    sys.stdout.write(f"{kind}, {shape}, {how.value}: {len(struck)} runs of {len(every)} were disturbed\n")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", STORES)
async def test_a_run_ends_the_same_although_its_rescuer_fails_as_well(
    kind: str, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.randrange(1 << 32)
    draw = random.Random(seed)
    wrong = []
    with quickly(monkeypatch):
        right = await lived(kind, tmp_path / "right", SHAPES[shape])
        every = points(right)
        for place in range(TWICE if EVERY else 3):
            kills = [how for how in How if how.kills]
            first = Fault(draw.choice(every), draw.choice(kills))
            second = Fault(draw.choice(every[: len(every) // 2]), draw.choice([*kills, How.ERROR_BEFORE]))
            found = await lived(kind, tmp_path / f"{place}", SHAPES[shape], first, second)
            if different := differences(found, right):
                wrong.append(f"{first}, then {second}: {', '.join(different)}")
    assert not wrong, f"seed {seed}"
