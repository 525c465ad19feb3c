"""What a worker does to Python's garbage collector, once a process."""

from __future__ import annotations

import gc

__all__ = ["tune"]

# Thousands of instances are thousands of tasks and frames that live for milliseconds, free of cycles. At Python's 700
# young objects the collector ran ten times in each group of 500 commits, and found nothing.
_YOUNG = 10_000

_tuned = False


def tune() -> None:
    """Leave alone what is there already, and look for cycles in what is new less often.

    Done once a process, so that a program that opens worker after worker freezes no garbage of theirs. A collector that
    the application has switched off, or set to look less often still, stays as it is.
    """
    global _tuned  # noqa: PLW0603  a process has one collector
    young, *others = gc.get_threshold()
    if _tuned or not young or not gc.isenabled():
        return
    _tuned = True
    gc.freeze()
    if young < _YOUNG:
        gc.set_threshold(_YOUNG, *others)
