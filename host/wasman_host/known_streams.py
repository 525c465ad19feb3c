"""The types of sources and sinks that every worker knows, by the tags that are persisted with sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wasman_host import channels
from wasman_host.bytes_source import BytesSource
from wasman_host.errors import StreamError
from wasman_host.streams import FileSink, FileSource, StreamTypes

if TYPE_CHECKING:
    from wasman_host.record import StreamSpec
    from wasman_host.streams import SourceReader

__all__ = ["known_types"]


def known_types() -> StreamTypes:
    """Files, bytes in the session, HTTP, and channels of this process."""
    return StreamTypes(
        sources={
            "file": FileSource.open,
            "bytes": BytesSource.open,
            "http": _http,
            channels.TAG: channels.ChannelSource.open,
        },
        sinks={"file": FileSink.open, channels.TAG: channels.ChannelSink.open},
    )


async def _http(spec: StreamSpec) -> SourceReader:
    try:
        from wasman_host.http_source import HttpSource  # noqa: PLC0415  httpx takes longer than all of wasman
    except ImportError as error:
        message = f"a source by HTTP needs httpx ({error}); pip install 'wasman[http]' for this worker, then unblock"
        raise StreamError(message) from error
    return await HttpSource.open(spec)
