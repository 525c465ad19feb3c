"""Classes whose objects nobody changes, made quickly.

attrs' own `frozen` refuses an assignment while the program runs, and pays for that whenever an object is made: it sets
each field by `object.__setattr__`, which takes three times as long as an assignment. A step of a workflow makes ten
such objects with fifty fields: it was 8 % of the time. For mypy this `frozen` is the one of attrs, so an assignment is
refused before the program runs; then it is an ordinary class with a hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrs import frozen
else:
    from functools import partial

    from attrs import define

    frozen = partial(define, unsafe_hash=True)

__all__ = ["frozen"]
