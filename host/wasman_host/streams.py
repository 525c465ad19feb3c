"""Sources and sinks: how a guest's streams reach the outside world, and come back after a crash.

Streams are not logged. A source is read again from an offset, so it must still be what it was; a sink is written at
absolute offsets of a part that belongs to the run, so a stale owner writes the bytes that are there already. A type of
source or sink is known by a tag that is persisted with the session.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
from attrs import define, field

from wasman_host.errors import SourceChangedError, StreamError
from wasman_host.progress import ProgressCallback
from wasman_host.record import StreamSpec

__all__ = ["FileSink", "FileSource", "SinkWriter", "SourceReader", "StreamTypes", "identify_file"]

_CHUNK = 1024 * 1024
_FOLLOW = 8 * 1024 * 1024  # bytes that gather before a thread takes them into the digest
_AHEAD = 8 * 1024 * 1024  # bytes that the kernel is asked to fetch where a read had to wait for the disk
_READ_AHEAD: int | None = getattr(os, "POSIX_FADV_WILLNEED", None)
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)


class SourceReader(ABC):
    """An open source: bytes that can be read again from any offset."""

    @abstractmethod
    async def read_into(self, offset: int, view: memoryview) -> int:
        """Fill `view` with the bytes from `offset` on; fewer than its length only where the source ends.

        Raises:
            StreamError: The source cannot be read; retries are over.
        """

    def read_now(self, offset: int, view: memoryview) -> int | None:  # noqa: ARG002  a source that always waits
        """The same where nothing need be waited for; None where something must be. Raises `StreamError`."""
        return None

    @property
    def length(self) -> int | None:
        """Bytes that it has, where that is known: only for those who follow the progress."""
        return None

    async def close(self) -> None:  # noqa: B027  most have nothing open
        """Give up what is open."""


class SinkWriter(ABC):
    """An open sink: bytes at absolute offsets of a part that belongs to the run, published in one step at its end.

    Whoever opens it again for the same run writes the same bytes to the same offsets, perhaps while the one before
    still does. What was written behind the last snapshot is written again.
    """

    @abstractmethod
    async def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view` at `offset`, where the last one ended. `view` is the guest's memory: copy what is kept.

        Raises:
            StreamError: It cannot be written; retries are over.
        """

    def write_now(self, offset: int, view: memoryview) -> bool:  # noqa: ARG002  a sink that always waits
        """The same where nothing need be waited for; False, with nothing written, where something must be."""
        return False

    @abstractmethod
    async def sync(self, length: int) -> Mapping[str, Any]:
        """Make the first `length` bytes durable. The token to go on behind them: JSON, at most 256 KiB, its own."""

    async def digest(self, length: int) -> str:  # noqa: ARG002  nothing to compare
        """sha256 of the first `length` bytes, in hex; "" for a sink that compares nothing when it is published."""
        return ""

    async def finish(self, length: int) -> tuple[str, Mapping[str, Any]]:
        """Nothing comes behind the first `length` bytes: make them durable. Their digest, and the token to publish."""
        found: list[str] = []

        async def take_digest() -> None:
            found.append(await self.digest(length))

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take_digest)
                token = await self.sync(length)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        if not found:  # this task is being cancelled, and only the other half of it has felt that
            await anyio.lowlevel.checkpoint()
            found.append(await self.digest(length))
        return found[0], token

    @abstractmethod
    async def publish(self, length: int, digest: str, token: Mapping[str, Any]) -> None:
        """Give the part its final name, `length` bytes with that sha256. Idempotent. Raises `StreamError`."""

    @abstractmethod
    async def discard(self) -> None:
        """The run has ended without a result: drop the part."""

    async def close(self) -> None:  # noqa: B027  most have nothing open
        """Give up what is open; the part stays."""


@define
class StreamTypes:
    """The known types of sources and sinks, by their persisted tag.

    Attributes:
        sources: tag -> opener(spec).
        sinks: tag -> opener(spec, run, token of the last snapshot or None).
        progress: Who is told how far they are, or None.
    """

    sources: dict[str, Callable[[StreamSpec], Awaitable[SourceReader]]] = field(factory=dict)
    sinks: dict[str, Callable[[StreamSpec, str, Mapping[str, Any] | None], Awaitable[SinkWriter]]] = field(factory=dict)
    progress: ProgressCallback | None = None

    async def open_source(self, spec: StreamSpec) -> SourceReader:
        """Open a source. Raises `StreamError` for an unknown type and what the type's opener raises."""
        if spec.type not in self.sources:
            message = f"no source type {spec.type!r} is registered with this worker; register it, then unblock"
            raise StreamError(message)
        return await self.sources[spec.type](spec)

    async def open_sink(self, spec: StreamSpec, run: str, token: Mapping[str, Any] | None) -> SinkWriter:
        """Open a sink. Raises `StreamError` for an unknown type and what the type's opener raises."""
        if spec.type not in self.sinks:
            message = f"no sink type {spec.type!r} is registered with this worker; register it, then unblock"
            raise StreamError(message)
        return await self.sinks[spec.type](spec, run, token)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(descriptor: int, length: int) -> str:
    digest = hashlib.sha256()
    at = 0
    while at < length and (part := os.pread(descriptor, min(_CHUNK, length - at), at)):
        digest.update(part)
        at += len(part)
    return digest.hexdigest() if at == length else ""


