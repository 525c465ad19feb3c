"""What a guest in Go says as it dies: its runtime writes a line before it traps or exits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["last_words", "of_stack"]

_PANIC = "panic: "
_BEGINS = (_PANIC, "fatal error: ")
# How the runtimes of Go and of TinyGo say that an export has not returned, and never will.
_BLOCKED = ("all goroutines are asleep", "wasmexport function did not finish")
# TinyGo looks at a goroutine's stack only as it pauses: then what overflowed it has written elsewhere already. And what
# checks its pointers and indices accesses nothing out of bounds.
_OVERFLOWS = re.compile(
    r"""
    runtime\ error:\ stack\ overflow\n
    | nil\ pointer\ dereference\n (.*\n){0,2} .*!internal/task\.Pause$
    | out\ of\ bounds\ memory\ access\n (.*\n)*? .*!\S*\w\.\(?\*?[A-Za-z_]  # a function of Go
    """,
    re.VERBOSE | re.MULTILINE,
)


def of_stack(message: str, backtrace: str) -> str:
    """The message, and what to do where a goroutine's stack has overflowed."""
    if _OVERFLOWS.search(f"{message}\n{backtrace}") is None:
        return message
    return (
        f"{message}: it seems that a goroutine needs more stack than TinyGo gives it; build the guest with "
        f"more (wasman build --stack-size 64KB), or let its calls nest less"
    )


def last_words(said: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """Why a Go guest has died, and the lines that it wrote after that; None where it does not say.

    Args:
        said: The last lines that it wrote.
    """
    place = next((n for n in reversed(range(len(said))) if said[n].startswith(_BEGINS)), None)
    if place is None:
        return None
    message = said[place].removeprefix(_PANIC)
    if any(words in message for words in _BLOCKED):
        message = (
            f"{message}: an exported function of the guest has blocked; only workflows may wait, so have the export "
            f"start a goroutine, or call what waits from a workflow"
        )
    return message, said[place + 1 :]
