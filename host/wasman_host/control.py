"""What is done to an instance from outside: load it, describe it, read its log, terminate it, unblock it.

Everything here works from any process that can open the store; no worker needs to run.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from typing import TYPE_CHECKING, cast

import anyio.lowlevel
from attrs import evolve, frozen

from wasman_host.archive import Archive
from wasman_host.errors import (
    BlockedError,
    ConcurrentExecutionError,
    CorruptSnapshotError,
    InvalidArgumentError,
    SignalsFullError,
    WorkflowClosedError,
    WorkflowNotFoundError,
)
from wasman_host.guest.limits import check_stack
from wasman_host.machine import Machine, Terminating
from wasman_host.mail import SIGNAL, signal_body
from wasman_host.oplog import encode_tail
from wasman_host.record import Record
from wasman_host.seal import Address, seal, unseal
from wasman_host.store.protocol import CLOSED, Change, Key, Lost, Message, Room, Sent, Status, Stored, Unread
from wasman_host.stored import DIRECT, columns_of, mail_address, open_record, open_tail, sealed_record, unread_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.oplog import Entry
    from wasman_host.payload import Payload
    from wasman_host.record import Limits
    from wasman_host.store.protocol import Store

__all__ = [
    "Description",
    "cancel",
    "closing",
    "describe",
    "describe_stored",
    "history",
    "load",
    "load_payload",
    "signal",
    "terminate",
    "unblock",
    "unreadable",
]


_SIGNAL_NAME = 256  # bytes
_LOOKS = 100  # at an instance that moves on while it is sent a signal; after that one more than may could be accepted
_KNOWN = 256  # records of which something is remembered
_known: dict[tuple[str, int], tuple[Limits, int]] = {}  # by (run, version); see `_kept_signals`


@frozen
class Description:
    """An instance as it stands.

    Attributes:
        stored: What the store holds.
        status: Where it stands: the record's word, or blocked where the record cannot be read.
        reason: Why it is blocked or what it waits for, "" else.
        record: The record, or None where it cannot be read.
    """

    stored: Stored
    status: Status
    reason: str
    record: Record | None

    @property
    def entries(self) -> int:
        """How many entries its log has; 0 where that cannot be read."""
        try:
            return open_tail(self.stored).entries
        except CorruptSnapshotError:
            return 0


async def load(store: Store, key: Key, run: str | None = None) -> Stored:
    """What is stored of an instance, or of an earlier run of it.

    Raises:
        WorkflowNotFoundError: There is no such instance, or it never had that run.
    """
    stored = await store.load(key)
    if stored is not None and run is not None and stored.run != run:
        stored = await store.former(key, run)
    if stored is None:
        which = f"run {run} of {key}" if run else f"instance {str(key)!r}"
        message = f"there is no {which} in this store"
        raise WorkflowNotFoundError(message)
    return stored


async def describe(store: Store, key: Key, run: str | None = None) -> Description:
    """An instance, or an earlier run of it, as it stands.

    Raises:
        WorkflowNotFoundError: There is no such instance, or it never had that run.
    """
    return describe_stored(await load(store, key, run))


def describe_stored(stored: Stored) -> Description:
    """What is stored, in words; a record that cannot be read shows as blocked."""
    try:
        record = open_record(stored)
    except BlockedError as error:
        return Description(stored, Status.BLOCKED, str(error), None)
    return Description(stored, record.status, record.reason, record)


def unreadable(stored: Stored) -> BlockedError:
    """Why the record of `stored` cannot be read."""
    try:
        open_record(stored)
    except BlockedError as error:
        return error
    return CorruptSnapshotError(f"the record of {stored.key} could not be read, and now it can; look at it again")


async def history(store: Store, stored: Stored) -> list[Entry]:
    """The log of the run as the record counts it, decoded, and checked against the record's chain of digests.

    What has left the log is read from the run's archive; where that was dropped, one entry with a delivery of kind
    "dropped" stands for it. Payloads too large to be stored in their entry come without their bytes.

    Raises:
        CorruptSnapshotError: The record or an entry is damaged or missing.
        UnsupportedStateError: A newer wasman wrote one of them.
    """
    tail, archive = open_tail(stored), open_record(stored).archive
    while True:
        try:
            return await Archive(store, stored.key, stored.run).history(tail, archive)
        except CorruptSnapshotError:
            # Its worker may have let entries leave the log since `stored` was read: they are looked for again.
            newer = await load(store, stored.key, stored.run)
            if open_record(newer).archive == archive:
                raise
            tail, archive = open_tail(newer), open_record(newer).archive


async def load_payload(store: Store, stored: Stored, payload: Payload) -> Payload:
    """A payload with its bytes, wherever they are kept.

    Raises:
        CorruptSnapshotError: They are gone or damaged.
    """
    if payload.data is not None:
        return payload
    address = Address(stored.key.tenant, stored.key.id, stored.run, "payload", payload.blob)
    return payload.with_data(unseal(address, await store.blob(stored.run, payload.blob), at_most=payload.size))


async def terminate(store: Store, key: Key, reason: str, run: str | None = None, message_id: str | None = None) -> None:
    """Ask that the run be ended; whoever holds the instance, or claims it next, does it.

    Raises:
        WorkflowNotFoundError: There is no such instance, or it never had that run.
        WorkflowClosedError: The run has ended already.
    """
    stored = await load(store, key, run)
    await _ask(store, stored, "terminate", message_id or f"terminate-{secrets.token_hex(8)}", reason)


async def cancel(store: Store, key: Key, reason: str, run: str | None = None) -> None:
    """Ask that the guest be told to end: the call that it waits for fails, or else its next one. It is told once.

    Raises:
        WorkflowNotFoundError: There is no such instance, or it never had that run.
        WorkflowClosedError: The run has ended already.
        InvalidArgumentError: It is executed directly, so there is nothing that goes on by itself.
    """
    stored = await load(store, key, run)
    if stored.columns.queue == DIRECT:
        text = f"{key} is executed directly: cancel the task that awaits its execution, or terminate it"
        raise InvalidArgumentError(text)
    # Always the same id, so that asking again changes nothing.
    await _ask(store, stored, "cancel", f"cancel-{stored.run}", reason)


async def signal(
    store: Store,
    key: Key,
    name: str,
    value: Payload,
    *,
    run: str | None = None,
    message_id: str | None = None,
    deflate: bool = True,
) -> None:
    """Send a signal: durable when this returns, and kept until the guest receives it.

    Args:
        store: Where the instance is.
        key: The instance.
        name: The signal's name.
        value: What it says, with its bytes.
        run: The run that it is for; None for whichever is the current one.
        message_id: By which a repeated send is known; drawn if not said.
        deflate: Whether what is stored is to be compressed.

    Raises:
        WorkflowNotFoundError: There is no such instance, or it never had that run.
        WorkflowClosedError: It has ended.
        SignalsFullError: As many signals wait already as may.
        InvalidArgumentError: The name is empty or too long, the value too large, or the instance is executed directly.
    """
    if not 0 < len(name.encode()) <= _SIGNAL_NAME:
        text = f"a signal's name has 1 to {_SIGNAL_NAME} bytes, and {name[:40]!r} has {len(name.encode())}"
        raise InvalidArgumentError(text)
    identity = message_id or f"signal-{secrets.token_hex(16)}"
    body = signal_body(name, value)
    for look in reversed(range(_LOOKS)):
        stored = await load(store, key, run)
        if stored.columns.queue == DIRECT:
            text = f"{key} is executed directly: there is nothing that could receive a signal; execute it"
            raise InvalidArgumentError(text)
        limits, kept = _kept_signals(stored)
        if value.size > limits.response:
            text = f"the signal {name!r} for {key} has {value.size:,} bytes; at most {limits.response:,} are allowed"
            raise InvalidArgumentError(text)
        full = stored.columns.status not in CLOSED and kept + stored.mail >= limits.signals
        # One that was sent before is there, full or not; only the store knows.
        if full and message_id is None:
            await anyio.lowlevel.checkpoint()  # whoever goes on sending leaves the loop to others
            raise _signals_full(key, kept + stored.mail, limits)
        room = Room(stored.version if look else 0, limits.signals - kept)
        sent = await _send(store, stored, SIGNAL, identity, body, for_run=run is not None, deflate=deflate, room=room)
        if sent is Sent.FULL:
            raise _signals_full(key, limits.signals, limits)
        if sent is not Sent.MOVED:
            return


def _signals_full(key: Key, waiting: int, limits: Limits) -> SignalsFullError:
    text = (
        f"{waiting:,} signals wait for {key} already, and {limits.signals:,} may; this one was not accepted: send it "
        f"again when the guest has received some, or start such runs with a higher Limits.signals"
    )
    return SignalsFullError(text)


def _kept_signals(stored: Stored) -> tuple[Limits, int]:
    """The limits of an instance, and how many signals its record keeps.

    It is looked up where it can be: a record that keeps a thousand signals takes long to be read, and those who send to
    it send many. At one version of a run there is one record.
    """
    place = stored.run, stored.version
    found = _known.get(place)
    if found is None:
        record = open_record(stored)
        found = record.pinned.limits, len(record.signals)
        if len(_known) >= _KNOWN:
            del _known[next(iter(_known))]
        _known[place] = found
    return found


async def _ask(store: Store, stored: Stored, kind: str, identity: str, reason: str) -> None:
    await _send(store, stored, kind, identity, json.dumps({"reason": reason, "run": stored.run}).encode())


_DONE = {"terminate": "terminated", "cancel": "cancelled", SIGNAL: "signalled"}


async def _send(
    store: Store,
    stored: Stored,
    kind: str,
    identity: str,
    body: bytes,
    *,
    for_run: bool = True,
    deflate: bool = True,
    room: Room | None = None,
) -> Sent:
    key, sent = stored.key, Sent.CLOSED
    if stored.columns.status not in CLOSED:
        sealed = seal(mail_address(key, kind, identity), body, deflate=deflate)
        sent = await store.send(Message(key, identity, kind, sealed, run=stored.run if for_run else "", room=room))
    if sent is Sent.CLOSED:
        stored = await load(store, key, stored.run)  # it may have ended just now
        how = _DONE[kind]
        text = f"{key} has ended already ({stored.columns.status.value}), so it cannot be {how}"
        raise WorkflowClosedError(text)
    if sent is Sent.ABSENT:
        text = f"there is no instance {str(key)!r} in this store"
        raise WorkflowNotFoundError(text)
    return sent


def closing(stored: Stored, reason: str, mail: Sequence[Message], now: int, *, deflate: bool = True) -> Change:
    """The change that ends an open run which no worker ends.

    Whoever lives it after all is stopped by the fence. The part of a sink stays where it is.

    Args:
        stored: What the change expects.
        reason: Why it is terminated.
        mail: All that nobody has consumed, which is listed as undelivered.
        now: The store's time, in ns since 1970.
        deflate: Whether what is stored is to be compressed.
    """
    key = stored.key
    terminating = Terminating(Status.TERMINATED, "terminate", reason)
    try:
        record, tail = open_record(stored), open_tail(stored)
    except BlockedError:
        proposal = unread_end(stored, terminating, now)
        assert proposal.record is not None, "a run's end is written down"
        machine = Machine(key.tenant, key.id, proposal.record, proposal.tail, deflate=deflate)
    else:
        machine = Machine(key.tenant, key.id, record, tail, deflate=deflate)
        proposal = machine.ended(terminating, now)
    proposal = machine.closed_with_mail(proposal, [(message.id, message.kind) for message in mail])
    record = cast("Record", proposal.record)
    return Change(
        key=key,
        expected=(stored.run, stored.version),
        run=stored.run,
        nonce=secrets.token_hex(8),
        record=sealed_record(key, record),
        columns=columns_of(record, proposal.tail.stored, owner=None, wake=None),
        tail=encode_tail(proposal.tail),
        entries=proposal.entries,
        blobs=proposal.blobs,
        consumes=proposal.consumes,
    )


async def unblock(store: Store, key: Key, run: str | None = None, limits: Limits | None = None) -> None:
    """Let a blocked instance go on from where it stands, perhaps with other limits.

    Raises:
        WorkflowNotFoundError: There is no such instance.
        WorkflowClosedError: It has ended.
        InvalidArgumentError: It is not blocked.
        CorruptSnapshotError: Its record still cannot be read, so there is nothing to go on from.
        ConcurrentExecutionError: Somebody else was faster.
    """
    stored = await load(store, key, run)
    if stored.columns.status in CLOSED:
        message = f"{key} has ended ({stored.columns.status.value}), so there is nothing to unblock"
        raise WorkflowClosedError(message)
    if stored.columns.status is not Status.BLOCKED:
        message = f"{key} is {stored.columns.status.value}, not blocked"
        raise InvalidArgumentError(message)
    if limits is not None:
        check_stack(limits.stack)
    record = _record_to_unblock(stored)
    status = Status.PUBLISHING if record.publishing is not None else Status.RUNNING
    pinned = evolve(record.pinned, limits=limits) if limits is not None else record.pinned
    record = evolve(record, status=status, reason="", error="", pinned=pinned)
    change = Change(
        key=key,
        expected=(stored.run, stored.version),
        run=stored.run,
        nonce=secrets.token_hex(8),
        record=sealed_record(key, record),
        columns=columns_of(
            record, stored.columns.size, owner=None, wake=store.now(), takeovers=stored.columns.takeovers
        ),
        tail=stored.tail,
    )
    [outcome] = await store.commit([change])
    if isinstance(outcome, Lost | Unread):
        message = f"{key} was moved on by somebody else just now; look at it again"
        raise ConcurrentExecutionError(message)


def _record_to_unblock(stored: Stored) -> Record:
    try:
        return open_record(stored)
    except CorruptSnapshotError:
        # A record that was restored from a backup may still say what it said before it was blocked by its column.
        for status in (Status.WAITING, Status.PUBLISHING):
            with contextlib.suppress(CorruptSnapshotError):
                return open_record(evolve(stored, columns=evolve(stored.columns, status=status)))
        return open_record(evolve(stored, columns=evolve(stored.columns, status=Status.RUNNING)))
