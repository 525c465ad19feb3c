"""A source of bytes that the session itself holds."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from typing_extensions import override

from wasman_host.errors import SourceChangedError
from wasman_host.streams import SourceReader

if TYPE_CHECKING:
    from wasman_host.record import StreamSpec

__all__ = ["BytesSource"]


class BytesSource(SourceReader):
    """Bytes out of the record: always ready."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    @classmethod
    async def open(cls, spec: StreamSpec) -> BytesSource:
        """Take them out of the session again; raises `SourceChangedError` where they are not those of the start."""
        data = base64.urlsafe_b64decode(spec.config["data"])
        if hashlib.sha256(data).hexdigest() != spec.identity.get("sha256"):
            message = "the bytes in the session are not those that the run was started with; terminate and start anew"
            raise SourceChangedError(message)
        return cls(data)

    @property
    @override
    def length(self) -> int:
        return len(self._data)

    @override
    async def read_into(self, offset: int, view: memoryview) -> int:
        return self.read_now(offset, view)

    @override
    def read_now(self, offset: int, view: memoryview) -> int:
        part = self._data[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)
