"""The fallback: what answers calls of activities that nobody has registered."""

import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tests import wat
from wasman_sdk import ApplicationError, Client, InvalidArgumentError, RetryPolicy, Worker, Workflow, activity


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect("memory://") as client:
        yield client


def asks(*steps: wat.Step) -> Workflow[Any, Any]:
    return Workflow("flow", Any, Any, module=wat.script(*steps))


async def test_it_answers_only_what_nobody_has_registered(client: Client) -> None:
    seen: list[tuple[str, bytes, int]] = []

    @activity
    def known(data: bytes) -> bytes:
        return b"[" + data + b"]"

    async def fallback(name: str, request: bytes) -> bytes:
        seen.append((name, request, activity.info().attempt))
        return b'"' + name.encode() + b'"'

    async with Worker(client, activities=[known], fallback=fallback):
        workflow = asks(wat.call("known", b"1"), wat.call("other", b"\xff\x00"), wat.call("more", b""))
        assert await client.execute_workflow(workflow, None, id="w") == [[1], "other", "more"]
    assert seen == [("other", b"\xff\x00", 1), ("more", b"", 1)]


async def test_a_sync_one_runs_in_a_thread(client: Client) -> None:
    def fallback(_name: str, _request: bytes) -> bytes:
        return b"true" if threading.current_thread() is not threading.main_thread() else b"false"

    async with Worker(client, fallback=fallback):
        assert await client.execute_workflow(asks(wat.call("any")), None, id="w") == [True]


async def test_what_it_raises_is_tried_again_and_reaches_the_guest(client: Client) -> None:
    attempts: list[str] = []

    def fallback(name: str, _request: bytes) -> bytes:
        attempts.append(name)
        if name == "declined":
            raise ApplicationError("no", type="CardDeclined", details=[1], non_retryable=True)
        raise OSError("not there")

    retry = RetryPolicy(initial_interval=timedelta(0), maximum_attempts=2)
    async with Worker(client, fallback=fallback, fallback_retry=retry):
        told = wat.call("wasman.error")
        code, failed, again, declined = await client.execute_workflow(
            asks(wat.call("broken"), told, wat.call("declined"), told), None, id="w"
        )
    assert (code, again) == (-1, -1)
    assert failed == {"type": "OSError", "message": "not there", "activity": "broken", "attempt": 2}
    assert declined == {
        "type": "CardDeclined", "message": "no", "details": [1], "activity": "declined", "attempt": 1,
        "non_retryable": True,
    }  # fmt: skip
    assert attempts == ["broken", "broken", "declined"]


async def test_something_else_than_bytes_is_a_failure(client: Client) -> None:
    def fallback(_name: str, _request: bytes) -> Any:
        return "text"

    async with Worker(client, fallback=fallback):
        code, error = await client.execute_workflow(asks(wat.call("any"), wat.call("wasman.error")), None, id="w")
    assert code == -1
    assert error["type"] == "InvalidResult"
    assert error["message"] == "the fallback gave str for activity 'any', and must give bytes"


async def test_a_worker_refuses_what_it_could_not_call(client: Client) -> None:
    @activity
    def known() -> None: ...

    broken: Any = 5
    with pytest.raises(InvalidArgumentError, match="the fallback 5 cannot be called"):
        Worker(client, fallback=broken)
    wrong: Any = known
    with pytest.raises(InvalidArgumentError, match=r"is an activity, and those are given by Worker\(activities="):
        Worker(client, fallback=wrong)
