"""What a store keeps of one instance besides its log and its blobs.

The record is small, and rewritten whole when it changes. Most commits only append to the log: where that ends stands in
its `Tail`. What the store searches by, and what a claim changes (version,
owner, takeovers), stands in the store's columns instead; see `wasman_host.store.protocol`.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, evolve, field
from pydantic_core import to_json

from wasman_host.errors import CorruptSnapshotError, Failure, UnsupportedStateError
from wasman_host.guest.limits import STACK, GuestLimits
from wasman_host.payload import INLINE_LIMIT, Payload
from wasman_host.store.protocol import CLOSED, Status
from wasman_host.values import frozen

__all__ = [
    "ArchiveReference",
    "Cancel",
    "KeptSignal",
    "Limits",
    "OpenOperation",
    "Parent",
    "Pinned",
    "Publishing",
    "Record",
    "SnapshotReference",
    "StreamSpec",
    "decode_record",
    "encode_record",
]

_VERSION = 2


@frozen
class Limits:
    """What one instance may use. At any of these its run is blocked, and goes on under a higher one.

    None of them changes what the guest can observe, so the same run under a higher limit does the same.

    Attributes:
        memory: Bytes of linear memory; not one page beyond them is given.
        table_elements: Elements that each of its tables may have; looked at when the guest calls the host or ends, and
            every 10 ms while it computes. Whatever this says, a guest is told that there are no more beyond 10,000,000
            divided by how many tables it has.
        stack: Bytes that its calls may nest, 64 KiB to 64 MiB.
        turn_seconds: Processor time from one host call that waits to the next.
        stored: Bytes that the run may have stored to go on from: log, payloads and snapshots. What has left its log for
            the archive does not count, or a run that lives for ever would reach any limit.
        request: Bytes that the guest may send at once: a request, its result.
        response: Bytes that it may be given at once: a response, its input, its session, a signal.
        signals: Signals that may wait for it to receive them; more are refused to whoever sends them.
    """

    memory: int = 256 * 1024 * 1024
    table_elements: int = 1_000_000
    stack: int = STACK
    turn_seconds: float = 10.0
    stored: int = 1024 * 1024 * 1024
    request: int = 16 * 1024 * 1024
    response: int = 16 * 1024 * 1024
    signals: int = 1000

    @property
    def guest(self) -> GuestLimits:
        """Those that a guest is made with."""
        return GuestLimits(self.memory, self.table_elements, self.stack)


@frozen
class StreamSpec:
    """How to open a source or a sink again, on any machine.

    Attributes:
        type: The type's persisted tag, such as "file".
        config: What the type needs to open it, as JSON.
        identity: What the source was at the start, as JSON; a replay compares it.
    """

    type: str
    config: Mapping[str, Any]
    identity: Mapping[str, Any] = field(factory=dict)


@frozen
class Parent:
    """The instance and operation that started this one."""

    id: str
    run: str
    operation: int


@frozen
class Pinned:
    """What never changes within a run.

    Attributes:
        workflow: The workflow's name at the start.
        module: sha256 of the module, in hex.
        entry: The export to call, or "" for `run`, else `_start`.
        resume: "replay", or "checkpoint" where the workflow declares its guest re-entrant.
        limits: What the guest may use.
        sources: Sources of the session by field name.
        sinks: Sinks of the session by field name.
        memo: For people; wasman does not look at it.
        attributes: Search attributes.
        parent: Who started it, or None.
        queue: The task queue whose workers may claim it.
        expires: When its execution timeout or its run timeout ends it, ns since 1970, or None.
        engine: Compile settings that can change what a guest does, by name and version.
        execution_expires: When its execution timeout ends it and whatever continues it, ns since 1970, or None.
        run_timeout: How long each run may take, in ns, or None.
        previous: The run that its id had before, or "".
    """

    workflow: str
    module: str
    entry: str = ""
    resume: str = "replay"
    limits: Limits = field(factory=Limits)
    sources: Mapping[str, StreamSpec] = field(factory=dict)
    sinks: Mapping[str, StreamSpec] = field(factory=dict)
    memo: Mapping[str, Any] = field(factory=dict)
    attributes: Mapping[str, str] = field(factory=dict)
    parent: Parent | None = None
    queue: str = "default"
    expires: int | None = None
    engine: str = "1"
    execution_expires: int | None = None
    run_timeout: int | None = None
    previous: str = ""

    @property
    def timeout(self) -> str:
        """Which timeout it is that ends the run."""
        return "execution timeout" if self.expires == self.execution_expires else "run timeout"

    @functools.cached_property
    def encoded(self) -> bytes:
        """The stored form, as JSON."""
        limits, parent = self.limits, self.parent
        seldom = {name: getattr(self, name) for name in ("execution_expires", "run_timeout", "previous")}
        return to_json(
            {
                "workflow": self.workflow,
                "module": self.module,
                "entry": self.entry,
                "resume": self.resume,
                "limits": asdict(limits),
                "sources": {name: asdict(spec) for name, spec in self.sources.items()},
                "sinks": {name: asdict(spec) for name, spec in self.sinks.items()},
                "memo": self.memo,
                "attributes": self.attributes,
                "parent": parent and {"id": parent.id, "run": parent.run, "operation": parent.operation},
                "queue": self.queue,
                "expires": self.expires,
                "engine": self.engine,
                **{name: value for name, value in seldom.items() if value},
            }
        )


@frozen
class OpenOperation:
    """An operation that was committed before it was answered: it waits for its next attempt, or for a worker.

    Attributes:
        number: Its number within the run.
        kind: "call" or "timer".
        name: The activity's name.
        attempts: Attempts that have begun so far.
        retry_at: When the next attempt begins, ns since 1970; None while an attempt is under way.
        failure: How the last attempt failed.
        heartbeat: What the attempts so far have said last, JSON's values.
    """

    number: int
    kind: str
    name: str
    attempts: int = 0
    retry_at: int | None = None
    failure: Failure | None = None
    heartbeat: Sequence[Any] = ()

    def as_json(self) -> dict[str, Any]:
        """The stored form."""
        fields = {
            "number": self.number,
            "kind": self.kind,
            "name": self.name,
            "attempts": self.attempts,
            "retry_at": self.retry_at,
            "failure": self.failure and self.failure.as_json(),
        }
        return {**fields, "heartbeat": self.heartbeat} if self.heartbeat else fields


@frozen
class Cancel:
    """A cancel that somebody has asked for.

    Attributes:
        message: The id of the mail that brought it.
        reason: Why, in the words of whoever asked.
        operation: The call whose failure has told the guest, or None while it does not know.
    """

    message: str
    reason: str
    operation: int | None = None


@frozen
class KeptSignal:
    """A signal that was accepted and that the guest has not received yet.

    Attributes:
        message: The id of the mail that brought it.
        name: The signal's name.
        payload: Its value.
        sent: When the store accepted it, ns since 1970.
    """

    message: str
    name: str
    payload: Payload
    sent: int

    def as_json(self) -> dict[str, Any]:
        """The stored form; a value that is no blob stands in it, as base64."""
        payload = self.payload
        fields = {"message": self.message, "name": self.name, "payload": payload.as_json(), "sent": self.sent}
        return {**fields, "data": base64.b64encode(payload.content).decode()} if payload.inline else fields

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> KeptSignal:
        """The inverse of `as_json`."""
        # At once with its bytes: a record may hold a thousand of them.
        given = fields["payload"]
        data = base64.b64decode(fields["data"]) if given["size"] <= INLINE_LIMIT else None
        return cls(fields["message"], fields["name"], Payload.of_json(given, data), fields["sent"])


@frozen
class SnapshotReference:
    """The newest snapshot.

    Attributes:
        entry: The first log entry that it does not contain.
        chain: Digest of the entry before that one, in hex.
        deltas: Blob name and sealed digest of each delta over the image, oldest first.
        size: Their bytes together.
        first: The bytes of the first of them.
    """

    entry: int
    chain: str
    deltas: Sequence[tuple[str, str]]
    size: int
    first: int = 0


@frozen
class ArchiveReference:
    """What has left the run's log because a snapshot made it superfluous; entry 0 stays in the log.

    Attributes:
        start: The first entry that the archive holds; those before it were dropped. 0 where none was.
        stop: One more than the last one: where the log goes on.
        chain: Digest of the last entry that has left the log, in hex.
        chunk: How many entries each piece of the archive has.
        size: Bytes of the archive, with the large payloads of its entries.
    """

    start: int
    stop: int
    chain: str
    chunk: int
    size: int


@frozen
class Publishing:
    """A finished run's sinks, decided but perhaps not yet published.

    Attributes:
        sinks: By field name: length in bytes, sha256 in hex, and the sink's own token.
    """

    sinks: Mapping[str, tuple[int, str, Mapping[str, Any]]]


@frozen
class Record:
    """What is persisted of a run besides its log, its blobs, and the `Tail` of its log.

    Attributes:
        run: The run id.
        pinned: What never changes.
        status: Where it stands; the same as the store's column.
        reason: Why it is blocked, or what it waits for; "" else.
        error: The class of the error that blocked it, "" else.
        image: Digest of the base image it runs on; "" until a worker has it, and where the module has none.
        snapshot: The newest snapshot, or None.
        open: Operations that were committed before they were answered.
        result: What the guest gave.
        failure: Why it failed, was terminated or timed out.
        publishing: Its sinks, once the guest has finished.
        undelivered: Mail that was accepted and not given to the guest before the run closed: (id, kind).
        cancel: What the guest was told, or is to be told with its next call, or None.
        signals: Those that it has not received yet, the oldest first.
        archive: What has left its log, or None.
        created: When the run was created, ns since 1970.
        closed: When it was closed, or None.
    """

    run: str
    pinned: Pinned
    status: Status = Status.RUNNING
    reason: str = ""
    error: str = ""
    image: str = ""
    snapshot: SnapshotReference | None = None
    open: Sequence[OpenOperation] = ()
    result: Payload | None = None
    failure: Failure | None = None
    publishing: Publishing | None = None
    undelivered: Sequence[tuple[str, str]] = ()
    created: int = 0
    closed: int | None = None
    cancel: Cancel | None = None
    signals: Sequence[KeptSignal] = ()
    archive: ArchiveReference | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the run has ended."""
        return self.status in CLOSED


