"""gzip on the way: a guest reads and writes plain bytes, and what lies outside are gzip members (RFC 1952).

All offsets that a guest and its snapshots know are of plain bytes.

- **A source** is inflated from its first byte on. Coming back to an offset is to inflate again all that is before it.
- **A sink** cuts the plain bytes into blocks of 64 KiB, and each is a member of its own. So what is written depends on
  the plain bytes alone, and not on when the run was synced or interrupted: whoever writes again writes the same bytes
  to the same places. The block that is not complete yet goes along in the sink's token, uncompressed. Another zlib may
  make other bytes of a block, so its version is pinned with the sink.
"""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from typing_extensions import override

from wasman_host.errors import StreamError
from wasman_host.streams import SinkWriter, SourceReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wasman_host.record import StreamSpec

__all__ = ["GunzipSource", "GzipSink", "gzip_identity", "gzip_token"]

_GZIP = 16 + zlib.MAX_WBITS  # one gzip member, header and checksums included
_LEVEL = 6
_BLOCK = 64 * 1024  # plain bytes of a member
_IN = 256 * 1024  # bytes that are read at once
_OUT = 1024 * 1024  # plain bytes that are made of them at once


def gzip_identity() -> dict[str, Any]:
    """What a sink pins, so that whoever goes on writes the same bytes."""
    return {"zlib": zlib.ZLIB_RUNTIME_VERSION}


