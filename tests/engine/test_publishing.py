"""A run whose guest has finished is published, whatever comes late."""

from pathlib import Path

from tests import wat
from tests.lab import Ledger, MemoryLab, SqliteLab, sink, source
from wasman_host import deployments, starting
from wasman_host.payload import Payload
from wasman_host.store import Change, Key, Status, Step


def publishing(change: Change | Step) -> bool:
    return isinstance(change, Change) and change.columns is not None and change.columns.status is Status.PUBLISHING


async def test_a_run_that_is_publishing_is_completed_although_it_is_terminated(disk: SqliteLab, tmp_path: Path) -> None:
    given, out = tmp_path / "in", tmp_path / "out"
    given.write_bytes(b"all of it")
    await disk.start(wat.script(wat.copy()), sources=source(given), sinks=sink(out))
    await disk.dies(at=1, after=True, matching=publishing)
    assert (await disk.look()).status is Status.PUBLISHING
    assert not out.exists()
    await disk.terminate()
    async with disk.worker():
        await disk.result()
    assert out.read_bytes() == b"all of it"
    assert [kind for _, kind in (await disk.record()).undelivered] == ["terminate"]


async def test_a_name_says_how_its_untyped_starts_come_back(lab: MemoryLab) -> None:
    data = wat.script(wat.call("note", b"1"))
    await deployments.deploy(lab.store, "default", "named", data, resume="checkpoint")
    await starting.start(lab.store, "default", "w", "named", Payload.of_value(None), None, starting.StartOptions())
    assert (await lab.record()).pinned.resume == "checkpoint"
    assert await lab.complete(Ledger().activity()) == [1]
    assert (await lab.look()).stored.key == Key("default", "w")
