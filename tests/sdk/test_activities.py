"""Activities: what the decorator takes and refuses, what is injected, how they are called."""

import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, ValidationError

from tests import wat
from wasman_sdk import (
    ActivityInfo,
    ApplicationError,
    Client,
    InvalidArgumentError,
    RetryPolicy,
    Session,
    Worker,
    Workflow,
    activity,
)


class Address(BaseModel):
    street: str
    number: int = 1


class Point(BaseModel):
    x: float
    y: float


class Mine(Session):
    region: str = "north"


class Pool:
    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect("memory://") as client:
        yield client


def asks(*names: str, request: bytes = b"null") -> Workflow[Any, Any]:
    return Workflow("flow", Any, Any, module=wat.script(*(wat.call(name, request) for name in names)))


async def test_sync_and_async_ones_are_called_with_what_they_are_annotated_with(client: Client) -> None:
    seen: list[object] = []

    @activity
    async def locate(address: Address) -> Point:
        seen.append(address)
        return Point(x=1, y=address.number)

    @activity(name="in a thread")
    def locate_slowly(address: Address) -> Point:
        seen.append(threading.current_thread() is not threading.main_thread())
        return Point(x=2, y=address.number)

    assert (await locate(Address(street="a"))).y == 1  # still a plain callable
    assert locate_slowly(Address(street="a")).y == 1
    seen.clear()
    async with Worker(client, activities=[locate, locate_slowly]):
        request = b'{"street": "b", "number": 7}'
        result = await client.execute_workflow(asks("locate", "in a thread", request=request), None, id="w")
    assert result == [{"x": 1.0, "y": 7.0}, {"x": 2.0, "y": 7.0}]
    assert seen == [Address(street="b", number=7), True]


async def test_bytes_pass_as_they_are(client: Client) -> None:
    @activity
    def reverse(data: bytes) -> bytes:
        return data[::-1]

    async with Worker(client, activities=[reverse]):
        assert await client.execute_workflow(asks("reverse", request=b"]2,1["), None, id="w") == [[1, 2]]


async def test_session_info_and_resources_are_injected(client: Client) -> None:
    @activity
    async def all_of_them(number: int, session: Mine, info: ActivityInfo, pool: Pool) -> list[Any]:
        assert activity.info() == info
        return [number, session.region, info.name, info.attempt, info.workflow, info.workflow_id, pool.name]

    @activity
    def without_payload(session: Mine) -> str:
        return f"{session.region} {activity.info().idempotency_key}"

    @activity
    def nothing() -> None:
        """Takes nothing and gives nothing."""

    async with Worker(client, activities=[all_of_them, without_payload, nothing], resources=[Pool("main")]):
        handle = await client.start_workflow(
            asks("all_of_them", "without_payload", "nothing", request=b"5"), None, id="w", session=Mine(region="south")
        )
        first, second, third = await handle.result()
    assert first == [5, "south", "all_of_them", 1, "flow", "w", "main"]
    assert (second, third) == (f"south {handle.run_id}/1", None)


async def test_an_attempt_knows_which_one_it_is_and_its_key_stays(client: Client) -> None:
    infos: list[ActivityInfo] = []

    @activity(retry=RetryPolicy(initial_interval=timedelta(0), maximum_attempts=3))
    def third_time() -> int:
        infos.append(activity.info())
        if len(infos) < 3:
            raise OSError("not yet")
        return len(infos)

    async with Worker(client, activities=[third_time]):
        assert await client.execute_workflow(asks("third_time"), None, id="w") == [3]
    assert [info.attempt for info in infos] == [1, 2, 3]
    assert len({info.idempotency_key for info in infos}) == 1
    assert infos[0].started <= infos[1].started <= infos[2].started


async def test_sync_ones_run_in_parallel_up_to_the_workers_limit(client: Client) -> None:
    running: list[int] = []
    most: list[int] = []

    @activity
    def slow() -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()

    async with Worker(client, activities=[slow], max_sync_activities=3):
        handles = [await client.start_workflow(asks("slow"), None, id=f"w{n}") for n in range(12)]
        for handle in handles:
            await handle.result()
    assert 1 < max(most) <= 3


async def test_a_timeout_cuts_an_attempt(client: Client) -> None:
    @activity(
        start_to_close_timeout=timedelta(milliseconds=50),
        retry=RetryPolicy(initial_interval=timedelta(0), maximum_attempts=2),
    )
    async def stuck() -> int:
        if activity.info().attempt == 1:
            await anyio.sleep_forever()
        return 7

    async with Worker(client, activities=[stuck]):
        assert await client.execute_workflow(asks("stuck"), None, id="w") == [7]


