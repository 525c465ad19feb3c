"""Signals under the engine: what was accepted is received once and in order, and no more wait than may."""

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.go_guests import guest
from tests.lab import DirectoryLab, Lab, MemoryLab, SqliteLab
from tests.turning import Turn, complete, receive, turning
from wasman_host import control
from wasman_host.errors import SignalsFullError, WorkflowClosedError, WorkflowNotFoundError
from wasman_host.payload import Payload
from wasman_host.record import Limits
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import Key, Status, Store

RECEIVES = guest("programs", "tinygo")
WAITS = turning(Turn(receive(0, "go")), Turn(complete(b"1")))  # asks for one signal, and for no other
KEY = Key("default", "w")


async def send(store: Store, name: str, value: object, message_id: str | None = None) -> bool:
    """Whether the signal was accepted."""
    try:
        await control.signal(store, KEY, name, Payload.of(json.dumps(value).encode()), message_id=message_id)
    except SignalsFullError:
        return False
    return True


async def waiting(lab: Lab) -> int:
    """How many wait: in the mail, and in the record."""
    found = await lab.look()
    assert found.record is not None
    return found.stored.mail + len(found.record.signals)


async def at_once(count: int, act: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    async with anyio.create_task_group() as tasks:
        for n in range(count):
            tasks.start_soon(act, n)


async def received(lab: Lab) -> list[tuple[int, bytes | None]]:
    """What the guest was given: (operation, value), in order."""
    log = await control.history(lab.store, (await lab.look()).stored)
    given = [one for entry in log for one in entry.deliveries if one.kind == "result"]
    return [(one.operation, one.payload.data if one.payload else None) for one in given]


async def test_each_name_has_an_order_of_its_own(lab: MemoryLab) -> None:
    later = Turn(receive(1, "a") + receive(2, "b") + receive(3, "a"))
    await lab.start(turning(Turn(receive(0, "b")), later, Turn(complete(b"1"))))
    for n, name in enumerate("aabbb"):
        await lab.signal(name, n, message_id=f"m{n}")
    async with lab.worker():
        assert await lab.result() == 1
    assert await received(lab) == [(0, b"2"), (1, b"0"), (2, b"3"), (3, b"1")]
    assert (await lab.record()).undelivered == (("m4", "signal"),)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("policy", [SnapshotPolicy(), SnapshotPolicy(turns=1)], ids=["by the log", "by snapshots"])
async def test_whatever_commit_its_worker_dies_at_none_is_lost_and_none_is_given_twice(
    lab: MemoryLab, policy: SnapshotPolicy, *, after: bool
) -> None:
    """Its sender does not know what became of a send, and repeats all of them when the worker has died."""
    for at in range(1, 7):  # the mail is taken, four signals are given, the run ends
        id_ = f"w{at}"
        await lab.start(RECEIVES, 4, id=id_, entry="receives")
        for n in range(4):
            await lab.signal("mail", f"{n}", id=id_, message_id=f"m{n}")
        await lab.dies(at=at, after=after, snapshots=policy)
        if not (after and at == 6):  # it has ended
            for n in range(4):
                await lab.signal("mail", f"{n}", id=id_, message_id=f"m{n}")
        async with lab.worker(snapshots=policy):
            assert await lab.result(id_) == ["0", "1", "2", "3"], f"commit {at}"
        assert (await lab.record(id_)).undelivered == ()


async def test_one_that_is_sent_again_is_there_already_however_many_wait(lab: MemoryLab) -> None:
    await lab.start(WAITS, limits=Limits(signals=2))
    for _ in range(3):
        assert [await send(lab.store, "other", n, f"m{n}") for n in range(3)] == [True, True, False]
    async with lab.worker():
        with anyio.fail_after(5):
            while (await lab.look()).stored.mail:
                await anyio.sleep(0.005)
        assert [await send(lab.store, "other", n, f"m{n}") for n in range(3)] == [True, True, False]
        assert await waiting(lab) == 2


@pytest.mark.parametrize("with_worker", [False, True], ids=["nobody", "a worker"])
@pytest.mark.parametrize("kind", ["memory", "sqlite", "folder"])
async def test_senders_that_race_put_in_no_more_than_may_wait(
    kind: str, tmp_path: Path, anyio_backend: str, *, with_worker: bool
) -> None:
    """While a worker takes them from the mail, too, which is when their sum is nowhere to be read at once."""
    del anyio_backend
    lab: Lab
    match kind:
        case "memory":
            lab = MemoryLab()
        case "sqlite":
            lab = SqliteLab(tmp_path / "store.db")
        case _:
            lab = DirectoryLab(tmp_path)
    await lab.open()
    became: list[bool] = []

    async def sends(n: int) -> None:
        became.extend([await send(stores[n % len(stores)], "nobody", n) for _ in range(4)])

    try:
        stores = [lab.store, await lab.handle(), await lab.handle()]
        await lab.start(WAITS, limits=Limits(signals=10))
        if with_worker:
            async with lab.worker():
                await at_once(20, sends)
        else:
            await at_once(20, sends)
        assert became.count(True) == 10
        assert await waiting(lab) == 10
    finally:
        await lab.close()


async def test_a_guest_that_receives_makes_room_for_those_that_were_refused(disk: SqliteLab) -> None:
    count, seen = 60, [0]
    await disk.start(RECEIVES, count, entry="receives", limits=Limits(signals=5))

    async def sends(n: int) -> None:
        while not await send(disk.store, "mail", f"{n}", f"m{n}"):
            seen.append(await waiting(disk))
            await anyio.sleep(0.002)

    async with disk.worker():
        await at_once(count, sends)
        assert sorted(map(int, await disk.result())) == list(range(count))
    assert max(seen) == 5


@pytest.mark.once
async def test_a_hundred_thousand_that_nobody_asks_for_are_bounded_and_shown(lab: MemoryLab) -> None:
    await lab.start(WAITS)
    most, count = Limits().signals, 100_000
    ids = [f"m{n}" for n in range(most)]
    for id_ in ids:
        assert await send(lab.store, "nobody", "x" * 100, id_)
    refused = sum([not await send(lab.store, "nobody", "x" * 100) for _ in range((count - most) // 2)])
    async with lab.worker():
        with anyio.fail_after(10):
            while (await lab.look()).stored.mail:
                await anyio.sleep(0.01)
        refused += sum([not await send(lab.store, "nobody", "x" * 100) for _ in range((count - most) // 2)])
        assert refused == count - most
        found = await lab.look()
        assert found.record is not None
        assert [signal.message for signal in found.record.signals] == ids
        assert len(found.stored.record) < 300 * most
        await lab.terminate()
        await lab.until(Status.TERMINATED)
    assert (await lab.record()).undelivered == tuple((id_, "signal") for id_ in ids)


async def test_those_that_are_refused_leave_nothing_in_the_file(disk: SqliteLab) -> None:
    await disk.start(WAITS, limits=Limits(signals=100))
    for n in range(100):
        assert await send(disk.store, "nobody", n)

    def size() -> int:
        return sum(path.stat().st_size for path in disk.path.parent.glob(f"{disk.path.name}*"))

    before = size()
    for n in range(2000):
        assert not await send(disk.store, "nobody", n, f"m{n}" if n % 2 else None)
    assert size() == before


async def test_to_whom_no_signal_can_be_sent(lab: MemoryLab) -> None:
    with pytest.raises(WorkflowNotFoundError, match="there is no instance 'w' in this store"):
        await lab.signal("go")
    await lab.start(WAITS)
    with pytest.raises(WorkflowNotFoundError, match="run nothing of w"):
        await control.signal(lab.store, KEY, "go", Payload.of(b"1"), run="nothing")
    async with lab.worker():
        await lab.signal("go")
        await lab.result()
    for message_id in (None, "m"):
        with pytest.raises(WorkflowClosedError, match="so it cannot be signalled"):
            await lab.signal("go", message_id=message_id)


async def test_a_blocked_run_keeps_what_it_is_sent_until_it_goes_on(lab: MemoryLab) -> None:
    await lab.start(WAITS, limits=Limits(memory=65536))
    async with lab.worker():
        await lab.until(Status.BLOCKED)
        await lab.signal("go", 5)
        await lab.unblock(limits=Limits())
        assert await lab.result() == 1
