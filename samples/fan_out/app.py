"""A thousand activities in one run, only so many at once; some fail, and the report says which."""

from pathlib import Path

import anyio
from pydantic import BaseModel

from wasman_sdk import ApplicationError, Client, Worker, Workflow, activity

__all__ = ["BATCH", "Batch", "Report", "main", "work"]


class Batch(BaseModel):
    """What to do: items, how many at once, how many may fail."""

    items: list[int]
    at_once: int = 20
    tolerates: int = 0


class Report(BaseModel):
    """What came of it."""

    sum: int
    failed: list[str]


BAD_LUCK = 13


@activity
async def work(item: int) -> int:
    """Square it; one number brings bad luck."""
    if item == BAD_LUCK:
        raise ApplicationError("bad luck", type="BadLuck", non_retryable=True)
    await anyio.sleep(0.001)
    return item * item


BATCH = Workflow("batch", Batch, Report, module=Path(__file__).with_name("batch.wasm"))


async def main(store: str = "memory://") -> None:
    """Do a batch of a thousand."""
    async with Client.connect(store) as client, Worker(client, workflows=[BATCH], activities=[work]):
        report = await client.execute_workflow(BATCH, Batch(items=list(range(1000)), tolerates=5), id="batch")
    print(report.sum, *report.failed)


if __name__ == "__main__":
    anyio.run(main)
