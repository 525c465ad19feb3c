"""How everything that is stored is wrapped: one gzip member, bound to the place where it belongs.

The member opens with gunzip. Its header carries one extra subfield, "WM":

    version u8 | length of the key id u8 | key id | digest(address, after, deflated body) 32 bytes

The version says which digest: 2 is sha256, which small bodies get, 3 is BLAKE3, which takes a third of the time where
there are many pages. A body of any size is read with either.

The key id is empty: nothing is encrypted yet. With a master key the member will be sealed under a data key, and the key
id will say which; a reader that meets one today says so instead of guessing. The digest covers the address (tenant,
instance, run, kind, position), so a row that was moved to another place is as damaged as one that was changed. `after`
is the digest of the member before it where members form a chain, as the entries of a log do: then the digest of the
last one names all of them. It covers the bytes as they are stored, so that damage is found before anything is inflated.

Reading is strict: exactly one member, exactly this header, digest, checksum and length right, nothing behind it.
Source: RFC 1951 and 1952; J. O'Connor et al., "BLAKE3: one function, fast everywhere", 2020.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from isal import igzip_lib, isal_zlib

from wasman_host.errors import CorruptSnapshotError, UnsupportedStateError
from wasman_host.values import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Address", "TooLargeError", "digest_of", "seal", "unseal"]

_START = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"  # deflate, FEXTRA, no time, unknown system
_FIELD = 2 + 32
_SHA256, _BLAKE3 = (_START + struct.pack("<H2sHBB", 4 + _FIELD, b"WM", _FIELD, version, 0) for version in (2, 3))
_DIGESTS: dict[bytes, Callable[[bytes], Any]] = {_SHA256: hashlib.sha256, _BLAKE3: blake3}  # by header
_DIGEST_AT = len(_SHA256)
_BODY_AT = _DIGEST_AT + 32
_LEVEL = 1
_STORED = 2048  # bytes up to which stored blocks are used: deflating a record takes 15 us and saves half a kilobyte
_SMALL = 8192  # bytes of a body up to which sha256 is as fast as BLAKE3, where processors have instructions for it
_BLOCK = 65535  # bytes in one stored block, RFC 1951 3.2.4
_AT_MOST = 256 * 1024 * 1024  # bytes of anything that no limit of its own is given for

_crc32 = isal_zlib.crc32
_stored_head = struct.Struct("<BHH").pack
_DENSEST = 1032  # bytes that deflate makes of one at most: 258 of two bits
_trailer = struct.Struct("<II")


class TooLargeError(CorruptSnapshotError):
    """Sealed bytes hold more than their reader allows: `length` bytes."""

    def __init__(self, message: str, length: int) -> None:
        super().__init__(message)
        self.length = length


@frozen
class Address:
    """Where sealed bytes belong.

    Attributes:
        tenant: The tenant, "" for what all share (modules, base images).
        id: The workflow id, or "".
        run: The run id, or "".
        kind: Such as "record", "entry", "snapshot", "payload", "mail", "module", "image".
        position: What tells the bytes from others of their kind: an entry's n, a blob's name.
    """

    tenant: str
    id: str
    run: str
    kind: str
    position: str = ""

    def __str__(self) -> str:
        place = f"{self.kind} {self.position}".rstrip()
        return f"{place} of run {self.run} of {self.id!r}" if self.run else place

    @property
    def encoded(self) -> bytes:
        """What the digest covers of it."""
        fields = f"{self.tenant}\0{self.id}\0{self.run}\0{self.kind}\0{self.position}\0"
        return fields.encode("utf-8", "surrogatepass")


def _stored_blocks(data: bytes) -> bytes:
    """`data` as deflate keeps bytes that it does not compress."""
    length = len(data)
    if length <= _BLOCK:
        return _stored_head(1, length, length ^ 0xFFFF) + data
    parts: list[bytes] = []
    for at in range(0, length, _BLOCK):
        part = data[at : at + _BLOCK]
        parts += (_stored_head(at + _BLOCK >= length, len(part), len(part) ^ 0xFFFF), part)
    return b"".join(parts)


def seal(address: Address | bytes, data: bytes, *, after: bytes = b"", deflate: bool = True) -> bytes:
    """`data` as it is stored at `address`.

    Args:
        address: Where, or its encoded form.
        data: What.
        after: Digest of the member before it in a chain, b"" for what is in none.
        deflate: False to leave it uncompressed, for stores in which reading soon matters more than size.
    """
    if len(data) <= _STORED or not deflate:
        body = _stored_blocks(data)
    else:
        body = igzip_lib.compress(data, _LEVEL, flag=igzip_lib.COMP_DEFLATE)
    place = address if type(address) is bytes else address.encoded  # type: ignore[union-attr]
    header = _SHA256 if len(body) <= _SMALL else _BLAKE3
    digest = _DIGESTS[header](b"".join((place, after, body))).digest()
    return b"".join((header, digest, body, _trailer.pack(_crc32(data), len(data) & 0xFFFFFFFF)))


def unseal(address: Address, sealed: bytes | None, *, after: bytes = b"", at_most: int = _AT_MOST) -> bytes:
    """What was sealed for `address`.

    Args:
        address: Where.
        sealed: What the store gave.
        after: As it was when it was sealed.
        at_most: Bytes that it may hold; more is not even inflated, and is a `TooLargeError`.

    Raises:
        CorruptSnapshotError: The bytes are missing (None), damaged, or were sealed for another place.
        UnsupportedStateError: They were sealed by another version of wasman, or with a key.
    """
    if sealed is None:
        message = f"{address} is missing from the store; restore it from a backup, then unblock"
        raise CorruptSnapshotError(message)
    digest_by = _DIGESTS.get(sealed[:_DIGEST_AT])
    if digest_by is None:
        if sealed[: len(_START)] == _START and sealed[12:14] == b"WM" and len(sealed) > _BODY_AT:
            message = (
                f"{address} was sealed with a key or by another wasman; use a wasman that knows version {sealed[16]}"
            )
            raise UnsupportedStateError(message)
        raise _damaged(address, "does not begin as a sealed gzip member")
    if len(sealed) < _BODY_AT + 8:
        raise _damaged(address, "is truncated")
    body = memoryview(sealed)[_BODY_AT:-8]
    digest = digest_by(address.encoded + after)
    digest.update(body)
    if digest.digest() != sealed[_DIGEST_AT:_BODY_AT]:
        raise _damaged(address, "fails its digest, or belongs to another place")
    checksum, length = _trailer.unpack_from(sealed, len(sealed) - 8)
    if length > _DENSEST * len(body):
        raise _damaged(address, "has another length than it says")
    if length > at_most:
        raise TooLargeError(
            f"{address} says that it holds {length:,} bytes, and no more than {at_most:,} belong there; restore it "
            f"from a backup, then unblock",
            length,
        )
    data = _inflated(address, body, length)
    if _crc32(data) != checksum:
        raise _damaged(address, "fails its checksum")
    return data


def _inflated(address: Address, body: memoryview, length: int) -> bytes:
    stored = _unstored(body, length)
    if stored is not None:
        return stored
    inflate = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
    try:
        # One byte more than announced is asked for, so that a longer member shows without being inflated whole.
        data = inflate.decompress(body, length + 1)
    except (igzip_lib.IsalError, ValueError, EOFError, OSError) as error:  # type: ignore[misc]  # the stub calls it a value
        raise _damaged(address, f"cannot be inflated ({error})") from error
    if len(data) != length or not inflate.eof or inflate.unused_data:
        raise _damaged(address, "has another length than it says")
    return bytes(data)


def _unstored(body: memoryview, length: int) -> bytes | None:
    """What `_stored_blocks` gave, where it was this that gave `body`."""
    parts = []
    at = 0
    while length > _BLOCK:
        if body[at : at + 5] != _stored_head(0, _BLOCK, 0):
            return None
        parts.append(body[at + 5 : at + 5 + _BLOCK])
        at += 5 + _BLOCK
        length -= _BLOCK
    if len(body) != at + 5 + length or body[at : at + 5] != _stored_head(1, length, length ^ 0xFFFF):
        return None
    if not parts:
        return bytes(body[5:])  # as all that is small
    parts.append(body[at + 5 :])
    return b"".join(parts)


def digest_of(sealed: bytes) -> bytes:
    """The digest that `seal` put into the header. It names the content, the place and all that it comes after."""
    return sealed[_DIGEST_AT:_BODY_AT]


def _damaged(address: Address, what: str) -> CorruptSnapshotError:
    return CorruptSnapshotError(f"{address} {what}; restore it from a backup, then unblock")
