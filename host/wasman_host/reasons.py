"""Why a guest goes no further: what limit it has met, in words, and the command that takes it on."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from wasman_host.errors import Failure, GuestLimitError, LimitError
from wasman_host.guest.live import Ended, Trapped
from wasman_host.guest.panics import last_words, of_stack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.errors import BlockedError
    from wasman_host.guest.live import Exceeded
    from wasman_host.record import Limits
    from wasman_host.store.protocol import Key

__all__ = ["PANIC", "exceeded", "failed_by_guest", "panicked", "with_command"]

PANIC = "Panic"  # the type of a failure
_PANICKED = 2  # the code that a Go program exits with then
_DEEPEST = 200  # levels of a failure: the store is written to a depth of 255, record and all

_UNITS = {"table_elements": "COUNT", "turn_seconds": "SECONDS"}


def exceeded(key: Key, limits: Limits, outcome: Exceeded) -> GuestLimitError:
    """The error of a guest that has run into one of its limits, or into what this machine has."""
    if outcome.refused:
        message = (
            f"this machine refuses the guest of {key} {outcome.used:,} bytes of memory ({outcome.refused}); "
            f"free some, then unblock"
        )
    elif outcome.limit == "memory":
        message = (
            f"the guest of {key} wants {outcome.used:,} bytes of memory and may use {limits.memory:,}; "
            f"mend the guest or raise the limit, then unblock"
        )
    elif outcome.limit == "table_elements":
        message = (
            f"the guest of {key} has a table of {outcome.used:,} elements and may have "
            f"{limits.table_elements:,}; mend the guest or raise the limit, then unblock"
        )
    else:
        message = (
            f"the guest of {key} ran into the end of its stack, {limits.stack:,} bytes: its calls nest too "
            f"deep; raise the limit and unblock, or terminate it and mend the guest\n{outcome.backtrace}"
        )
    return GuestLimitError(message, "" if outcome.refused else outcome.limit)


def failed_by_guest(data: bytes, kind: str) -> Failure:
    """What a guest says of its own failure, of type `kind` where it says none.

    What is no failure in JSON is the message; so is one that is nested deeper than what is stored can be.
    """
    try:
        given = from_json(data)
        failure = Failure.of_json({**given, "type": given.get("type") or kind})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return Failure(kind, data.decode(errors="replace"))
    return Failure(kind, data.decode(errors="replace")) if _is_deep(given) else failure


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        within = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [inner for inners in within for inner in inners]
        if not level:
            return False
    return True


def panicked(said: Sequence[str], outcome: Ended | Trapped) -> Failure | None:
    """The failure of a Go guest that has panicked, by the last of what it wrote; None where it has not."""
    found = last_words(said)
    if found is None or (isinstance(outcome, Ended) and outcome.code != _PANICKED):
        return None
    message, more = found
    backtrace = outcome.backtrace if isinstance(outcome, Trapped) else "\n".join(more).strip("\n")
    return Failure(PANIC, of_stack(message, backtrace), backtrace=backtrace)


def with_command(error: BlockedError, key: Key) -> BlockedError:
    """The same error; where a limit was reached, its first line ends with the command that raises it."""
    if not isinstance(error, LimitError) or not error.limit:
        return error
    tenant = "" if key.tenant == "default" else f" --tenant {shlex.quote(key.tenant)}"
    option = f"--{error.limit.replace('_', '-')} {_UNITS.get(error.limit, 'BYTES')}"
    first, newline, rest = str(error).partition("\n")
    message = f"{first} (wasman unblock {shlex.quote(key.id)}{tenant} {option}){newline}{rest}"
    return type(error)(message, error.limit)
