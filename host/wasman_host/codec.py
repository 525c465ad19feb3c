"""The application's codec: what it makes of payloads before they are stored, such as encrypting or compressing them.

It sits at the border of what is stored. Inside the engine payloads are plain: guests and activities see plain bytes,
limits count them, and what a replay compares is made of them. A stored payload names the codec that has made it, so old
ones that have none are read as before, and a codec that is missing is told from damage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from attrs import evolve

from wasman_host.errors import InvalidArgumentError, PayloadCodecError
from wasman_host.payload import Payload

if TYPE_CHECKING:
    from wasman_host.oplog import Delivery

__all__ = ["PayloadCodec", "checked_codec", "decoded", "encoded", "encoded_delivery"]

_NAME = 100  # bytes: it is stored with each payload


class PayloadCodec(Protocol):
    """Makes of payloads what is stored of them, and the other way round.

    Both methods are called on the event loop, for each payload: they must be quick, and ask nobody. What `encode` gives
    may differ from call to call, such as by a random nonce; `decode` must read all that any `encode` of this name ever
    made, so one that changes its keys says in the bytes which one it was.

    Attributes:
        name: Stored with each payload, so it must never change.
    """

    @property
    def name(self) -> str:
        """See above."""

    def encode(self, data: bytes, /) -> bytes:
        """What is stored instead of `data`."""

    def decode(self, data: bytes, /) -> bytes:
        """What `encode` was given."""


def checked_codec(codec: PayloadCodec | None) -> PayloadCodec | None:
    """The codec itself, if it is one. Raises `InvalidArgumentError`."""
    given: Any = codec
    if given is None:
        return None
    name = getattr(given, "name", None)
    if not isinstance(name, str) or not 0 < len(name.encode()) <= _NAME:
        message = (
            f"a codec has a name of 1 to {_NAME} bytes, under which its payloads are stored; {given!r} has {name!r}"
        )
        raise InvalidArgumentError(message)
    for method in ("encode", "decode"):
        if not callable(getattr(given, method, None)):
            message = f"the codec {name!r} has no method {method}(data)"
            raise InvalidArgumentError(message)
    return codec


def encoded(payload: Payload, codec: PayloadCodec | None) -> Payload:
    """The payload as it is stored.

    Raises:
        PayloadCodecError: The codec has failed.
    """
    if codec is None:
        return payload
    return _made(codec, "encode", payload, codec.name)


def decoded(payload: Payload, codec: PayloadCodec | None) -> Payload:
    """The payload as it was, once its bytes are here.

    Raises:
        PayloadCodecError: It was encoded by another codec, or this one has failed.
    """
    if not payload.codec:
        return payload
    if codec is None or codec.name != payload.codec:
        has = "none" if codec is None else repr(codec.name)
        message = (
            f"a payload of {payload.size:,} bytes was encoded by the codec {payload.codec!r}, and this process has "
            f"{has}; give it to its client, Client.connect(..., codec=...), and unblock what it has blocked"
        )
        raise PayloadCodecError(message)
    return _made(codec, "decode", payload, "")


def _made(codec: PayloadCodec, method: str, payload: Payload, name: str) -> Payload:
    try:
        data: Any = getattr(codec, method)(payload.content)
    except Exception as error:
        message = f"the codec {codec.name!r} cannot {method} a payload of {payload.size:,} bytes ({error!r}); mend it"
        raise PayloadCodecError(f"{message}, then unblock") from error
    if type(data) is not bytes:
        message = f"the codec {codec.name!r} has to {method} to bytes, and gave {type(data).__name__}; mend it"
        raise PayloadCodecError(f"{message}, then unblock")
    return Payload(len(data), payload.content_type, name, data)


def encoded_delivery(delivery: Delivery, codec: PayloadCodec) -> Delivery:
    """What is logged of a delivery. Raises `PayloadCodecError`."""
    return delivery if delivery.payload is None else evolve(delivery, payload=encoded(delivery.payload, codec))
