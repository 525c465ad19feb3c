"""Names the async activity that keeps the event loop from turning.

The loop notes every quarter of a second that it turns; a thread looks whether it does. Only where it does not, the
thread looks at what the loop's thread is running, and whose activity that is. Calls pay nothing for it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TYPE_CHECKING

import anyio

from wasman_host.activity import ActivityCall
from wasman_sdk import _handlers

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Watchdog"]

logger = logging.getLogger("wasman.worker")

BLOCKED = 1.0  # seconds without a turn from which on it is told
_LOOK = 0.25  # seconds between two turns that are noted, and between two looks


class Watchdog:
    """Watches one event loop."""

    def __init__(self) -> None:
        self._turned = time.monotonic()
        self._stop = threading.Event()

    async def run(self) -> None:
        """Watch the loop that this runs on, until cancelled."""
        self._turned = time.monotonic()
        name = "wasman watchdog"
        threading.Thread(target=self._watch, args=(threading.get_ident(),), daemon=True, name=name).start()
        try:
            while True:
                self._turned = time.monotonic()
                await anyio.sleep(_LOOK)
        finally:
            self._stop.set()

    def _watch(self, thread: int) -> None:
        told: ActivityCall | None = None
        while not self._stop.wait(_LOOK):
            behind = time.monotonic() - self._turned
            if behind < BLOCKED:
                told = None
                continue
            found = running_in(sys._current_frames().get(thread))  # noqa: SLF001  the only way to see another thread
            if found is not None and found[0] is not told:
                told, where = found
                logger.warning(
                    "activity %r of %s has kept the event loop of its worker for %.1f s (%s): nothing else goes on "
                    "meanwhile; let it await there, or make it a plain `def`, which runs in a thread",
                    told.name,
                    told.key,
                    behind,
                    where,
                )


def running_in(frame: FrameType | None) -> tuple[ActivityCall, str] | None:
    """The attempt that a thread is about, by its innermost frame, and where in the activity that is."""
    inner: FrameType | None = None
    at: FrameType | None = None
    while frame is not None:
        if frame.f_globals is vars(_handlers):
            at = at or inner or frame  # what the handler has called: the activity itself
            call = frame.f_locals.get("call")
            if isinstance(call, ActivityCall):
                return call, f"{at.f_code.co_filename}:{at.f_lineno} in {at.f_code.co_name}"
        inner, frame = frame, frame.f_back
    return None
