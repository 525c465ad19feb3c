"""A worker that slept through its lease, as a suspended laptop does, comes back to what it still owns."""

import time

import anyio

from tests import wat
from tests.lab import Ledger, MemoryLab, SqliteLab, answers
from wasman_host.activity import ActivityCall, ActivityDefinition


def sleeper(naps: list[float], ledger: Ledger) -> ActivityDefinition:
    def sleep_once(call: ActivityCall) -> bytes:
        if naps:
            time.sleep(naps.pop())  # the whole process, its event loop included, stands still
        return ledger.note(call)

    return answers("note", sleep_once)


async def slept(lab: MemoryLab | SqliteLab) -> None:
    ledger = Ledger()
    await lab.start(wat.script(wat.call("note", b"1"), wat.call("note", b"2"), wat.call("note", b"3")))
    with anyio.fail_after(10):
        async with lab.worker(sleeper([0.6], ledger), lease=0.3):
            await lab.result()
    assert len(set(ledger.keys)) == 3


async def test_a_run_goes_on_after_its_worker_slept_in_memory(lab: MemoryLab) -> None:
    await slept(lab)


async def test_a_run_goes_on_after_its_worker_slept_on_disk(disk: SqliteLab) -> None:
    await slept(disk)
