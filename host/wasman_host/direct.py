"""Instances that are executed directly: an application calls exports of a module, and its memory is kept in between.

An instance is one run without a worker. Each execution begins by a delivery of kind "execute" in its log, and ends by a
snapshot. One that calls no activity is a single commit: the delivery, the pages that it changed, and the new record.
One that does is in the log before its first call, and from then on logged like a workflow's turn; where its process
dies in it, the next one to take the instance up finishes it first, from the snapshot and the log. One that fails leaves
the memory as it was before.

There is no lease: every commit is fenced by (run, version), so of two engines on one instance one loses its execution.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from attrs import evolve
from pydantic_core import to_json
from typing_extensions import override

from wasman_host.errors import (
    ConcurrentExecutionError,
    Failure,
    InputMismatchError,
    InvalidArgumentError,
    InvalidModuleError,
    WasmVersionMismatchError,
    WorkflowAlreadyExistsError,
    WorkflowClosedError,
)
from wasman_host.guest.abi_v0 import Call
from wasman_host.guest.engine import SETTINGS
from wasman_host.guest.live import Trapped
from wasman_host.host_calls import HOST
from wasman_host.instance import Instance, integers_fit
from wasman_host.machine import Machine, Proposal, create
from wasman_host.mail import ending
from wasman_host.payload import Payload
from wasman_host.record import Pinned
from wasman_host.seal import Address, seal
from wasman_host.snapshot import Delta, encode_delta
from wasman_host.starting import check_size, created, creation
from wasman_host.store.protocol import CLOSED, Claim, Won
from wasman_host.stored import DIRECT, columns_of, open_record, open_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.activity import ActivityDefinition
    from wasman_host.engine import Engine
    from wasman_host.guest.imports import Request
    from wasman_host.guest.live import Guest
    from wasman_host.guest.module import GuestModule
    from wasman_host.record import Limits, Record
    from wasman_host.store.protocol import Columns, Key

__all__ = ["DirectInstance", "ExecutionFailed", "opened"]

_LOOK = 16  # executions of an instance between two looks at how much its guest has written


class ExecutionFailed(Exception):  # noqa: N818  not for the application: the SDK says it in its own words
    """The guest failed the execution; its memory is as it was before.

    Attributes:
        failure: What went wrong.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


async def opened(engine: Engine, key: Key, module: str, entry: str, limits: Limits) -> DirectInstance:
    """The instance as it is stored, made if there is none; nothing of it is in memory yet.

    Raises:
        WasmVersionMismatchError: It was made of another module.
        WorkflowAlreadyExistsError: The id is a workflow's.
        WorkflowClosedError: It was ended.
        CorruptSnapshotError: What is stored is damaged.
    """
    stored = await engine.store.load(key)
    if stored is None:
        return await _created(engine, key, await engine.module(module), entry, limits)
    if stored.columns.queue != DIRECT:
        message = f"{key} is an instance of workflow {stored.columns.workflow!r}; execute under another id"
        raise WorkflowAlreadyExistsError(message)
    if stored.columns.status in CLOSED:
        message = f"{key} has ended ({stored.columns.status.value}); execute under another id"
        raise WorkflowClosedError(message)
    record = open_record(stored)
    if record.pinned.module != module:
        message = (
            f"{key} was made of module {record.pinned.module[:12]}, and this engine has {module[:12]}; its memory "
            f"means nothing to another module: use an engine with the old one, or another id"
        )
        raise WasmVersionMismatchError(message)
    instance = DirectInstance(engine, Claim(stored, takeover=False), limits)
    if instance.mailed and await instance.ended():
        message = f"{key} was terminated; execute under another id"
        raise WorkflowClosedError(message)
    return instance


