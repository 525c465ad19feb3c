"""Payloads: bytes that cross between application, host and guest, in an envelope that says what they are."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from attrs import evolve, field
from pydantic_core import to_json

from wasman_host.values import frozen

__all__ = ["INLINE_LIMIT", "JSON", "OCTETS", "Payload"]

JSON = "application/json"
OCTETS = "application/octet-stream"
_ZERO = ord("0")
INLINE_LIMIT = 64 * 1024  # bytes; a larger payload is a blob of its own


@frozen
class Payload:
    """Bytes and what they are.

    Attributes:
        size: Length in bytes.
        content_type: A media type.
        codec: What the application's codec made of the bytes; "" for nothing.
        data: The bytes; None where only the reference has been read so far.
        blob: The name under which a large payload is kept with its run; "" for any other.
        stated: What was stored as its sha256, in hex; "" where its bytes are here, or are sealed with what names them.
        sealed: Bytes that its blob takes; 0 where that was not written down, or there is none.
    """

    size: int
    content_type: str = JSON
    codec: str = ""
    data: bytes | None = field(default=None, repr=False)
    blob: str = ""
    stated: str = field(default="", eq=False)
    sealed: int = field(default=0, eq=False)

    @classmethod
    def of(cls, data: bytes, content_type: str = JSON) -> Payload:
        """An envelope around `data`."""
        return cls(len(data), content_type, "", data)

    @classmethod
    def of_value(cls, value: Any) -> Payload:
        """An envelope around the JSON of `value`."""
        return cls.of(to_json(value))

    @property
    def inline(self) -> bool:
        """Whether the bytes are stored with what mentions them."""
        return self.size <= INLINE_LIMIT

    @property
    def plain(self) -> bool:
        """Whether its size says all of it: small, JSON, no codec."""
        return self.size <= INLINE_LIMIT and self.content_type == JSON and not self.codec

    @property
    def content(self) -> bytes:
        """The bytes, which must have been loaded."""
        assert self.data is not None, "the payload's bytes were not loaded"
        return self.data

    @property
    def digest(self) -> str:
        """sha256 of the bytes, in hex."""
        return self.stated or hashlib.sha256(self.content).hexdigest()

    def value(self) -> Any:
        """What the JSON says."""
        data = self.content
        if data.isdigit() and (data[0] != _ZERO or len(data) == 1):  # as most inputs of guests of ABI v0: 5 us less
            return int(data)
        return json.loads(data)

    def with_data(self, data: bytes) -> Payload:
        """The same envelope with its bytes loaded."""
        return evolve(self, data=data)

    def as_json(self) -> dict[str, Any]:
        """The stored form, without the bytes; what is as usual is left out."""
        fields: dict[str, Any] = {"size": self.size}
        if self.content_type != JSON:
            fields["type"] = self.content_type
        if self.codec:
            fields["codec"] = self.codec
        if self.blob:
            fields["blob"], fields["sha256"] = self.blob, self.digest
        if self.sealed:
            fields["sealed"] = self.sealed
        return fields

    @classmethod
    def of_json(cls, fields: dict[str, Any], data: bytes | None = None) -> Payload:
        """The inverse of `as_json`, with the bytes where they are known."""
        return cls(
            int(fields["size"]),
            str(fields.get("type", JSON)),
            str(fields.get("codec", "")),
            data,
            blob=str(fields.get("blob", "")),
            stated=str(fields.get("sha256", "")),
            sealed=int(fields.get("sealed", 0)),
        )
