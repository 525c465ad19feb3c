"""The client for code without an event loop, over workers in another thread."""

import inspect
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

from tests import wat
from wasman_sdk import (
    Client,
    InvalidArgumentError,
    ResultTimeoutError,
    StoreUnavailableError,
    SyncClient,
    SyncWorkflowHandle,
    Worker,
    Workflow,
    WorkflowHandle,
    WorkflowTerminatedError,
    activity,
)

ASKS: Workflow[None, Any] = Workflow("asks", type(None), Any, module=wat.script(wat.call("double", b"21")))
WAITS: Workflow[None, Any] = Workflow("waits", type(None), Any, module=wat.script(wat.call("missing")))


@activity
async def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def client(url: str) -> Iterator[SyncClient]:
    with SyncClient.connect(url) as client:
        yield client


@pytest.fixture
def worker(url: str) -> Iterator[None]:
    """A worker with an event loop of its own."""
    worker = Worker(url, workflows=[ASKS, WAITS], activities=[double])
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(worker):
        yield


def public(kind: type) -> dict[str, Any]:
    """Its methods, by name."""
    named = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    return {name: value for name, value in named.items() if not isinstance(value, property)}


@pytest.mark.parametrize(
    ("asynchronous", "synchronous", "own"),
    [
        # An open store belongs to the event loop that it was opened in, so there is nothing to be over.
        (Client, SyncClient, {"over"}),
        (WorkflowHandle, SyncWorkflowHandle, set()),
    ],
)
def test_both_have_the_same_methods_with_the_same_parameters(
    asynchronous: type, synchronous: type, own: set[str]
) -> None:
    assert set(public(asynchronous)) - own == set(public(synchronous))
    for name in public(synchronous):
        one, other = (inspect.signature(getattr(kind, name)) for kind in (asynchronous, synchronous))
        assert list(one.parameters.values()) == list(other.parameters.values()), name
        assert getattr(synchronous, name).__doc__ == f"As `{asynchronous.__name__}.{name}`."


@pytest.mark.usefixtures("worker")
def test_start_wait_and_look(client: SyncClient) -> None:
    assert client.execute_workflow(ASKS, None, id="one") == [42]
    handle = client.start_workflow("asks", None, id="two", result_type=list[int], memo={"why": "test"})
    assert isinstance(handle, SyncWorkflowHandle)
    assert handle.result(timeout=timedelta(seconds=20)) == [42]
    found = handle.describe()
    assert (found.status, found.memo, found.run_id) == ("completed", {"why": "test"}, handle.run_id)
    assert [event.kind for event in handle.history()] == ["start", "result"]
    assert client.get_handle("one", workflow=ASKS).result() == [42]
    assert client.get_handle("one").result() == [42]
    assert [found.id for found in client.list_workflows(page_size=1)] == ["two", "one"]
    assert [found.id for found in client.list_workflows_page(page_size=1).workflows] == ["two"]
    assert client.count(status="completed") == 2
    assert client.execute_workflow("asks", None, id="one", id_reuse_policy="allow_duplicate") == [42]


@pytest.mark.usefixtures("worker")
def test_waiting_ends_by_its_timeout_and_the_run_goes_on(client: SyncClient) -> None:
    handle = client.start_workflow(WAITS, None, id="w")
    with pytest.raises(ResultTimeoutError, match=r"run .* of 'w' has not ended within 0.1 s: it is .*, and goes on"):
        handle.result(timeout=timedelta(seconds=0.1))
    with pytest.raises(TimeoutError):
        handle.result(timeout=timedelta(0))
    handle.terminate("enough")
    with pytest.raises(WorkflowTerminatedError, match="enough"):
        handle.result()


def test_without_a_worker_what_is_started_stays(client: SyncClient, url: str) -> None:
    client.deploy_absent(ASKS)
    assert client.deploy(ASKS) == client.deploy(ASKS)
    handle = client.start_workflow("asks", None, id="w")
    with pytest.raises(InvalidArgumentError, match="w is running, not blocked"):
        handle.unblock()
    assert (client.tenant, client.is_open, "store.db" in repr(client)) == ("default", True, True)
    assert repr(handle) == f"SyncWorkflowHandle(id='w', run_id={handle.run_id!r})"
    with SyncClient.connect(url, tenant="other") as other:
        assert list(other.list_workflows()) == []
        assert repr(other).endswith(", tenant='other')")


def test_bad_filters_are_refused_when_they_are_given(client: SyncClient) -> None:
    with pytest.raises(InvalidArgumentError, match="'gone' is not a valid Status"):
        client.list_workflows(status="gone")


def test_a_client_that_is_not_open(url: str) -> None:
    client = SyncClient.connect(url)
    handle = client.get_handle("w")
    for ask in (handle.describe, client.count, partial(client.start_workflow, ASKS, None, id="w")):
        with pytest.raises(InvalidArgumentError, match="the client is not open: use it inside `with Sync"):
            ask()


def test_threads_share_a_client(client: SyncClient) -> None:
    client.deploy(ASKS)
    threads = [threading.Thread(target=lambda n=n: client.start_workflow("asks", None, id=f"w{n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.count() == 8


def test_a_client_that_is_closed_while_a_thread_waits(url: str) -> None:
    raised: list[BaseException] = []

    def wait(handle: SyncWorkflowHandle[Any]) -> None:
        try:
            handle.result()
        except StoreUnavailableError as error:
            raised.append(error)

    with SyncClient.connect(url) as client:
        thread = threading.Thread(target=wait, args=(client.start_workflow(WAITS, None, id="w"),))
        thread.start()
        time.sleep(0.1)
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(raised[0], StoreUnavailableError), raised
