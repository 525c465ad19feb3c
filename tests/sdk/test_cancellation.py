"""`WorkflowHandle.cancel`, as an application sees it, and how its activities learn of it."""

import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests import wat
from wasman_sdk import (
    ActivityError,
    ApplicationError,
    Client,
    RetryPolicy,
    SyncClient,
    Worker,
    Workflow,
    WorkflowCancelledError,
    WorkflowClosedError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    activity,
)

TOUR: Workflow[Any, Any] = Workflow(
    "tour", Any, Any, module=Path(__file__).parent.parent / "guests" / "sdk_tour.wasm"
)  # calls greet once a name; cancelled, it calls tidy and returns the error of its call


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect("memory://") as client:
        yield client


@activity
async def tidy(name: str) -> None:
    """What a guest does before it ends."""


async def test_a_guest_in_go_knows_it_tidies_up_and_returns(client: Client) -> None:
    began, tidied = anyio.Event(), []

    @activity
    async def greet(given: dict[str, str]) -> str:
        if given["name"] == "Grace":
            began.set()
            await anyio.sleep_forever()
        return "hello"

    @activity(name="tidy")
    async def tidies(name: str) -> None:
        tidied.append(name)

    async with Worker(client, activities=[greet, tidies]):
        handle = await client.start_workflow(TOUR, {"names": ["Ada", "Grace", "Alan"]}, id="w")
        await began.wait()
        await handle.cancel(reason="nobody is at home")
        with pytest.raises(WorkflowCancelledError, match=r"of 'w' was cancelled: nobody is at home$") as caught:
            await handle.result()
    assert caught.value.failure is not None
    assert caught.value.failure.type == "Cancelled"
    assert tidied == ["Grace"]
    description = await handle.describe()
    assert (description.status, description.cancel_requested) == ("cancelled", "nobody is at home")
    assert [(event.name, event.failure) for event in await handle.history() if event.kind == "failed"] == [
        ("greet", "Cancelled: nobody is at home (activity 'greet')")
    ]
    with pytest.raises(WorkflowClosedError, match=r"w has ended already \(cancelled\), so it cannot be cancelled"):
        await handle.cancel()
    with pytest.raises(WorkflowNotFoundError):
        await client.get_handle("other").cancel()


async def test_a_sync_activity_sees_the_flag(client: Client) -> None:
    began, seen = threading.Event(), threading.Event()

    @activity
    def greet(_: dict[str, str]) -> str:
        began.set()
        assert activity.wait_for_cancelled_sync()
        assert activity.is_cancelled()
        seen.set()
        return "too late"

    async with Worker(client, activities=[greet, tidy]):
        handle = await client.start_workflow(TOUR, {"names": ["Ada"]}, id="w")
        await anyio.to_thread.run_sync(began.wait)
        await handle.cancel()
        with pytest.raises(WorkflowCancelledError, match="cancelled by request"):
            await handle.result()
        await anyio.to_thread.run_sync(seen.wait)


async def test_a_failure_has_the_chain_down_to_what_the_activity_raised(client: Client) -> None:
    @activity(name="tidy", retry=RetryPolicy(maximum_attempts=2, initial_interval=timedelta(0)))
    async def fails(_: str) -> None:
        raise ApplicationError("no broom", type="NoBroom", details={"rooms": 2}) from KeyError("cupboard")

    began = anyio.Event()

    @activity(name="greet")
    async def waits(_: dict[str, str]) -> str:
        began.set()
        await anyio.sleep_forever()
        return ""

    async with Worker(client, activities=[waits, fails]):
        handle = await client.start_workflow(TOUR, {"names": ["Ada"]}, id="w")
        await began.wait()
        await handle.cancel()
        with pytest.raises(WorkflowFailedError, match="ActivityError: tidy failed at attempt 2: NoBroom") as caught:
            await handle.result()
    by = caught.value.__cause__
    assert isinstance(by, ActivityError)
    failure = by.failure
    assert (failure.type, failure.message, failure.details) == ("NoBroom", "no broom", {"rooms": 2})
    assert (failure.activity, failure.attempt) == ("tidy", 2)
    assert isinstance(by.__cause__, ApplicationError)
    assert (by.__cause__.type, str(by.__cause__)) == ("KeyError", "'cupboard'")
    assert by.__cause__.__cause__ is None


async def test_a_guest_that_says_anything_of_its_failure_is_no_trouble(client: Client) -> None:
    for place, details in enumerate((b"5", b'{"type": 1}', b'{"type": "T", "message": "m", "attempt": "x"}')):
        says = b'{"type": "ActivityError", "message": "m", "details": ' + details + b"}"
        flow: Workflow[Any, Any] = Workflow(f"f{place}", Any, Any, module=wat.script(wat.call("wasman.fail", says)))
        async with Worker(client):
            with pytest.raises(WorkflowFailedError, match="ActivityError: m") as caught:
                await client.execute_workflow(flow, None, id=f"w{place}")
        assert caught.value.__cause__ is None


def test_a_sync_client_cancels_as_well() -> None:
    with SyncClient.connect("memory://") as client:
        handle = client.start_workflow(TOUR, {"names": []}, id="w")
        handle.cancel("no")
        with pytest.raises(WorkflowNotFoundError):
            client.get_handle("other").cancel()
