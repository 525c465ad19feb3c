"""What a function takes as an activity: one payload, and what is injected; found out once, when it is decorated.

A parameter is, in this order:

    the object of a method                 the first one in a class, without an annotation
    a session, or the attempt              its type is a `Session` or `ActivityInfo`
    the payload                            the first of those that are left, if its type can be read from JSON
    a resource of the worker               its type is a class, perhaps `| None`
    left as it is                          whatever else has a default

All else cannot be given, and is a `TypeError` that names it.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from attrs import frozen
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from wasman_host.errors import ApplicationError
from wasman_sdk._attempt import ActivityInfo
from wasman_sdk._session import Session
from wasman_sdk._validation import first_problem, unserialisable

__all__ = ["Injected", "Signature", "signature_of"]

_PLAIN = (dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID, enum.Enum)


@frozen
class Injected:
    """A parameter that the worker gives.

    Attributes:
        kind: A `Session` or `ActivityInfo`, or the class of a resource.
        optional: Whether it may be None, or be left at its default, where the worker has no such resource.
        has_default: Whether it is left at its default then.
    """

    kind: type[Any]
    optional: bool = False
    has_default: bool = False


@frozen(eq=False)
class Signature:
    """What a function takes and gives.

    Attributes:
        bound: The parameter that the object of a method takes, or "".
        owner: The class that the method stands in, or "".
        payload: The parameter that takes what the guest sent, or "".
        payload_has_default: Whether it is left at its default where the guest sent nothing.
        request: The payload's type, NoneType without one.
        result: The type of what it returns.
        injected: What the worker gives, by parameter.
        read: The payload of the guest's bytes. Raises `ApplicationError`.
        write: The bytes of a result. Raises `ApplicationError`.
    """

    bound: str
    owner: str
    payload: str
    payload_has_default: bool
    request: Any
    result: Any
    injected: Mapping[str, Injected]
    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


def owner_of(function: Callable[..., Any]) -> str:
    """The class that a function is defined in, or "" where it stands in none."""
    owner = str(getattr(function, "__qualname__", "")).rpartition(".")[0]
    return "" if owner.endswith("<locals>") else owner.rpartition(".")[2]


def signature_of(function: Callable[..., Any], name: str, names: Mapping[str, Any]) -> Signature:
    """What `function` takes as the activity `name`; `names` are those that its annotations may use besides globals.

    Raises:
        TypeError: A parameter cannot be given; the message names it.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        _refuse(name, "it is a generator; an activity returns one result")
    hints = _hints(function, name, names)
    parameters = list(inspect.signature(function).parameters.values())
    owner = owner_of(function)
    bound = ""
    if owner and parameters and parameters[0].name not in hints and _is_positional(parameters[0]):
        bound = parameters.pop(0).name
    payload, payload_has_default = "", False
    request: Any = type(None)
    read: Callable[[bytes], Any] = _nothing
    injected: dict[str, Injected] = {}
    for place, parameter in enumerate(parameters):
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            _refuse(name, f"parameter {parameter} takes any number of arguments; a guest sends one payload")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            _refuse(name, f"parameter {parameter.name!r} is positional-only, and parameters are given by name")
        hint = hints.get(parameter.name, Any)
        has_default = parameter.default is not parameter.empty
        kind, or_none = _class_of(hint)
        if kind is not None and issubclass(kind, Session | ActivityInfo):
            injected[parameter.name] = Injected(kind)
            continue
        if place == 0:
            reader = _reader(hint, name, parameter.name, has_class=kind is not None)
            if reader is not None:
                payload, payload_has_default, request, read = parameter.name, has_default, hint, reader
                continue
        if kind is not None and not _is_data(kind):
            if getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False):
                _refuse(
                    name, f"parameter {parameter.name!r}: {kind.__name__} is a Protocol; make it @runtime_checkable"
                )
            injected[parameter.name] = Injected(kind, has_default or or_none, has_default)
        elif not has_default:
            _refuse(
                name,
                f"parameter {parameter.name!r} is a second payload; a guest sends one, and what is injected is "
                f"annotated with its class",
            )
    result = hints.get("return", Any)
    write = _writer(result, name)
    return Signature(bound, owner, payload, payload_has_default, request, result, injected, read, write)


def _refuse(name: str, problem: str) -> NoReturn:
    raise TypeError(f"activity {name!r}: {problem}")


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}


def _hints(function: Callable[..., Any], name: str, names: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=dict(names), include_extras=True)
    except Exception as error:
        annotations = getattr(function, "__annotations__", {})
        missing = str(getattr(error, "name", None) or "")
        at_fault = [f"{one!r}" for one, text in annotations.items() if missing and missing in str(text)]
        where = f" (of parameter {at_fault[0]})" if at_fault else ""
        message = f"activity {name!r}: {error}{where}; its annotations must be importable where it is defined"
        raise TypeError(message) from error


def _class_of(hint: Any) -> tuple[type[Any] | None, bool]:
    """The class that a parameter is annotated with, and whether None is allowed besides it."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    or_none = False
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        left = [one for one in typing.get_args(hint) if one is not type(None)]
        or_none = len(left) < len(typing.get_args(hint))
        hint = left[0] if len(left) == 1 else None
    # `Any` is a class since Python 3.11.
    return (hint, or_none) if inspect.isclass(hint) and hint is not Any else (None, or_none)


def _is_data(kind: type[Any]) -> bool:
    """Whether a class is one of values that a guest might send, and no worker has as a resource."""
    return kind.__module__ == "builtins" or issubclass(kind, _PLAIN)


def _nothing(_: bytes) -> None:
    """What an activity without payload makes of the request."""


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    """What reads and writes values of a type, or None where JSON has no such values."""
    try:
        return TypeAdapter(hint)
    except PydanticUserError:
        return None


def _reader(hint: Any, name: str, parameter: str, *, has_class: bool) -> Callable[[bytes], Any] | None:
    """What reads the payload; None where a class is none that a payload could have."""
    if hint is bytes:
        return bytes
    adapter = _adapter(hint)
    if adapter is None:
        if has_class:
            return None
        _refuse(name, f"parameter {parameter!r}: no {hint} can be read from JSON")

    def read(data: bytes) -> Any:
        try:
            # The adapter's own method looks at eight options first, which takes as long as a small value.
            return adapter.validator.validate_json(data)
        except ValidationError as error:
            message = f"what the guest sent to activity {name!r} does not fit: {first_problem(error)}"
            raise ApplicationError(message, type="InvalidRequest", non_retryable=True) from error

    return read


def _writer(hint: Any, name: str) -> Callable[[Any], bytes]:
    if hint is bytes:

        def pass_bytes(value: Any) -> bytes:
            if isinstance(value, bytes):
                return value
            message = f"activity {name!r} returned {type(value).__name__}, and its annotation says bytes"
            raise ApplicationError(message, type="InvalidResult", non_retryable=True)

        return pass_bytes
    adapter = _adapter(Any if hint in {NoReturn, typing.Never} else hint)
    if adapter is None:
        _refuse(name, f"it returns {getattr(hint, '__name__', hint)}, which cannot be written as JSON")

    def write(value: Any) -> bytes:
        try:
            return adapter.serializer.to_json(adapter.validator.validate_python(value), by_alias=True)
        except ValidationError as error:
            problem = first_problem(error)
            cause: Exception = error
        except (PydanticSerializationError, ValueError) as error:
            problem, cause = unserialisable(value) or str(error), error
        message = f"what activity {name!r} returned does not fit its annotation: {problem}"
        raise ApplicationError(message, type="InvalidResult", non_retryable=True) from cause

    return write
