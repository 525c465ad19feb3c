"""The state machine of one run, without io: deliveries in, operations out, and what must be committed in between.

It awaits nothing and touches neither wasm nor disk. The driver (`wasman_host.instance`) tells it what the guest asked
for; it answers from the log while there is a past to repeat, and afterwards proposes what to commit. A proposal changes
nothing: only `accept`, after the store has made it durable, does. So what the guest has seen is always a prefix of what
is stored, and a lost race leaves a machine that is simply dropped.

    issue(operation)   the guest asks          -> its number; NondeterminismError where the log holds something else
    replayed(number)   is the answer logged?   -> the delivery, or None: the future begins here
    result, failed, fired, backoff, begun ...  -> a Proposal to commit; then accept(proposal)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attrs import evolve, field

from wasman_host.errors import BlockedError, CorruptSnapshotError, Failure, NondeterminismError
from wasman_host.oplog import (
    EMPTY_CHAIN,
    Delivery,
    Entry,
    Operation,
    Tail,
    chained,
    encode_entry,
    encode_operation,
    entry_address,
)
from wasman_host.payload import Payload
from wasman_host.record import (
    ArchiveReference,
    Cancel,
    KeptSignal,
    OpenOperation,
    Pinned,
    Publishing,
    Record,
    SnapshotReference,
)
from wasman_host.seal import Address, digest_of, seal
from wasman_host.store.protocol import Blob, Key, Status
from wasman_host.values import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wasman_host.archive import Chunk

__all__ = ["Machine", "Proposal", "Terminating", "create"]

_STATE_VERSION = 2
_NOTHING: frozenset[str] = frozenset()
CANCELLED = "Cancelled"  # the type of the failure by which a guest is told, and by which it says that it honours it


@frozen
class Proposal:
    """What to commit: it becomes true when the store says so.

    Attributes:
        record: The record afterwards, or None for the one there is: nothing is appended but to the log.
        tail: Where the log ends afterwards.
        entries: Sealed log entries to append.
        blobs: Blobs to keep.
        drops: Blobs that nothing names any more.
        cuts: Log entries to delete.
        consumes: Mail that it takes.
        delivered: What is logged for the guest.
        keeps_owner: False where the worker gives the instance up with this commit.
        wake: When somebody should claim it again, where the owner gives it up; None for "not by itself".
        settles: Whether the record now says of the operation under way what the takeovers so far meant for it, so that
            the store may forget them.
    """

    record: Record | None
    tail: Tail
    entries: Sequence[tuple[int, bytes]] = ()
    blobs: Sequence[Blob] = ()
    drops: Sequence[str] = ()
    cuts: range = range(0)
    consumes: Sequence[str] = ()
    delivered: Sequence[Delivery] = ()
    keeps_owner: bool = True
    wake: int | None = None
    settles: bool = False


@frozen
class Kept:
    """A result that its guest has not taken yet, because its buffer was too small.

    Attributes:
        entry: The log entry that delivered it.
        operation: The operation that it answers.
        name: The activity's name.
        request: sha256 of the request, in hex.
        payload: The result; None until it is read again after a restore.
    """

    entry: int
    operation: int
    name: str
    request: str
    payload: Payload | None = None


@frozen
class Terminating:
    """How a run ends from outside."""

    status: Status
    kind: str
    reason: str
    messages: Sequence[str] = field(factory=tuple)


def _honours(failure: Failure) -> bool:
    """Whether a guest fails its run with what it was told of a cancel: as it is, or as the failure of its call."""
    if failure.type == "ActivityError" and isinstance(failure.details, dict):
        return failure.details.get("type") == CANCELLED
    return failure.type == CANCELLED


def _begun(operation: OpenOperation, takeovers: int) -> int:
    """Attempts that have begun, for an operation that was committed before the instance was claimed."""
    if operation.retry_at is not None:
        return operation.attempts  # it was in a backoff: whoever died, no attempt died with it
    if takeovers == 0:
        return operation.attempts - 1  # the attempt was cut by a worker that left in order
    return operation.attempts + takeovers - 1  # the first dead worker's attempt is the recorded one


def _placed(payload: Payload | None, name: str) -> Payload | None:
    """The payload, kept as blob `name` if it is large: not by its digest, a run may be given the same bytes twice."""
    return payload if payload is None or payload.inline else evolve(payload, blob=name)


def _blobs(tenant: str, id_: str, run: str, payloads: Iterable[Payload | None], *, deflate: bool) -> list[Blob]:
    """Payloads too large to be stored with what mentions them."""
    return [
        Blob(payload.blob, seal(Address(tenant, id_, run, "payload", payload.blob), payload.content, deflate=deflate))
        for payload in payloads
        if payload is not None and not payload.inline
    ]


def _weighed(payload: Payload, blobs: Sequence[Blob]) -> Payload:
    """The payload with what its blob takes, for whoever drops it, if it is one of these."""
    return evolve(payload, sealed=next((len(blob.data) for blob in blobs if blob.name == payload.blob), 0))


def _size(blobs: Iterable[Blob]) -> int:
    return sum(len(blob.data) for blob in blobs)


def create(
    tenant: str,
    id_: str,
    run: str,
    pinned: Pinned,
    given: Payload | None,
    session: Payload | None,
    now: int,
    *,
    begins: int | None = None,
    image: str = "",
    deflate: bool = True,
) -> Proposal:
    """The proposal that starts a run: its record and log entry 0, which holds its input and session.

    `now` and `begins` are in ns since 1970: where a run is to begin later, its guest's time begins then. `image` is the
    digest of its base image where that is known already, which saves the commit that pins it.
    """
    begins = now if begins is None else begins
    deliveries = [Delivery("start", payload=_placed(given, "payload-0-0"))]
    if session is not None:
        deliveries.append(Delivery("session", payload=_placed(session, "payload-0-1")))
    encoded = encode_entry(0, begins, 0, EMPTY_CHAIN, (), deliveries)
    sealed = seal(entry_address(tenant, id_, run, 0), encoded, after=EMPTY_CHAIN)
    blobs = _blobs(tenant, id_, run, [delivery.payload for delivery in deliveries], deflate=deflate)
    tail = Tail(1, begins, len(sealed) + _size(blobs), digest_of(sealed))
    record = Record(run=run, pinned=pinned, image=image, created=now)
    if begins > now:
        record = evolve(record, status=Status.WAITING, reason=f"begins at {_moment(begins)}")
    return Proposal(record, tail, entries=[(0, sealed)], blobs=blobs, delivered=deliveries)


def _moment(time: int) -> str:
    return datetime.fromtimestamp(time / 1e9, tz=UTC).isoformat(timespec="seconds")


class Machine:
    """One run between two commits.

    Attributes:
        record: What is durable.
        time: The guest's clock, ns since 1970.
        entry: The log entry that it was last given.
        read: Bytes the guest has read from its source.
        written: Bytes it has written to its sink.
        crc: crc32 over all it has written.
        random: Bytes it has drawn from its random stream.
        kept: A result that was larger than the guest's buffer and waits for the same call with a larger one.
        last_failure: The failure of the last call, for guests that ask.
        closed: The sinks that such a guest has closed.
        positions: How far each stream is, by its name, for guests that name them (ABI v1); all of them together are
            `read` and `written`.
        upload_closed: Whether the guest has closed its upload.
        result: What the guest gave by `wasman.result`, if it did.
        input: What the run was started with.
        session: The run's session, as JSON.
        takeovers: How often the run was taken from a dead worker since the record last settled an operation's attempts.
    """

    __slots__ = (
        "_asks_again",
        "_begun",
        "_count",
        "_deflate",
        "_digest",
        "_entry_address",
        "_past",
        "_unlogged",
        "_unwritten",
        "closed",
        "crc",
        "entry",
        "id",
        "input",
        "kept",
        "last_failure",
        "pinned",
        "positions",
        "random",
        "read",
        "record",
        "result",
        "run",
        "session",
        "tail",
        "takeovers",
        "tenant",
        "time",
        "upload_closed",
        "written",
    )

    def __init__(
        self, tenant: str, id_: str, record: Record, tail: Tail, takeovers: int = 0, *, deflate: bool = True
    ) -> None:
        self.tenant = tenant
        self.id = id_
        self.run = record.run
        self.record = record
        self.tail = tail
        self.pinned = record.pinned
        self._deflate = deflate
        self._unwritten = False
        self.time = 0
        self.entry = 0
        self.read = 0
        self.written = 0
        self.crc = 0
        self.random = 0
        self.kept: Kept | None = None
        self.last_failure: Failure | None = None
        self.positions: dict[str, int] | None = None
        self.closed = _NOTHING
        self.upload_closed = False
        self.result: Payload | None = None
        self.input: Payload | None = None
        self.session: Payload | None = None
        self._begun = {operation.number: _begun(operation, takeovers) for operation in record.open}
        self.takeovers = takeovers
        self._count = 0
        self._digest = EMPTY_CHAIN
        self._unlogged: list[bytes] = []
        self._asks_again = False
        self._past: list[Entry] = []  # the last one first; an empty deque takes 760 bytes of every run that waits
        place = entry_address(tenant, id_, record.run, 0).encoded
        self._entry_address = place.removesuffix(b"0\0").replace(b"%", b"%%") + b"%d\0"

    def __str__(self) -> str:
        return f"run {self.run} of {self.id!r}"

    # Coming back

    def remember(self, first: Entry, state: Mapping[str, Any] | None, past: Sequence[Entry]) -> None:
        """Take up the run: entry 0, the state of the snapshot (None: from the start), and the entries to repeat."""
        self.time = first.time
        for delivery in first.deliveries:
            if delivery.kind == "start":
                self.input = delivery.payload
            elif delivery.kind == "session":
                self.session = delivery.payload
        if state is not None:
            self._restore(state)
        self._past = list(reversed(past))

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state.get("v") != _STATE_VERSION:
            message = f"the snapshot of {self} holds state of version {state.get('v')}; use the wasman that wrote it"
            raise CorruptSnapshotError(message)
        self.time = state["time"]
        self.read, self.written, self.crc, self.random = (state[name] for name in ("read", "written", "crc", "random"))
        self._count, self._digest = state["operations"], bytes.fromhex(state["digest"])
        self.kept = state["kept"] and Kept(*state["kept"])
        self.upload_closed = state["upload_closed"]
        self.positions, self.closed = state.get("positions"), frozenset(state.get("closed", ()))
        self.result = Payload.of(state["result"].encode()) if state["result"] is not None else None
        failure = state["last_failure"]
        self.last_failure = failure and Failure.of_json(failure)
        self._unlogged = [operation.encode() for operation in state.get("unlogged", ())]

    def asks_again(self) -> None:
        """The guest that was restored waits for the operation that it has asked for last: it will ask for it again."""
        self._asks_again = bool(self._unlogged)

    def state(self) -> dict[str, Any]:
        """What a snapshot must hold besides memory and globals."""
        state = {
            "v": _STATE_VERSION,
            "time": self.time,
            "read": self.read,
            "written": self.written,
            "crc": self.crc,
            "random": self.random,
            "operations": self._count,
            "digest": self._digest.hex(),
            "kept": self.kept and [self.kept.entry, self.kept.operation, self.kept.name, self.kept.request],
            "last_failure": self.last_failure and self.last_failure.as_json(),
            "upload_closed": self.upload_closed,
            "result": self.result and self.result.content.decode(),
        }
        if self._unlogged:
            state["unlogged"] = [operation.decode() for operation in self._unlogged]
        if self.positions is not None:
            state |= {"positions": dict(self.positions), "closed": sorted(self.closed)}
        return state

    @property
    def replaying(self) -> bool:
        """Whether the log still holds deliveries that the guest has not been given again."""
        return bool(self._past)

    @property
    def begins(self) -> int:
        """When its guest may begin, ns since 1970; 0 where it has begun, or may."""
        waits = self.record.status is Status.WAITING and self.tail.entries == 1
        return self.tail.time if waits and not self.record.open else 0

    # The guest asks

    def issue(self, kind: str, name: str, request: str) -> int:
        """The guest asks for an operation; `request` is the sha256 of what it sent. Its number.

        Raises:
            NondeterminismError: The log holds something else at this place.
        """
        encoded = encode_operation(kind, name, request, self.read, self.written, self.crc)
        if self._asks_again:
            self._asks_again = False
            return self._issued_again(encoded)
        number = self._count
        self._count += 1
        self._digest = chained(self._digest, (encoded,))
        self._unlogged.append(encoded)
        if self._past:
            self._compare(number, Operation(kind, name, request, self.read, self.written, self.crc))
        return number

    def _issued_again(self, encoded: bytes) -> int:
        if encoded != self._unlogged[-1]:
            message = (
                f"{self} was kept as its guest waited for {self._unlogged[-1].decode()}, and restored it asks for "
                f"{encoded.decode()}. Its data is untouched; mend the cause and unblock, or terminate"
            )
            raise NondeterminismError(message)
        return self._count - 1

    def _compare(self, number: int, operation: Operation) -> None:
        entry = self._past[-1]
        first = entry.operations - len(entry.issued)
        logged = entry.issued[number - first] if first <= number < entry.operations else None
        if logged != operation:
            held = str(logged) if logged is not None else f"a delivery before operation {number} was asked for"
            message = (
                f"operation {number} of {self} was {held}, and the replay asks for {operation}; "
                f"the guest is not deterministic, or its module, source or session has changed. "
                f"Its data is untouched; mend the cause and unblock, or terminate"
            )
            raise NondeterminismError(message)

    def _repeated(self) -> Entry:
        """The next logged entry, where it was delivered after the same operations."""
        entry = self._past.pop()
        if (entry.operations, entry.digest) != (self._count, self._digest):
            message = (
                f"entry {entry.n} of {self} was delivered after {entry.operations} operations, the replay is at "
                f"{self._count} with another digest. Its data is untouched; mend the cause and unblock, or terminate"
            )
            raise NondeterminismError(message)
        self._unlogged.clear()
        self.time = entry.time
        self.entry = entry.n
        return entry

    def replayed(self, number: int) -> Delivery | None:
        """The logged answer to operation `number`, or None where nothing is logged any more."""
        if not self._past:
            return None
        entry = self._repeated()
        for delivery in entry.deliveries:
            if delivery.operation == number:
                self._delivered(delivery)
                return delivery
        message = f"entry {entry.n} of {self} answers other operations than {number}; restore the log, then unblock"
        raise CorruptSnapshotError(message)

    @property
    def operations(self) -> int:
        """How many operations the guest has asked for: the number of the next one."""
        return self._count

    @property
    def has_asked(self) -> bool:
        """Whether the guest has asked for anything since the last entry."""
        return bool(self._unlogged)

    def next_entry(self) -> Entry | None:
        """The next logged entry for a guest that was restored or begins anew (ABI v1); None where the log ends.

        Raises:
            NondeterminismError: The guest has asked for something else than was logged before it.
        """
        if not self._past:
            return None
        entry = self._repeated()
        for delivery in entry.deliveries:
            self._delivered(delivery)
        return entry

    def entered(self, call: Payload, now: int) -> Proposal:
        """Log that an export is called (direct use); what the execution before has left behind is forgotten."""
        self.result, self.last_failure, self.upload_closed, self.kept = None, None, False, None
        return self._logging((Delivery("execute", payload=call),), now)

    def entered_again(self) -> Payload:
        """The logged call that an interrupted execution began with: it is repeated from here."""
        self.result, self.last_failure, self.upload_closed, self.kept = None, None, False, None
        entry = self._past.pop()
        self._unlogged.clear()
        [delivery] = entry.deliveries
        if delivery.kind != "execute" or delivery.payload is None:
            message = f"entry {entry.n} of {self} begins no execution; restore the log from a backup"
            raise CorruptSnapshotError(message)
        self.time, self.entry = entry.time, entry.n
        return delivery.payload

    def finished_early(self) -> NondeterminismError | None:
        """An error if the guest has ended although the log says that it went on."""
        if not self._past:
            return None
        entry = self._past[-1]
        wanted = entry.issued[0] if entry.issued else f"entry {entry.n}"
        return NondeterminismError(
            f"the replay of {self} ended after {self._count} operations, and the log goes on with {wanted}; the guest "
            f"is not deterministic. Its data is untouched; mend the cause and unblock, or terminate"
        )

    # Attempts

    def open_operation(self, number: int) -> OpenOperation | None:
        """What was committed of an operation that is not answered yet."""
        if not self.record.open:
            return None
        return next((operation for operation in self.record.open if operation.number == number), None)

    def attempts(self, number: int) -> int:
        """Attempts of an operation that have begun: recorded ones, and takeovers from workers that died in one."""
        return self._begun.get(number, self.takeovers)

    def _settled_open(self, without: int | None = None) -> tuple[OpenOperation, ...]:
        return tuple(operation for operation in self.record.open if operation.number != without)

    @property
    def is_asking(self) -> bool:
        """Whether the guest has asked for something that nothing is logged of yet."""
        return bool(self._unlogged) and not self._past

    @property
    def asked(self) -> tuple[int, str] | None:
        """Number and name of the call that the guest waits for, or None where it waits for no call."""
        if self._past or not self._unlogged:
            return None
        kind, name, *_ = json.loads(self._unlogged[-1])
        return (self._count - 1, name) if kind == "call" else None

    @property
    def pending_cancel(self) -> Cancel | None:
        """A cancel that was taken, and of which the guest does not know yet."""
        cancel = self.record.cancel
        return cancel if cancel is not None and cancel.operation is None else None

    # Proposals

    def answered(self, deliveries: Sequence[Delivery], now: int) -> Proposal:
        """Log what is to be handed to the guest."""
        record = self.record
        if self._unwritten or record.open or record.reason or record.status is not Status.RUNNING:
            answers = {delivery.operation for delivery in deliveries}
            left = tuple(operation for operation in record.open if operation.number not in answers)
            return self._logging(deliveries, now, status=Status.RUNNING, reason="", open=left)
        return self._logging(deliveries, now)

    def delivered(
        self, deliveries: Sequence[Delivery], now: int, cancel: Cancel | None, under_way: Sequence[tuple[int, str]]
    ) -> Proposal:
        """Log what is to be handed to a guest of ABI v1.

        Args:
            deliveries: What has happened.
            now: The time, in ns since 1970.
            cancel: A cancel that it is told of with them, or None.
            under_way: Number and name of the calls that go on meanwhile.
        """
        record = self.record
        begun: list[OpenOperation] = []
        if self.takeovers:
            # The store forgets the takeovers with this commit, so what they mean for these calls is written down.
            known = {operation.number for operation in record.open}
            begun = [
                OpenOperation(number, "call", name, self.attempts(number) + 1)
                for number, name in under_way
                if number not in known
            ]
        if cancel is None and not record.signals and not begun:
            return self.answered(deliveries, now)
        answers = {delivery.operation for delivery in deliveries}
        received = {delivery.message for delivery in deliveries if delivery.kind == "result" and delivery.message}
        changes = {
            "open": tuple(operation for operation in (*record.open, *begun) if operation.number not in answers),
            "signals": tuple(signal for signal in record.signals if signal.message not in received),
            "cancel": record.cancel if cancel is None else evolve(cancel, operation=-1),
        }
        proposal = self._logging(deliveries, now, status=Status.RUNNING, reason="", **changes)
        given = [signal.payload for signal in record.signals if signal.message in received and signal.payload.blob]
        tail = evolve(proposal.tail, stored=proposal.tail.stored - sum(payload.sealed for payload in given))
        told = cancel is not None and record.cancel is None  # a cancel that was in the record was consumed before
        consumes = (cancel.message,) if told and cancel is not None else ()
        return evolve(proposal, tail=tail, consumes=consumes, drops=tuple(payload.blob for payload in given))

    def backoff(
        self, number: int, name: str, failure: Failure, retry_at: int, heartbeat: Sequence[Any] | None = None
    ) -> Proposal:
        """Record a failed attempt, what its heartbeats have said (None: nothing new), and when the next one begins."""
        if heartbeat is None:
            known = self.open_operation(number)
            heartbeat = known.heartbeat if known is not None else ()
        operation = OpenOperation(number, "call", name, failure.attempt, retry_at, failure, heartbeat)
        record = evolve(self.record, open=(*self._settled_open(number), operation))
        return Proposal(record, self.tail, settles=True)

    def begun(self, number: int, attempt: int) -> Proposal:
        """Record that the backoff is over and an attempt begins, so that a takeover from now on counts."""
        known = self.open_operation(number)
        assert known is not None, "an attempt follows a recorded backoff"
        operation = evolve(known, attempts=attempt, retry_at=None)
        record = evolve(self.record, status=Status.RUNNING, reason="", open=(*self._settled_open(number), operation))
        return Proposal(record, self.tail, settles=True)

    def queued(self, number: int, name: str, attempts: int, now: int) -> Proposal:
        """Record that `attempts` have begun and the next one waits for its turn, so that a takeover does not count."""
        known = self.open_operation(number) or OpenOperation(number, "call", name)
        operation = evolve(known, attempts=attempts, retry_at=now)
        record = evolve(self.record, open=(*self._settled_open(number), operation))
        return Proposal(record, self.tail, settles=True)

    def heartbeat(self, number: int, name: str, attempt: int, details: Sequence[Any]) -> Proposal:
        """Record what the attempt under way says of itself, for the next one."""
        known = self.open_operation(number) or OpenOperation(number, "call", name)
        operation = evolve(known, attempts=attempt, retry_at=None, heartbeat=details)
        record = evolve(self.record, open=(*self._settled_open(number), operation))
        return Proposal(record, self.tail, settles=True)

    def waits(self, number: int, name: str, reason: str, wake: int) -> Proposal:
        """Give the instance up until `wake`, because nobody here can answer operation `number`."""
        known = self.open_operation(number) or OpenOperation(number, "call", name, self.attempts(number))
        parked = evolve(known, retry_at=wake)
        record = evolve(self.record, status=Status.WAITING, reason=reason, open=(*self._settled_open(number), parked))
        return Proposal(record, self.tail, keeps_owner=False, wake=wake, settles=True)

    def timed_out(self) -> Terminating:
        """How the run ends where its timeout is over."""
        return Terminating(Status.TIMED_OUT, "timed_out", f"the {self.pinned.timeout} is over")

    def released(self, now: int, cut: OpenOperation | None = None) -> Proposal:
        """Give the instance up in order, for anybody to claim; `cut` is the attempt that was cut by it, if it spoke."""
        record = self.record
        if cut is not None and self.asked is not None and self.asked[0] == cut.number:
            known = self.open_operation(cut.number) or cut
            operation = evolve(known, attempts=cut.attempts, retry_at=None, heartbeat=cut.heartbeat)
            record = evolve(record, open=(*self._settled_open(cut.number), operation))
            return Proposal(record, self.tail, keeps_owner=False, wake=now, settles=True)
        return Proposal(record, self.tail, keeps_owner=False, wake=now)

    def sleeps(self, wake: int | None, waits_for: str = "") -> Proposal:
        """Give the instance up until `wake`: until then nothing happens to it, but for what it waits for."""
        until = "" if wake is None else f"nothing to do until {_moment(wake)}"
        reason = ", ".join(filter(None, (waits_for and f"waits for {waits_for}", until)))
        record = evolve(self.record, status=Status.WAITING, reason=reason)
        return Proposal(record, self.tail, keeps_owner=False, wake=wake)

    def mail_taken(self, cancel: Cancel | None, unread: Sequence[tuple[str, str]]) -> Proposal:
        """Take mail off the instance: a cancel that the guest is to be told of, and what it will never be given."""
        assert cancel is None or self.record.cancel is None, "a run is cancelled once"
        record = evolve(self.record, undelivered=(*self.record.undelivered, *unread))
        taken = [id_ for id_, _ in unread]
        if cancel is not None:
            record, taken = evolve(record, cancel=cancel), [cancel.message, *taken]
        return Proposal(record, self.tail, consumes=taken)

    def signalled(self, signals: Sequence[KeptSignal]) -> Proposal:
        """Take signals off the mail, and keep them until the guest receives them."""
        kept, payloads = [], []
        for signal in signals:
            # By the message's digest: whoever sent it chose its id, and a blob's name is to be plain.
            name = f"signal-{hashlib.sha256(signal.message.encode()).hexdigest()[:32]}"
            payload = _placed(signal.payload, name)
            assert payload is not None, "a signal has a value, if only null"
            kept.append(evolve(signal, payload=payload))
            payloads.append(payload)
        blobs = _blobs(self.tenant, self.id, self.run, payloads, deflate=self._deflate)
        tail = evolve(self.tail, stored=self.tail.stored + _size(blobs)) if blobs else self.tail
        kept = [evolve(signal, payload=_weighed(signal.payload, blobs)) for signal in kept]
        record = evolve(self.record, signals=(*self.record.signals, *kept))
        return Proposal(record, tail, blobs=blobs, consumes=tuple(signal.message for signal in signals))

    def cancelled(self, number: int, name: str, cancel: Cancel, now: int) -> Proposal:
        """Tell the guest of a cancel: the call that it waits for has failed, whatever has become of it."""
        known = self.open_operation(number)
        failure = Failure(CANCELLED, cancel.reason, None, name, known.attempts if known is not None else 0)
        proposal = self._logging(
            [Delivery("failed", number, failure=failure, message=cancel.message)],
            now,
            status=Status.RUNNING,
            reason="",
            open=self._settled_open(number),
            cancel=evolve(cancel, operation=number),
        )
        return evolve(proposal, consumes=() if self.record.cancel is not None else (cancel.message,))

    def pin_image(self, digest: str) -> None:
        """Pin the base image that the run was started on; the next commit makes it durable."""
        if self.record.image != digest:
            self.record = evolve(self.record, image=digest)
            self._unwritten = True

    def checkpoint(self, name: str, sealed: bytes, chain: Sequence[tuple[str, str]]) -> Proposal:
        """A new snapshot: `chain` are the deltas under it, empty where it was folded into one over the image."""
        assert not self._past, "a snapshot is only taken where the log ends"
        before, tail = self.record.snapshot, self.tail
        size = first = len(sealed)
        drops: Sequence[str] = ()
        if before is not None and chain:
            size, first = size + before.size, before.first
        elif before is not None:
            drops = tuple(old for old, _ in before.deltas)
        deltas = (*chain, (name, digest_of(sealed).hex()))
        reference = SnapshotReference(tail.entries, tail.chain.hex(), deltas, size, first)
        stored = tail.stored + size - (before.size if before is not None else 0)
        return Proposal(
            evolve(self.record, snapshot=reference),
            Tail(tail.entries, tail.time, stored, tail.chain),
            blobs=(Blob(name, sealed),),
            drops=drops,
        )

    def superfluous(self, chunk: int) -> range | None:
        """The next log entries to leave the log, a whole piece of the archive; entry 0 among the first of them stays.

        Args:
            chunk: How many they are, where none has left yet.
        """
        snapshot, archive = self.record.snapshot, self.record.archive
        if snapshot is None or self._past:
            return None
        # A result that is kept, now or soon, is read again by its entry, and that one's digest comes after another.
        needed = (snapshot.entry if self.kept is None else min(snapshot.entry, self.kept.entry)) - 1
        start, size = (0, chunk) if archive is None else (archive.stop, archive.chunk)
        return range(start, start + size) if start + size <= needed else None

    def archived(self, chunk: Chunk, dropped: Sequence[Chunk], *, keeps: bool) -> Proposal:
        """Let entries leave the log.

        Args:
            chunk: They.
            dropped: What the archive shall keep no longer, oldest first.
            keeps: Whether the archive is to have anything; where it still has, they are kept, to be dropped later.
        """
        before, entries = self.record.archive, chunk.entries
        size = before.size if before is not None else 0
        start = before.start if before is not None else 0
        drops: list[str] = []
        for old in dropped:
            drops += (old.name, *old.payloads)
            size -= old.stored
            start = old.entries.stop
        blobs: Sequence[Blob] = ()
        if keeps or start < entries.start:
            blobs = (chunk.blob(Key(self.tenant, self.id), self.run, deflate=self._deflate),)
            size += _size(blobs) + sum(chunk.payloads.values())
        else:
            drops += chunk.payloads
            start = entries.stop
        archive = ArchiveReference(start, entries.stop, chunk.chain.hex(), len(entries), size)
        freed = sum(len(sealed) for _, sealed in chunk.rows) + sum(chunk.payloads.values())
        return Proposal(
            evolve(self.record, archive=archive),
            evolve(self.tail, stored=self.tail.stored - freed),
            blobs=blobs,
            drops=drops,
            cuts=range(max(1, entries.start), entries.stop),
        )

    def blocked(self, error: BlockedError) -> Proposal:
        """Stand still until somebody unblocks it."""
        record = evolve(self.record, status=Status.BLOCKED, reason=str(error), error=type(error).__name__)
        return Proposal(record, self.tail, keeps_owner=False)

    def closed_with_mail(self, proposal: Proposal, unread: Sequence[tuple[str, str]]) -> Proposal:
        """The same end of the run, taking mail that came too late: it is listed as undelivered."""
        assert proposal.record is not None, "a run's end is written down"
        record = evolve(proposal.record, undelivered=(*proposal.record.undelivered, *unread))
        return evolve(proposal, record=record, consumes=(*proposal.consumes, *(id_ for id_, _ in unread)))

    def completed(self, result: Payload | None, publishing: Publishing | None, now: int) -> Proposal:
        """The guest has finished. With sinks the run is publishing until `published`."""
        result = _placed(result, "payload-result")
        blobs = _blobs(self.tenant, self.id, self.run, [result], deflate=self._deflate)
        tail = evolve(self.tail, stored=self.tail.stored + _size(blobs)) if blobs else self.tail
        if publishing is not None:
            record = self._closing(status=Status.PUBLISHING, result=result, publishing=publishing)
            return Proposal(record, tail, blobs=blobs)
        record = self._closing(status=Status.COMPLETED, result=result, reason="", closed=now)
        return Proposal(record, tail, blobs=blobs, keeps_owner=False)

    def published(self, now: int) -> Proposal:
        """All sinks are published."""
        record = evolve(self.record, status=Status.COMPLETED, reason="", error="", closed=now)
        return Proposal(record, self.tail, keeps_owner=False)

    def failed(self, failure: Failure, now: int) -> Proposal:
        """The guest's own act ended the run without a result; cancelled, where that is what it says."""
        told = self.record.cancel is not None and self.record.cancel.operation is not None
        status = Status.CANCELLED if told and _honours(failure) else Status.FAILED
        record = self._closing(status=status, failure=failure, reason="", closed=now)
        return Proposal(record, self.tail, keeps_owner=False)

    def _closing(self, **changes: Any) -> Record:
        """The record of a run that ends: nothing is open any more, and what it was not given has come too late."""
        record, cancel = self.record, self.pending_cancel
        late = [(signal.message, "signal") for signal in record.signals]
        if cancel is not None:
            late.append((cancel.message, "cancel"))
        told = record.cancel if cancel is None else None
        undelivered = (*record.undelivered, *late)
        return evolve(record, open=(), signals=(), cancel=told, undelivered=undelivered, **changes)

    def ended(self, terminating: Terminating, now: int) -> Proposal:
        """A person, or the execution timeout, ends the run; what brought it is logged in the same commit."""
        failure = Failure(terminating.status.value, terminating.reason)
        deliveries = [Delivery(terminating.kind, failure=failure, message=message) for message in terminating.messages]
        closing = self._closing()
        proposal = self._logging(
            deliveries or [Delivery(terminating.kind, failure=failure)],
            now,
            status=terminating.status,
            failure=failure,
            open=(),
            cancel=closing.cancel,
            signals=(),
            undelivered=closing.undelivered,
            reason="",
            error="",
            closed=now,
        )
        return evolve(proposal, consumes=tuple(terminating.messages), keeps_owner=False)

    def _logging(self, deliveries: Sequence[Delivery], now: int, **changes: Any) -> Proposal:
        """Log `deliveries` and change the record's fields, if there are any to change."""
        tail = self.tail
        n, time = tail.entries, max(now, tail.time + 1)
        blobs: Sequence[Blob] = ()
        if [delivery for delivery in deliveries if delivery.payload and not delivery.payload.inline]:
            deliveries = [
                evolve(delivery, payload=_placed(delivery.payload, f"payload-{n}-{place}"))
                for place, delivery in enumerate(deliveries)
            ]
            payloads = [delivery.payload for delivery in deliveries]
            blobs = _blobs(self.tenant, self.id, self.run, payloads, deflate=self._deflate)
            deliveries = [
                evolve(delivery, payload=_weighed(delivery.payload, blobs)) if delivery.payload else delivery
                for delivery in deliveries
            ]
        encoded = encode_entry(n, time, self._count, self._digest, self._unlogged, deliveries)
        sealed = seal(self._entry_address % n, encoded, after=tail.chain, deflate=self._deflate)
        stored = tail.stored + len(sealed) + (_size(blobs) if blobs else 0)
        return Proposal(
            evolve(self.record, **changes) if changes else None,
            Tail(n + 1, time, stored, digest_of(sealed)),
            entries=((n, sealed),),
            blobs=blobs,
            delivered=deliveries,
            settles=True,
        )

    def accept(self, proposal: Proposal) -> None:
        """The store has made `proposal` durable."""
        if proposal.record is not None:
            self.record = proposal.record
            self._unwritten = False
        self.tail = proposal.tail
        if proposal.settles:
            self.takeovers = 0
            if self._begun or self.record.open:
                self._begun = {operation.number: operation.attempts for operation in self.record.open}
        if proposal.delivered:
            self.time = proposal.tail.time
            self.entry = proposal.tail.entries - 1
            self._unlogged.clear()
            for delivery in proposal.delivered:
                self._delivered(delivery)

    def _delivered(self, delivery: Delivery) -> None:
        if delivery.kind == "failed":
            self.last_failure = delivery.failure

    # A result larger than the guest's buffer

    def keep(self, number: int, name: str, request: str, payload: Payload) -> None:
        """Keep a result for the next identical call."""
        self.kept = Kept(self.entry, number, name, request, payload)

    def kept_for(self, name: str, request: str) -> Payload | None:
        """The kept result, if this is the call that it answers."""
        if self.kept is None or (self.kept.name, self.kept.request) != (name, request):
            return None
        return self.kept.payload

    def took(self) -> None:
        """The guest has its kept result now."""
        self.kept = None
