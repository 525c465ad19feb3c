"""What is noted of a run for people who look for it: its memo, and its search attributes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from wasman_host.errors import InvalidArgumentError

__all__ = ["check_annotations"]

_MEMO = 64 * 1024  # bytes of JSON: it is written again with the record, which changes all the time
_DEPTH = 100
_ATTRIBUTES = 100
_NAME = 200  # bytes of UTF-8
_VALUE = 2000


def check_annotations(id_: str, memo: Mapping[Any, Any], attributes: Mapping[Any, Any]) -> None:
    """Refuse what cannot be stored.

    Args:
        id_: The workflow id, for the message.
        memo: Anything that JSON can hold, by name: at most 64 KiB.
        attributes: Strings by name: at most 100, names of 1 to 200 bytes and values of at most 2,000.

    Raises:
        InvalidArgumentError: Something of it cannot be stored; the message says what, and where.
    """
    if memo:
        if not isinstance(memo, Mapping):
            raise InvalidArgumentError(f"the memo of {id_!r} is a {_kind(memo)}; it is a dict of JSON by name")
        _check_json(memo, "memo", id_, 0)
        size = len(json.dumps(dict(memo), ensure_ascii=False).encode())
        if size > _MEMO:
            raise InvalidArgumentError(f"the memo of {id_!r} has {size:,} bytes of JSON; at most {_MEMO:,} are allowed")
    if attributes:
        _check_attributes(id_, attributes)


def _check_json(value: Any, path: str, id_: str, depth: int) -> None:
    if depth > _DEPTH:
        raise InvalidArgumentError(f"the memo of {id_!r} is nested deeper than {_DEPTH} levels")
    match value:
        case None | bool() | int():
            return
        case str():
            if not value.isascii() and not _is_encodable(value):
                raise InvalidArgumentError(f"{path} of {id_!r} holds a lone surrogate, which UTF-8 cannot encode")
        case float():
            if not math.isfinite(value):
                raise InvalidArgumentError(f"{path} of {id_!r} is {value}, which JSON cannot hold")
        case Mapping():
            for name, inner in value.items():
                if not isinstance(name, str) or not _is_encodable(name):
                    raise InvalidArgumentError(f"{path} of {id_!r} has the key {name!r}; keys of JSON are strings")
                _check_json(inner, f"{path}[{name!r}]", id_, depth + 1)
        case list() | tuple():
            for at, inner in enumerate(value):
                _check_json(inner, f"{path}[{at}]", id_, depth + 1)
        case _:
            message = f"{path} of {id_!r} is a {_kind(value)}; a memo holds JSON, so convert it first"
            raise InvalidArgumentError(message)


def _check_attributes(id_: str, attributes: Mapping[Any, Any]) -> None:
    if not isinstance(attributes, Mapping):
        raise InvalidArgumentError(
            f"the search attributes of {id_!r} are a {_kind(attributes)}; they are a dict of strings by name"
        )
    if len(attributes) > _ATTRIBUTES:
        raise InvalidArgumentError(
            f"{id_!r} has {len(attributes)} search attributes; at most {_ATTRIBUTES} are allowed"
        )
    for name, value in attributes.items():
        for what, text, most in (("name", name, _NAME), ("value", value, _VALUE)):
            if not isinstance(text, str):
                message = (
                    f"search attribute {name!r} of {id_!r}: its {what} is a {_kind(text)}; names and values are strings"
                )
                raise InvalidArgumentError(message)
            if "\0" in text or not _is_encodable(text):
                message = f"search attribute {name!r} of {id_!r}: its {what} holds a NUL or a lone surrogate"
                raise InvalidArgumentError(message)
            if len(text.encode()) > most:
                message = f"search attribute {name[:40]!r} of {id_!r}: its {what} has more than {most:,} bytes of UTF-8"
                raise InvalidArgumentError(message)
        if not name:
            raise InvalidArgumentError(f"a search attribute of {id_!r} has no name")


def _is_encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _kind(value: object) -> str:
    return type(value).__name__
