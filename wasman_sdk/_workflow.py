"""Workflows: names that point at a module and an entry, typed in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from wasman_host.errors import InvalidArgumentError
from wasman_host.payload import JSON, OCTETS, Payload
from wasman_host.record import Limits
from wasman_sdk._validation import first_problem

__all__ = ["Workflow"]

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_BYTES = TypeAdapter(bytes).core_schema

In = TypeVar("In")
Out = TypeVar("Out")


class Workflow(Generic[In, Out]):
    """A workflow that guests implement.

    Attributes:
        name: What it is deployed under.
        input_type: What a run is started with.
        output_type: What a run gives.
        entry: The export to call; "" for `run`, else `_start`.
        resume: "replay", or "checkpoint" for a guest that keeps its progress in memory and skips what is done when it
            is entered anew (guests that use the SDK's steps say so themselves).
        limits: What its guests may use.
        output: Validates a result.
    """

    def __init__(
        self,
        name: str,
        input_type: type[In],
        output_type: type[Out],
        *,
        module: Path | str | bytes | bytearray | None = None,
        entry: str = "",
        resume: Literal["replay", "checkpoint"] = "replay",
        limits: Limits | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            name: What it is deployed under.
            input_type: Anything pydantic can validate; `type(None)` for none; `bytes` go as they are.
            output_type: The same for the result.
            module: The compiled guest, as a path or as bytes; None where it is deployed from elsewhere.
            entry: The export to call.
            resume: How its guests come back.
            limits: What its guests may use.
        """
        self.name = name
        self.input_type = input_type
        self.output_type = output_type
        self.entry = entry
        self.resume = resume
        self.limits: Limits = limits or Limits()
        self._module = bytes(module) if isinstance(module, bytearray) else module
        self._input: TypeAdapter[In] = TypeAdapter(input_type)
        self.output: TypeAdapter[Out] = TypeAdapter(output_type)

    def __repr__(self) -> str:
        return f"Workflow({self.name!r})"

    def module(self) -> bytes | None:
        """The module's bytes, or None where this workflow has none.

        Raises:
            InvalidArgumentError: Its file cannot be read.
        """
        if self._module is None or isinstance(self._module, bytes):
            return self._module
        try:
            return Path(self._module).read_bytes()
        except OSError as error:
            message = f"the module {self._module} of workflow {self.name!r} cannot be read: {error.strerror}"
            raise InvalidArgumentError(message) from error

    def payload(self, given: In) -> Payload:
        """The input as it is stored.

        Raises:
            InvalidArgumentError: It is not of the workflow's input type.
        """
        try:
            fitting = self._input.validate_python(given)
            if self.input_type is bytes:
                return Payload.of(cast("bytes", fitting), OCTETS)
            return Payload.of(self._input.dump_json(fitting, by_alias=True))
        except ValidationError as error:
            message = f"the input of workflow {self.name!r} does not fit: {first_problem(error)}"
            raise InvalidArgumentError(message) from error
        except PydanticSerializationError as error:
            message = f"the input of workflow {self.name!r} cannot be stored: {error}"
            raise InvalidArgumentError(message) from error

    def result(self, payload: Payload) -> Out:
        """The result as the application sees it.

        Raises:
            InvalidArgumentError: The guest gave something else than the workflow's output type.
        """
        return cast("Out", read_result(self.output, payload, self.name))


def input_payload(name: str, given: Any) -> Payload:
    """The input of a workflow of which only the name is known, as it is stored.

    Raises:
        InvalidArgumentError: It is nothing that JSON can hold.
    """
    if isinstance(given, bytes):
        return Payload.of(given, OCTETS)
    try:
        return Payload.of(_ANY.dump_json(given), JSON)
    except PydanticSerializationError as error:
        message = f"the input of workflow {name!r} cannot be stored: {error}"
        raise InvalidArgumentError(message) from error


def read_result(adapter: TypeAdapter[Any], payload: Payload, name: str) -> Any:
    """Validate a result; bytes are as the guest gave them, and nothing is JSON's null."""
    if adapter.core_schema == _BYTES:
        return payload.content
    try:
        return adapter.validate_json(payload.content or b"null")
    except ValidationError as error:
        message = f"the result of workflow {name!r} is not of its output type: {first_problem(error)}"
        raise InvalidArgumentError(message) from error
