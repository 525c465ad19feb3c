"""In what one call differs from how its activity is registered: the options of ABI v1's `call` command."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen
from pydantic_core import from_json

from wasman_host.errors import GuestProtocolError

if TYPE_CHECKING:
    from wasman_host.activity import ActivityDefinition

__all__ = ["Options"]

_RETRY = frozenset({"initial_interval", "maximum_interval"})
_TIMES = {
    "start_to_close": "timeout",
    "schedule_to_close": "schedule_to_close",
    "schedule_to_start": "schedule_to_start",
    "heartbeat": "heartbeat_timeout",
}


@frozen
class Options:
    """What a call asks for.

    Attributes:
        retry: Fields of `Retry`, in seconds where they are times.
        times: Fields of `ActivityDefinition`, in seconds.
    """

    retry: Mapping[str, Any]
    times: Mapping[str, Any]

    @classmethod
    def read(cls, data: bytes) -> Options:
        """The options as a guest gives them. Raises `GuestProtocolError`."""
        return _read(data)

    def applied(self, definition: ActivityDefinition) -> ActivityDefinition:
        """The activity as this call wants it."""
        return evolve(definition, retry=evolve(definition.retry, **self.retry), **self.times)


@functools.lru_cache(maxsize=1024)
def _read(data: bytes) -> Options:
    retry: dict[str, Any] = {}
    times: dict[str, Any] = {}
    try:
        for name, value in _items(data):
            number = _number(name, value)
            if name == "maximum_attempts":
                retry["maximum_attempts"] = int(number)
            elif name == "backoff":
                retry["backoff_coefficient"] = float(number)
            elif name in _RETRY:
                retry[name] = number / 1e9
            else:
                times[_TIMES[name]] = number / 1e9
    except (ValueError, KeyError) as error:
        message = (
            f"the guest gives a call the options {data[:200]!r}, which make no sense ({error}); docs/abi.md says which "
            f"there are: mend the guest, then terminate this run and start it anew"
        )
        raise GuestProtocolError(message) from error
    return Options(retry, times)


def _items(data: bytes) -> Iterable[tuple[str, object]]:
    given = from_json(data)
    if isinstance(given, dict):
        return given.items()
    raise ValueError("they are no object")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}")
    return value
