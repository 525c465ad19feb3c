"""What a worker does to Python's garbage collector."""

from __future__ import annotations

import gc

__all__ = ["tune"]

# Thousands of instances are thousands of tasks and frames that live for milliseconds, free of cycles. At Python's 700
# young objects the collector ran ten times in each group of 500 commits, and found nothing.
_YOUNG = 50_000


def tune() -> None:
    """Look for cycles in what is new less often.

    A collector that the application has switched off, or set to look less often still, stays as it is. Nothing is
    frozen: `gc.get_referrers` does not see what is, and libraries count on it.
    """
    young, *others = gc.get_threshold()
    if gc.isenabled() and 0 < young < _YOUNG:
        gc.set_threshold(_YOUNG, *others)