def encode_record(record: Record) -> bytes:
    """The stored form, to be sealed: one line of JSON, then the result's bytes."""
    snapshot = record.snapshot
    fields: dict[str, Any] = {
        "v": _VERSION,
        "run": record.run,
        "status": record.status.value,
        "reason": record.reason,
        "error": record.error,
        "image": record.image,
        "snapshot": snapshot
        and {
            "entry": snapshot.entry,
            "chain": snapshot.chain,
            "deltas": snapshot.deltas,
            "size": snapshot.size,
            "first": snapshot.first,
        },
        "open": [operation.as_json() for operation in record.open],
        "result": record.result and record.result.as_json(),
        "failure": record.failure and record.failure.as_json(),
        "publishing": record.publishing and {"sinks": record.publishing.sinks},
        "undelivered": record.undelivered,
        "created": record.created,
        "closed": record.closed,
    }
    if record.cancel is not None:
        fields["cancel"] = asdict(record.cancel)
    if record.signals:
        fields["signals"] = [signal.as_json() for signal in record.signals]
    if record.archive is not None:
        fields["archive"] = asdict(record.archive)
    head = to_json(fields)
    body = record.result.content if record.result is not None and record.result.inline else b""
    # What is pinned is encoded once a run: a record is written at every step.
    return b"".join((head[:-1], b',"pinned":', record.pinned.encoded, b"}\n", body))


