"""Starting a run: its first commit. No worker needs to run; one of this process begins it at once.

An id has one run at a time. Where it has one already, two policies decide, with the names and defaults of Temporal: one
for a run that is open, one for a run that is closed. Whatever they decide is one compare-and-swap on the (run, version)
that was looked at, so of two starts at once one looks again.

A run in whose place the new one is put (`terminate_existing`) is first ended by the worker that has it, which stops
its activities and gives its sinks up. Where nobody has it, or its worker does not do it in time, its end and the new
run are committed together from here: the fence stops whoever lives it at the next commit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from attrs import field

from wasman_host import control
from wasman_host.annotations import check_annotations
from wasman_host.codec import encoded
from wasman_host.deployments import deployed
from wasman_host.errors import (
    InvalidArgumentError,
    WasmVersionMismatchError,
    WorkflowAlreadyExistsError,
    WorkflowClosedError,
    WorkflowNotFoundError,
)
from wasman_host.guest.engine import SETTINGS
from wasman_host.guest.limits import check_stack
from wasman_host.ids import drawn, validated_id
from wasman_host.instance import integers_fit
from wasman_host.machine import create
from wasman_host.oplog import encode_tail
from wasman_host.record import Limits, Pinned, StreamSpec
from wasman_host.store.protocol import OPEN, Change, Key, Status, Stored, Won
from wasman_host.stored import columns_of, sealed_record
from wasman_host.values import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.codec import PayloadCodec
    from wasman_host.deployments import Deployment
    from wasman_host.machine import Proposal
    from wasman_host.payload import Payload
    from wasman_host.store.protocol import Store

__all__ = [
    "Adopter",
    "StartOptions",
    "WorkflowIDConflictPolicy",
    "WorkflowIDReusePolicy",
    "check_size",
    "created",
    "creation",
    "start",
]

_GRACE = 5.0  # seconds that a worker has to end a run in whose place another one is put
_LOOK = 0.5  # seconds between two looks at it where no hint comes
_LONGEST = 100 * 365 * 24 * 3600 * 1_000_000_000  # ns; later times do not fit where stores keep them
_UNSUCCESSFUL = frozenset({Status.FAILED, Status.CANCELLED, Status.TERMINATED, Status.TIMED_OUT})


class WorkflowIDConflictPolicy(StrEnum):
    """What a start does where its id has an open run.

    The names are Temporal's, and so is the default, FAIL.
    """

    FAIL = "fail"
    """Raise `WorkflowAlreadyExistsError`."""
    USE_EXISTING = "use_existing"
    """Start nothing: give the run that is there."""
    TERMINATE_EXISTING = "terminate_existing"
    """End the run that is there, and start another one in its place."""


class WorkflowIDReusePolicy(StrEnum):
    """What a start does where its id has a closed run, and none that is open.

    The names are Temporal's, and so is the default, ALLOW_DUPLICATE.
    """

    ALLOW_DUPLICATE = "allow_duplicate"
    """Start another run."""
    ALLOW_DUPLICATE_FAILED_ONLY = "allow_duplicate_failed_only"
    """Start another run unless the last one has completed; then raise `WorkflowAlreadyExistsError`."""
    REJECT_DUPLICATE = "reject_duplicate"
    """Raise `WorkflowAlreadyExistsError`: what is started twice by mistake does its work once."""


@frozen
class StartOptions:
    """How a run is started; all but the policies is pinned.

    Attributes:
        resume: "replay" or "checkpoint"; "" for what the workflow was deployed with.
        limits: What the guest may use.
        sources: Sources of the session by field name.
        sinks: Sinks of the session by field name.
        memo: For people.
        attributes: Search attributes.
        queue: Whose workers may claim it.
        module: sha256 of the module that the caller expects under the name, or "".
        conflict: What to do where the id has an open run.
        reuse: What to do where the id has a closed run.
        execution_timeout: Ends the run, and those that it is continued by, so many ns after it has begun; or None.
        run_timeout: Ends the run so many ns after it has begun; or None.
        start_delay: So many ns later the run begins.
    """

    resume: str = ""
    limits: Limits = field(factory=Limits)
    sources: Mapping[str, StreamSpec] = field(factory=dict)
    sinks: Mapping[str, StreamSpec] = field(factory=dict)
    memo: Mapping[str, Any] = field(factory=dict)
    attributes: Mapping[str, str] = field(factory=dict)
    queue: str = "default"
    module: str = ""
    conflict: WorkflowIDConflictPolicy = WorkflowIDConflictPolicy.FAIL
    reuse: WorkflowIDReusePolicy = WorkflowIDReusePolicy.ALLOW_DUPLICATE
    execution_timeout: int | None = None
    run_timeout: int | None = None
    start_delay: int = 0


class Adopter(Protocol):
    """A worker of this process that may begin an instance which is created here, without a claim."""

    def adopts(self, queue: str) -> str | None:
        """The owner to create it with, or None where it may not."""

    def image(self, module: str, entry: str) -> str:
        """Digest of the image under its guests of that module and entry; "" where it has laid none yet."""

    def adopt(self, stored: Stored, created: Proposal) -> None:
        """Begin it: it was created, owned by what `adopts` gave."""

    def abandon(self, key: Key) -> None:
        """It may have been created, owned by what `adopts` gave, and nobody will begin it."""


async def start(
    store: Store,
    tenant: str,
    id_: str,
    workflow: str,
    given: Payload,
    session: Payload | None,
    options: StartOptions,
    workers: Sequence[Adopter] = (),
    codec: PayloadCodec | None = None,
) -> str:
    """Start a run; one of `workers` begins it at once if it may, else some worker will claim it. Its run id.

    Where the policy is to use an open run, that is the one whose id is given.

    Raises:
        InvalidArgumentError: The id or an option cannot be used, or the input does not fit the guest's entry.
        PayloadCodecError: The codec has failed.
        WorkflowNotFoundError: Nothing is deployed under the name.
        WorkflowAlreadyExistsError: The id has a run, and the policies refuse another one.
        WasmVersionMismatchError: The name points at another module than `options.module`.
    """
    key = Key(tenant, validated_id(id_))
    _check_options(id_, options)
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
    stored = encoded(given, codec), None if session is None else encoded(session, codec)
    place = _Place()
    while True:
        run = store.new_run(key)
        now = store.now()
        begins = now + options.start_delay
        pinned = _pinned(workflow, name, options, begins, place)
        worker, owner = _adopter(workers, options.queue) if begins == now else (None, None)
        image = worker.image(name.module, name.entry) if worker is not None else ""
        proposal = create(tenant, id_, run, pinned, *stored, now, begins=begins, image=image, deflate=store.deflates)
        wake = None if owner else begins
        change = creation(key, proposal, owner=owner, wake=wake, expected=place.expected)
        try:
            *_, outcome = await store.commit([change] if place.closing is None else [place.closing, change])
        except BaseException:  # such as a caller that waits no longer
            if worker is not None:
                worker.abandon(key)
            raise
        if isinstance(outcome, Won):
            if worker is not None:
                worker.adopt(created(change, outcome), proposal)
            return run
        found = await store.load(key)
        if found is not None and found.columns.status in OPEN:
            if _uses(found, workflow, options):
                return found.run
            place = await _vacated(store, found)
        else:
            _check_reuse(found, key, options)
            place = _Place() if found is None else _Place((found.run, found.version), None, found.run)


def _check_options(id_: str, options: StartOptions) -> None:
    """Refuse what cannot be kept or done; raises `InvalidArgumentError`."""
    check_annotations(id_, options.memo, options.attributes)
    terminates = options.conflict is WorkflowIDConflictPolicy.TERMINATE_EXISTING
    if terminates and options.reuse is WorkflowIDReusePolicy.REJECT_DUPLICATE:
        message = (
            f"the start of {id_!r} would end the open run and then refuse its own, because the id was used: "
            f"terminate_existing and reject_duplicate exclude each other"
        )
        raise InvalidArgumentError(message)
    for what in ("execution_timeout", "run_timeout", "start_delay"):
        value = getattr(options, what)
        if value is None or (value == 0 and what == "start_delay"):
            continue
        if value <= 0 or value > _LONGEST:
            least = "not negative" if what == "start_delay" else "more than 0"
            message = f"{what} of {id_!r} is {value / 1e9:g} s; it must be {least}, and at most 100 years"
            raise InvalidArgumentError(message)


def _pinned(workflow: str, name: Deployment, options: StartOptions, begins: int, place: _Place) -> Pinned:
    """What never changes within the run; its timeouts count from when it begins."""
    resume = options.resume or name.resume
    own = (options.sources, options.sinks, options.memo, options.attributes, place.previous)
    if not any(own) and options.execution_timeout is None and options.run_timeout is None:
        return _shared(workflow, name, resume, options.limits, options.queue)
    ends = [begins + timeout for timeout in (options.execution_timeout, options.run_timeout) if timeout is not None]
    return Pinned(
        workflow=workflow,
        module=name.module,
        entry=name.entry,
        resume=resume,
        limits=options.limits,
        sources=dict(options.sources),
        sinks=dict(options.sinks),
        memo=dict(options.memo),
        attributes=dict(options.attributes),
        queue=options.queue,
        expires=min(ends, default=None),
        engine=SETTINGS,
        execution_expires=None if options.execution_timeout is None else begins + options.execution_timeout,
        run_timeout=options.run_timeout,
        previous=place.previous,
    )


@functools.lru_cache(1000)
def _shared(workflow: str, name: Deployment, resume: str, limits: Limits, queue: str) -> Pinned:
    """What most runs of a workflow have pinned: made, encoded and kept in memory once."""
    return Pinned(workflow, name.module, name.entry, resume, limits, queue=queue, engine=SETTINGS)


# Where the id has a run already


@frozen
class _Place:
    """Where a run is put: what the store must hold, and what is committed before.

    Attributes:
        expected: As of a change.
        closing: The change that ends the run that is open there, or None.
        previous: The run of the id before, or "".
    """

    expected: tuple[str, int] | None = None
    closing: Change | None = None
    previous: str = ""


def _uses(found: Stored, workflow: str, options: StartOptions) -> bool:
    """Whether the open run that was found is the one to give; False where it is to be ended."""
    key, status = found.key, found.columns.status.value
    if options.conflict is WorkflowIDConflictPolicy.FAIL:
        message = (
            f"workflow id {key.id!r} is taken by run {found.run}, which is {status}; use another id, or its handle, or "
            f"start with an id_conflict_policy: use_existing or terminate_existing"
        )
        raise WorkflowAlreadyExistsError(message, found.run)
    if options.conflict is WorkflowIDConflictPolicy.TERMINATE_EXISTING:
        return False
    if found.columns.workflow != workflow:
        message = (
            f"workflow id {key.id!r} is taken by run {found.run} of workflow {found.columns.workflow!r}, which is not "
            f"{workflow!r}, so it is not used instead; use another id"
        )
        raise WorkflowAlreadyExistsError(message, found.run)
    return True


def _check_reuse(found: Stored | None, key: Key, options: StartOptions) -> None:
    """Raise `WorkflowAlreadyExistsError` where the id was used, and may not be used again."""
    if found is None or options.reuse is WorkflowIDReusePolicy.ALLOW_DUPLICATE:
        return
    failed_only = options.reuse is WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
    if failed_only and found.columns.status in _UNSUCCESSFUL:
        return
    advice = ", or start with id_reuse_policy allow_duplicate" if failed_only else ""
    message = (
        f"workflow id {key.id!r} is taken by run {found.run}, which has ended ({found.columns.status.value}), and the "
        f"start says {options.reuse.value}; use another id, or its handle{advice}"
    )
    raise WorkflowAlreadyExistsError(message, found.run)


async def _vacated(store: Store, found: Stored) -> _Place:
    """The place of an open run that is to be ended: by its worker if it has one, else by what is committed there."""
    key, run = found.key, found.run
    reason = "another run was started in its place (id_conflict_policy terminate_existing)"
    publishes = found.columns.status is Status.PUBLISHING  # its guest has finished, so it ends by itself
    if found.columns.owner is not None or publishes:
        with contextlib.suppress(WorkflowClosedError, WorkflowNotFoundError):
            if not publishes:
                await control.terminate(store, key, reason, run)
        present: Stored | None = found
        with anyio.move_on_after(_GRACE):
            while present is not None and present.run == run and present.columns.status in OPEN:
                await store.watch(key, _LOOK)
                present = await store.load(key)
        present = await store.load(key)
        if present is None or present.run != run or present.columns.status not in OPEN:
            return _Place()  # the next commit finds out what is to be done about what is there now
        if present.columns.status is Status.PUBLISHING:
            message = (
                f"workflow id {key.id!r} is taken by run {run}, whose guest has finished and whose sinks are being "
                f"published; start again when it has completed"
            )
            raise WorkflowAlreadyExistsError(message, run)
        found = present
    closing = control.closing(found, reason, await store.mail(key), store.now(), deflate=store.deflates)
    return _Place((found.run, found.version + 1), closing, found.run)


# The first commit


def creation(
    key: Key, proposal: Proposal, *, owner: str | None, wake: int | None, expected: tuple[str, int] | None = None
) -> Change:
    """The change that makes a run as `proposal` says, where the store holds what is expected: by default, nothing."""
    record = proposal.record
    assert record is not None, "a run begins with a record"
    return Change(
        key=key,
        expected=expected,
        run=record.run,
        nonce=drawn(16),
        record=sealed_record(key, record),
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
    try:
        value = given.value()
    except ValueError:  # bytes that are no JSON
        value = None
    numbers = value if isinstance(value, list) else [value]
    if not integers_fit(numbers, name.params):
        message = (
            f"the entry of workflow {workflow!r} takes {len(name.params)} integers ({', '.join(name.params)}); "
            f"the input of {id_!r} is {given.content[:80].decode(errors='replace')}"
        )
        raise InvalidArgumentError(message)
