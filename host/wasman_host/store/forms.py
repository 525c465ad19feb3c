"""Stored forms that several stores share: columns as JSON, and what is kept of a run whose id has another one now."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from wasman_host.errors import CorruptSnapshotError, UnsupportedStateError
from wasman_host.seal import Address, seal, unseal
from wasman_host.store.protocol import Columns, Key, Status, Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FORMER", "columns_as_json", "columns_of_json", "decode_former", "encode_former"]

FORMER = "former"  # the name of the blob of a run that says how it stood when the next one took its place
_VERSION = 1


def columns_as_json(columns: Columns) -> list[Any]:
    """The columns in their order."""
    return [
        columns.status.value,
        columns.workflow,
        columns.module,
        columns.queue,
        columns.owner,
        columns.wake,
        columns.expires,
        columns.takeovers,
        columns.size,
        columns.parent,
        columns.created,
        columns.closed,
        dict(columns.attributes),
    ]


def columns_of_json(fields: Sequence[Any]) -> Columns:
    """The inverse of `columns_as_json`."""
    status, *others = fields
    return Columns(Status(status), *others)


def encode_former(stored: Stored) -> bytes:
    """A run as it is now, sealed, to be kept with its blobs: a line of JSON, then record and tail."""
    fields = {
        "v": _VERSION,
        "version": stored.version,
        "nonce": stored.nonce,
        "columns": columns_as_json(stored.columns),
        "record": len(stored.record),
    }
    address = Address(stored.key.tenant, stored.key.id, stored.run, FORMER)
    # Not deflated: nearly all of it is sealed already.
    return seal(address, b"".join((to_json(fields), b"\n", stored.record, stored.tail)), deflate=False)


def decode_former(key: Key, run: str, sealed: bytes) -> Stored:
    """The inverse of `encode_former`.

    Raises:
        CorruptSnapshotError: It is damaged, or belongs to another run.
        UnsupportedStateError: A newer wasman wrote it.
    """
    address = Address(key.tenant, key.id, run, FORMER)
    line, _, rest = unseal(address, sealed).partition(b"\n")
    try:
        fields = json.loads(line)
        if fields["v"] != _VERSION:
            raise UnsupportedStateError(f"{address} was written by a newer wasman; use that one")
        size = fields["record"]
        return Stored(
            key,
            run,
            fields["version"],
            fields["nonce"],
            columns_of_json(fields["columns"]),
            rest[:size],
            0,
            rest[size:],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptSnapshotError(f"{address} cannot be read ({error!r}); restore it from a backup") from error
