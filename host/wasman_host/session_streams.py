"""The source and the sink of one run: opened when its guest first uses them, at the offsets where the guest stands."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from isal import isal_zlib
from pydantic_core import to_json

from wasman_host.errors import BlockedError, StreamError
from wasman_host.progress import Meter
from wasman_host.record import Publishing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wasman_host.machine import Machine
    from wasman_host.record import StreamSpec
    from wasman_host.streams import SinkWriter, SourceReader, StreamTypes

__all__ = ["SessionStreams"]

_TOKEN = 256 * 1024  # bytes; a token is part of a snapshot, and at the end of the record

logger = logging.getLogger("wasman.instance")


class SessionStreams:
    """Moves bytes between a guest's memory and the outside.

    Args:
        types: How sources and sinks are opened.
        require_lease: Raises where this worker may no longer write.
    """

    __slots__ = ("_meter", "_require_lease", "_sink", "_source", "_types", "token")

    def __init__(self, types: StreamTypes, require_lease: Callable[[], None]) -> None:
        self._types = types
        self._require_lease = require_lease
        self._source: SourceReader | None = None
        self._sink: SinkWriter | None = None
        self._meter: Meter | None = None
        self.token: Mapping[str, Any] | None = None  # of the snapshot that the guest was restored from, or the newest

    def now(self, machine: Machine, view: memoryview, *, upload: bool) -> int | None:
        """Move bytes where nothing need be waited for, and nothing opened; None where `download` or `upload` must.

        A host function calls this while the guest runs: a chunk whose bytes are ready costs no task switch.

        Raises:
            StreamError: A source or sink cannot be used.
            ConcurrentExecutionError: This worker may no longer write.
        """
        if upload:
            sink = self._sink
            if sink is None or not view or machine.upload_closed:
                return None
            self._require_lease()
            if not sink.write_now(machine.written, view):
                return None
            return self._uploaded(machine, view)
        source = self._source
        if source is None:
            return None
        count = source.read_now(machine.read, view)
        if count is not None:
            machine.read += count
            if self._types.progress is not None:
                self._tell_download(machine, last=count < len(view))
        return count

    def _uploaded(self, machine: Machine, view: memoryview) -> int:
        machine.crc = isal_zlib.crc32(view, machine.crc)
        machine.written += len(view)
        if self._types.progress is not None:
            self._tell_upload(machine)
        return len(view)

    def _tell_download(self, machine: Machine, *, last: bool) -> None:
        name, meter = _only(machine.pinned.sources, "download"), self._metered(machine)
        if name is not None and meter is not None and self._source is not None:
            meter.moved(name, "download", machine.read, machine.read if last else self._source.length, last=last)

    def _tell_upload(self, machine: Machine, *, last: bool = False) -> None:
        name, meter = _only(machine.pinned.sinks, "upload"), self._metered(machine)
        if name is not None and meter is not None:
            meter.moved(name, "upload", machine.written, machine.written if last else None, last=last)

    def _metered(self, machine: Machine) -> Meter | None:
        """Who tells of progress; None where nobody listens, or the guest repeats its past."""
        if self._types.progress is None or machine.replaying:
            return None
        if self._meter is None:
            self._meter = Meter(self._types.progress, machine.id)
        return self._meter

    async def download(self, machine: Machine, view: memoryview, wanted: str = "") -> int | None:
        """Fill `view` from the source; how many bytes, or None where the session has no such source."""
        sources = machine.pinned.sources
        name = _only(sources, "download")
        if name is None or (wanted and wanted != name):
            return None
        if self._source is None:
            self._source = await self._types.open_source(sources[name])
        count = self._source.read_now(machine.read, view)
        if count is None:
            count = await self._source.read_into(machine.read, view)
        machine.read += count
        self._tell_download(machine, last=count < len(view))
        return count

    async def upload(self, machine: Machine, view: memoryview, wanted: str = "") -> int | None:
        """Write `view` to the sink; how many bytes, or None where the session has no such sink."""
        name = _only(machine.pinned.sinks, "upload")
        if name is None or (wanted and wanted != name):
            return None
        if not view:
            machine.upload_closed = True
            return 0
        sink = await self._opened_sink(machine, name)
        self._require_lease()
        if not sink.write_now(machine.written, view):
            await sink.write(machine.written, view)
        return self._uploaded(machine, view)

    async def _opened_sink(self, machine: Machine, name: str) -> SinkWriter:
        if self._sink is None:
            self._sink = await self._types.open_sink(machine.pinned.sinks[name], machine.run, self.token)
        return self._sink

    async def sync(self, machine: Machine) -> Mapping[str, Any] | None:
        """Make what was written so far durable, before a snapshot counts on it; the sink's token for it."""
        name = _only(machine.pinned.sinks, "upload")
        if name is None or not machine.written:
            return None
        sink = await self._opened_sink(machine, name)
        return _bounded(await sink.sync(machine.written), name)

    async def finished(self, machine: Machine) -> Publishing | None:
        """The guest has ended: what is to be published, all of it durable."""
        name = _only(machine.pinned.sinks, "upload")
        if name is None:
            return None
        sink = await self._opened_sink(machine, name)
        length = machine.written
        digest, token = await sink.finish(length)
        self._tell_upload(machine, last=True)
        return Publishing({name: (length, digest, _bounded(token, name))})

    async def publish(self, machine: Machine) -> None:
        """Give the sinks their names; after a crash again, which changes nothing."""
        publishing = machine.record.publishing
        assert publishing is not None, "a publishing run knows its sinks"
        written, self._sink = self._sink, None  # still open, unless the run comes back here
        await self.close()
        for name, (length, digest, token) in publishing.sinks.items():
            sink = written or await self._types.open_sink(machine.pinned.sinks[name], machine.run, None)
            try:
                self._require_lease()
                await sink.publish(length, digest, token)
            finally:
                await sink.close()

    async def discard(self, machine: Machine) -> None:
        """A run without a result leaves no part behind."""
        name = _only(machine.pinned.sinks, "upload")
        if name is None:
            return
        written, self._sink = self._sink, None  # it may know what only it has begun
        try:
            sink = written or await self._types.open_sink(machine.pinned.sinks[name], machine.run, None)
            try:
                await sink.discard()
            finally:
                await sink.close()
        except (BlockedError, OSError) as error:
            logger.warning("the part of %s stays: %s", machine, error)

    async def close(self) -> None:
        """Give up what is open; parts stay."""
        source, self._source = self._source, None
        if source is not None:
            await source.close()
        sink, self._sink = self._sink, None
        if sink is not None:
            await sink.close()


def _only(streams: Mapping[str, StreamSpec], name: str) -> str | None:
    """The one stream there is, or the one called `name`: `stream_data` has no names."""
    if len(streams) == 1:
        return next(iter(streams))
    return name if name in streams else None


def _bounded(token: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A sink's token as it can be stored."""
    try:
        size = len(to_json(token))
    except ValueError as error:
        message = f"the sink {name!r} gave a token that is no JSON ({error}); mend it, then unblock"
        raise StreamError(message) from error
    if size > _TOKEN:
        message = f"the sink {name!r} gave a token of {size:,} bytes, and {_TOKEN:,} are allowed; mend it, then unblock"
        raise StreamError(message)
    return dict(token)
