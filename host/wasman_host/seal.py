"""How everything that is stored is wrapped: one gzip member, bound to the place where it belongs.

The member opens with gunzip. Its header carries one extra subfield, "WM":

    version u8 = 1 | length of the key id u8 | key id | sha256(address, data) 32 bytes | crc32(deflated body) u32

The key id is empty: nothing is encrypted yet. With a master key the member will be sealed under a data key, and the key
id will say which; a reader that meets one today says so instead of guessing. The digest covers the address (tenant,
instance, run, kind, position), so a row that was moved to another place is as damaged as one that was changed. The
second checksum covers the few bits of a deflated body that carry no data.

Reading is strict: exactly one member, exactly this header, checksum, length and digest right, nothing behind it.
Source: RFC 1951 and 1952.
"""

from __future__ import annotations

import hashlib
import struct

from attrs import frozen
from isal import igzip_lib, isal_zlib

from wasman_host.errors import CorruptSnapshotError, UnsupportedStateError

__all__ = ["Address", "digest_of", "seal", "unseal"]

_START = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"  # deflate, FEXTRA, no time, unknown system
_VERSION = 1
_FIELD = 2 + 32 + 4
_HEADER = _START + struct.pack("<H2sHBB", 4 + _FIELD, b"WM", _FIELD, _VERSION, 0)
_DIGEST_AT = len(_HEADER)
_CHECK_AT = _DIGEST_AT + 32
_DATA_AT = _CHECK_AT + 4
_LEVEL = 1
_STORED = 2048  # bytes up to which a stored block is used: deflating a record takes 15 us and saves half a kilobyte


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


def _digest(address: Address, data: bytes) -> bytes:
    fields = f"{address.tenant}\0{address.id}\0{address.run}\0{address.kind}\0{address.position}\0"
    return hashlib.sha256(fields.encode("utf-8", "surrogatepass") + data).digest()


def seal(address: Address, data: bytes) -> bytes:
    """`data` as it is stored at `address`."""
    length = len(data)
    if length <= _STORED:
        body = b"".join((b"\x01", struct.pack("<HH", length, length ^ 0xFFFF), data))  # one final block, RFC 1951 3.2.4
    else:
        body = igzip_lib.compress(data, _LEVEL, flag=igzip_lib.COMP_DEFLATE)
    trailer = struct.pack("<II", isal_zlib.crc32(data), length & 0xFFFFFFFF)
    return b"".join((_HEADER, _digest(address, data), struct.pack("<I", isal_zlib.crc32(body)), body, trailer))


def unseal(address: Address, sealed: bytes | None) -> bytes:
    """What was sealed for `address`.

    Raises:
        CorruptSnapshotError: The bytes are missing (None), damaged, or were sealed for another place.
        UnsupportedStateError: They were sealed by a newer wasman, or with a key.
    """
    if sealed is None:
        message = f"{address} is missing from the store; restore it from a backup, then unblock"
        raise CorruptSnapshotError(message)
    if sealed[:_DIGEST_AT] != _HEADER:
        if sealed[: len(_START)] == _START and sealed[12:14] == b"WM" and len(sealed) > _DATA_AT:
            message = (
                f"{address} was sealed with a key or by a newer wasman; use a wasman that knows version {sealed[16]}"
            )
            raise UnsupportedStateError(message)
        raise _damaged(address, "does not begin as a sealed gzip member")
    if len(sealed) < _DATA_AT + 8:
        raise _damaged(address, "is truncated")
    body = sealed[_DATA_AT:-8]
    if isal_zlib.crc32(body) != struct.unpack_from("<I", sealed, _CHECK_AT)[0]:
        raise _damaged(address, "fails its checksum")
    checksum, length = struct.unpack_from("<II", sealed, len(sealed) - 8)
    inflate = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
    try:
        # One byte more than announced is asked for, so that a longer member shows without being inflated whole.
        data = inflate.decompress(body, length + 1)
    except (igzip_lib.IsalError, ValueError, EOFError, OSError) as error:  # type: ignore[misc]  # the stub calls it a value
        raise _damaged(address, f"cannot be inflated ({error})") from error
    if len(data) != length or not inflate.eof or inflate.unused_data:
        raise _damaged(address, "has another length than it says")
    if isal_zlib.crc32(data) != checksum:
        raise _damaged(address, "fails its checksum")
    if _digest(address, data) != sealed[_DIGEST_AT:_CHECK_AT]:
        raise _damaged(address, "fails its digest, or belongs to another place")
    return bytes(data)


def digest_of(sealed: bytes) -> str:
    """The digest that `seal` put into the header, in hex. It names the content and the place together."""
    return sealed[_DIGEST_AT:_CHECK_AT].hex()


def _damaged(address: Address, what: str) -> CorruptSnapshotError:
    return CorruptSnapshotError(f"{address} {what}; restore it from a backup, then unblock")