async def _created(engine: Engine, key: Key, module: GuestModule, entry: str, limits: Limits) -> DirectInstance:
    store = engine.store
    run = secrets.token_hex(16)
    entry = engine.entry(module, entry)
    pinned = Pinned(DIRECT, module.digest, entry, "checkpoint", limits, queue=DIRECT, engine=SETTINGS)
    proposal = create(
        key.tenant, key.id, run, pinned, Payload.of_value(None), None, store.now(), deflate=store.deflates
    )
    change = creation(key, proposal, owner=None, wake=None)
    [outcome] = await store.commit([change])
    if not isinstance(outcome, Won):
        message = f"{key} was made by somebody else just now; execute again"
        raise ConcurrentExecutionError(message)
    return DirectInstance(engine, Claim(created(change, outcome), takeover=False), limits)


class DirectInstance(Instance):
    """One instance and its guest, between and during executions. It is not entered twice at once.

    Attributes:
        idle: Whether nothing is executed: its guest may be evicted then.
        spent: Whether it was not loaded whole, or an execution has ended otherwise than well: what comes next takes up
            what the store has.
    """

    def __init__(self, engine: Engine, claim: Claim, limits: Limits) -> None:
        """Nothing is loaded yet; `limits` hold from now on."""
        super().__init__(engine, claim)
        self.idle, self.spent = True, False
        self._executions = 0
        record = open_record(claim.stored)
        record = evolve(record, pinned=evolve(record.pinned, limits=limits))
        self.machine = Machine(
            self.key.tenant, self.key.id, record, open_tail(claim.stored), deflate=self._store.deflates
        )

    async def ended(self) -> bool:
        """Whether its mail ends it, which is done then."""
        terminating = ending(await self._store.mail(self.key))
        if terminating is not None:
            await self._close_as(terminating)
        return terminating is not None

    # Executions

    async def execute(self, entry: str, arguments: Sequence[int], given: Payload) -> Payload:
        """Call an export; its result, durable together with all that it changed.

        Args:
            entry: The export.
            arguments: Its integers.
            given: What the guest reads as its input, JSON.

        Raises:
            InvalidArgumentError: The input is larger than the guest may be given.
            ExecutionFailed: The guest trapped, failed or exited; nothing of it is kept.
            BlockedError: A limit, damage, an activity that is not registered...; the memory is as it was.
            ConcurrentExecutionError: Another engine has executed meanwhile.
        """
        check_size(self.key.id, "input", given, self.machine.pinned.limits)
        await self.recover()
        guest_entry = self._checked(entry, arguments)
        head = to_json({"entry": guest_entry, "arguments": list(arguments)})
        call = Payload.of(b"".join((head[:-1], b',"input":', given.content, b"}")))
        start = self.machine.entered(call, self.now())
        self.machine.accept(start)
        self._ahead = start
        return await self._executed(guest_entry, arguments, given)

    async def recover(self) -> Payload | None:
        """Take the instance into memory, and finish the execution that a dead process has left; its result, if so."""
        if self.guest is not None:
            return None
        self.spent = True  # until it is whole: what failed half way must not be executed
        await self._load()
        if not self._reentrant:
            why = self._module.snapshots or "its initialisation calls the host"
            message = f"module {self._module.digest[:12]} cannot be executed directly: {why}; start it as a workflow"
            raise InvalidModuleError(message)
        if not self.machine.replaying:
            self.spent = False
            return None
        self.log.info("run %s of %s: an execution that was interrupted is finished", self.run, self.key)
        call = (await self.loaded(self.machine.entered_again())).value()
        return await self._executed(call["entry"], call["arguments"], Payload.of_value(call["input"]))

    async def _executed(self, entry: str, arguments: Sequence[int], given: Payload) -> Payload:
        guest, machine = self.guest, self.machine
        assert guest is not None, "the instance was loaded"
        machine.input = given
        guest.world.time = machine.time
        self.idle, self.spent = False, True
        try:
            result = await self._returned(entry, arguments)
            checkpoints = self.checkpoints
            assert checkpoints is not None, "only what has an image is executed directly"
            held, changed = checkpoints.holds(guest), checkpoints.changed(guest)
            await self.commit(self.snapshot(guest, held, changed))
            checkpoints.kept(guest, held, changed)
            await self.trim(self.propose)
        except ExecutionFailed:
            await self._undone()
            raise
        finally:
            self.idle = True
        self.spent = self.mailed  # whoever opens it next reads the mail
        self._engine.residents.waits(self)
        self._executions += 1
        if self._executions % _LOOK == 1:
            self._engine.residents.look()
        return result

    async def _returned(self, entry: str, arguments: Sequence[int]) -> Payload:
        """Call the export; what it gives. Raises `ExecutionFailed`."""
        outcome = await self._drive(entry, arguments)
        if isinstance(outcome, Trapped) or outcome.code:
            raise ExecutionFailed(self.failure_of(outcome))
        early = self.machine.finished_early()
        if early is not None:
            raise early
        return self.machine.result or self._integers(outcome.values)

    async def _undone(self) -> None:
        """The execution has failed: what it asked of its host stays in the log, its memory is forgotten."""
        machine, origin = self.machine, self._origin
        if self._ahead is not None:
            return  # nothing of it is durable
        assert origin is not None, "only what has an image is executed directly"
        machine.result = None
        chain = machine.record.snapshot.deltas if machine.record.snapshot else ()
        last = await self._past.restored(origin, self._engine.images)
        if last is not None:
            parent, size, values = chain[-1][1], last.image.size, last.globals
        else:
            parent, size, values = origin.digest, origin.image.size, origin.globals
        delta = Delta(parent, size, (), b"", values, machine.state())
        name = f"snapshot-{self._version + 1}"
        address = Address(self.key.tenant, self.key.id, self.run, "snapshot", name)
        sealed = seal(address, encode_delta(delta), deflate=self._store.deflates)
        await self.commit(machine.checkpoint(name, sealed, chain))
        await self.trim(self.propose)

    def _checked(self, entry: str, arguments: Sequence[int]) -> str:
        found = self._engine.entry(self._module, entry)
        wanted = self._module.exports[found].params
        if not integers_fit(arguments, wanted):
            message = (
                f"the export {found!r} takes {len(wanted)} integers ({', '.join(wanted)}), and the execution on "
                f"{self.key} gives {', '.join(map(repr, arguments)) or 'none'}"
            )
            raise InputMismatchError(message)
        return found

    # What differs from an instance that a worker lives

    @override
    async def _answer(self, guest: Guest, request: Request) -> int:
        if self._ahead is not None and type(request) is Call and not request.name.startswith(HOST):
            self.activity(request.name)
            # The world is about to be changed under the key of this operation: whatever becomes of this process, the
            # execution is in the log then, and no other one has the key.
            await self.commit(Proposal(self.machine.record, self.machine.tail))
        return await super()._answer(guest, request)

    @override
    def evict(self) -> bool:
        if not self.idle or self.guest is None:
            return False
        guest, self.guest = self.guest, None
        guest.close()
        return True

    @property
    @override
    def _interrupted(self) -> bool:
        return False

    @override
    def require_lease(self) -> None:
        return

    @override
    def activity(self, name: str) -> ActivityDefinition | None:
        found = super().activity(name)
        if found is None:
            message = (
                f"the guest of {self.key} calls activity {name!r}, which this engine has not; give it to the engine"
            )
            raise InvalidArgumentError(message)
        return found

    @override
    async def _checkpoint(self, guest: object) -> None:
        """An execution is kept as a whole."""

    @override
    async def fail(self, failure: Failure) -> None:
        raise ExecutionFailed(failure)

    @override
    def _columns(self, record: Record, proposal: Proposal) -> Columns:
        return columns_of(record, proposal.tail.stored, owner=None, wake=None)

    async def close(self) -> None:
        """Give its memory up; what is durable stays."""
        await self._let_go()
