"""Activities: Python functions that answer a guest's calls."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import anyio.to_thread
from attrs import frozen
from pydantic import TypeAdapter, ValidationError

from wasman_host.activity import ActivityCall, ActivityDefinition
from wasman_host.errors import ApplicationError, InvalidArgumentError
from wasman_sdk._retry import RetryPolicy
from wasman_sdk._session import Session
from wasman_sdk._validation import first_problem

if TYPE_CHECKING:
    from anyio import CapacityLimiter

__all__ = ["ActivityInfo", "FallbackHandler", "activity", "definitions", "fallback_definition"]

F = TypeVar("F", bound=Callable[..., Any])

FallbackHandler: TypeAlias = Callable[[str, bytes], bytes | Awaitable[bytes]]
"""Answers calls by (name of the activity, the guest's own bytes); sync ones run in a thread."""

_MARK = "__wasman_activity__"


@frozen
class ActivityInfo:
    """The attempt that is running.

    Attributes:
        name: The activity's name.
        attempt: From 1.
        idempotency_key: The same at every attempt of this call, and of no other call ever: give it to whatever you
            change.
        workflow: The calling workflow's name.
        workflow_id: The calling instance.
        run_id: Its run.
        started: When this attempt began.
    """

    name: str
    attempt: int
    idempotency_key: str
    workflow: str
    workflow_id: str
    run_id: str
    started: datetime


_current: ContextVar[ActivityCall] = ContextVar("wasman_activity_call")


def _info(call: ActivityCall) -> ActivityInfo:
    return ActivityInfo(
        name=call.name,
        attempt=call.attempt,
        idempotency_key=call.idempotency_key,
        workflow=call.workflow,
        workflow_id=call.key.id,
        run_id=call.run,
        started=datetime.fromtimestamp(call.started / 1e9, tz=UTC),
    )


@frozen(eq=False)
class _Registered:
    """What the decorator found out about a function."""

    function: Callable[..., Any]
    name: str
    retry: RetryPolicy
    timeout: timedelta | None
    payload: str | None
    payload_type: Any
    result_type: Any
    injected: Mapping[str, Any]


class _Activity:
    """`@activity`, `@activity(...)` and `activity.info()`."""

    @overload
    def __call__(self, function: F, /) -> F: ...

    @overload
    def __call__(
        self,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        start_to_close_timeout: timedelta | None = None,
    ) -> Callable[[F], F]: ...

    def __call__(
        self,
        function: F | None = None,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        start_to_close_timeout: timedelta | None = None,
    ) -> F | Callable[[F], F]:
        """Register a function, async or not, as an activity; it stays a plain callable.

        It has at most one payload parameter, the first, which is validated from the guest's JSON (or is the guest's own
        bytes, where its type is `bytes`). Parameters whose type is a `Session`, `ActivityInfo`, or, behind the
        payload, one of the worker's resources are injected.

        Args:
            function: The function, where the decorator has no arguments.
            name: What guests call it by; the function's name by default.
            retry: When to try again; see `RetryPolicy` for the default.
            start_to_close_timeout: How long one attempt may take.

        Raises:
            TypeError: A parameter cannot be given; the message names it.
        """

        def register(wrapped: F) -> F:
            setattr(wrapped, _MARK, _analysed(wrapped, name, retry or RetryPolicy(), start_to_close_timeout))
            return wrapped

        return register if function is None else register(function)

    @staticmethod
    def info() -> ActivityInfo:
        """The attempt that is running. Raises `RuntimeError` outside of an activity."""
        try:
            return _info(_current.get())
        except LookupError:
            message = "activity.info() is called outside of an activity"
            raise RuntimeError(message) from None


activity = _Activity()


def _analysed(
    function: Callable[..., Any], name: str | None, retry: RetryPolicy, timeout: timedelta | None
) -> _Registered:
    named = name or getattr(function, "__name__", "")
    if not named or named.startswith("wasman."):
        message = f"an activity needs a name that does not begin with 'wasman.', not {named!r}"
        raise TypeError(message)
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        message = f"activity {named!r}: {error}; its annotations must be importable where it is defined"
        raise TypeError(message) from error
    payload: str | None = None
    injected: dict[str, Any] = {}
    for place, parameter in enumerate(inspect.signature(function).parameters.values()):
        hint = hints.get(parameter.name, Any)
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            message = (
                f"activity {named!r}: parameter {parameter} takes any number of arguments; a guest sends one payload"
            )
            raise TypeError(message)
        if _is_context(hint):
            injected[parameter.name] = hint
        elif place == 0:
            payload = parameter.name
        elif inspect.isclass(hint):
            injected[parameter.name] = hint
        else:
            message = (
                f"activity {named!r}: parameter {parameter.name!r} is a second payload; a guest sends one, and what is "
                f"injected is annotated with its class"
            )
            raise TypeError(message)
    return _Registered(
        function=function,
        name=named,
        retry=retry,
        timeout=timeout,
        payload=payload,
        payload_type=hints.get(payload, Any) if payload else None,
        result_type=hints.get("return", Any),
        injected=injected,
    )


def _is_context(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, Session | ActivityInfo)


def definitions(
    functions: Sequence[Callable[..., Any]], resources: Sequence[object], threads: CapacityLimiter
) -> dict[str, ActivityDefinition]:
    """What the engine calls, by name.

    Args:
        functions: Decorated functions.
        resources: Objects that are injected by their type.
        threads: How many sync activities run at once.

    Raises:
        InvalidArgumentError: A function is not decorated, a name is used twice, or a resource is missing.
    """
    found: dict[str, ActivityDefinition] = {}
    for function in functions:
        registered = getattr(function, _MARK, None)
        if not isinstance(registered, _Registered):
            message = f"{function!r} is no activity; decorate it with @activity"
            raise InvalidArgumentError(message)
        if registered.name in found:
            message = f"two activities are called {registered.name!r}; give one of them another name"
            raise InvalidArgumentError(message)
        found[registered.name] = ActivityDefinition(
            name=registered.name,
            handler=_handler(registered, function, _resources_of(registered, resources), threads),
            retry=registered.retry.for_host(),
            timeout=registered.timeout.total_seconds() if registered.timeout else None,
        )
    return found


def fallback_definition(
    handler: FallbackHandler, retry: RetryPolicy | None, threads: CapacityLimiter
) -> ActivityDefinition:
    """What the engine calls for names that no activity is registered under.

    Args:
        handler: Takes the name and the guest's bytes, gives bytes; async or not.
        retry: When a call of it is tried again; None where what it raises is final, and only a worker's death is not.
        threads: How many sync activities run at once.

    Raises:
        InvalidArgumentError: It cannot be called.
    """
    given: Any = handler
    if not callable(given):
        message = f"the fallback {handler!r} cannot be called; give a function of the activity's name and its request"
        raise InvalidArgumentError(message)
    if hasattr(handler, _MARK):
        message = (
            f"the fallback {handler!r} is an activity, and those are given by Worker(activities=[...]); a fallback is "
            f"a plain function of the activity's name and its request"
        )
        raise InvalidArgumentError(message)
    is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)

    async def handle(call: ActivityCall) -> bytes:
        token = _current.set(call)
        try:
            if is_async:
                result = await given(call.name, call.request)
            else:
                called = functools.partial(given, call.name, call.request)
                result = await anyio.to_thread.run_sync(called, limiter=threads, abandon_on_cancel=True)
        except Exception as error:
            if retry is not None or (isinstance(error, ApplicationError) and error.non_retryable):
                raise
            kind, details = type(error).__name__, None
            if isinstance(error, ApplicationError):
                kind, details = error.type, error.details
            raise ApplicationError(str(error) or repr(error), type=kind, details=details, non_retryable=True) from error
        finally:
            _current.reset(token)
        if isinstance(result, bytes):
            return result
        message = f"the fallback gave {type(result).__name__} for activity {call.name!r}, and must give bytes"
        raise ApplicationError(message, type="InvalidResult", non_retryable=True)

    return ActivityDefinition(name="", handler=handle, retry=(retry or RetryPolicy()).for_host())


