"""Channels as an application sees them: a guest at one end, its own tasks at the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from wasman_host import channels
from wasman_host.errors import InvalidArgumentError
from wasman_sdk._streams import Sink, Source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["Channel", "ChannelSink", "ChannelSource"]


def _known(name: str, end: str) -> Mapping[str, Any]:
    if channels.channel_named(name) is None:
        message = (
            f"the {end} is channel {name[:8]}, which is not in this process: hold it for as long as the run goes on, "
            f"and start the run where its worker is"
        )
        raise InvalidArgumentError(message)
    return {}


class ChannelSource(Source):
    """The end of a channel that a guest downloads from; `Channel.source` makes it.

    Attributes:
        name: The channel's name.
    """

    type_tag: ClassVar[str] = channels.TAG

    known_without_identity: ClassVar[bool] = True

    name: str

    async def identity(self) -> Mapping[str, Any]:
        """See `Stream`."""
        return _known(self.name, "source")


class ChannelSink(Sink):
    """The end of a channel that a guest uploads to; `Channel.sink` makes it.

    Attributes:
        name: The channel's name.
    """

    type_tag: ClassVar[str] = channels.TAG

    name: str

    async def identity(self) -> Mapping[str, Any]:
        """See `Stream`."""
        return _known(self.name, "sink")


class Channel(channels.Channel):
    """Bytes from one task to another within one process and event loop, with back-pressure, in constant memory.

    Give its `source` or its `sink` to a session, and use the other end here: `send` and `send_eof` what the guest is to
    download, `receive` what it uploads (`async for chunk in channel`). One guest's sink may be another one's source.

    It is not durable. A run that is taken up again in this process goes on with the same channel: what it uploads again
    is skipped, and what it downloads again must still be kept. In any other process the run is blocked by
    `StreamError`, which says so.

    Args:
        capacity: Bytes that may wait in it before a sender has to wait. A chunk is taken whole, and a guest that asks
            for more at once gets it.
        keep: Bytes that stay behind the place up to which they were taken, so that a run which comes back after a crash
            of its worker may read them again; None for all of them.

    Attributes:
        name: The word by which runs know it.
        capacity: See above.
        sent: Bytes that were put into it so far.
        received: Bytes that were taken out so far.

    Raises:
        InvalidArgumentError: A number makes no sense.
    """

    @property
    def source(self) -> ChannelSource:
        """What a session downloads from."""
        return ChannelSource(name=self.name)

    @property
    def sink(self) -> ChannelSink:
        """What a session uploads to."""
        return ChannelSink(name=self.name)
