"""Ids: what may name an instance or a workflow, and new ones that nobody has had."""

from __future__ import annotations

import os
import re

from wasman_host.errors import InvalidArgumentError

__all__ = ["drawn", "validated_id"]

_MAX_ID = 200  # bytes of UTF-8
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f/\ud800-\udfff]|\.\.")


def validated_id(id_: str) -> str:
    """`id_`, if it can name an instance.

    Raises:
        InvalidArgumentError: It is empty, too long, or holds what no id may.
    """
    if not id_:
        message = f"a workflow id is a non-empty string, not {id_!r}"
    elif (found := _FORBIDDEN.search(id_)) is not None:
        message = f"the workflow id {id_!r} holds {found.group()!r}; ids hold no '/', no '..' and no control characters"
    elif len(id_.encode()) > _MAX_ID:
        message = (
            f"the workflow id {id_[:20]!r}... has {len(id_.encode())} bytes of UTF-8; at most {_MAX_ID} are allowed"
        )
    else:
        return id_
    raise InvalidArgumentError(message)


# Asking the kernel costs 4 us each time, however little is asked for.
_POOL = 128
_pool: list[str] = []  # which any thread may take from
os.register_at_fork(after_in_child=_pool.clear)  # the parent draws the same


def drawn(length: int) -> str:
    """So many hexadecimal digits that nobody has drawn before, up to 32. They are no secret."""
    try:
        return _pool.pop()[:length]
    except IndexError:
        digits = os.urandom(16 * _POOL).hex()
        _pool.extend(digits[at : at + 32] for at in range(0, 32 * (_POOL - 1), 32))
        return digits[-32:][:length]
