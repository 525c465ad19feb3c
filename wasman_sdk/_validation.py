"""What pydantic refuses, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import to_json

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["first_problem", "unserialisable"]


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, with the field's name."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the value itself"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {first['msg']}{more}"


def unserialisable(value: Any) -> str:
    """Which part of `value` JSON cannot hold, by its path; "" where there is none."""
    found = _found(value, "", frozenset())
    return "" if found is None else f"{found[0].removeprefix('.') or 'the value itself'}: JSON has no {found[1]}"


def _found(value: Any, path: str, around: frozenset[int]) -> tuple[str, str] | None:
    if id(value) in around:
        return path, "value that contains itself"
    parts: list[tuple[str, Any]] = []
    if isinstance(value, BaseModel):
        parts = [(f"{path}.{name}", one) for name, one in dict(value).items()]
    elif isinstance(value, Mapping):
        parts = [(f"{path}.{name}", one) for name, one in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = [(f"{path}.{place}", one) for place, one in enumerate(value)]
    for inner, one in parts:
        found = _found(one, inner, around | {id(value)})
        if found is not None:
            return found
    try:
        to_json(value)
    except ValueError:
        return path, type(value).__name__
    return None
