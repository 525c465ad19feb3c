"""What a store holds of one instance: opened, and said again in the columns that it searches by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wasman_host.errors import CorruptSnapshotError, Failure
from wasman_host.machine import Proposal
from wasman_host.oplog import Tail, decode_tail
from wasman_host.record import Pinned, Record, decode_record, encode_record
from wasman_host.seal import Address, seal, unseal
from wasman_host.store.protocol import Columns

if TYPE_CHECKING:
    from wasman_host.machine import Terminating
    from wasman_host.store.protocol import Key, Stored

__all__ = ["DIRECT", "columns_of", "mail_address", "open_record", "open_tail", "sealed_record", "unread_end"]

DIRECT = "direct"  # the queue of instances that are executed directly, and the name of their workflow: no worker has it

_MOST = 512  # records that this process has closed and still knows: whoever waits for one opens it at once
_LONGEST = 16 * 1024  # bytes of such a record
_ended: dict[tuple[Key, bytes], Record] = {}


def open_record(stored: Stored) -> Record:
    """The record inside what a store holds, where the end of its log can be read as well.

    Raises:
        CorruptSnapshotError: One of the two is damaged, or the record does not fit the columns beside it.
        UnsupportedStateError: A newer wasman wrote it.
    """
    open_tail(stored)
    known = _ended.get((stored.key, stored.record))
    if known is not None and known.run == stored.run and known.status == stored.columns.status:
        return known
    address = Address(stored.key.tenant, stored.key.id, stored.run, "record")
    record = decode_record(unseal(address, stored.record or None), str(address))
    if record.run != stored.run or record.status != stored.columns.status:
        message = (
            f"{address} says {record.status.value} and the store's column {stored.columns.status.value}; "
            f"restore it from a backup, then unblock"
        )
        raise CorruptSnapshotError(message)
    return record


def sealed_record(key: Key, record: Record) -> bytes:
    """The record as a store keeps it: what `open_record` opens."""
    sealed = seal(Address(key.tenant, key.id, record.run, "record"), encode_record(record))
    if record.is_closed and len(sealed) <= _LONGEST:
        if len(_ended) >= _MOST:
            _ended.clear()
        _ended[key, sealed] = record
    return sealed


def open_tail(stored: Stored) -> Tail:
    """Where the log ends of what a store holds. Raises `CorruptSnapshotError`."""
    return decode_tail(stored.tail, f"run {stored.run} of {stored.key}")


def columns_of(record: Record, stored: int, *, owner: str | None, wake: int | None, takeovers: int = 0) -> Columns:
    """What the store should search a record by; `stored` are the run's bytes."""
    pinned = record.pinned
    return Columns(
        status=record.status,
        workflow=pinned.workflow,
        module=pinned.module,
        queue=pinned.queue,
        owner=owner,
        wake=wake,
        expires=None if record.is_closed else pinned.expires,
        takeovers=takeovers,
        size=stored,
        parent=pinned.parent.id if pinned.parent is not None else None,
        created=record.created,
        closed=record.closed,
        attributes=pinned.attributes,
    )


def mail_address(key: Key, kind: str, message: str) -> Address:
    """Where the body of a message belongs."""
    return Address(key.tenant, key.id, "", "mail", f"{kind}/{message}")


def unread_end(stored: Stored, terminating: Terminating, now: int) -> Proposal:
    """The end of a run whose record cannot be read, by what the columns say, and who ends it."""
    columns = stored.columns
    pinned = Pinned(columns.workflow, columns.module, queue=columns.queue, attributes=columns.attributes)
    failure = Failure(terminating.status.value, terminating.reason)
    record = Record(stored.run, pinned, terminating.status, failure=failure, created=columns.created, closed=now)
    return Proposal(record, Tail(time=now), consumes=terminating.messages, keeps_owner=False)
