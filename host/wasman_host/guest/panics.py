"""What a guest in Go says as it dies: its runtime writes a line before it traps or exits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["last_words"]

_PANIC = "panic: "
_BEGINS = (_PANIC, "fatal error: ")
# How the runtimes of Go and of TinyGo say that an export has not returned, and never will.
_BLOCKED = ("all goroutines are asleep", "wasmexport function did not finish")


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
