"""Channels: bytes from one task of a process to another, with a guest at either end.

A channel is a queue of chunks that takes more only while fewer than `capacity` bytes wait in it. A run names it by a
random word, and finds it again only in the process where it was made: it is not durable. What that leaves of coming
back, within the process:

- **As a source** it is read again from any offset that it still has. It keeps `keep` bytes behind the place up to which
  it was read. A run that needs older ones is blocked.
- **As a sink** it belongs to the first run that writes to it. A run that comes back writes the same bytes again to the
  same offsets; those that were handed on before are skipped. Its end is told only when the run has completed.

No chunk is copied but once: out of a guest's memory into bytes, or out of the sender's bytes into a guest's memory.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream
from typing_extensions import override

from wasman_host.errors import InvalidArgumentError, StreamError
from wasman_host.streams import SinkWriter, SourceReader
from wasman_host.wake import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wasman_host.record import StreamSpec

__all__ = ["TAG", "Channel", "ChannelSink", "ChannelSource", "channel_named"]

TAG = "channel"
_CAPACITY = 1024 * 1024
_RECEIVED = 65536

_channels: WeakValueDictionary[str, Channel] = WeakValueDictionary()


def channel_named(name: str) -> Channel | None:
    """The channel of this process that has that name, or None."""
    return _channels.get(name)


class Channel(ByteStream):
    """Bytes from one task to another within one process and event loop, with back-pressure, in constant memory.

    Give its `source` or its `sink` to a session, and use the other end here: `send` and `send_eof` what the guest is to
    download, `receive` what it uploads. One guest's sink may be another one's source.

    Attributes:
        name: The word by which runs know it.
        capacity: Bytes that may wait in it before a sender has to wait.
        sent: Bytes that were put into it so far.
        received: Bytes that were taken out so far.
    """

    def __init__(self, *, capacity: int = _CAPACITY, keep: int | None = 0) -> None:
        """An empty channel.

        Args:
            capacity: Bytes that may wait in it before a sender has to wait. A chunk is taken whole, and a guest that
                asks for more at once gets it.
            keep: Bytes that stay behind the place up to which they were taken, so that a run which comes back after a
                crash of its worker may read them again; None for all of them.

        Raises:
            InvalidArgumentError: A number makes no sense.
        """
        if capacity < 1 or (keep is not None and keep < 0):
            message = f"a channel has room for a byte at least, and keeps 0 or more; not {capacity} and {keep}"
            raise InvalidArgumentError(message)
        self.name = secrets.token_hex(16)
        self.capacity = capacity
        self.sent = 0
        self.received = 0
        self._keep = keep
        self._ahead: deque[bytes] = deque()  # what waits; of its first chunk `_head` bytes were taken
        self._head = 0
        self._behind: deque[bytes] = deque()  # chunks that were taken and are kept
        self._behind_size = 0
        self._asked = 0  # bytes that a receiver waits for at once
        self._ended = False
        self._closed = False
        self._broken = ""
        self._run = ""  # that writes to it
        self._readers: list[Answer[None]] = []
        self._writers: list[Answer[None]] = []
        _channels[self.name] = self

    def __repr__(self) -> str:
        return f"<channel {self.name[:8]}: {self.sent} bytes sent, {self.received} received>"

    # The application's ends

    @override
    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Put bytes in; waits while there is no room.

        Raises:
            anyio.ClosedResourceError: It was closed, or its end was told.
        """
        if self._full:
            await self._room()
        self._check_open()
        if len(item):
            self._put(item if type(item) is bytes else bytes(item))

    @override
    async def send_eof(self) -> None:
        """Tell that nothing more comes; whoever receives gets what is left, then the end."""
        self._ended = True
        self._wake(self._readers)

    @override
    async def receive(self, max_bytes: int = _RECEIVED) -> bytes:
        """Take at least one and at most `max_bytes` bytes; waits while there are none.

        Raises:
            anyio.EndOfStream: There are no more.
            anyio.BrokenResourceError: The run that writes to it has ended without a result.
            anyio.ClosedResourceError: It was closed.
        """
        while not self._ahead:
            if self._broken:
                raise anyio.BrokenResourceError(self._broken)
            if self._ended:
                raise anyio.EndOfStream
            self._check_open()
            await self._more()
        chunk = self._ahead[0]
        count = min(len(chunk) - self._head, max_bytes)
        taken = chunk if count == len(chunk) else chunk[self._head : self._head + count]
        self._advance(count)
        return taken

    @override
    async def aclose(self) -> None:
        """Give both ends up. A guest that still reads or writes is blocked, unless its end was told before."""
        self._closed = True
        self._wake(self._readers)
        self._wake(self._writers)
        await anyio.lowlevel.checkpoint()

    # The guest's ends

    def belongs(self, run: str) -> bool:
        """Whether `run` may write to it: the first that does is the only one."""
        self._run = self._run or run
        return self._run == run

    def seek(self, offset: int) -> None:
        """Go back to where a guest reads again. Raises `StreamError` where those bytes are gone, or never were here."""
        while self._behind and offset < self.received - self._head:
            chunk = self._behind.pop()
            self._behind_size -= len(chunk)
            self._ahead.appendleft(chunk)
            self.received -= self._head + len(chunk)
            self._head = 0
        first = self.received - self._head
        if not first <= offset <= self.sent:
            message = (
                f"channel {self.name[:8]} has bytes {first} to {self.sent} of what was sent, and the run goes on at "
                f"byte {offset}; terminate it and start anew, with a channel that keeps more (Channel(keep=...))"
            )
            raise StreamError(message)
        if offset < self.received:
            self._head -= self.received - offset
            self.received = offset
        elif offset > self.received:
            self._advance(offset - self.received)

    def take(self, view: memoryview) -> int | None:
        """Fill `view` with what comes next, less only at the end; None, with nothing taken, while that is not there."""
        waiting = self.sent - self.received
        count = len(view)
        if waiting < count:
            if not self._ended:
                if self._closed:
                    message = f"channel {self.name[:8]} was closed before its end was told; terminate the run"
                    raise StreamError(message)
                return None
            count = waiting
        done = 0
        while done < count:
            chunk = self._ahead[0]
            head = self._head
            part = min(len(chunk) - head, count - done)
            view[done : done + part] = chunk if part == len(chunk) else memoryview(chunk)[head : head + part]
            done += part
            self._advance(part)
        return count

    async def wait_for(self, count: int) -> None:
        """Until `count` bytes may be there, or something else has changed."""
        self._asked = count
        if self.sent - self.received < count:
            self._wake(self._writers)
        try:
            await self._more()
        finally:
            self._asked = 0

    def put_at(self, offset: int, view: memoryview) -> bool:
        """Put in what of `view` was not put in before; False, with nothing done, while there is no room."""
        known = self.sent - offset
        if known < 0:
            message = (
                f"channel {self.name[:8]} was given {self.sent} bytes, and the run goes on at byte {offset}: the rest "
                f"is lost; terminate the run and start anew"
            )
            raise StreamError(message)
        if known >= len(view):
            return True
        if self._closed or self._ended:
            message = f"channel {self.name[:8]} was closed, and the guest still writes to it; terminate the run"
            raise StreamError(message)
        if self._full:
            return False
        self._put(bytes(view[known:] if known else view))
        return True

    async def room(self) -> None:
        """Until there may be room again."""
        await self._room()

    def give_up(self, reason: str) -> None:
        """Whoever receives gets what is left, then `reason` as an error."""
        self._broken = reason
        self._wake(self._readers)

    # Inside

    @property
    def _full(self) -> bool:
        return self.sent - self.received >= max(self.capacity, self._asked) and not (self._closed or self._ended)

    def _check_open(self) -> None:
        if self._closed or self._ended:
            raise anyio.ClosedResourceError

    def _put(self, chunk: bytes) -> None:
        self._ahead.append(chunk)
        self.sent += len(chunk)
        if self._readers and self.sent - self.received >= self._asked:
            self._wake(self._readers)

    def _advance(self, count: int) -> None:
        """`count` bytes of what waits are taken."""
        self.received += count
        self._head += count
        while self._ahead and self._head >= len(self._ahead[0]):
            chunk = self._ahead.popleft()
            self._head -= len(chunk)
            if self._keep != 0:
                self._behind.append(chunk)
                self._behind_size += len(chunk)
                while self._keep is not None and self._behind_size - len(self._behind[0]) >= self._keep:
                    self._behind_size -= len(self._behind.popleft())
        # Senders are woken when half is free, so that tasks change less often than chunks do.
        if self._writers and 2 * (self.sent - self.received) <= self.capacity:
            self._wake(self._writers)

    async def _more(self) -> None:
        answer: Answer[None] = Answer()
        self._readers.append(answer)
        await answer.wait()

    async def _room(self) -> None:
        while self._full:
            answer: Answer[None] = Answer()
            self._writers.append(answer)
            await answer.wait()

    @staticmethod
    def _wake(waiting: list[Answer[None]]) -> None:
        for answer in waiting:
            answer.set(None)
        waiting.clear()


