"""What may be the id of an instance, or the name of a workflow."""

from __future__ import annotations

import re

from wasman_host.errors import InvalidArgumentError

__all__ = ["validated_id"]

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