def _resources_of(registered: _Registered, resources: Sequence[object]) -> dict[str, object]:
    given: dict[str, object] = {}
    for name, kind in registered.injected.items():
        if _is_context(kind):
            continue
        matching = [resource for resource in resources if isinstance(resource, kind)]
        if len(matching) != 1:
            message = (
                f"activity {registered.name!r}: parameter {name!r} wants one {kind.__name__} and the worker has "
                f"{len(matching)}; give it by Worker(resources=[...])"
            )
            raise InvalidArgumentError(message)
        given[name] = matching[0]
    return given


def _handler(
    registered: _Registered, function: Callable[..., Any], resources: Mapping[str, object], threads: CapacityLimiter
) -> Callable[[ActivityCall], Awaitable[bytes]]:
    """Bytes in, bytes out: validate, inject, call, validate."""
    given = _reader(registered)
    answered = _writer(registered)
    is_async = inspect.iscoroutinefunction(function)
    sessions = {name: kind for name, kind in registered.injected.items() if issubclass(kind, Session)}
    infos = [name for name, kind in registered.injected.items() if issubclass(kind, ActivityInfo)]

    async def handle(call: ActivityCall) -> bytes:
        arguments: dict[str, Any] = dict(resources)
        for name in infos:
            arguments[name] = _info(call)
        for name, kind in sessions.items():
            arguments[name] = _session(call, kind)
        if registered.payload is not None:
            arguments[registered.payload] = given(call.request)
        token = _current.set(call)
        try:
            if is_async:
                result = await function(**arguments)
            else:
                result = await anyio.to_thread.run_sync(
                    functools.partial(function, **arguments), limiter=threads, abandon_on_cancel=True
                )
        finally:
            _current.reset(token)
        return answered(result)

    return handle


def _session(call: ActivityCall, kind: type[Session]) -> Session:
    data = call.session.content if call.session is not None else b"{}"
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        message = f"the session of {call.key} is no {kind.__name__}: {first_problem(error)}"
        raise ApplicationError(message, type="InvalidSession", non_retryable=True) from error


def _reader(registered: _Registered) -> Callable[[bytes], Any]:
    if registered.payload_type is bytes:
        return bytes
    adapter = TypeAdapter(registered.payload_type)

    def read(data: bytes) -> Any:
        try:
            return adapter.validate_json(data)
        except ValidationError as error:
            message = f"what the guest sent to activity {registered.name!r} does not fit: {first_problem(error)}"
            raise ApplicationError(message, type="InvalidRequest", non_retryable=True) from error

    return read


def _writer(registered: _Registered) -> Callable[[Any], bytes]:
    if registered.result_type is bytes:

        def pass_bytes(value: Any) -> bytes:
            if isinstance(value, bytes):
                return value
            message = f"activity {registered.name!r} returned {type(value).__name__}, and its annotation says bytes"
            raise ApplicationError(message, type="InvalidResult", non_retryable=True)

        return pass_bytes
    adapter = TypeAdapter(registered.result_type)

    def write(value: Any) -> bytes:
        try:
            return adapter.dump_json(adapter.validate_python(value), by_alias=True)
        except (ValidationError, ValueError) as error:
            detail = first_problem(error) if isinstance(error, ValidationError) else str(error)
            message = f"what activity {registered.name!r} returned does not fit its annotation: {detail}"
            raise ApplicationError(message, type="InvalidResult", non_retryable=True) from error

    return write
