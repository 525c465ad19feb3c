"""The types of sources and sinks that every worker knows, by the tags that are persisted with sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wasman_host import channels
from wasman_host.bytes_source import BytesSource
from wasman_host.errors import StreamError
from wasman_host.gzip_streams import GunzipSource, GzipSink, gzip_token
from wasman_host.streams import FileSink, FileSource, StreamTypes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wasman_host.record import StreamSpec
    from wasman_host.streams import SinkWriter, SourceReader

__all__ = ["known_types"]


def known_types() -> StreamTypes:
    """Files, bytes in the session, HTTP, and channels of this process."""
    return StreamTypes(
        sources={
            "file": _file_source,
            "bytes": BytesSource.open,
            "http": _http_source,
            channels.TAG: channels.ChannelSource.open,
        },
        sinks={"file": _file_sink, channels.TAG: channels.ChannelSink.open},
    )


async def _http_source(spec: StreamSpec) -> SourceReader:
    try:
        from wasman_host.http_source import HttpSource  # noqa: PLC0415  httpx takes longer than all of wasman
    except ImportError as error:
        message = f"a source by HTTP needs httpx ({error}); install wasman's extra `http` for this worker, then unblock"
        raise StreamError(message) from error
    return _inflated(await HttpSource.open(spec), spec, "by HTTP")


async def _file_source(spec: StreamSpec) -> SourceReader:
    return _inflated(await FileSource.open(spec), spec, spec.config["path"])


async def _file_sink(spec: StreamSpec, run: str, token: Mapping[str, Any] | None) -> SinkWriter:
    if not spec.config.get("compress"):
        return await FileSink.open(spec, run, token)
    _check(spec.config["compress"])
    return GzipSink(await FileSink.open(spec, run, gzip_token(token)), spec, token)


def _inflated(reader: SourceReader, spec: StreamSpec, name: str) -> SourceReader:
    if not spec.config.get("decompress"):
        return reader
    _check(spec.config["decompress"])
    return GunzipSource(reader, name)


def _check(kind: str) -> None:
    if kind != "gzip":
        message = f"the session wants {kind!r} on the way, and this wasman knows gzip; use the one that started the run"
        raise StreamError(message)
