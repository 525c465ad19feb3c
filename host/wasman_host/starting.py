"""Starting an instance: its first commit. No worker needs to run; one of this process begins it at once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

from wasman_host.deployments import deployed
from wasman_host.errors import (
    InvalidArgumentError,
    WasmVersionMismatchError,
    WorkflowAlreadyExistsError,
    WorkflowNotFoundError,
)
from wasman_host.guest.engine import SETTINGS
from wasman_host.guest.limits import check_stack
from wasman_host.ids import validated_id
from wasman_host.instance import integers_fit
from wasman_host.machine import create
from wasman_host.oplog import encode_tail
from wasman_host.record import Limits, Pinned, StreamSpec, encode_record
from wasman_host.seal import Address, seal
from wasman_host.store.protocol import Change, Key, Lost, Stored, Won
from wasman_host.stored import columns_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.deployments import Deployment
    from wasman_host.machine import Proposal
    from wasman_host.payload import Payload
    from wasman_host.store.protocol import Store

__all__ = ["Adopter", "StartOptions", "check_size", "created", "creation", "start"]


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


class Adopter(Protocol):
    """A worker of this process that may begin an instance which is created here, without a claim."""

    def adopts(self, queue: str) -> str | None:
        """The owner to create it with, or None where it may not."""

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
    run = store.new_run(key)
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
