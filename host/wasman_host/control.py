"""What is done to instances from outside: deploy a module, start, look, terminate, unblock.

Everything here works from any process that can open the store; no worker needs to run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from attrs import evolve, field, frozen

from wasman_host.errors import (
    BlockedError,
    ConcurrentExecutionError,
    CorruptSnapshotError,
    InvalidArgumentError,
    WasmVersionMismatchError,
    WorkflowAlreadyExistsError,
    WorkflowClosedError,
    WorkflowNotFoundError,
)
from wasman_host.guest.engine import SETTINGS
from wasman_host.guest.limits import check_stack
from wasman_host.guest.module import check, digest, entry_of
from wasman_host.instance import integers_fit
from wasman_host.machine import create
from wasman_host.oplog import EMPTY_CHAIN, encode_tail, open_entries
from wasman_host.record import Limits, Pinned, Record, StreamSpec, encode_record
from wasman_host.seal import Address, digest_of, seal, unseal
from wasman_host.store.protocol import CLOSED, Change, Columns, Key, Lost, Message, Sent, Status, Stored, Unread, Won
from wasman_host.stored import columns_of, mail_address, open_record, open_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.machine import Proposal
    from wasman_host.oplog import Entry
    from wasman_host.payload import Payload
    from wasman_host.store.protocol import Store

__all__ = [
    "Adopter",
    "Deployment",
    "Description",
    "StartOptions",
    "check_size",
    "created",
    "creation",
    "deploy",
    "deployed",
    "describe",
    "describe_stored",
    "digest",
    "history",
    "load",
    "load_payload",
    "start",
    "terminate",
    "unblock",
    "unreadable",
    "validated_id",
]

_MAX_ID = 200  # bytes of UTF-8
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f/\ud800-\udfff]|\.\.")


@frozen
class Deployment:
    """What a workflow's name points at.

    Attributes:
        module: sha256 of the module, in hex.
        entry: The export to call, "" for `run`, else `_start`.
        params: Types of the entry's integers; none for a guest that gets its input as JSON.
        resume: How runs come back that say nothing else: "replay", or "checkpoint" for a re-entrant guest.
    """

    module: str
    entry: str
    params: tuple[str, ...] = ()
    resume: str = "replay"


@frozen
class StartOptions:
    """How a run is started; all of it is pinned.

    Attributes:
        resume: "replay" or "checkpoint"; "" for what the workflow was deployed with.
        limits: What the guest may use.
        sources: Sources of the session by field name.
        sinks: Sinks of the session by field name.
        memo: For people.
        attributes: Search attributes.
        queue: Whose workers may claim it.
        module: sha256 of the module that the caller expects under the name, or "".
    """

    resume: str = ""
    limits: Limits = field(factory=Limits)
    sources: Mapping[str, StreamSpec] = field(factory=dict)
    sinks: Mapping[str, StreamSpec] = field(factory=dict)
    memo: Mapping[str, Any] = field(factory=dict)
    attributes: Mapping[str, str] = field(factory=dict)
    queue: str = "default"
    module: str = ""


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


class Adopter(Protocol):
    """A worker of this process that may begin an instance which is created here, without a claim."""

    def adopts(self, queue: str) -> str | None:
        """The owner to create it with, or None where it may not."""

    def adopt(self, stored: Stored, created: Proposal) -> None:
        """Begin it: it was created, owned by what `adopts` gave."""

    def abandon(self, key: Key) -> None:
        """It may have been created, owned by what `adopts` gave, and nobody will begin it."""


def validated_id(id_: str) -> str:
    """`id_`, if it can name an instance.

    Raises:
        InvalidArgumentError: It is empty, too long, or holds what no id may.
    """
    if not id_:
        message = f"a workflow id is a non-empty string, not {id_!r}"
    elif (found := _FORBIDDEN.search(id_)) is not None:
        message = f"the workflow id {id_!r} holds {found.group()!r}; ids hold no '/', no '..' and no control characters"
    elif len(id_.encode()) > _MAX_ID:
        message = (
            f"the workflow id {id_[:20]!r}... has {len(id_.encode())} bytes of UTF-8; at most {_MAX_ID} are allowed"
        )
    else:
        return id_
    raise InvalidArgumentError(message)


# Names of workflows: reserved records, whose ids no instance can have


def _name_key(tenant: str, workflow: str) -> Key:
    return Key(tenant, f"workflow/{validated_id(workflow)}")


async def deployed(store: Store, tenant: str, workflow: str) -> Deployment | None:
    """What the name points at, or None."""
    stored = await store.load(_name_key(tenant, workflow))
    return None if stored is None else _open_name(stored)


def _open_name(stored: Stored) -> Deployment:
    return _read_name(stored.key, stored.run, stored.record)


@functools.lru_cache(1000)  # every start asks for one of few
def _read_name(key: Key, run: str, record: bytes) -> Deployment:
    fields = json.loads(unseal(Address(key.tenant, key.id, run, "name"), record))
    return Deployment(fields["module"], fields["entry"], tuple(fields["params"]), fields["resume"])


async def deploy(
    store: Store,
    tenant: str,
    workflow: str,
    data: bytes,
    entry: str = "",
    *,
    resume: str = "replay",
    move: bool = True,
) -> Deployment:
    """Point the name at a module. Runs that have started keep the module they started with.

    Args:
        store: Where.
        tenant: Whose.
        workflow: The name.
        data: The module's bytes.
        entry: The export to call, "" for `run`, else `_start`.
        resume: How runs come back that say nothing else.
        move: False to leave a name alone that is there already.

    Returns:
        What the name points at afterwards.

    Raises:
        InvalidModuleError: The bytes cannot be run.
    """
    binary = check(data, f"the module of workflow {workflow!r}")
    found = entry_of(binary, entry, f"the module of workflow {workflow!r}")
    wanted = Deployment(digest(data), entry, tuple(binary.functions[found].params), resume)
    key = _name_key(tenant, workflow)
    while True:
        stored = await store.load(key)
        if stored is not None:
            present = _open_name(stored)
            if present == wanted or not move:
                return present
        await store.put_module(wanted.module, seal(Address("", "", "", "module", wanted.module), data))
        run = secrets.token_hex(16) if stored is None else stored.run
        fields = {"module": wanted.module, "entry": entry, "params": list(wanted.params), "resume": resume}
        change = Change(
            key=key,
            expected=None if stored is None else (stored.run, stored.version),
            run=run,
            nonce=secrets.token_hex(8),
            record=seal(Address(tenant, key.id, run, "name"), json.dumps(fields).encode()),
            columns=Columns(status=Status.COMPLETED, workflow="", module=wanted.module, created=store.now()),
        )
        [outcome] = await store.commit([change])
        if isinstance(outcome, Won):
            return wanted


# Instances


async def start(
    store: Store,
    tenant: str,
    id_: str,
    workflow: str,
    given: Payload,
    session: Payload | None,
    options: StartOptions,
    workers: Sequence[Adopter] = (),
) -> str:
    """Create an instance; one of `workers` begins it at once if it may, else some worker will claim it. Its run id.

    Raises:
        InvalidArgumentError: The id cannot be used, or the input does not fit the guest's entry.
        WorkflowNotFoundError: Nothing is deployed under the name.
        WorkflowAlreadyExistsError: The id is taken.
        WasmVersionMismatchError: The name points at another module than `options.module`.
    """
    key = Key(tenant, validated_id(id_))
    name = await deployed(store, tenant, workflow)
    if name is None:
        message = (
            f"no workflow is deployed under the name {workflow!r}; deploy its module, or start a worker that has it"
        )
        raise WorkflowNotFoundError(message)
    if options.module and options.module != name.module:
        message = (
            f"workflow {workflow!r} points at module {name.module[:12]}, and the start of {id_!r} expects "
            f"{options.module[:12]}; deploy the new module, or start with the old one"
        )
        raise WasmVersionMismatchError(message)
    check_stack(options.limits.stack)
    check_size(id_, "input", given, options.limits)
    if session is not None:
        check_size(id_, "session", session, options.limits)
    _check_integers(id_, workflow, name, given)
    run = secrets.token_hex(16)
    pinned = Pinned(
        workflow=workflow,
        module=name.module,
        entry=name.entry,
        resume=options.resume or name.resume,
        limits=options.limits,
        sources=dict(options.sources),
        sinks=dict(options.sinks),
        memo=dict(options.memo),
        attributes=dict(options.attributes),
        queue=options.queue,
        engine=SETTINGS,
    )
    now = store.now()
    proposal = create(tenant, id_, run, pinned, given, session, now, deflate=store.deflates)
    worker, owner = _adopter(workers, options.queue)
    change = creation(key, proposal, owner=owner, wake=None if owner else now)
    try:
        [outcome] = await store.commit([change])
    except BaseException:  # such as a caller that waits no longer
        if worker is not None:
            worker.abandon(key)
        raise
    if isinstance(outcome, Won) and worker is not None:
        worker.adopt(created(change, outcome), proposal)
    if isinstance(outcome, Lost):
        message = (
            f"workflow id {id_!r} is taken by run {outcome.found and outcome.found[0]}; use another id, or its handle"
        )
        raise WorkflowAlreadyExistsError(message)
    return run


def creation(key: Key, proposal: Proposal, *, owner: str | None, wake: int | None) -> Change:
    """The change that makes an instance as `proposal` says, if there is none."""
    record = proposal.record
    assert record is not None, "a run begins with a record"
    return Change(
        key=key,
        expected=None,
        run=record.run,
        nonce=secrets.token_hex(8),
        record=seal(Address(key.tenant, key.id, record.run, "record"), encode_record(record)),
        columns=columns_of(record, proposal.tail.stored, owner=owner, wake=wake),
        tail=encode_tail(proposal.tail),
        entries=proposal.entries,
        blobs=proposal.blobs,
    )


def created(change: Change, outcome: Won) -> Stored:
    """What the store holds after a `creation` that has won, without reading it back."""
    assert change.record is not None, "a run begins with a record"
    assert change.columns is not None, "a run begins with columns"
    return Stored(
        change.key,
        change.run,
        outcome.version,
        change.nonce,
        change.columns,
        change.record,
        outcome.mail,
        change.tail,
    )


def _adopter(workers: Sequence[Adopter], queue: str) -> tuple[Adopter | None, str | None]:
    """A worker that begins an instance of `queue` at once, and the owner that it names; or neither."""
    for worker in workers:
        owner = worker.adopts(queue)
        if owner is not None:
            return worker, owner
    return None, None


def check_size(id_: str, what: str, payload: Payload, limits: Limits) -> None:
    """Raise `InvalidArgumentError` for what is more than the guest may be given at once."""
    if payload.size > limits.response:
        message = f"the {what} of {id_!r} has {payload.size:,} bytes; at most {limits.response:,} are allowed"
        raise InvalidArgumentError(message)


def _check_integers(id_: str, workflow: str, name: Deployment, given: Payload) -> None:
    if not name.params:
        return
    value = given.value()
    numbers = value if isinstance(value, list) else [value]
    if not integers_fit(numbers, name.params):
        message = (
            f"the entry of workflow {workflow!r} takes {len(name.params)} integers ({', '.join(name.params)}); "
            f"the input of {id_!r} is {given.content[:80].decode(errors='replace')}"
        )
        raise InvalidArgumentError(message)


async def load(store: Store, key: Key, run: str | None = None) -> Stored:
    """What is stored of an instance.

    Raises:
        WorkflowNotFoundError: There is no such instance, or its current run is another one.
    """
    stored = await store.load(key)
    if stored is None or (run is not None and stored.run != run):
        which = f"run {run} of {key}" if run else f"instance {str(key)!r}"
        message = f"there is no {which} in this store"
        raise WorkflowNotFoundError(message)
    return stored


async def describe(store: Store, key: Key, run: str | None = None) -> Description:
    """An instance as it stands.

    Raises:
        WorkflowNotFoundError: There is no such instance, or its current run is another one.
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

    Payloads too large to be stored in their entry come without their bytes.

    Raises:
        CorruptSnapshotError: The record or an entry is damaged or missing.
        UnsupportedStateError: A newer wasman wrote one of them.
    """
    tail, key = open_tail(stored), stored.key
    open_record(stored)
    rows = await store.read(stored.run, 0, tail.entries)
    present = [n for n, _ in rows] == list(range(tail.entries))
    entries = open_entries(key.tenant, key.id, stored.run, rows, EMPTY_CHAIN) if present else []
    if not present or (digest_of(rows[-1][1]) if rows else EMPTY_CHAIN) != tail.chain:
        message = (
            f"the log of run {stored.run} of {key} holds {len(rows)} entries, not the {tail.entries} that its record "
            f"was written over; restore it from a backup, then unblock"
        )
        raise CorruptSnapshotError(message)
    return entries


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
        WorkflowNotFoundError: There is no such instance.
        WorkflowClosedError: It has ended already.
    """
    stored = await load(store, key, run)
    identity = message_id or f"terminate-{secrets.token_hex(8)}"
    body = json.dumps({"reason": reason, "run": stored.run}).encode()
    message = Message(key, identity, "terminate", seal(mail_address(key, "terminate", identity), body))
    sent = await store.send(message)
    if sent is Sent.CLOSED:
        text = f"{key} has ended already ({stored.columns.status.value}), so it cannot be terminated"
        raise WorkflowClosedError(text)
    if sent is Sent.ABSENT:
        text = f"there is no instance {str(key)!r} in this store"
        raise WorkflowNotFoundError(text)


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
        record=seal(Address(key.tenant, key.id, stored.run, "record"), encode_record(record)),
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
