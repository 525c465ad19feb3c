"""Telling an application how far a guest's streams are. Nothing that it does with that touches the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Meter", "ProgressCallback"]

logger = logging.getLogger("wasman.streams")

ProgressCallback: TypeAlias = Callable[[str, str, str, int, int | None], object]
"""Called as (workflow id, field of the session, "download" or "upload", bytes so far, bytes in all or None)."""

_EVERY = 0.5  # seconds between two calls about one stream
_SLOW = 0.05  # seconds in which nobody else on the event loop has a turn


class Meter:
    """Of one instance.

    Args:
        callback: Whom to tell.
        id_: The workflow id.
    """

    __slots__ = ("_callback", "_due", "_id", "_told")

    def __init__(self, callback: ProgressCallback, id_: str) -> None:
        self._callback, self._id = callback, id_
        self._due = {"download": 0.0, "upload": 0.0}  # by a monotonic clock
        self._told: dict[str, tuple[int, int | None]] = {}

    def moved(self, field: str, direction: str, count: int, total: int | None, *, last: bool) -> None:
        """Tell it, unless it was told a moment ago; in any case at the end, once."""
        now = time.monotonic()
        if (now < self._due[direction] and not last) or self._told.get(direction) == (count, total):
            return
        self._told[direction], self._due[direction] = (count, total), now + _EVERY
        try:
            self._callback(self._id, field, direction, count, total)
        except Exception:
            logger.exception("on_progress has raised; the run of %s goes on", self._id)
        took = time.monotonic() - now
        if took > _SLOW:
            logger.warning("on_progress took %.2f s, in which nothing else could happen; let it be quick", took)
