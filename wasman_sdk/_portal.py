"""An event loop in a thread of its own, in which something asynchronous is open: what the sync classes stand on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.from_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

__all__ = ["Portal"]

T = TypeVar("T")


class Portal:
    """Opens a context manager there, calls into it, and closes it."""

    def __init__(self) -> None:
        """Nothing is open yet."""
        self._stack = contextlib.ExitStack()
        self._portal: anyio.from_thread.BlockingPortal | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self._portal is not None

    def open(self, manager: AbstractAsyncContextManager[T]) -> T:
        """What the manager gives when it is entered."""
        with contextlib.ExitStack() as stack:
            portal = stack.enter_context(anyio.from_thread.start_blocking_portal())
            entered = stack.enter_context(portal.wrap_async_context_manager(manager))
            self._portal = portal
            self._stack = stack.pop_all()
        return entered

    def call(self, function: Callable[..., Awaitable[T]], *given: Any) -> T:
        """What the coroutine function gives there; it must be open."""
        assert self._portal is not None, "whoever calls has looked"
        return self._portal.call(function, *given)

    def close(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the manager, and end the loop."""
        self._portal = None
        self._stack.__exit__(kind, error, traceback)
