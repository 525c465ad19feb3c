"""The sources and sinks of one run: opened when its guest first uses them, at the offsets where the guest stands.

Guests of ABI v0 have one of each, without a name; how far they are is `Machine.read` and `written`. Those of ABI v1
name them, and `Machine.positions` says how far each is.
"""

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

    __slots__ = ("_meter", "_readers", "_require_lease", "_sink", "_source", "_types", "_writers", "token")

    def __init__(self, types: StreamTypes, require_lease: Callable[[], None]) -> None:
        self._types = types
        self._require_lease = require_lease
        self._source: SourceReader | None = None
        self._sink: SinkWriter | None = None
        self._meter: Meter | None = None
        self._readers: dict[str, SourceReader] = {}
        self._writers: dict[str, SinkWriter] = {}
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

    async def download(self, machine: Machine, view: memoryview) -> int | None:
        """Fill `view` from the source; how many bytes, or None where the session has no such source."""
        sources = machine.pinned.sources
        name = _only(sources, "download")
        if name is None:
            return None
        if self._source is None:
            self._source = await self._types.open_source(sources[name])
        count = self._source.read_now(machine.read, view)
        if count is None:
            count = await self._source.read_into(machine.read, view)
        machine.read += count
        self._tell_download(machine, last=count < len(view))
        return count

    async def upload(self, machine: Machine, view: memoryview) -> int | None:
        """Write `view` to the sink; how many bytes, or None where the session has no such sink."""
        name = _only(machine.pinned.sinks, "upload")
        if name is None:
            return None
        if not view:
            machine.upload_closed = True
            return 0
        sink = await self._opened_sink(machine, name)
        self._require_lease()
        if not sink.write_now(machine.written, view):
            await sink.write(machine.written, view)
        return self._uploaded(machine, view)

    # Guests that name their streams

    async def read(self, machine: Machine, view: memoryview, name: str) -> int | None:
        """Fill `view` from the source `name`, "" for the only one; how many bytes, or None where there is none such."""
        sources = machine.pinned.sources
        found = _named(sources, name)
        if found is None:
            return None
        source = self._readers.get(found)
        if source is None:
            source = self._readers[found] = await self._types.open_source(sources[found])
        positions = _positions(machine)
        at = positions.get(found, 0)
        count = source.read_now(at, view)
        if count is None:
            count = await source.read_into(at, view)
        positions[found] = at + count
        machine.read += count
        if (meter := self._metered(machine)) is not None:
            last = count < len(view)
            meter.moved(found, "download", at + count, at + count if last else source.length, last=last)
        return count

    async def write(self, machine: Machine, view: memoryview, name: str) -> int | None:
        """Write `view` to the sink `name`, "" for the only one; how many bytes, or None where there is none such.

        Nothing closes it, and then it takes no more: that gives -1.
        """
        found = _named(machine.pinned.sinks, name)
        if found is None:
            return None
        positions = _positions(machine)
        if not view:
            machine.closed = frozenset({*machine.closed, found})
            return 0
        if found in machine.closed:
            return -1
        sink = await self._named_sink(machine, found)
        at = positions.get(found, 0)
        self._require_lease()
        if not sink.write_now(at, view):
            await sink.write(at, view)
        positions[found] = at + len(view)
        machine.crc = isal_zlib.crc32(view, machine.crc)
        machine.written += len(view)
        if (meter := self._metered(machine)) is not None:
            meter.moved(found, "upload", at + len(view), None, last=False)
        return len(view)

    async def _named_sink(self, machine: Machine, name: str) -> SinkWriter:
        sink = self._writers.get(name)
        if sink is None:
            token = (self.token or {}).get(name)
            sink = self._writers[name] = await self._types.open_sink(machine.pinned.sinks[name], machine.run, token)
        return sink

    # At a snapshot, and at the end

    async def _opened_sink(self, machine: Machine, name: str) -> SinkWriter:
        if self._sink is None:
            self._sink = await self._types.open_sink(machine.pinned.sinks[name], machine.run, self.token)
        return self._sink

    async def sync(self, machine: Machine) -> Mapping[str, Any] | None:
        """Make what was written so far durable, before a snapshot counts on it; the sink's token for it.

        Of a guest that names its sinks it is their tokens, by name.
        """
        if machine.positions is not None:
            tokens = {}
            for each in machine.pinned.sinks:
                if machine.positions.get(each):
                    named = await self._named_sink(machine, each)
                    tokens[each] = _bounded(await named.sync(machine.positions[each]), each)
            return tokens or None
        name = _only(machine.pinned.sinks, "upload")
        if name is None or not machine.written:
            return None
        sink = await self._opened_sink(machine, name)
        return _bounded(await sink.sync(machine.written), name)

    async def finished(self, machine: Machine) -> Publishing | None:
        """The guest has ended: what is to be published, all of it durable."""
        if machine.positions is not None:
            return await self._named_finished(machine, machine.positions)
        name = _only(machine.pinned.sinks, "upload")
        if name is None:
            return None
        sink = await self._opened_sink(machine, name)
        length = machine.written
        digest, token = await sink.finish(length)
        self._tell_upload(machine, last=True)
        return Publishing({name: (length, digest, _bounded(token, name))})

    async def _named_finished(self, machine: Machine, positions: Mapping[str, int]) -> Publishing | None:
        sinks = {}
        for name in machine.pinned.sinks:
            sink = await self._named_sink(machine, name)
            length = positions.get(name, 0)
            digest, token = await sink.finish(length)
            sinks[name] = (length, digest, _bounded(token, name))
            if (meter := self._metered(machine)) is not None:
                meter.moved(name, "upload", length, length, last=True)
        return Publishing(sinks) if sinks else None

    async def publish(self, machine: Machine) -> None:
        """Give the sinks their names; after a crash again, which changes nothing."""
        publishing = machine.record.publishing
        assert publishing is not None, "a publishing run knows its sinks"
        written, self._sink = self._sink, None  # still open, unless the run comes back here
        named, self._writers = self._writers, {}
        await self.close()
        for name, (length, digest, token) in publishing.sinks.items():
            sink = (
                named.pop(name, None)
                or written
                or await self._types.open_sink(machine.pinned.sinks[name], machine.run, None)
            )
            try:
                self._require_lease()
                await sink.publish(length, digest, token)
            finally:
                await sink.close()

    async def discard(self, machine: Machine) -> None:
        """A run without a result leaves no part behind."""
        for name in machine.pinned.sinks:
            await self._discard(machine, name)

    async def _discard(self, machine: Machine, name: str) -> None:
        written, self._sink = self._sink, None  # it may know what only it has begun
        try:
            sink = (
                self._writers.pop(name, None)
                or written
                or await self._types.open_sink(machine.pinned.sinks[name], machine.run, None)
            )
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
        readers, self._readers = self._readers, {}
        writers, self._writers = self._writers, {}
        for reader in readers.values():
            await reader.close()
        for writer in writers.values():
            await writer.close()


def _positions(machine: Machine) -> dict[str, int]:
    if machine.positions is None:
        machine.positions = {}
    return machine.positions


def _named(streams: Mapping[str, StreamSpec], name: str) -> str | None:
    """The stream called `name`; "" is the only one there is."""
    if not name and len(streams) == 1:
        return next(iter(streams))
    return name if name in streams else None


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
