"""The pytest plugin: fixtures for tests that run on the anyio plugin, on asyncio or trio."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from wasman_sdk.testing import WorkflowEnvironment

__all__ = ["OpenEnvironment", "wasman_environment"]


class OpenEnvironment(Protocol):
    """Opens an environment, which is closed when the test is over."""

    async def __call__(self, **options: Any) -> WorkflowEnvironment:
        """Options as of `WorkflowEnvironment`."""


@pytest.fixture
async def wasman_environment(anyio_backend: object) -> AsyncIterator[OpenEnvironment]:
    """What opens a `WorkflowEnvironment`, with the same options; it is awaited, and closed when the test is over."""
    del anyio_backend  # the loop that it belongs to
    from wasman_sdk.testing import WorkflowEnvironment  # noqa: PLC0415  pytest loads this for tests that use none

    async with contextlib.AsyncExitStack() as stack:

        async def opened(**options: Any) -> WorkflowEnvironment:
            return await stack.enter_async_context(WorkflowEnvironment(**options))

        yield opened
