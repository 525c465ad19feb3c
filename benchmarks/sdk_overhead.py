"""What the SDK costs an activity call over the bare engine: validating, injecting, calling, validating.

One guest makes many calls on the memory store. They are answered by a handler of bytes that is given to the engine, and
in turn by an activity: typed by pydantic both ways, with the session, the attempt's info and a resource injected.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
from pydantic import BaseModel
from wasmtime import wat2wasm

from benchmarks.measure import Figure, median_and_spread
from wasman_host.activity import ActivityDefinition
from wasman_host.engine import Engine
from wasman_sdk import ActivityInfo, Client, Session, Worker, Workflow, activity

if TYPE_CHECKING:
    from wasman_host.activity import ActivityCall

__all__ = ["measure"]

_CALLS = 2000
_ROUNDS = 15
_BOUND = 60e-6

_REQUEST = b'{"item":"book","count":3,"price":"12.50","tags":["a","b"]}'
_ANSWER = b'{"number":7,"accepted":true}'
_GUEST = f"""(module
 (import "env" "host_call_api" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))
 (memory (export "memory") 4)
 (data (i32.const 1024) "order") (data (i32.const 2048) "{_REQUEST.decode().replace('"', chr(92) + '"')}")
 (func (export "run") (param $n i32) (result i32) (local $i i32)
  (loop $again
   (drop (call $call (i32.const 1024) (i32.const 5) (i32.const 2048) (i32.const {len(_REQUEST)})
    (i32.const 8192) (i32.const 4096)))
   (local.set $i (i32.add (local.get $i) (i32.const 1)))
   (br_if $again (i32.lt_u (local.get $i) (local.get $n))))
  (local.get $i)))"""


class Order(BaseModel):
    """What the guest sends."""

    item: str
    count: int
    price: str
    tags: list[str]


class Receipt(BaseModel):
    """What it gets."""

    number: int
    accepted: bool


class Shop(Session):
    """The run's session."""

    name: str


class Pool:
    """A resource."""


@activity
async def order(given: Order, session: Shop, info: ActivityInfo, pool: Pool) -> Receipt:
    """Use all of it, and do nothing."""
    del pool
    return Receipt(number=7, accepted=bool(given.item and session.name and info.attempt))


async def _bytes(call: ActivityCall) -> bytes:
    assert call.request == _REQUEST, "the guest sends it"
    return _ANSWER


async def _run(client: Client, id_: str) -> float:
    """Seconds a call, over one workflow of many."""
    begin = time.perf_counter()
    assert await client.execute_workflow("ordering", _CALLS, id=id_, session=Shop(name="shop")) == _CALLS
    return (time.perf_counter() - begin) / _CALLS


async def _rounds() -> tuple[list[float], list[float]]:
    workflow = Workflow("ordering", int, int, module=bytes(wat2wasm(_GUEST)))
    with_sdk, bare = [], []
    async with Client.connect("memory://") as client:
        await client.deploy(workflow)
        for number in range(-1, _ROUNDS):
            async with Worker(client, activities=[order], resources=[Pool()]):
                seconds = await _run(client, f"sdk-{number}")
            engine = Engine(client.store, {"order": ActivityDefinition("order", _bytes)})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.run)
                await engine.serving.wait()
                least = await _run(client, f"bare-{number}")
                await engine.leave()
            if number >= 0:  # the first ones warm up
                with_sdk.append(seconds)
                bare.append(least)
    return with_sdk, bare


def measure() -> Figure:
    """Measure, and say how."""
    with_sdk, bare = anyio.run(_rounds)
    middle, low, high = median_and_spread([a - b for a, b in zip(with_sdk, bare, strict=True)])
    call, *_ = median_and_spread(with_sdk)
    least, *_ = median_and_spread(bare)
    return Figure(
        name="overhead of the SDK per activity call over the bare engine",
        value=f"{middle * 1e6:.0f} us",
        spread=f"{low * 1e6:.0f}-{high * 1e6:.0f} us",
        ratio=f"{call / least:.2f} x the bare engine ({call * 1e6:.0f} against {least * 1e6:.0f} us)",
        bound=f"{_BOUND * 1e6:.0f} us",
        holds=middle <= _BOUND,
        note=(
            f"{_ROUNDS} rounds of {_CALLS:,} calls each on the memory store, in turn: a handler of bytes, and an async "
            "activity with a pydantic model each way, session, info and one resource injected"
        ),
    )