async def test_an_application_error_says_more(client: Client) -> None:
    @activity
    def pay() -> None:
        raise ApplicationError("declined", type="CardDeclined", details={"left": 3}, non_retryable=True)

    module = wat.script(wat.call("pay"), wat.call("wasman.error"))
    pays: Workflow[Any, Any] = Workflow("pays", Any, Any, module=module)
    async with Worker(client, activities=[pay]):
        code, error = await client.execute_workflow(pays, None, id="w")
    assert code == -1
    assert error == {
        "type": "CardDeclined",
        "message": "declined",
        "details": {"left": 3},
        "activity": "pay",
        "attempt": 1,
        "non_retryable": True,
    }


def test_a_second_payload_is_refused() -> None:
    with pytest.raises(TypeError, match="activity 'two': parameter 'second' is a second payload; a guest sends one"):

        @activity
        def two(first: int, second: int | None) -> None: ...


def test_any_number_of_arguments_is_refused() -> None:
    with pytest.raises(TypeError, match=r"activity 'many': parameter \*numbers: int takes any number of arguments"):

        @activity
        def many(*numbers: int) -> None: ...


@pytest.mark.parametrize("name", ["wasman.mine", "wasman."])
def test_a_name_of_the_hosts_own_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"an activity needs a name that does not begin with 'wasman\.'"):

        @activity(name=name)
        def mine() -> None: ...


def test_info_outside_of_an_activity_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"activity.info\(\) is called outside of an activity"):
        activity.info()


async def test_a_worker_refuses_what_it_could_not_call(client: Client) -> None:
    @activity
    def wants(number: int, pool: Pool) -> None: ...

    @activity(name="wants")
    def same() -> None: ...

    def plain() -> None: ...

    with pytest.raises(InvalidArgumentError, match="is no activity; decorate it with @activity"):
        Worker(client, activities=[plain])
    with pytest.raises(InvalidArgumentError, match="parameter 'pool' wants one Pool and the worker has 0"):
        Worker(client, activities=[wants])
    with pytest.raises(InvalidArgumentError, match="parameter 'pool' wants one Pool and the worker has 2"):
        Worker(client, activities=[wants], resources=[Pool("a"), Pool("b")])
    with pytest.raises(InvalidArgumentError, match="two activities are called 'wants'; give one of them another name"):
        Worker(client, activities=[wants, same], resources=[Pool("a")])


def test_a_retry_policy_is_checked_and_frozen() -> None:
    policy = RetryPolicy()
    assert (policy.maximum_attempts, policy.initial_interval) == (5, timedelta(seconds=1))
    for wrong in ({"maximum_attempts": -1}, {"backoff_coefficient": 0.5}, {"initial_interval": -1}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            RetryPolicy.model_validate(wrong)
    with pytest.raises(ValidationError):
        policy.maximum_attempts = 3  # type: ignore[misc]
    host = RetryPolicy(initial_interval=timedelta(seconds=2), maximum_interval=timedelta(seconds=5)).for_host()
    assert [host.delay(attempt) for attempt in (1, 2, 3, 1000)] == [2, 4, 5, 5]


async def test_types_that_changed_between_attempts_are_a_failure_that_names_the_field(client: Client) -> None:
    failed = anyio.Event()

    @activity(name="locate", retry=RetryPolicy(initial_interval=timedelta(milliseconds=50)))
    async def before(_: Address) -> None:
        failed.set()
        raise OSError("not yet")

    class Newer(BaseModel):
        street: str
        city: str

    @activity(name="locate")
    async def after(address: Newer) -> None: ...

    flow: Workflow[Any, Any] = Workflow(
        "flow", Any, Any, module=wat.script(wat.call("locate", b'{"street": "a"}'), wat.call("wasman.error"))
    )
    async with Worker(client, activities=[before]):
        handle = await client.start_workflow(flow, None, id="w")
        await failed.wait()
        while not (await handle.describe()).pending:
            await anyio.sleep(0.005)
    async with Worker(client, activities=[after]):
        code, failure = await handle.result()
    assert (code, failure["type"]) == (-1, "InvalidRequest")
    assert failure["attempt"] > 1
    assert "to activity 'locate' does not fit: city: Field required" in failure["message"]
