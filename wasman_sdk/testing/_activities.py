"""One activity by itself: what `activity.info()` says, its heartbeats, its cancellation."""

from __future__ import annotations

import contextvars
import inspect
import json
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import anyio

from wasman_host.activity import ActivityCall
from wasman_host.errors import ActivityCancelledError
from wasman_host.store import Key
from wasman_sdk._attempt import current

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["ActivityEnvironment"]

P = ParamSpec("P")
T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ActivityEnvironment:
    """Calls activities as an attempt does, without a worker: `await ActivityEnvironment(attempt=2).run(charge, order)`.

    The activity is given all its arguments by the test, also those that a worker injects.

    Attributes:
        heartbeats: The details of each heartbeat so far.
    """

    def __init__(
        self,
        *,
        name: str = "activity",
        attempt: int = 1,
        workflow: str = "workflow",
        workflow_id: str = "workflow-id",
        run_id: str = "0" * 32,
        operation: int = 0,
        heartbeat_details: Sequence[Any] = (),
        started: datetime | None = None,
    ) -> None:
        """What `activity.info()` says.

        Args:
            name: The activity's name.
            attempt: From 1.
            workflow: The calling workflow's name.
            workflow_id: The calling instance.
            run_id: Its run.
            operation: The call's number within the run; the idempotency key is `run_id/operation`.
            heartbeat_details: What the attempts before this one have said last.
            started: When the attempt began; now by default.
        """
        began = ((started or datetime.now(UTC)) - _EPOCH) // timedelta(microseconds=1) * 1000
        self.heartbeats: list[tuple[Any, ...]] = []
        self._over = threading.Event()
        self._scopes: set[anyio.CancelScope] = set()
        self._call = ActivityCall(
            key=Key("default", workflow_id),
            run=run_id,
            workflow=workflow,
            operation=operation,
            name=name,
            attempt=attempt,
            request=b"",
            session=None,
            started=began,
            scheduled=began,
            heartbeat=tuple(heartbeat_details),
            attempts=_Attempts(self.heartbeats, self._over),
        )

    def run(self, activity: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Call the activity; what it gives, which is to be awaited where it is async.

        Raises:
            ActivityCancelledError: It was cancelled, and did not answer all the same.
        """
        context = contextvars.copy_context()
        context.run(current.set, self._call)
        result = context.run(activity, *args, **options)
        return self._awaited(result) if inspect.isawaitable(result) else result  # type: ignore[return-value]

    async def _awaited(self, result: Awaitable[Any]) -> Any:
        token = current.set(self._call)
        try:
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                if self._over.is_set():
                    scope.cancel()
                return await result
        finally:
            self._scopes.discard(scope)
            current.reset(token)
        raise ActivityCancelledError(f"activity {self._call.name!r} was cancelled")

    def cancel(self) -> None:
        """What a cancelled run does to the attempt: async activities are interrupted, sync ones see `is_cancelled`.

        Call it on the event loop's own thread.
        """
        self._over.set()
        for scope in list(self._scopes):
            scope.cancel()


class _Attempts:
    """What an attempt tells its worker, and hears from it."""

    def __init__(self, heartbeats: list[tuple[Any, ...]], over: threading.Event) -> None:
        self._heartbeats, self._over = heartbeats, over

    def heartbeat(self, _call: ActivityCall, details: bytes | None) -> None:
        self._heartbeats.append(() if details is None else tuple(json.loads(details)))

    def is_over(self, _call: ActivityCall) -> bool:
        return self._over.is_set()

    def over(self, _call: ActivityCall) -> threading.Event:
        return self._over
