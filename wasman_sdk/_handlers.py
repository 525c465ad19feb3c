"""What the engine calls: activities and fallbacks as handlers of bytes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from wasman_host.activity import ActivityCall, ActivityDefinition
from wasman_host.errors import ApplicationError, InvalidArgumentError
from wasman_host.slots import Slots
from wasman_sdk._activity import MARK, Registered
from wasman_sdk._attempt import ActivityInfo, current, info_of
from wasman_sdk._interceptors import ExecuteActivityInput, chained
from wasman_sdk._retry import RetryPolicy
from wasman_sdk._session import Session
from wasman_sdk._validation import first_problem

if TYPE_CHECKING:
    from datetime import timedelta

    import anyio

    from wasman_sdk._interceptors import WorkerInterceptor
    from wasman_sdk._threads import Threads

__all__ = ["FallbackHandler", "definitions", "fallback_definition"]

FallbackHandler: TypeAlias = Callable[[str, bytes], bytes | Awaitable[bytes]]
"""Answers calls by (name of the activity, the guest's own bytes); sync ones run in a thread."""


def definitions(
    functions: Sequence[Callable[..., Any]],
    resources: Sequence[object],
    threads: Threads,
    room: anyio.Semaphore | None = None,
    interceptors: Sequence[WorkerInterceptor] = (),
) -> dict[str, ActivityDefinition]:
    """What the engine calls, by name.

    Args:
        functions: Decorated functions, methods of objects, and objects whose `__call__` is decorated.
        resources: Objects that are injected by their type.
        threads: How many sync activities run at once.
        room: How many of them all run at once, if that is limited.
        interceptors: What is put around each attempt.

    Raises:
        InvalidArgumentError: One is not decorated, a name is used twice, or a resource is missing.
    """
    found: dict[str, ActivityDefinition] = {}
    for given in functions:
        function, registered = _registered(given)
        if registered.name in found:
            message = f"two activities are called {registered.name!r}; give one of them another name"
            raise InvalidArgumentError(message)
        found[registered.name] = ActivityDefinition(
            name=registered.name,
            handler=_handler(registered, function, _resources_of(registered, resources), threads, interceptors),
            retry=registered.retry.for_host(),
            timeout=_seconds(registered.start_to_close_timeout),
            schedule_to_start=_seconds(registered.schedule_to_start_timeout),
            schedule_to_close=_seconds(registered.schedule_to_close_timeout),
            heartbeat_timeout=_seconds(registered.heartbeat_timeout),
            slots=_slots(registered, room),
        )
    return found


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def _slots(registered: Registered, room: anyio.Semaphore | None) -> Slots | None:
    at_once, per_second = registered.max_concurrent, registered.max_per_second
    limited = any(one is not None for one in (at_once, per_second, room))
    return Slots(at_once, per_second, room) if limited else None


def _registered(given: Callable[..., Any]) -> tuple[Callable[..., Any], Registered]:
    """What is to be called of an activity, and what the decorator found out about it."""
    function = given
    if not hasattr(given, MARK) and not inspect.isclass(given) and hasattr(type(given).__call__, MARK):
        function = given.__call__  # type: ignore[operator]  # the object was decorated there
    registered = getattr(function, MARK, None)
    if not isinstance(registered, Registered) or inspect.isclass(given):
        message = f"{given!r} is no activity; decorate it with @activity"
        raise InvalidArgumentError(message)
    signature = registered.signature
    if signature.bound and not inspect.ismethod(function):
        message = (
            f"activity {registered.name!r} is a method of {signature.owner}, and whose is not said; give "
            f"`object.{registered.function.__name__}` (or annotate its first parameter, if it is a static method)"
        )
        raise InvalidArgumentError(message)
    return function, registered


def fallback_definition(
    handler: FallbackHandler,
    retry: RetryPolicy | None,
    threads: Threads,
    room: anyio.Semaphore | None = None,
    interceptors: Sequence[WorkerInterceptor] = (),
) -> ActivityDefinition:
    """What the engine calls for names that no activity is registered under.

    Args:
        handler: Takes the name and the guest's bytes, gives bytes; async or not.
        retry: When a call of it is tried again; None where what it raises is final, and only a worker's death is not.
        threads: How many sync activities run at once.
        room: How many activities run at once, if that is limited.
        interceptors: What is put around each attempt.

    Raises:
        InvalidArgumentError: It cannot be called.
    """
    given: Any = handler
    if not callable(given):
        message = f"the fallback {handler!r} cannot be called; give a function of the activity's name and its request"
        raise InvalidArgumentError(message)
    if hasattr(handler, MARK):
        message = (
            f"the fallback {handler!r} is an activity, and those are given by Worker(activities=[...]); a fallback is "
            f"a plain function of the activity's name and its request"
        )
        raise InvalidArgumentError(message)
    is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)
    called = _awaited(given, threads, is_async=is_async)

    async def handle(call: ActivityCall) -> bytes:
        token = current.set(call)
        try:
            if interceptors:
                named = functools.partial(called, call.name)
                result = await _intercepted(interceptors, call, call.request, named)
            else:
                result = await called(call.name, call.request)
        except Exception as error:
            if retry is not None or (isinstance(error, ApplicationError) and error.non_retryable):
                raise
            kind, details = type(error).__name__, None
            if isinstance(error, ApplicationError):
                kind, details = error.type, error.details
            raise ApplicationError(str(error) or repr(error), type=kind, details=details, non_retryable=True) from error
        finally:
            current.reset(token)
        if isinstance(result, bytes):
            return result
        message = f"the fallback gave {type(result).__name__} for activity {call.name!r}, and must give bytes"
        raise ApplicationError(message, type="InvalidResult", non_retryable=True)

    slots = None if room is None else Slots(worker=room)
    return ActivityDefinition(name="", handler=handle, retry=(retry or RetryPolicy()).for_host(), slots=slots)


