"""Interpreters that were started once are released together: one wins each round, and of the others nothing is left.

In the rounds of `claim` the instance of every other round belongs to a dead worker, so that takeovers race as well.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.settings import START, at, change, columns, key
from wasman_host.store import Filter, Won

ROOT = Path(__file__).resolve().parent.parent.parent
ROUNDS = {".db": 100, "": 40}  # a loser's run is looked for in every file of a folder
RIVALS = ("x", "y", "z")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the racers' loop; what is raced is the file


class Racer:
    """One of the interpreters."""

    def __init__(self, path: Path, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.store.racer", str(path), name, "race"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, *line: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> int:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            return self.process.wait(30)


@pytest.fixture(params=["store.db", "store"], ids=["sqlite", "directory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.fixture
def racers(place: Path) -> Iterator[dict[str, Racer]]:
    racers = {name: Racer(place, name) for name in RIVALS}
    assert [racer.hear() for racer in racers.values()] == ["ready"] * len(RIVALS)
    yield racers
    assert [racer.end() for racer in racers.values()] == [0] * len(RIVALS)


def run_round(racers: dict[str, Racer], what: str, number: int) -> str:
    """The round's only winner."""
    at = time.monotonic() + 0.002
    for racer in racers.values():
        racer.tell(what, number, at)
    winners = [name for name, racer in racers.items() if json.loads(racer.hear())]
    assert len(winners) == 1, f"{what} {number} was won by {winners}"
    return winners[0]


async def test_one_interpreter_wins_each_round(place: Path, racers: dict[str, Racer]) -> None:
    rounds = ROUNDS[place.suffix]
    store = at(place)
    await store.open()
    assert await store.commit([change("mailbox", None)]) == [Won(1, 0)]
    commits = [change(f"commit-{n}", None, f"commit-{n}") for n in range(rounds)]
    claims = [
        change(f"claim-{n}", None, columns=columns(queue=f"claim-{n}", wake=START, owner="dead" if n % 2 else None))
        for n in range(rounds)
    ]
    assert await store.commit(commits + claims) == [Won(1, 0)] * (2 * rounds)
    tally = dict.fromkeys(RIVALS, 0)
    effects = []
    for number in range(rounds):
        for what in ("commit", "create"):
            winner = run_round(racers, what, number)
            tally[winner] += 1
            effects.append(f"{what}-{number}-{winner}")
            stored = await store.load(key(f"{what}-{number}"))
            assert stored is not None
            assert stored.version == (2 if what == "commit" else 1)
            assert (stored.record, dict(stored.columns.attributes)) == (winner.encode(), {"winner": winner})
            for name in RIVALS:
                run = stored.run if what == "commit" else f"{what}-{number}-{name}"
                assert await store.read(run) == ([(0, winner.encode())] if run == stored.run else [])
                assert await store.blob(run, name) == (b"data" if name == winner else None)
        winner = run_round(racers, "claim", number)
        tally[winner] += 1
        stored = await store.load(key(f"claim-{number}"))
        assert stored is not None
        assert (stored.version, stored.columns.owner, stored.columns.takeovers) == (2, winner, number % 2)
    assert sorted(letter.id for letter in await store.mail(key("mailbox"))) == sorted(effects)
    children = await store.list(Filter(id_prefix="child-"), 1000)
    assert sorted(row.key.id for row in children.rows) == sorted(f"child-{effect}" for effect in effects)
    for name in RIVALS:
        assert await store.count(Filter(attributes={"winner": name})) == sum(one.endswith(name) for one in effects)
    assert sum(tally.values()) == 3 * rounds
    assert sum(1 for wins in tally.values() if wins) >= 2, f"nobody else was fast enough for a race: {tally}"
    await store.close()