def decode_record(data: bytes, place: str) -> Record:
    """The inverse of `encode_record`.

    Raises:
        UnsupportedStateError: A newer wasman wrote it.
        CorruptSnapshotError: It is not what it should be; `place` names it.
    """
    head, _, body = data.partition(b"\n")
    try:
        fields = json.loads(head)
        if fields.pop("v") != _VERSION:
            message = f"{place} was written by a newer wasman; use that one"
            raise UnsupportedStateError(message)
        pinned = fields["pinned"]
        pinned["limits"] = Limits(**pinned["limits"])
        pinned["sources"] = {name: StreamSpec(**spec) for name, spec in pinned["sources"].items()}
        pinned["sinks"] = {name: StreamSpec(**spec) for name, spec in pinned["sinks"].items()}
        pinned["parent"] = pinned["parent"] and Parent(**pinned["parent"])
        fields["pinned"] = Pinned(**pinned)
        fields["status"] = Status(fields["status"])
        fields["open"] = tuple(
            OpenOperation(**{**given, "failure": given["failure"] and Failure.of_json(given["failure"])})
            for given in fields["open"]
        )
        if fields["snapshot"]:
            given = fields["snapshot"]
            deltas = tuple((name, digest) for name, digest in given["deltas"])
            fields["snapshot"] = SnapshotReference(
                given["entry"], given["chain"], deltas, given["size"], given["first"]
            )
        if fields["result"]:
            result = Payload.of_json(fields["result"])
            fields["result"] = evolve(result, data=body) if result.inline else result
        fields["undelivered"] = tuple((id_, kind) for id_, kind in fields["undelivered"])
        if fields.get("cancel"):
            fields["cancel"] = Cancel(**fields["cancel"])
        fields["signals"] = tuple(KeptSignal.of_json(given) for given in fields.get("signals", ()))
        if fields.get("archive"):
            fields["archive"] = ArchiveReference(**fields["archive"])
        fields["failure"] = fields["failure"] and Failure.of_json(fields["failure"])
        if fields["publishing"]:
            sinks = fields["publishing"]["sinks"]
            fields["publishing"] = Publishing({name: (given[0], given[1], given[2]) for name, given in sinks.items()})
        return Record(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{place} cannot be read ({error!r}); restore it from a backup, then unblock"
        raise CorruptSnapshotError(message) from error