def gzip_token(token: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The token of the sink within."""
    return token["inner"] if token else None


class GunzipSource(SourceReader):
    """The plain bytes of a source of gzip members."""

    def __init__(self, inner: SourceReader, name: str) -> None:
        self._inner, self._name = inner, name
        self._begin()

    def _begin(self) -> None:
        self._inflating = zlib.decompressobj(_GZIP)
        self._between = True  # two members, or before the first
        self._taken = 0  # bytes of the source
        self._pending = b""  # of these, what was not inflated yet
        self._at = 0  # where `_rest` begins
        self._rest = memoryview(b"")
        self._ended = False

    @override
    async def read_into(self, offset: int, view: memoryview) -> int:
        if offset < self._at:
            self._begin()
        done = 0
        while done < len(view):
            self._skip(offset + done - self._at)
            if self._rest:
                done += self._take(view[done:])
            elif not await self._more():
                break
        return done

    @override
    def read_now(self, offset: int, view: memoryview) -> int | None:
        if offset != self._at or (len(self._rest) < len(view) and not self._ended):
            return None
        return self._take(view)

    def _take(self, view: memoryview) -> int:
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._skip(count)
        return count

    def _skip(self, count: int) -> None:
        count = min(count, len(self._rest))
        self._rest = self._rest[count:]
        self._at += count

    async def _more(self) -> bool:
        """Inflate what comes next; False at the end."""
        while not self._ended:
            last = False
            if not self._pending:
                self._pending = await self._read()
                last = not self._pending
            self._rest = memoryview(await anyio.to_thread.run_sync(self._inflate, last))
            if self._rest:
                return True
        return False

    async def _read(self) -> bytes:
        block = memoryview(bytearray(_IN))
        count = self._inner.read_now(self._taken, block)
        if count is None:
            count = await self._inner.read_into(self._taken, block)
        self._taken += count
        return bytes(block[:count])

    def _inflate(self, last: bool) -> bytes:  # noqa: FBT001  run_sync passes by position
        """In a thread: some of what is pending; `last` where the source has no more."""
        if self._between:
            if self._taken != len(self._pending):
                self._pending = self._pending.lstrip(b"\0")  # tapes and some writers fill up with zeros
            if not self._pending:
                if not self._taken:
                    raise self._broken("is empty")
                self._ended = last
                return b""
        try:
            data = self._inflating.decompress(self._pending, _OUT)
        except zlib.error as error:
            raise self._broken(f"is damaged before its byte {self._taken} ({error})") from error
        self._between = self._inflating.eof
        if self._between:
            self._pending = self._inflating.unused_data
            self._inflating = zlib.decompressobj(_GZIP)
        else:
            self._pending = self._inflating.unconsumed_tail
            if last and not data:
                raise self._broken(f"ends in the middle of a gzip member, after {self._taken} bytes")
        return data

    def _broken(self, how: str) -> StreamError:
        return StreamError(
            f"the source {self._name} is to be inflated, and {how}: it is no gzip file, or was cut; terminate the run "
            f"and start anew with a whole one"
        )

    @override
    async def close(self) -> None:
        await self._inner.close()


class GzipSink(SinkWriter):
    """A sink that gets gzip members of the plain bytes."""

    def __init__(self, inner: SinkWriter, spec: StreamSpec, token: Mapping[str, Any] | None) -> None:
        self._inner = inner
        self._begun_with = spec.identity.get("zlib")
        self._at = int(token["plain"]) if token else 0  # plain bytes that were given
        self._block = bytearray(base64.b64decode(token["block"]) if token else b"")  # the last of them
        self._placed = int(token["placed"]) if token else 0  # bytes that all blocks before it have become

    def _check(self, offset: int) -> None:
        if self._begun_with != zlib.ZLIB_RUNTIME_VERSION:
            message = (
                f"the sink was begun with zlib {self._begun_with}, and this worker has {zlib.ZLIB_RUNTIME_VERSION}, "
                f"which may compress otherwise; unblock it where the former is, or terminate and start anew"
            )
            raise StreamError(message)
        if offset != self._at:
            message = f"the sink has {self._at} bytes, and the run goes on at byte {offset}; terminate and start anew"
            raise StreamError(message)

    @override
    async def write(self, offset: int, view: memoryview) -> None:
        if self.write_now(offset, view):
            return
        members, rest = await anyio.to_thread.run_sync(_cut, bytes(self._block) + bytes(view))
        await self._place(members)
        self._placed += len(members)
        self._block = bytearray(rest)
        self._at = offset + len(view)

    @override
    def write_now(self, offset: int, view: memoryview) -> bool:
        self._check(offset)
        if len(self._block) + len(view) >= _BLOCK:
            return False
        self._block += view
        self._at += len(view)
        return True

    async def _place(self, members: bytes) -> None:
        view = memoryview(members)
        if not self._inner.write_now(self._placed, view):
            await self._inner.write(self._placed, view)

    @override
    async def sync(self, length: int) -> Mapping[str, Any]:
        self._check(length)
        block = base64.b64encode(self._block).decode()
        return {**self._token(self._placed, await self._inner.sync(self._placed)), "block": block}

    def _token(self, placed: int, inner: Mapping[str, Any]) -> dict[str, Any]:
        return {"plain": self._at, "placed": placed, "inner": dict(inner)}

    @override
    async def finish(self, length: int) -> tuple[str, Mapping[str, Any]]:
        self._check(length)
        placed = self._placed
        if self._block or not self._at:  # no bytes at all are a member as well
            member = _member(self._block)
            await self._place(member)
            placed += len(member)
        digest, token = await self._inner.finish(placed)
        return digest, self._token(placed, token)

    @override
    async def publish(self, length: int, digest: str, token: Mapping[str, Any]) -> None:
        await self._inner.publish(token["placed"], digest, token["inner"])

    @override
    async def discard(self) -> None:
        await self._inner.discard()

    @override
    async def close(self) -> None:
        await self._inner.close()


def _member(block: bytes | bytearray | memoryview) -> bytes:
    deflating = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return deflating.compress(block) + deflating.flush()


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """In a thread: the members of all whole blocks, and what is left."""
    whole = len(data) - len(data) % _BLOCK
    view = memoryview(data)
    return b"".join(_member(view[at : at + _BLOCK]) for at in range(0, whole, _BLOCK)), data[whole:]
