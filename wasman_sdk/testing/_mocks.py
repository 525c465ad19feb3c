"""The activities of an environment: real ones, those that a test puts in their place, and what all were asked."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from attrs import define, evolve, field

from wasman_host.activity import ActivityCall, ActivityDefinition
from wasman_host.errors import ApplicationError, InvalidArgumentError
from wasman_sdk._activity import MARK, Registered, activity
from wasman_sdk._handlers import definitions
from wasman_sdk._retry import RetryPolicy
from wasman_sdk._threads import Threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_sdk._interceptors import WorkerInterceptor

__all__ = ["UNSET", "Activities", "ActivityMock", "RecordedCall"]

UNSET: Any = object()
Handler: TypeAlias = Callable[[ActivityCall], Awaitable[bytes]]


@define
class RecordedCall:
    """One attempt of an activity, real or mocked.

    Attributes:
        name: The activity's name.
        request: What it was given: its payload as the activity sees it; the guest's bytes where they do not fit.
        idempotency_key: The same at every attempt of this call, and of no other call.
        attempt: From 1.
        workflow: The calling workflow's name.
        workflow_id: The calling instance.
        run_id: Its run.
        content: The guest's own bytes.
        answered: Whether this attempt gave a result.
    """

    name: str
    request: Any
    idempotency_key: str
    attempt: int
    workflow: str
    workflow_id: str
    run_id: str
    content: bytes = field(repr=False)
    answered: bool = False


class ActivityMock:
    """What stands in the place of an activity; `WorkflowEnvironment.mock_activity` makes it.

    Attributes:
        name: The activity's name.
        calls: Its attempts so far.
    """

    def __init__(self, name: str, handler: Handler) -> None:
        """Made by the environment."""
        self.name = name
        self.calls: list[RecordedCall] = []
        self.handler = handler

    def __repr__(self) -> str:
        return f"ActivityMock({self.name!r}, {len(self.calls)} calls)"

    @property
    def requests(self) -> list[Any]:
        """What each call was given; another attempt of a call is not listed again."""
        return list({call.idempotency_key: call.request for call in self.calls}.values())

    def assert_called_once_with(self, request: Any) -> None:
        """Raise `AssertionError` unless there was one call, in however many attempts, and it was given `request`."""
        assert self.requests == [request], f"activity {self.name!r} was called with {self.requests}"

    def assert_not_called(self) -> None:
        """Raise `AssertionError` if there was a call."""
        assert not self.calls, f"activity {self.name!r} was called with {self.requests}"


class Activities:
    """What answers the calls of an environment's guests, whichever of its workers is alive.

    Attributes:
        calls: All attempts so far.
        problems: What a test did wrong, and could not be told at once.
        stuck: Is called when there is a problem, or a name is missing.
    """

    def __init__(
        self,
        functions: Sequence[Callable[..., Any]],
        interceptors: Sequence[WorkerInterceptor],
        count: Callable[[int], None],
    ) -> None:
        """Nothing is mocked yet.

        Args:
            functions: The real activities.
            interceptors: What is put around each attempt, of a mock as well.
            count: Is told of each call that begins (1) and ends (-1).
        """
        found = [one for one in map(_registered, functions) if one is not None]
        self.calls: list[RecordedCall] = []
        self.problems: list[Exception] = []
        self._missing: dict[str, int] = {}
        self.stuck: Callable[[], None] = lambda: None
        self._count, self._interceptors = count, tuple(interceptors)
        self._types = {one.name: one for one in found}
        self._mocks: dict[str, ActivityMock] = {}
        self._stand_ins: dict[str, ActivityDefinition] = {}
        self._table: dict[str, ActivityDefinition] = {}
        self._mocked = anyio.Event()

    @property
    def missing(self) -> list[str]:
        """Names that guests call, and that nobody answers."""
        return [name for name in self._missing if name not in self._mocks]

    def over(
        self, real: dict[str, ActivityDefinition], fallback: ActivityDefinition | None
    ) -> tuple[dict[str, ActivityDefinition], ActivityDefinition]:
        """What a worker should answer with, in the place of its own activities and fallback."""
        self._table = {
            name: evolve(definition, handler=self._recorded(definition.handler)) for name, definition in real.items()
        }
        self._table |= {name: one for name, one in self._stand_ins.items() if name not in self._table}
        handler = self._recorded(fallback.handler if fallback else None)
        return self._table, ActivityDefinition("", handler, fallback.retry if fallback else RetryPolicy().for_host())

    def mock(
        self,
        given: Callable[..., Any] | str,
        returns: Any,
        raises: BaseException | type[BaseException] | None,
        does: Any,
    ) -> ActivityMock:
        """Put something in the place of an activity, from the next attempt on.

        Raises:
            InvalidArgumentError: It is no activity, not exactly one answer is given, or `returns` is none that the
                activity could give.
        """
        if (returns is not UNSET) + (raises is not None) + (does is not None) != 1:
            raise InvalidArgumentError(f"the mock of {given!r} takes one of returns=, raises= and does=")
        registered = self._types.get(given) if isinstance(given, str) else _registered(given)
        if registered is None and not isinstance(given, str):
            raise InvalidArgumentError(f"{given!r} is no activity; decorate it with @activity, or mock a name")
        name = given if isinstance(given, str) else registered.name  # type: ignore[union-attr]  # just looked at
        if registered is None:
            registered = _registered(activity(name=name)(_anything))
            assert registered is not None, "it was decorated"
        signature = registered.signature
        if returns is not UNSET:
            try:
                signature.write(returns)
            except ApplicationError as error:
                raise InvalidArgumentError(f"the mock of activity {name!r}: {error}") from error

        async def stand_in(**arguments: Any) -> Any:
            if raises is not None:
                raise raises
            result = returns if does is None else await _done(does, list(arguments.values()))
            try:
                signature.write(result)
            except ApplicationError as error:
                self._problem(InvalidArgumentError(f"the mock of activity {name!r}: {error}"))
                raise
            return result

        setattr(stand_in, MARK, evolve(registered, signature=evolve(signature, injected={}, bound="")))
        [definition] = definitions([stand_in], [], Threads(1), None, self._interceptors).values()
        mock = self._mocks[name] = ActivityMock(name, definition.handler)
        self._types[name] = registered
        if name not in self._table:
            self._stand_ins[name] = self._table[name] = evolve(definition, handler=self._recorded(None))
        mocked, self._mocked = self._mocked, anyio.Event()
        mocked.set()
        return mock

    def _problem(self, error: Exception) -> None:
        self.problems.append(error)
        self.stuck()

    def _recorded(self, real: Handler | None) -> Handler:
        """What records a call, and passes it on to its mock, or else to what really answers it, if anything does."""

        async def handle(call: ActivityCall) -> bytes:
            recorded = self._record(call)
            self._count(1)
            try:
                mock = self._mocks.get(call.name)
                if mock is None and real is None:
                    mock = await self._mocked_at_last(call.name)
                if mock is not None:
                    mock.calls.append(recorded)
                    answer = await mock.handler(call)
                else:
                    assert real is not None, "there is one or the other"
                    answer = await real(call)
            finally:
                self._count(-1)
            recorded.answered = True
            return answer

        return handle

    def _record(self, call: ActivityCall) -> RecordedCall:
        request: Any = call.request
        registered = self._types.get(call.name)
        if registered is not None:
            try:
                request = registered.signature.read(call.request)
            except ApplicationError:
                request = call.request
        recorded = RecordedCall(
            call.name, request, call.idempotency_key, call.attempt, call.workflow, call.key.id, call.run, call.request
        )
        self.calls.append(recorded)
        return recorded

    async def _mocked_at_last(self, name: str) -> ActivityMock:
        """Nobody answers calls of this name: whoever waits for the guest is told, and it waits for a mock."""
        self._missing[name] = self._missing.get(name, 0) + 1
        self.stuck()
        try:
            while name not in self._mocks:
                await self._mocked.wait()
        finally:
            self._missing[name] -= 1
            if not self._missing[name]:
                del self._missing[name]
        return self._mocks[name]

    def name_of(self, function: Callable[..., Any]) -> str:
        """The name that guests call an activity by. Raises `InvalidArgumentError` where it is none."""
        registered = _registered(function)
        if registered is None:
            raise InvalidArgumentError(f"{function!r} is no activity; decorate it with @activity, or give its name")
        return registered.name


def _registered(function: Any) -> Registered | None:
    found = getattr(function, MARK, None) or getattr(type(function).__call__, MARK, None)
    return found if isinstance(found, Registered) else None


async def _anything(request: Any) -> Any:
    """Takes and gives whatever JSON holds: how a name is typed that no activity has."""
    return request


async def _done(does: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    result = does(*arguments)
    return await result if inspect.isawaitable(result) else result