def identify_file(path: Path, *, with_digest: bool = False) -> dict[str, Any]:
    """What tells whether a file is still the same: its length, modification time and, on request, sha256.

    Raises:
        OSError: It cannot be opened.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        identity: dict[str, Any] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        if with_digest:
            identity["sha256"] = _sha256(file.fileno(), status.st_size)
    return identity


class FileSource(SourceReader):
    """A file, read on the event loop's own thread where the page cache has it, and by another where the disk is asked.

    Where the kernel cannot tell the two apart, or will not for this file system, it is read on the event loop's thread.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self._path, self._descriptor, self._size = path, descriptor, size
        self._flags = _NOWAIT

    @classmethod
    async def open(cls, spec: StreamSpec) -> FileSource:
        """Open the file again; raises `SourceChangedError` where it is not the one that the run was started with."""
        path = Path(spec.config["path"])
        try:
            found = await anyio.to_thread.run_sync(
                lambda: identify_file(path, with_digest=spec.identity.get("sha256") is not None)
            )
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            message = f"the source {path} cannot be opened ({error.strerror}); put it back, then unblock"
            raise StreamError(message) from error
        if found != dict(spec.identity):
            os.close(descriptor)
            message = (
                f"the source {path} has changed since the run started (it was {dict(spec.identity)}, it is {found}); "
                f"put the old one back, then unblock, or terminate and start anew"
            )
            raise SourceChangedError(message)
        return cls(path, descriptor, found["size"])

    @property
    def length(self) -> int:
        """See `SourceReader`."""
        return self._size

    async def read_into(self, offset: int, view: memoryview) -> int:
        """See `SourceReader`."""
        return await anyio.to_thread.run_sync(self._read, offset, view)

    def read_now(self, offset: int, view: memoryview) -> int | None:
        """See `SourceReader`."""
        wanted = min(len(view), self._size - offset)
        if wanted <= 0:
            return 0
        if wanted < len(view):
            view = view[:wanted]
        try:
            got = os.preadv(self._descriptor, (view,), offset, self._flags)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or not self._flags:
                raise StreamError(self._unreadable(error)) from error
            self._flags = 0
            return self.read_now(offset, view)
        return got if got == wanted else None

    def _read(self, offset: int, view: memoryview) -> int:
        """In a thread: what is missing, and have the kernel fetch what comes after it."""
        wanted = min(len(view), self._size - offset)
        done = 0
        try:
            if _READ_AHEAD is not None:
                os.posix_fadvise(self._descriptor, offset, max(_AHEAD, wanted), _READ_AHEAD)
            while done < wanted:
                got = os.preadv(self._descriptor, [view[done:wanted]], offset + done)
                if not got:
                    message = f"the source {self._path} was cut while it was read; put it back, then unblock"
                    raise SourceChangedError(message)
                done += got
        except OSError as error:
            raise StreamError(self._unreadable(error)) from error
        return done

    def _unreadable(self, error: OSError) -> str:
        return f"the source {self._path} cannot be read ({error.strerror}); mend that, then unblock"

    async def close(self) -> None:
        """See `SourceReader`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@functools.cache
def _hashers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "wasman digest")


class _RunningDigest:
    """The sha256 of a file that is being written, taken by a thread behind the writer, out of the page cache.

    What stands before the place up to which a run has written is final: whoever writes it again writes the same bytes.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._work: Future[None] | None = None
        self._stopping = False

    def follow(self, end: int) -> None:
        """What comes before `end` is written: take up what has gathered, if it is enough."""
        if end - self._hashed < _FOLLOW or (self._work is not None and not self._work.done()):
            return
        self._work = _hashers().submit(self._go_on, end)

    def _go_on(self, end: int) -> None:
        while not self._stopping and self._hashed < end:
            part = os.pread(self._descriptor, min(_CHUNK, end - self._hashed), self._hashed)
            if not part:
                return
            self._digest.update(part)
            self._hashed += len(part)

    def of(self, length: int) -> str:
        """In a thread: the digest of the first `length` bytes, "" where there are not that many."""
        self._rest()
        if self._hashed > length:  # what was written further is not part of it
            return _sha256(self._descriptor, length)
        self._go_on(length)
        return self._digest.hexdigest() if self._hashed == length else ""

    def stop(self) -> None:
        """The descriptor is about to be closed."""
        self._stopping = True
        self._rest()

    def _rest(self) -> None:
        """Nothing is under way behind this. What the thread could not read is read by `of`, which tells of it."""
        work, self._work = self._work, None
        if work is not None and not work.cancel():
            wait((work,))


