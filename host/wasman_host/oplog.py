"""The oplog: every delivery to the guest, in order, durable before the guest sees it.

One entry is one delivery: all that was handed over together, its time, and what the guest had asked for since the entry
before. A replay asks for the same again; where it does not, the first difference is known by name.

The stored form of an entry is one line of JSON, then the bytes of its payloads one behind the other. Entries are sealed
as a chain: the digest of each covers that of the one before it, so the digest of the last one names the whole log. It
is kept, with the number of entries, in the run's `Tail`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve, field
from pydantic_core import to_json

from wasman_host.errors import CorruptSnapshotError, Failure, UnsupportedStateError
from wasman_host.payload import Payload
from wasman_host.seal import Address, digest_of, unseal
from wasman_host.values import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "EMPTY_CHAIN",
    "Delivery",
    "Entry",
    "Operation",
    "Tail",
    "chained",
    "decode_entry",
    "decode_tail",
    "encode_entry",
    "encode_operation",
    "encode_tail",
    "entry_address",
    "open_entries",
]

_VERSION = 2
_KINDS = frozenset({"start", "session", "execute", "result", "failed", "fired", "cancel", "terminate", "timed_out"})
EMPTY_CHAIN = hashlib.sha256(b"wasman oplog 2").digest()
_TAIL = struct.Struct("<QQQ32s")


@frozen
class Tail:
    """Where a run's log ends. It stands beside the record, so that a step need not write the record again.

    Attributes:
        entries: How many log entries there are.
        time: The guest's clock: the time of the last entry, ns since 1970.
        stored: Bytes that the run has stored: its entries and their payloads, as far as they have not left for the
            archive, and the snapshots that are still named.
        chain: Digest of the last entry, which names all entries before it.
    """

    entries: int = 0
    time: int = 0
    stored: int = 0
    chain: bytes = EMPTY_CHAIN


def encode_tail(tail: Tail) -> bytes:
    """The stored form, 56 bytes. It is not sealed: whoever reads the log compares it with what is there."""
    return _TAIL.pack(tail.entries, tail.time, tail.stored, tail.chain)


def decode_tail(data: bytes, place: str) -> Tail:
    """The inverse of `encode_tail`. Raises `CorruptSnapshotError`; `place` names it."""
    if len(data) != _TAIL.size:
        message = f"{place}: the end of its log is damaged ({len(data)} bytes); restore it from a backup, then unblock"
        raise CorruptSnapshotError(message)
    return Tail(*_TAIL.unpack(data))


@frozen
class Operation:
    """What a guest asked for. Its number is its place in the run: the first is 0.

    Attributes:
        kind: "call", "timer" or "receive".
        name: The activity's name; for a timer the nanoseconds it asked to sleep; for a receive the signal's name.
        request: sha256 of the request's bytes, in hex.
        read: Bytes the guest had read from its source when it asked.
        written: Bytes it had written to its sink.
        crc: crc32 over all it had written. Streams are not logged, so this is how a differing replay shows.
    """

    kind: str
    name: str
    request: str
    read: int = 0
    written: int = 0
    crc: int = 0

    @property
    def encoded(self) -> bytes:
        """The stored form, as JSON."""
        return encode_operation(self.kind, self.name, self.request, self.read, self.written, self.crc)

    @classmethod
    def of_json(cls, fields: list[Any]) -> Operation:
        """The inverse of `as_json`."""
        kind, name, request, read, written, crc = fields
        return cls(kind, name, request, read, written, crc)

    def __str__(self) -> str:
        at = f"after reading {self.read} and writing {self.written} bytes (crc32 {self.crc:08x})"
        return f"{self.kind} {self.name!r} with request {self.request[:12]} {at}"


def encode_operation(kind: str, name: str, request: str, read: int, written: int, crc: int) -> bytes:
    """The stored form of an `Operation` that nobody has made: a step of every workflow passes here."""
    return to_json([kind, name, request, read, written, crc])


@frozen
class Delivery:
    """One thing handed to the guest.

    Attributes:
        kind: "start" (the input), "session", "execute" (an export is called, by direct use), "result" (of an activity,
            or a signal), "failed" (an activity, for good), "fired" (a timer), "cancel" (somebody asks for it), or what
            ended the run from outside: "terminate", "timed_out".
        operation: The operation that it answers, or -1.
        payload: Its bytes, where it has any.
        failure: What went wrong, where something did.
        message: The id of the mail that brought it, or "".
    """

    kind: str
    operation: int = -1
    payload: Payload | None = None
    failure: Failure | None = None
    message: str = ""


@frozen
class Entry:
    """One delivery to the guest.

    Attributes:
        n: Its place in the log, from 0.
        time: The guest's clock from here on, ns since 1970; later than the entry before.
        operations: How many operations the guest had asked for.
        digest: Running digest over all of them.
        issued: Those among them that no earlier entry holds.
        deliveries: What was handed over together.
    """

    n: int
    time: int
    operations: int
    digest: bytes
    issued: Sequence[Operation] = ()
    deliveries: Sequence[Delivery] = field(factory=tuple)


def chained(digest: bytes, operations: Iterable[bytes]) -> bytes:
    """The running digest after more operations, each in its stored form."""
    for operation in operations:
        digest = hashlib.sha256(digest + operation).digest()
    return digest


def entry_address(tenant: str, id_: str, run: str, n: int) -> Address:
    """Where a log entry belongs."""
    return Address(tenant, id_, run, "entry", str(n))


_HEAD = b'{"v":%d,"n":%d,"time":%d,"operations":%d,"digest":"%b","issued":[%b],"deliveries":['
_STEP = _HEAD + b'{"kind":"result","operation":%d,"payload":{"size":%d}}]}\n%b'


def encode_entry(
    n: int, time: int, operations: int, digest: bytes, issued: Sequence[bytes], deliveries: Sequence[Delivery]
) -> bytes:
    """The stored form of an entry, to be sealed; see `Entry`. Large payloads stay outside, named by their digest.

    Args:
        n: Its place in the log.
        time: The guest's clock from here on.
        operations: How many operations the guest had asked for.
        digest: Running digest over all of them.
        issued: Those among them that no earlier entry holds, each in its stored form.
        deliveries: What is handed over together.
    """
    head = (_VERSION, n, time, operations, digest.hex().encode(), b",".join(issued))
    if len(deliveries) == 1 and (payload := _plain_result(deliveries[0])) is not None:
        # What most entries are: one small result. A step of every workflow passes here.
        return _STEP % (*head, deliveries[0].operation, payload.size, payload.content)
    bodies: list[bytes] = []
    return b"".join((_HEAD % head, _encode_deliveries(deliveries, bodies), b"]}\n", *bodies))


def _plain_result(delivery: Delivery) -> Payload | None:
    """The payload of a delivery that is nothing but one small result, else None."""
    if delivery.kind != "result" or delivery.operation < 0 or delivery.failure is not None or delivery.message:
        return None
    return delivery.payload if delivery.payload is not None and delivery.payload.plain else None


def _encode_deliveries(given: Sequence[Delivery], bodies: list[bytes]) -> bytes:
    deliveries: list[dict[str, Any]] = []
    for delivery in given:
        fields: dict[str, Any] = {"kind": delivery.kind}
        if delivery.operation >= 0:
            fields["operation"] = delivery.operation
        if delivery.payload is not None:
            fields["payload"] = delivery.payload.as_json()
            if delivery.payload.inline:
                bodies.append(delivery.payload.content)
        if delivery.failure is not None:
            fields["failure"] = delivery.failure.as_json()
        if delivery.message:
            fields["message"] = delivery.message
        deliveries.append(fields)
    return to_json(deliveries)[1:-1]


def decode_entry(data: bytes, n: int, place: str) -> Entry:
    """The inverse of `encode_entry`, for the entry that should be number `n`.

    Raises:
        UnsupportedStateError: A newer wasman wrote it.
        CorruptSnapshotError: It is not what it should be; `place` names it.
    """
    head, _, bodies = data.partition(b"\n")
    try:
        fields = json.loads(head)
        if fields["v"] != _VERSION or not {delivery["kind"] for delivery in fields["deliveries"]} <= _KINDS:
            message = f"{place} was written by another wasman (version {fields['v']}); use that one"
            raise UnsupportedStateError(message)
        at = 0
        deliveries = []
        for given in fields["deliveries"]:
            payload = Payload.of_json(given["payload"]) if "payload" in given else None
            if payload is not None and payload.inline:
                payload = evolve(payload, data=bodies[at : at + payload.size])
                at += payload.size
            failure = Failure.of_json(given["failure"]) if "failure" in given else None
            deliveries.append(
                Delivery(given["kind"], given.get("operation", -1), payload, failure, given.get("message", ""))
            )
        entry = Entry(
            n=fields["n"],
            time=fields["time"],
            operations=fields["operations"],
            digest=bytes.fromhex(fields["digest"]),
            issued=tuple(Operation.of_json(given) for given in fields["issued"]),
            deliveries=tuple(deliveries),
        )
    except (ValueError, KeyError, TypeError) as error:
        message = f"{place} cannot be read ({error!r}); restore it from a backup, then unblock"
        raise CorruptSnapshotError(message) from error
    if entry.n != n or at != len(bodies):
        message = f"{place} holds entry {entry.n} with {len(bodies)} bytes; restore it from a backup, then unblock"
        raise CorruptSnapshotError(message)
    return entry


def open_entries(tenant: str, id_: str, run: str, rows: Sequence[tuple[int, bytes]], after: bytes) -> list[Entry]:
    """Consecutive entries as a store holds them, opened and checked against each other.

    Args:
        tenant: Whose.
        id_: Of which instance.
        run: Of which run.
        rows: (n, sealed entry), n rising by one.
        after: The chain before the first of them.

    Raises:
        CorruptSnapshotError: One is damaged, or not the one that belongs behind the one before it.
        UnsupportedStateError: Another wasman wrote one.
    """
    entries = []
    for n, sealed in rows:
        address = entry_address(tenant, id_, run, n)
        entries.append(decode_entry(unseal(address, sealed, after=after), n, str(address)))
        after = digest_of(sealed)
    return entries
