"""The types of sources and sinks that every worker knows, by the tags that are persisted with sessions."""

from __future__ import annotations

from wasman_host import channels
from wasman_host.bytes_source import BytesSource
from wasman_host.streams import FileSink, FileSource, StreamTypes

__all__ = ["known_types"]


def known_types() -> StreamTypes:
    """Files, bytes in the session, and channels of this process."""
    return StreamTypes(
        sources={"file": FileSource.open, "bytes": BytesSource.open, channels.TAG: channels.ChannelSource.open},
        sinks={"file": FileSink.open, channels.TAG: channels.ChannelSink.open},
    )
