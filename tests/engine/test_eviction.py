"""Guests that lose their memory while they wait: they come back as they were, and leave nothing behind."""

import anyio
import pytest

from tests import wat
from tests.lab import Ledger, MemoryLab, SqliteLab, answers
from wasman_host.activity import ActivityCall, Retry
from wasman_host.errors import ApplicationError
from wasman_host.guest.memory import PAGE, maps
from wasman_host.instance import Instance
from wasman_host.machine import Proposal
from wasman_host.residents import Residency
from wasman_host.store import Status


async def test_an_eviction_at_the_end_of_a_backoff_is_not_felt_inside_of_a_commit(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger()
    evicted: list[bool] = []
    commit = Instance.commit

    async def evicts(self: Instance, proposal: Proposal) -> None:
        begins = proposal.record is not None and any(one.retry_at is None for one in proposal.record.open)
        if begins and not evicted:
            evicted.append(self.evict())
        await commit(self, proposal)

    def flaky(call: ActivityCall) -> bytes:
        if call.attempt == 1:
            message = "not yet"
            raise ApplicationError(message)
        return ledger.note(call)

    monkeypatch.setattr(Instance, "commit", evicts)
    await lab.start(wat.script(wat.call("flaky", b"1"), wat.call("note", b"2")))
    with anyio.fail_after(5):
        result = await lab.complete(answers("flaky", flaky, retry=Retry(initial_interval=0.001)), ledger.activity())
    assert (result, evicted) == ([1, 2], [True])
    assert ledger.attempts == [2, 1]


@pytest.mark.skipif(not maps(), reason="this kernel does not list the pages that were written")
async def test_a_guest_that_was_never_restored_counts_as_the_pages_it_has_written(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.call("wait", b"1"), pages=64))
    called, go_on = anyio.Event(), anyio.Event()

    async def wait(call: ActivityCall) -> bytes:
        called.set()
        await go_on.wait()
        return call.request

    with anyio.fail_after(5):
        async with lab.worker(answers("wait", wait)) as engine:
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
