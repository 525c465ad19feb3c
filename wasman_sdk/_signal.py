"""Signals: what is sent to a run from outside, typed in Python."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from wasman_host.errors import InvalidArgumentError
from wasman_host.payload import JSON, OCTETS, Payload
from wasman_sdk._validation import first_problem

__all__ = ["Signal", "signal_payload"]

_ANY: TypeAdapter[Any] = TypeAdapter(Any)

T = TypeVar("T")


class Signal(Generic[T]):
    """A signal that guests receive by its name.

    Attributes:
        name: Its name, as the guest has it.
        value_type: What it says.
    """

    def __init__(self, name: str, value_type: type[T]) -> None:
        """Name a signal.

        Args:
            name: 1 to 256 bytes.
            value_type: Anything pydantic can validate; `type(None)` for none; bytes go as they are.
        """
        self.name = name
        self.value_type = value_type
        self._value: TypeAdapter[T] = TypeAdapter(value_type)

    def __repr__(self) -> str:
        return f"Signal({self.name!r})"

    def payload(self, value: T) -> Payload:
        """The value as it is sent.

        Raises:
            InvalidArgumentError: It is not of the signal's type.
        """
        if isinstance(value, bytes) and self.value_type is bytes:
            return Payload.of(value, OCTETS)
        try:
            return Payload.of(self._value.dump_json(self._value.validate_python(value), by_alias=True))
        except ValidationError as error:
            message = f"the value of signal {self.name!r} does not fit: {first_problem(error)}"
            raise InvalidArgumentError(message) from error
        except PydanticSerializationError as error:
            message = f"the value of signal {self.name!r} cannot be sent: {error}"
            raise InvalidArgumentError(message) from error


def signal_payload(name: str, value: Any) -> Payload:
    """The value of a signal of which only the name is known, as it is sent.

    Raises:
        InvalidArgumentError: It is nothing that JSON can hold.
    """
    if isinstance(value, bytes):
        return Payload.of(value, OCTETS)
    try:
        return Payload.of(_ANY.dump_json(value), JSON)
    except PydanticSerializationError as error:
        message = f"the value of signal {name!r} cannot be sent: {error}"
        raise InvalidArgumentError(message) from error
