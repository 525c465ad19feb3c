"""What `result()` raises, and what it shows when it is printed."""

import json
import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests import wat
from tests.go_guests import COMPILERS, guest
from wasman_sdk import (
    ActivityError,
    ApplicationError,
    Client,
    GuestTrapError,
    RetryPolicy,
    Worker,
    Workflow,
    WorkflowFailedError,
    activity,
)

# What the Go SDK sends where the body of a workflow returns an activity's error.
DECLINED = {
    "type": "CardDeclined",
    "message": "no funds",
    "details": {"limit": 5},
    "activity": "charge",
    "attempt": 3,
    "cause": {"type": "KeyError", "message": "'card'"},
}
FAILURE = {
    "type": "ActivityError",
    "message": "charge failed at attempt 3: CardDeclined: no funds",
    "details": DECLINED,
}


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect("memory://") as client, Worker(client):
        yield client


async def failed(client: Client, *steps: wat.Step) -> WorkflowFailedError:
    workflow: Workflow[None, Any] = Workflow("flow", type(None), Any, module=wat.script(*steps))
    with pytest.raises(WorkflowFailedError) as raised:
        await client.execute_workflow(workflow, None, id="w")
    return raised.value


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


async def test_the_chain_goes_down_to_what_the_activity_has_raised(client: Client) -> None:
    error = await failed(client, wat.call("wasman.fail", json.dumps(FAILURE).encode()))
    by = error.__cause__
    assert isinstance(by, ActivityError)
    assert (by.type, by.message, by.details) == ("CardDeclined", "no funds", {"limit": 5})
    assert (by.activity, by.attempt) == ("charge", 3)
    below = by.__cause__
    assert isinstance(below, ApplicationError)
    assert (below.type, str(below)) == ("KeyError", "'card'")
    assert below.__cause__ is None
    shown = printed(error)
    assert "wasman_sdk.ActivityError: CardDeclined: no funds (activity 'charge', attempt 3)" in shown
    assert shown.splitlines()[-1].endswith(
        "of 'w' failed: ActivityError: charge failed at attempt 3: CardDeclined: no funds"
    )


async def test_a_trap_comes_with_its_backtrace(client: Client) -> None:
    error = await failed(client, wat.raw("(unreachable)"))
    by = error.__cause__
    assert isinstance(by, GuestTrapError)
    assert "wasm function" in by.backtrace
    assert error.failure is not None
    assert (error.failure.type, error.failure.backtrace) == ("GuestTrap", by.backtrace)
    shown = printed(error)
    assert "wasman_sdk.GuestTrapError: " in shown
    assert by.backtrace in shown
    assert "unreachable" in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("kind", "message", "details"), [("Sold out", "none left", [1]), ("ActivityError", "as the SDK says", 7)]
)
async def test_what_a_guest_says_of_itself_has_no_cause(client: Client, kind: str, message: str, details: Any) -> None:
    said = {"type": kind, "message": message, "details": details}
    error = await failed(client, wat.call("wasman.fail", json.dumps(said).encode()))
    assert error.__cause__ is None
    assert error.failure is not None
    assert error.failure.details == details
    assert str(error).endswith(f"failed: {kind}: {message}")


@pytest.mark.parametrize("details", [{}, {"type": "a"}, {**DECLINED, "attempt": "many"}, {**DECLINED, "cause": 3}])
async def test_details_that_are_no_failure_are_left_as_they_are(client: Client, details: Any) -> None:
    error = await failed(client, wat.call("wasman.fail", json.dumps({**FAILURE, "details": details}).encode()))
    assert error.__cause__ is None
    assert error.failure is not None
    assert error.failure.details == details


@activity(retry=RetryPolicy(maximum_attempts=1, non_retryable_error_types=frozenset({"LookupError"})))
async def echo(said: str) -> str:
    """Fail, as it is told."""
    if said == "undo":
        raise LookupError("nothing to undo")
    cause = KeyError("card")
    raise ApplicationError("no funds", type="CardDeclined", details={"limit": 5}, non_retryable=True) from cause


async def by_the_guest(compiler: str, how: str) -> WorkflowFailedError:
    workflow: Workflow[str, str] = Workflow("fails", str, str, module=guest("programs", compiler), entry="fails")
    async with (
        Client.connect("memory://") as client,
        Worker(client, workflows=[workflow], activities=[echo]),
    ):
        with pytest.raises(WorkflowFailedError) as raised:
            await client.execute_workflow(workflow, how, id="w")
        return raised.value


def chain(error: BaseException) -> list[tuple[Any, ...]]:
    """What an error was raised from, and so on."""
    links: list[tuple[Any, ...]] = []
    cause = error.__cause__
    while cause is not None:
        assert isinstance(cause, ActivityError | ApplicationError)
        links.append((type(cause), cause.type, cause.details, cause.non_retryable))
        cause = cause.__cause__
    return links


_CARD: list[tuple[Any, ...]] = [
    (ActivityError, "CardDeclined", {"limit": 5}, True),
    (ApplicationError, "KeyError", None, False),
]
_UNDO = (ActivityError, "LookupError", None, True)


@COMPILERS
async def test_a_guest_fails_by_its_own_failure_and_says_its_cause(compiler: str) -> None:
    error = await by_the_guest(compiler, "own")
    failure = error.failure
    assert failure is not None
    assert (failure.type, failure.details, failure.non_retryable) == ("OrderFailed", [True, {"limit": 5}], True)
    assert failure.message.splitlines() == [
        "no order",
        "compensation 1 failed: echo failed at attempt 1: LookupError: nothing to undo",
    ]
    assert chain(error) == [*_CARD, _UNDO]


@COMPILERS
async def test_a_guest_fails_by_an_activity_and_by_what_undoes_it(compiler: str) -> None:
    error = await by_the_guest(compiler, "as it is")
    assert error.failure is not None
    assert error.failure.type == "ActivityError"
    assert chain(error) == [*_CARD, _UNDO]