def _resources_of(registered: Registered, resources: Sequence[object]) -> dict[str, object]:
    given: dict[str, object] = {}
    for name, wanted in registered.signature.injected.items():
        if issubclass(wanted.kind, Session | ActivityInfo):
            continue
        matching = [resource for resource in resources if isinstance(resource, wanted.kind)]
        if len(matching) == 1:
            given[name] = matching[0]
        elif matching or not wanted.optional:
            message = (
                f"activity {registered.name!r}: parameter {name!r} wants one {wanted.kind.__name__} and the worker has "
                f"{len(matching)}; give it by Worker(resources=[...])"
            )
            raise InvalidArgumentError(message)
        elif not wanted.has_default:
            given[name] = None
    return given


def _handler(
    registered: Registered,
    function: Callable[..., Any],
    resources: Mapping[str, object],
    threads: Threads,
    interceptors: Sequence[WorkerInterceptor],
) -> Callable[[ActivityCall], Awaitable[bytes]]:
    """Bytes in, bytes out: validate, inject, call, validate."""
    signature = registered.signature
    payload, read, write = signature.payload, signature.read, signature.write
    called = _awaited(function, threads, is_async=inspect.iscoroutinefunction(function))
    wanted = signature.injected.items()
    sessions = {name: one.kind for name, one in wanted if issubclass(one.kind, Session)}
    infos = [name for name, one in wanted if issubclass(one.kind, ActivityInfo)]

    injects = bool(resources or infos or sessions)

    async def handle(call: ActivityCall) -> bytes:
        arguments: dict[str, Any] = {}
        if injects:
            arguments.update(resources)
            for name in infos:
                arguments[name] = info_of(call)
            for name, kind in sessions.items():
                arguments[name] = _session(call, kind)
        given = bool(payload) and (bool(call.request) or not signature.payload_has_default)
        if given:
            arguments[payload] = read(call.request)
        token = current.set(call)
        try:
            if interceptors:
                # A coroutine with a frame here: by it the watchdog tells the activity from interceptors.
                async def last(value: Any) -> Any:
                    return await called(**({**arguments, payload: value} if given else arguments))

                result = await _intercepted(interceptors, call, arguments.get(payload), last)
            else:
                result = await called(**arguments)
        finally:
            current.reset(token)
        return write(result)

    return handle


def _awaited(function: Callable[..., Any], threads: Threads, *, is_async: bool) -> Callable[..., Awaitable[Any]]:
    """The function as one that is awaited: itself where it is async, else in a thread."""
    if is_async:
        return function

    def called(*given: Any, **named: Any) -> Awaitable[Any]:
        return threads.run(functools.partial(function, *given, **named))

    return called


def _intercepted(
    interceptors: Sequence[WorkerInterceptor],
    call: ActivityCall,
    payload: Any,
    function: Callable[[Any], Awaitable[Any]],
) -> Awaitable[Any]:
    """The attempt, with the interceptors around it; `function` takes the payload that they give it."""

    def last(given: ExecuteActivityInput) -> Awaitable[Any]:
        return function(given.payload)

    given = ExecuteActivityInput(info=info_of(call), payload=payload)
    return chained(interceptors, "execute_activity", last)(given)


def _session(call: ActivityCall, kind: type[Session]) -> Session:
    data = call.session.content if call.session is not None else b"{}"
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        message = f"the session of {call.key} is no {kind.__name__}: {first_problem(error)}"
        raise ApplicationError(message, type="InvalidSession", non_retryable=True) from error
