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
    from collections.abc import Callable, Iterable, Mapping

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

    __slots__ = ("_meter", "_readers", "_require_lease", "_types", "_writers", "token")

    def __init__(self, types: StreamTypes, require_lease: Callable[[], None]) -> None:
        self._types = types
        self._require_lease = require_lease
        self._meter: Meter | None = None
        self._readers: dict[str, SourceReader] = {}
        self._writers: dict[str, SinkWriter] = {}
        self.token: Mapping[str, Any] | None = None  # of the snapshot that the guest was restored from, or the newest

    # Guests of ABI v0

    def now(self, machine: Machine, view: memoryview, *, upload: bool) -> int | None:
        """Move bytes where nothing need be waited for, and nothing opened; None where `download` or `upload` must.

        A host function calls this while the guest runs: a chunk whose bytes are ready costs no task switch.

        Raises:
            StreamError: A source or sink cannot be used.
            ConcurrentExecutionError: This worker may no longer write.
        """
        if upload:
            name = _only(machine.pinned.sinks, "upload")
            sink = self._writers.get(name) if name is not None else None
            if name is None or sink is None or not view or machine.upload_closed:
                return None
            self._require_lease()
            return self._uploaded(machine, view, name) if sink.write_now(machine.written, view) else None
        name = _only(machine.pinned.sources, "download")
        source = self._readers.get(name) if name is not None else None
        if name is None or source is None:
            return None
        count = source.read_now(machine.read, view)
        return None if count is None else self._downloaded(machine, view, name, count)

    async def download(self, machine: Machine, view: memoryview) -> int | None:
        """Fill `view` from the source; how many bytes, or None where the session has no such source."""
        name = _only(machine.pinned.sources, "download")
        return None if name is None else await self._read(machine, view, name)

    async def upload(self, machine: Machine, view: memoryview) -> int | None:
        """Write `view` to the sink; how many bytes, or None where the session has no such sink."""
        name = _only(machine.pinned.sinks, "upload")
        if name is None:
            return None
        if not view:
            machine.upload_closed = True
            return 0
        return await self._write(machine, view, name)

    # Guests that name their streams

    async def read(self, machine: Machine, view: memoryview, name: str) -> int | None:
        """Fill `view` from the source `name`, "" for the only one; how many bytes, or None where there is none such."""
        found = _named(machine.pinned.sources, name)
        return None if found is None else await self._read(machine, view, found)

    async def write(self, machine: Machine, view: memoryview, name: str) -> int | None:
        """Write `view` to the sink `name`, "" for the only one; how many bytes, or None where there is none such.

        Nothing closes it, and then it takes no more: that gives -1.
        """
        found = _named(machine.pinned.sinks, name)
        if found is None:
            return None
        if not view:
            machine.closed = frozenset({*machine.closed, found})
            return 0
        return -1 if found in machine.closed else await self._write(machine, view, found)

    # Both

    async def _read(self, machine: Machine, view: memoryview, name: str) -> int:
        source = self._readers.get(name)
        if source is None:
            source = self._readers[name] = await self._types.open_source(machine.pinned.sources[name])
        at = _position(machine, name, machine.read)
        count = source.read_now(at, view)
        if count is None:
            count = await source.read_into(at, view)
        return self._downloaded(machine, view, name, count)

    def _downloaded(self, machine: Machine, view: memoryview, name: str, count: int) -> int:
        machine.read += count
        if machine.positions is not None:
            machine.positions[name] = machine.positions.get(name, 0) + count
        if (meter := self._metered(machine)) is not None:
            at, last = _position(machine, name, machine.read), count < len(view)
            meter.moved(name, "download", at, at if last else self._readers[name].length, last=last)
        return count

    async def _write(self, machine: Machine, view: memoryview, name: str) -> int:
        sink = await self._opened_sink(machine, name)
        at = _position(machine, name, machine.written)
        self._require_lease()
        if not sink.write_now(at, view):
            await sink.write(at, view)
        return self._uploaded(machine, view, name)

    def _uploaded(self, machine: Machine, view: memoryview, name: str) -> int:
        machine.crc = isal_zlib.crc32(view, machine.crc)
        machine.written += len(view)
        if machine.positions is not None:
            machine.positions[name] = machine.positions.get(name, 0) + len(view)
        if (meter := self._metered(machine)) is not None:
            meter.moved(name, "upload", _position(machine, name, machine.written), None, last=False)
        return len(view)

    def _metered(self, machine: Machine) -> Meter | None:
        """Who tells of progress; None where nobody listens, or the guest repeats its past."""
        if self._types.progress is None or machine.replaying:
            return None
        if self._meter is None:
            self._meter = Meter(self._types.progress, machine.id)
        return self._meter

    async def _opened_sink(self, machine: Machine, name: str) -> SinkWriter:
        sink = self._writers.get(name)
        if sink is None:
            token = self.token if machine.positions is None else (self.token or {}).get(name)
            sink = self._writers[name] = await self._types.open_sink(machine.pinned.sinks[name], machine.run, token)
        return sink

    # At a snapshot, and at the end

    async def sync(self, machine: Machine) -> Mapping[str, Any] | None:
        """Make what was written so far durable, before a snapshot counts on it; the sink's token for it.

        Of a guest that names its sinks it is their tokens, by name.
        """
        tokens: dict[str, Mapping[str, Any]] = {}
        for name in _sinks(machine):
            if at := _position(machine, name, machine.written):
                sink = await self._opened_sink(machine, name)
                tokens[name] = _bounded(await sink.sync(at), name)
        return next(iter(tokens.values()), None) if machine.positions is None else tokens or None

    async def finished(self, machine: Machine) -> Publishing | None:
        """The guest has ended: what is to be published, all of it durable."""
        sinks = {}
        for name in _sinks(machine):
            sink = await self._opened_sink(machine, name)
            length = _position(machine, name, machine.written)
            digest, token = await sink.finish(length)
            if (meter := self._metered(machine)) is not None:
                meter.moved(name, "upload", length, length, last=True)
            sinks[name] = (length, digest, _bounded(token, name))
        return Publishing(sinks) if sinks else None

    async def publish(self, machine: Machine) -> None:
        """Give the sinks their names; after a crash again, which changes nothing."""
        publishing = machine.record.publishing
        assert publishing is not None, "a publishing run knows its sinks"
        written, self._writers = self._writers, {}  # still open, unless the run comes back here
        await self.close()
        for name, (length, digest, token) in publishing.sinks.items():
            sink = written.pop(name, None) or await self._types.open_sink(machine.pinned.sinks[name], machine.run, None)
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
        written = self._writers.pop(name, None)  # it may know what only it has begun
        try:
            sink = written or await self._types.open_sink(machine.pinned.sinks[name], machine.run, None)
            try:
                await sink.discard()
            finally:
                await sink.close()
        except (BlockedError, OSError) as error:
            logger.warning("the part of %s stays: %s", machine, error)

    @property
    def are_open(self) -> bool:
        """Whether there is anything to close."""
        return bool(self._readers or self._writers)

    async def close(self) -> None:
        """Give up what is open; parts stay."""
        readers, self._readers = self._readers, {}
        writers, self._writers = self._writers, {}
        for reader in readers.values():
            await reader.close()
        for writer in writers.values():
            await writer.close()


def _position(machine: Machine, name: str, total: int) -> int:
    """How far the guest is in a stream, in bytes: in all, where it has only the one."""
    return total if machine.positions is None else machine.positions.get(name, 0)


def _sinks(machine: Machine) -> Iterable[str]:
    """The sinks that the guest can write to."""
    if machine.positions is not None:
        return machine.pinned.sinks
    name = _only(machine.pinned.sinks, "upload")
    return () if name is None else (name,)


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
