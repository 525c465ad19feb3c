"""A source by HTTP(S), as a session names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from wasman_host.errors import InvalidArgumentError, StreamError
from wasman_sdk._secret import Secret
from wasman_sdk._streams import Source

__all__ = ["HttpSource"]

_OURS = {
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "if-match",
    "if-range",
    "range",
    "transfer-encoding",
}


class HttpSource(Source):
    """What a URL names, read by HTTP(S) with ranges. It must stay as it is until the run has ended.

    Its server has to give a strong ETag, which is pinned at the start, or its sha256 has to be stated: then each worker
    that opens it fetches all of it into a temporary file first, and compares it.

    Connections that are lost are made again from where the guest stands; what lasts longer, or has changed, blocks the
    run. Needs wasman's extra `http`.

    Attributes:
        url: Where it is; one that is a secret itself, such as a signed one, by reference.
        headers: Sent with each request, as long as it is not redirected to another server; secrets by reference.
        sha256: Of all its bytes as they are sent, in hex; "" where the server's ETag is to be trusted.
        decompress: "gzip" where what is sent is gzip, and the guest is to read what is in it.
        timeout: Seconds without a byte after which a connection is given up and made again.
    """

    type_tag: ClassVar[str] = "http"

    url: str | Secret
    headers: Mapping[str, str | Secret] = Field(default_factory=dict)
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    decompress: Literal["", "gzip"] = ""
    timeout: float = Field(default=30.0, gt=0)

    @field_validator("url")
    @classmethod
    def _http(cls, value: str | Secret) -> str | Secret:
        if isinstance(value, str):
            parts = urlsplit(value)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                message = "the URL of an HttpSource begins with http:// or https:// and a host"
                raise ValueError(message)
        return value

    @field_validator("headers")
    @classmethod
    def _not_ours(cls, value: Mapping[str, str | Secret]) -> Mapping[str, str | Secret]:
        for name in value:
            if name.lower() in _OURS:
                message = f"the header {name} is wasman's own"
                raise ValueError(message)
        return value

    async def identity(self) -> Mapping[str, Any]:
        """See `Stream`."""
        try:
            from wasman_host.http_source import identify_http  # noqa: PLC0415  httpx takes longer than all of wasman
        except ImportError as error:
            message = (
                f"an HttpSource needs httpx ({error}); install wasman with its extra `http`, here and where workers run"
            )
            raise InvalidArgumentError(message) from error
        try:
            return await identify_http(self.spec({}).config)
        except StreamError as error:
            raise InvalidArgumentError(str(error).replace(", then unblock", "")) from error
