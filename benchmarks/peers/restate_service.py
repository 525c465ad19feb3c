"""Restate's service: the workflow and its steps behind hypercorn, one process; runs in the peers' environment."""

from __future__ import annotations

import asyncio
import sys

import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config

ten = restate.Workflow("ten")


async def step(number: int) -> int:
    """Do nothing: what is measured is everything else."""
    return number


@ten.main()
async def run(context: restate.WorkflowContext, steps: int) -> int:
    """One durable step after the other."""
    done = 0
    for _ in range(steps):
        assert await context.run_typed("step", step, number=12345) == 12345  # noqa: PLR2004  what it was sent
        done += 1
    return done


def main(port: int) -> None:
    """Serve until the process is ended."""
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = None
    config.errorlog = None
    asyncio.run(serve(restate.app([ten]), config))


if __name__ == "__main__":
    main(int(sys.argv[1]))