class ChannelSource(SourceReader):
    """A guest's end of a channel that it downloads from."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    async def open(cls, spec: StreamSpec) -> ChannelSource:
        """Find the channel again; raises `StreamError` where it is not of this process."""
        channel = channel_named(spec.config["name"])
        if channel is None:
            raise StreamError(_gone(spec))
        return cls(channel)

    @override
    async def read_into(self, offset: int, view: memoryview) -> int:
        channel = self._channel
        channel.seek(offset)
        while (taken := channel.take(view)) is None:
            await channel.wait_for(len(view))
        return taken

    @override
    def read_now(self, offset: int, view: memoryview) -> int | None:
        channel = self._channel
        if offset != channel.received:
            channel.seek(offset)
        return channel.take(view)

    @override
    async def close(self) -> None:
        """See `SourceReader`."""


class ChannelSink(SinkWriter):
    """A guest's end of a channel that it uploads to."""

    def __init__(self, channel: Channel | None, spec: StreamSpec, run: str) -> None:
        self._channel, self._spec, self._run = channel, spec, run

    @classmethod
    async def open(cls, spec: StreamSpec, run: str, token: Mapping[str, Any] | None) -> ChannelSink:
        """Find the channel again; raises `StreamError` where it is not the one that the run has written to."""
        channel = channel_named(spec.config["name"])
        if channel is not None:
            if not channel.belongs(run):
                message = f"channel {channel.name[:8]} is written by another run; terminate run {run}"
                raise StreamError(message)
            if token is not None and channel.sent < token["length"]:
                message = (
                    f"channel {channel.name[:8]} was given {channel.sent} of the {token['length']} bytes that the run "
                    f"has written; terminate the run and start anew"
                )
                raise StreamError(message)
        return cls(channel, spec, run)

    def _open(self) -> Channel:
        if self._channel is None:
            raise StreamError(_gone(self._spec))
        return self._channel

    @override
    async def write(self, offset: int, view: memoryview) -> None:
        channel = self._open()
        while not channel.put_at(offset, view):
            await channel.room()

    @override
    def write_now(self, offset: int, view: memoryview) -> bool:
        return self._open().put_at(offset, view)

    @override
    async def sync(self, length: int) -> Mapping[str, Any]:
        self._open()
        return {"length": length}

    @override
    async def digest(self, length: int) -> str:
        """Nothing is kept that could be compared."""
        return ""

    @override
    async def publish(self, length: int, digest: str, token: Mapping[str, Any]) -> None:
        """The end. Where the channel has gone with its process, there is nobody to tell."""
        if self._channel is not None:
            await self._channel.send_eof()

    @override
    async def discard(self) -> None:
        if self._channel is not None:
            self._channel.give_up(f"run {self._run}, which writes to {self._channel!r}, has ended without a result")

    @override
    async def close(self) -> None:
        """See `SinkWriter`."""


def _gone(spec: StreamSpec) -> str:
    return (
        f"channel {spec.config['name'][:8]} of the session is not in this process: channels are not durable, and live "
        f"as long as the program that made them holds them; terminate the run and start anew"
    )
