"""The oplog: every delivery to the guest, in order, durable before the guest sees it.

One entry is one delivery: all that was handed over together, its time, and what the guest had asked for since the entry
before. A replay asks for the same again; where it does not, the first difference is known by name.

The stored form of an entry is one line of JSON, then the bytes of its payloads one behind the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen
from pydantic_core import to_json

from wasman_host.errors import CorruptSnapshotError, Failure, UnsupportedStateError
from wasman_host.payload import Payload

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "EMPTY_CHAIN",
    "Delivery",
    "Entry",
    "Operation",
    "chained",
    "decode_entry",
    "encode_entry",
]

_VERSION = 1
_KINDS = frozenset({"start", "session", "result", "failed", "fired", "terminate", "timed_out"})
EMPTY_CHAIN = hashlib.sha256(b"wasman oplog 1").hexdigest()


@frozen
class Operation:
    """What a guest asked for. Its number is its place in the run: the first is 0.

    Attributes:
        kind: "call" or "timer".
        name: The activity's name; for a timer the nanoseconds it asked to sleep.
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

    def as_json(self) -> list[Any]:
        """The stored form."""
        return [self.kind, self.name, self.request, self.read, self.written, self.crc]

    @classmethod
    def of_json(cls, fields: list[Any]) -> Operation:
        """The inverse of `as_json`."""
        kind, name, request, read, written, crc = fields
        return cls(kind, name, request, read, written, crc)

    def __str__(self) -> str:
        at = f"after reading {self.read} and writing {self.written} bytes (crc32 {self.crc:08x})"
        return f"{self.kind} {self.name!r} with request {self.request[:12]} {at}"


@frozen
class Delivery:
    """One thing handed to the guest.

    Attributes:
        kind: "start" (the input), "session", "result", "failed" (an activity, for good), "fired" (a timer), or what
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
        digest: Running digest over all of them, in hex.
        issued: Those among them that no earlier entry holds.
        deliveries: What was handed over together.
    """

    n: int
    time: int
    operations: int
    digest: str
    issued: Sequence[Operation] = ()
    deliveries: Sequence[Delivery] = field(factory=tuple)


def chained(digest: str, operations: Iterable[Operation]) -> str:
    """The running digest after `operations`."""
    for operation in operations:
        digest = hashlib.sha256(digest.encode() + to_json(operation.as_json())).hexdigest()
    return digest


def encode_entry(entry: Entry) -> bytes:
    """The stored form, to be sealed. Large payloads stay outside, named by their digest."""
    bodies: list[bytes] = []
    deliveries: list[dict[str, Any]] = []
    for delivery in entry.deliveries:
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
    head = {
        "v": _VERSION,
        "n": entry.n,
        "time": entry.time,
        "operations": entry.operations,
        "digest": entry.digest,
        "issued": [operation.as_json() for operation in entry.issued],
        "deliveries": deliveries,
    }
    return b"".join((to_json(head), b"\n", *bodies))


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
            message = f"{place} was written by a newer wasman (version {fields['v']}); use that one"
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
            digest=fields["digest"],
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