class FileSink(SinkWriter):
    """A file that appears under its name complete or not at all; until then its part lies beside it."""

    def __init__(self, path: Path, part: Path, descriptor: int) -> None:
        self._path, self._part, self._descriptor = path, part, descriptor
        self._named = False
        self._running = _RunningDigest(descriptor)
        self._taken: tuple[int, str, int, int] | None = None  # a digest's length and value, the file's size and time

    @classmethod
    async def open(cls, spec: StreamSpec, run: str, token: Mapping[str, Any] | None) -> FileSink:
        """Open the run's part; a part that lacks bytes which a snapshot counts on is damage."""
        path = Path(spec.config["path"])
        part = path.with_name(f"{path.name}.{run}.part")
        needed = int(token["length"]) if token else 0
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            message = f"the sink {part} cannot be opened ({error.strerror}); mend that, then unblock"
            raise StreamError(message) from error
        size = os.fstat(descriptor).st_size
        if size < needed:
            os.close(descriptor)
            if not size:
                part.unlink(missing_ok=True)
            message = f"the sink {part} holds {size} of the {needed} bytes that were written; put it back, then unblock"
            raise StreamError(message)
        return cls(path, part, descriptor)

    async def write(self, offset: int, view: memoryview) -> None:
        """See `SinkWriter`."""
        self.write_now(offset, view)

    def write_now(self, offset: int, view: memoryview) -> bool:
        """See `SinkWriter`. The page cache takes it."""
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], offset + done)
        except OSError as error:
            message = f"the sink {self._part} cannot be written ({error.strerror}); mend that, then unblock"
            raise StreamError(message) from error
        self._running.follow(offset + done)
        return True

    async def sync(self, length: int) -> Mapping[str, Any]:
        """See `SinkWriter`."""
        try:
            await anyio.to_thread.run_sync(self._sync)
        except OSError as error:
            message = f"the sink {self._part} cannot be synced ({error.strerror}); mend that, then unblock"
            raise StreamError(message) from error
        return {"length": length}

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        if not self._named:
            _sync_folder(self._part.parent)
            self._named = True

    async def digest(self, length: int) -> str:
        """See `SinkWriter`."""
        return await anyio.to_thread.run_sync(self._digest, length)

    def _digest(self, length: int) -> str:
        before = os.fstat(self._descriptor)
        digest = self._running.of(length)
        self._taken = (length, digest, before.st_size, before.st_mtime_ns)
        return digest

    async def publish(self, length: int, digest: str, token: Mapping[str, Any]) -> None:  # noqa: ARG002  a file is its name
        """See `SinkWriter`."""
        try:
            await anyio.to_thread.run_sync(self._publish, length, digest)
        except OSError as error:
            message = f"the sink {self._path} cannot be published ({error.strerror}); mend that, then unblock"
            raise StreamError(message) from error

    def _publish(self, length: int, digest: str) -> None:
        status = os.fstat(self._descriptor)
        untouched = self._taken == (length, digest, status.st_size, status.st_mtime_ns)
        if untouched or (status.st_size >= length and _sha256(self._descriptor, length) == digest):
            # A stale owner may have written further; its bytes are not part of the result.
            os.ftruncate(self._descriptor, length)
            os.fsync(self._descriptor)
            self._part.replace(self._path)
        else:
            # Published before a crash: opening the part has made a new, empty one.
            with self._path.open("rb") as published:
                same = os.fstat(published.fileno()).st_size == length and _sha256(published.fileno(), length) == digest
            if not same:
                message = f"the sink {self._part} no longer holds what the guest wrote; put it back, then unblock"
                raise StreamError(message)
            if not status.st_size:
                self._part.unlink(missing_ok=True)
        _sync_folder(self._path.parent)

    async def discard(self) -> None:
        """See `SinkWriter`."""
        self._part.unlink(missing_ok=True)

    async def close(self) -> None:
        """See `SinkWriter`."""
        self._running.stop()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
