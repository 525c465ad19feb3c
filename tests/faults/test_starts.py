"""Starts whose id has a run already, disturbed at each operation of their store: what is left is always whole."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from tests import wat
from tests.lab import PATIENCE, DirectoryLab, Lab, SqliteLab
from wasman_host import control, starting
from wasman_host.errors import StoreUnavailableError, WorkflowAlreadyExistsError
from wasman_host.payload import Payload
from wasman_host.starting import StartOptions, WorkflowIDConflictPolicy
from wasman_host.store import CLOSED, Key, Status, Store
from wasman_sdk.testing import Fault, FaultyStore, How, Point

KEY = Key("default", "w")
MODULE = wat.script(wat.call("missing"))
IN_PLACE = StartOptions(conflict=WorkflowIDConflictPolicy.TERMINATE_EXISTING)


@pytest.fixture(params=["sqlite", "directory"])
async def lab(request: pytest.FixtureRequest, anyio_backend: str, tmp_path: Any) -> AsyncIterator[Lab]:
    del anyio_backend
    lab: Lab = SqliteLab(tmp_path / "store.db") if request.param == "sqlite" else DirectoryLab(tmp_path / "store")
    await lab.open()
    yield lab
    await lab.close()


async def start(store: Store, name: str, options: StartOptions) -> str:
    return await starting.start(store, "default", KEY.id, name, Payload.of_value(None), None, options)


async def runs(store: Store) -> dict[str, Status]:
    """Every run that the id has or had, newest first, and where it stands. Their logs and records must be whole."""
    found: dict[str, Status] = {}
    run: str | None = None
    while run != "":
        described = await control.describe(store, KEY, run)
        assert described.record is not None, described.reason
        assert await control.history(store, described.stored)
        found[described.stored.run] = described.status
        run = described.record.pinned.previous
    return found


async def disturbed(lab: Lab, name: str, fault: Fault, options: StartOptions) -> tuple[FaultyStore, str | None]:
    """A start by a process of its own; the run that it was told of, if it was."""
    faulty = FaultyStore(await lab.handle(), fault)
    told: str | None = None
    with anyio.CancelScope() as scope, anyio.fail_after(PATIENCE):
        faulty.die = scope.cancel
        try:
            told = await start(faulty.as_store, name, options)
        except StoreUnavailableError:
            told = None
    return faulty, told


@pytest.mark.parametrize("how", list(How), ids=lambda how: how.value)
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
async def test_a_start_in_place_of_another_run_is_whole_whatever_fails(lab: Lab, how: How, *, closed: bool) -> None:
    name = await lab.deploy(MODULE)
    points = [Point("commit", 1)]  # of a start that meets nobody; all that it passes are found on the way
    done: set[Point] = set()
    while points:
        point = points.pop()
        done.add(point)
        before = await start(lab.store, name, IN_PLACE)
        if closed:
            stored = await control.load(lab.store, KEY)
            await lab.store.commit([control.closing(stored, "enough", [], lab.store.now())])
        known = set(await runs(lab.store))
        faulty, told = await disturbed(lab, name, Fault(point, how), IN_PLACE)
        points += [one for one in faulty.passed if one not in done and one not in points]
        found = await runs(lab.store)
        new = set(found) - known
        assert len(new) <= 1, point
        assert found[before] in ({Status.TERMINATED} if new or closed else {Status.TERMINATED, Status.RUNNING}), point
        assert [status for status in found.values() if status not in CLOSED] == [Status.RUNNING] * (
            1 if new or found[before] is Status.RUNNING else 0
        ), point
        if told is not None:
            assert new == {told}, point
        # Whoever was told nothing starts again, and gets a run.
        after = await start(lab.store, name, IN_PLACE)
        found = await runs(lab.store)
        assert [run for run, status in found.items() if status not in CLOSED] == [after], point
    assert {point.operation for point in done} >= {"commit", "load"}


async def test_of_many_processes_that_start_one_closed_id_one_wins(lab: Lab) -> None:
    name = await lab.deploy(MODULE)
    await start(lab.store, name, StartOptions())
    stored = await control.load(lab.store, KEY)
    await lab.store.commit([control.closing(stored, "enough", [], lab.store.now())])
    started: list[str] = []
    refused: list[WorkflowAlreadyExistsError] = []

    async def one() -> None:
        try:
            started.append(await start(await lab.handle(), name, StartOptions()))
        except WorkflowAlreadyExistsError as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(one)
    assert (len(started), len(refused)) == (1, 5)
    assert {error.run_id for error in refused} == set(started)
    assert list((await runs(lab.store)).values()) == [Status.RUNNING, Status.TERMINATED]
