"""Names as Go has them."""

from __future__ import annotations

import re

__all__ = ["exported"]

# Those of Go's own style that names of fields really have.
_INITIALISMS = frozenset({
    "API", "ASCII", "CPU", "CSS", "DNS", "HTML", "HTTP", "HTTPS", "ID", "IP", "JSON", "OK", "RPC", "SQL", "SSH", "TCP",
    "TLS", "TTL", "UDP", "UI", "UID", "URI", "URL", "UTF8", "UUID", "XML",
})  # fmt: skip
_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def exported(text: str) -> str:
    """The exported identifier for a name of any style: `card_id`, `cardId` and `card-id` are CardID."""
    words = [part for word in _WORD.findall(text) for part in _HUMP.split(word)]
    name = "".join(_cased(word) for word in words)
    return name if name[:1].isupper() else f"X{name}"


def _cased(word: str) -> str:
    upper = word.upper()
    if upper in _INITIALISMS:
        return upper
    if upper.endswith("S") and upper[:-1] in _INITIALISMS:
        return f"{upper[:-1]}s"
    return word[:1].upper() + word[1:]
