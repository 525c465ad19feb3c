"""Interceptors: around each call, in order, typed, and able to change what goes in and out."""

import dataclasses
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from tests import wat
from wasman_sdk import (
    ApplicationError,
    Client,
    ExecuteActivityInput,
    RetryPolicy,
    Worker,
    WorkerInterceptor,
    Workflow,
    activity,
)


class Order(BaseModel):
    item: str
    count: int = 1


ORDER: Workflow[None, Any] = Workflow(
    "order", type(None), Any, module=wat.script(wat.call("place", b'{"item":"book"}'), wat.call("wasman.error"))
)


@activity
async def place(order: Order) -> int:
    """Give what was ordered."""
    return order.count


class Noting(WorkerInterceptor):
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    async def execute_activity(
        self, given: ExecuteActivityInput, call_next: Callable[[ExecuteActivityInput], Awaitable[Any]]
    ) -> Any:
        assert activity.info() == given.info
        self.notes.append(f"{self.name}: {given.info.name} {given.payload!r}")
        try:
            result = await call_next(given)
        except Exception as error:
            self.notes.append(f"{self.name}: {error!r}")
            raise
        self.notes.append(f"{self.name}: {result}")
        return result


class Doubling(WorkerInterceptor):
    async def execute_activity(
        self, given: ExecuteActivityInput, call_next: Callable[[ExecuteActivityInput], Awaitable[Any]]
    ) -> Any:
        order: Order = given.payload
        return 10 * await call_next(dataclasses.replace(given, payload=Order(item=order.item, count=2 * order.count)))


async def test_the_first_is_outermost_and_each_may_change_what_passes() -> None:
    notes: list[str] = []
    inner, outer = Noting("inner", notes), Noting("outer", notes)
    async with (
        Client.connect("memory://") as client,
        Worker(client, activities=[place], interceptors=[outer, Doubling(), inner]),
    ):
        assert (await client.execute_workflow(ORDER, None, id="w"))[0] == 20
    assert notes == [
        "outer: place Order(item='book', count=1)",
        "inner: place Order(item='book', count=2)",
        "inner: 2",
        "outer: 20",
    ]


async def test_around_sync_activities_and_the_fallback() -> None:
    notes: list[str] = []

    @activity(name="place")
    def sync() -> int:
        return 7

    async with Client.connect("memory://") as client:
        async with Worker(client, activities=[sync], interceptors=[Noting("sync", notes)]):
            assert (await client.execute_workflow(ORDER, None, id="sync"))[0] == 7
        async with Worker(
            client, fallback=lambda name, _: f'"{name}"'.encode(), interceptors=[Noting("fallback", notes)]
        ):
            assert (await client.execute_workflow(ORDER, None, id="fallback"))[0] == "place"
    assert notes == ["sync: place None", "sync: 7", 'fallback: place b\'{"item":"book"}\'', "fallback: b'\"place\"'"]


class Refusing(WorkerInterceptor):
    def __init__(self) -> None:
        self.attempts: list[int] = []

    async def execute_activity(
        self, given: ExecuteActivityInput, call_next: Callable[[ExecuteActivityInput], Awaitable[Any]]
    ) -> Any:
        self.attempts.append(given.info.attempt)
        if given.info.attempt < 3:
            raise ApplicationError("not yet", type="Refused")
        return await call_next(given)


async def test_what_it_raises_is_the_attempts_failure() -> None:
    refusing = Refusing()

    @activity(name="place", retry=RetryPolicy(initial_interval=timedelta(0)))
    async def again(order: Order) -> int:
        return order.count

    async with (
        Client.connect("memory://") as client,
        Worker(client, activities=[again], interceptors=[refusing]),
    ):
        assert (await client.execute_workflow(ORDER, None, id="w"))[0] == 1
    assert refusing.attempts == [1, 2, 3]


class Wrong(WorkerInterceptor):
    async def execute_activity(
        self, given: ExecuteActivityInput, call_next: Callable[[ExecuteActivityInput], Awaitable[Any]]
    ) -> Any:
        return f"not {await call_next(given)}"


async def test_what_it_gives_is_validated_like_any_result() -> None:
    async with Client.connect("memory://") as client, Worker(client, activities=[place], interceptors=[Wrong()]):
        code, failure = await client.execute_workflow(ORDER, None, id="w")
    assert (code, failure["type"]) == (-1, "InvalidResult")


def test_what_is_no_interceptor_is_refused() -> None:
    wrong: Any = object()
    with pytest.raises(TypeError, match="interceptors"):
        Worker("memory://", interceptors=[wrong])
