"""The life of one instance, top to bottom: claimed, restored, replayed, run, committed, waiting, finished.

One task lives one claimed instance. The guest is parked in every host call that waits; this task answers it: calls of
activities by `wasman_host.calls`, streams by `wasman_host.session_streams`, everything else here. What the guest is
about to see is committed first, and every commit is fenced by (run, version): a copy that has lost the instance finds
out at its next commit, and is dropped.

A guest that waits may be evicted, so that it costs no memory: where the time is known that it waits for, the instance
is handed back to the store until then; where it waits for an activity, its memory goes, the activity runs on, and with
its answer in the log the run is taken up again as after a crash. One whose stack can be unwound (`guest.asyncify`) is
kept before that, in the middle of its call, and goes on there: nothing of it runs twice.
"""

from __future__ import annotations

import logging
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

import anyio
import anyio.lowlevel
from attrs import evolve

from wasman_host.archive import Archive
from wasman_host.blocking import Blocking
from wasman_host.calls import Calls, GivenUp
from wasman_host.checkpoints import Checkpoints
from wasman_host.codec import encoded
from wasman_host.errors import (
    BlockedError,
    ConcurrentExecutionError,
    CorruptSnapshotError,
    Failure,
    GuestTimeoutError,
    InputMismatchError,
    InvalidModuleError,
    ModuleError,
    StoreUnavailableError,
    UnsupportedStateError,
)
from wasman_host.events import Event, EventKind
from wasman_host.guest import abi_v0, abi_v1, asyncify
from wasman_host.guest.asyncify import Suspended
from wasman_host.guest.engine import SETTINGS
from wasman_host.guest.live import Ended, Exceeded, Guest, Parked, Trapped, Yielded
from wasman_host.guest.memory import Baseline
from wasman_host.guest.panics import of_stack
from wasman_host.guest.world import World
from wasman_host.host_calls import HostCalls
from wasman_host.ids import drawn
from wasman_host.machine import Machine, Proposal, Terminating
from wasman_host.mail import DamagedMailError, cancel_in, ending, signals_in
from wasman_host.oplog import EMPTY_CHAIN, Entry, encode_tail
from wasman_host.past import Past
from wasman_host.payload import Payload
from wasman_host.reasons import exceeded, panicked, with_command
from wasman_host.session_streams import SessionStreams
from wasman_host.store.protocol import Change, Columns, Lost, Status, Step, Stored, Unread, Won
from wasman_host.stored import columns_of, open_record, open_tail, sealed_record, unread_end
from wasman_host.turns import Turns
from wasman_host.wake import turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from wasman_host.activity import ActivityDefinition
    from wasman_host.checkpoints import Held
    from wasman_host.engine import Engine
    from wasman_host.guest.imports import Request
    from wasman_host.images import Restored
    from wasman_host.record import Cancel, KeptSignal, Record
    from wasman_host.store.protocol import Claim, Message

__all__ = ["Instance", "integers_fit"]

logger = logging.getLogger("wasman.instance")

_MOVES = (abi_v0.Download, abi_v0.Upload, abi_v1.StreamRead, abi_v1.StreamWrite)
_POLITE = 64  # host calls that wait for nothing between two turns of the event loop
_HEARD = 10_000  # messages that are known to have been taken off the mail
_NOTHING: frozenset[str] = frozenset()
_TO_REST = 1.0  # seconds of processor time after which a guest that computes is no longer waited for
_HOLD = 5.0  # seconds that a blocked run is held for mail that does not end it: it could be claimed again at once
_STORE_PAUSE = 0.5  # seconds between two looks at a store that does not answer
_ENDS: Mapping[Status, EventKind] = {
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
    Status.TERMINATED: "terminated",
    Status.TIMED_OUT: "timed_out",
}


def integers_fit(given: Sequence[object], wanted: Sequence[str]) -> bool:
    """Whether `given` are integers that fit an entry's parameters of types "i32" and "i64", signed or not."""
    if len(given) != len(wanted):
        return False
    for number, kind in zip(given, wanted, strict=True):
        bits = 32 if kind == "i32" else 64
        if type(number) is not int or not -(1 << bits - 1) <= number < 1 << bits:
            return False
    return True


class _MailFirst(Exception):  # noqa: N818  not an error: mail came before the run could close
    """The store refused to close the run because of mail that nobody has read."""


class _Evicted(Exception):  # noqa: N818  not an error: the guest's memory was given up while it waited
    """What the guest waited for is in the log, and the guest has to be taken up again."""


class Instance:
    """One claimed instance and the task that lives it.

    Attributes:
        key: Which instance it is.
        run: Its run id.
        expires: When its execution timeout ends it, ns since 1970, or None.
        owns: Whether the store still says, as far as this task knows, that this worker has it.
        mailed: Whether there was unread mail for it at its last commit.
        machine: Its state machine.
        guest: Its guest, or None where there is none in memory.
        checkpoints: What takes the guest's snapshots, or None where it has no image to lie over.
        turns: What lives the run of a guest of ABI v1 from turn to turn; None for others.
    """

    __slots__ = (
        "_ahead",
        "_answered",
        "_beside",
        "_blocking",
        "_calls",
        "_cancelling",
        "_committing",
        "_computed",
        "_created",
        "_ending",
        "_engine",
        "_entry",
        "_handing_back",
        "_heard",
        "_host_calls",
        "_interrupt_due",
        "_leaving",
        "_module",
        "_nonce",
        "_origin",
        "_reentrant",
        "_scope",
        "_store",
        "_stored",
        "_streams",
        "_suspended",
        "_until",
        "_version",
        "_waits",
        "checkpoints",
        "codec",
        "expires",
        "guest",
        "key",
        "machine",
        "mailed",
        "now",
        "owns",
        "run",
        "turns",
    )

    machine: Machine
    checkpoints: Checkpoints | None

    def __init__(self, engine: Engine, claim: Claim, created: Proposal | None = None) -> None:
        """Take a claim up.

        Args:
            engine: The worker's.
            claim: What it was given.
            created: The proposal that has just created the instance, where this worker did: nothing need be read then.
        """
        self.key = claim.stored.key
        self.run = claim.stored.run
        self.expires = claim.stored.columns.expires
        self._engine = engine
        self._store = engine.store
        # Not methods of its own: each step asks for them several times.
        self.now, self.codec = engine.store.now, engine.codec
        self._stored = claim.stored
        self._created = created
        self._version = claim.stored.version
        # Drawn once, where it was not just drawn for the creation: with the version behind it, it is one a commit.
        self._nonce = drawn(16) if created is None else claim.stored.nonce
        self._scope = anyio.CancelScope()
        self._committing = False
        self._beside: anyio.Event | None = None  # set when what is committed beside this task is
        self._interrupt_due = False  # as soon as that is
        self._ending: Terminating | None = None
        self._cancelling: Cancel | None = None  # it is still in the mail
        self._blocking: BlockedError | None = None
        self._leaving = False
        self._handing_back: int | None = None  # until when nothing happens
        self._waits = False
        self._until: int | None = None
        self._ahead: Proposal | None = None  # true already, and made durable together with what comes next
        self._suspended: Suspended | None = None  # where the guest goes on, which was restored and not entered yet
        self._answered, self._computed = 0, 0.0  # since the guest was kept: answers, and processor seconds
        self.owns = True
        self.mailed = claim.stored.mail > 0
        self.guest: Guest | None = None
        self.turns: Turns | None = None
        self._heard = _NOTHING
        self._calls = Calls(self)
        self._streams = SessionStreams(engine.streams, self.require_lease)
        self._host_calls = HostCalls(self, self._calls, self._streams)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """Where it says what happens to it."""
        return logging.LoggerAdapter(logger, self.names)

    @property
    def names(self) -> dict[str, str]:
        """What stands in each line of the log, for programs that read it."""
        workflow = self._stored.columns.workflow
        return {"tenant": self.key.tenant, "workflow": workflow, "id": self.key.id, "run": self.run}

    def report(
        self, kind: EventKind, level: int, text: str, *, activity: str = "", attempt: int = 0, reason: str = ""
    ) -> None:
        """Say what has happened, to the log and to whoever observes the worker."""
        if logger.isEnabledFor(level):
            more: dict[str, object] = {"event": kind, "reason": reason}
            if activity:
                more |= {"activity": activity, "attempt": attempt}
            logger.log(level, text, extra={**self.names, **more})
        if not self._engine.observers:
            return
        key, workflow = self.key, self._stored.columns.workflow
        event = Event(kind, key.tenant, workflow, key.id, self.run, self.now(), activity, attempt, reason)
        for observe in self._engine.observers:
            try:
                observe(event)
            except Exception:
                logger.exception("what observes the worker has failed at %r of %s", kind, key, extra=self.names)

    @property
    def reports(self) -> bool:
        """Whether anybody hears of what happens all the time."""
        return bool(self._engine.observers) or logger.isEnabledFor(logging.DEBUG)

    # From outside: the engine says that something else comes first

    def end(self, terminating: Terminating) -> None:
        """End the run as soon as nothing is being committed."""
        self._ending = terminating
        self._interrupt()

    def expire(self) -> None:
        """Its timeout is over: end the run as soon as nothing is being committed."""
        if hasattr(self, "machine"):  # else it looks itself, once it is open
            self.end(self.machine.timed_out())

    def block(self, error: BlockedError) -> None:
        """Make the instance stand still as soon as nothing is being committed."""
        self._blocking = error
        self._interrupt()

    def tell(self, cancel: Cancel) -> None:
        """Let the guest know of a cancel: at once where it waits for a call, else by its next one."""
        self._cancelling = cancel
        if self.turns is not None:
            self.turns.stir()
        elif self._waits and self.machine.record.cancel is None:
            self._interrupt()

    def signalled(self, signals: Sequence[KeptSignal]) -> None:
        """There are signals in its mail: they are taken as soon as nothing else is being committed."""
        if self.turns is not None:
            self.turns.signalled(signals)
        elif self._waits:
            self.beside(partial(self._keep_signals, signals))

    async def _keep_signals(self, signals: Sequence[KeptSignal]) -> None:
        """Take signals for a guest that receives none (ABI v0): when the run closes, they are listed as undelivered."""
        new = self.unheard(signals)
        if new:
            await self.commit_beside(lambda: self.machine.signalled(new))

    def unheard(self, signals: Sequence[KeptSignal]) -> list[KeptSignal]:
        """Those that were not taken off the mail meanwhile: whoever read the mail may have read it before."""
        return [signal for signal in signals if signal.message not in self._heard]

    def leave(self) -> None:
        """Give the instance up in order as soon as nothing is being committed."""
        self._leaving = True
        self._interrupt()

    def leave_when_answered(self) -> None:
        """Give the instance up in order once the activity that it waits for has answered, and that is durable."""
        self._leaving = True

    @property
    def is_in_activity(self) -> bool:
        """Whether an activity is under way for it."""
        return self.turns.is_in_activity if self.turns is not None else self._waits and self._until is None

    def drop(self) -> None:
        """The lease is lost: stop, and write nothing any more."""
        # The lease is no longer valid, and that is what `_interrupted` sees.
        self._ending, self._leaving, self._handing_back = None, False, None
        self._interrupt()

    def evict(self) -> bool:
        """Give the guest's memory up if it waits; False where it does not, or has none."""
        if self.turns is not None:
            return self.guest is not None and self.turns.evict()
        if not self._waits or self._committing or self.guest is None:
            return False
        if self._until is not None:
            self._handing_back = self._until
            self._interrupt()
        elif self.suspendable(self.guest):
            self.beside(self._keep_and_close)
        else:
            guest, self.guest = self.guest, None
            guest.close()
        return True

    def _interrupt(self) -> None:
        if self._committing:
            self._interrupt_due = True
        else:
            self._scope.cancel()

    # What its calls ask

    @property
    def crowded(self) -> bool:
        """Whether others go on at the same time, by what one transaction made durable: then all do so in step."""
        return self._store.crowded

    @property
    def cancel(self) -> Cancel | None:
        """A cancel of which the guest does not know yet, taken from the mail or still in it."""
        taken = self.machine.record.cancel
        return self._cancelling if taken is None else self.machine.pending_cancel

    def activity(self, name: str) -> ActivityDefinition | None:
        """What answers calls of `name` in this worker, or None."""
        return self._engine.activity(name)

    def sleep_until(self, time: int) -> Awaitable[None]:
        """Wait until then by the store's clock; this is all that the instance does."""
        return self._store.sleep_until(time, self.key)

    def waiting(self, *, until: int | None) -> None:
        """The guest waits for an activity (None), or for a time that is known: it may be evicted."""
        self._waits, self._until = True, until
        self._engine.residents.waits(self)

    def rests(self) -> None:
        """The guest waits between two turns: it may be kept and evicted."""
        self._engine.residents.waits(self)

    def resumed(self) -> None:
        """The guest is about to be answered. Raises `_Evicted` where its memory was given up meanwhile."""
        self._waits = False
        if self.guest is None:
            raise _Evicted

    # The life

    async def live(self) -> None:
        """From the claim to the run's end, or until somebody else has the instance. Raises nothing."""
        try:
            while True:
                try:
                    await self._live()
                except _Evicted:
                    await self._claimed_again(0.0)
                except StoreUnavailableError as error:
                    self.log.warning("run %s of %s waits for its store: %s", self.run, self.key, error)
                    await self._claimed_again(_STORE_PAUSE)
                else:
                    return
        except ConcurrentExecutionError as error:
            self.log.info("%s", error)
        finally:
            if self._beside is None and not self._streams.are_open:
                self._forget_guest()
            else:
                with anyio.CancelScope(shield=True):
                    await self._let_go()

    async def _claimed_again(self, pause: float) -> None:
        """Read the instance again, as soon as the store answers, for as long as this worker owns it."""
        await self._let_go()
        while True:
            self.require_lease()
            await anyio.sleep(pause)
            try:
                stored = await self._store.load(self.key)
            except StoreUnavailableError:
                pause = _STORE_PAUSE
                continue
            if stored is None or stored.run != self.run or stored.columns.owner != self._engine.worker:
                self.owns = False
                message = f"run {self.run} of {self.key} was moved on by somebody else; this copy is dropped"
                raise ConcurrentExecutionError(message)
            self._stored, self._version = stored, stored.version
            self._scope, self._committing = anyio.CancelScope(), False  # a scope is entered once
            return

    async def _live(self) -> None:
        try:
            self.machine = self._opened()
        except BlockedError as error:
            await self._stand_unread(error)
            return
        try:
            with self._scope:
                # Without a frame between this one and the guest's: thousands of instances may wait there.
                if not self._interrupted:
                    if await self._readied():
                        if self.crowded:  # those that begin together make their guests together
                            await turn()
                        await self._run()
                    if self.machine.record.status is Status.PUBLISHING:
                        await self._publish()
        except GivenUp:
            return
        except BlockedError as error:
            await self._block(error)
        except ModuleError as error:
            await self._block(BlockedError(f"{error}; terminate {self.key}, or mend the cause and unblock"))
        except (ConcurrentExecutionError, StoreUnavailableError, _Evicted):
            raise
        except Exception as error:
            self.log.exception("run %s of %s is blocked by an internal error", self.run, self.key)
            await self._block(
                BlockedError(f"an internal error of wasman: {error!r}; see the worker's log, then unblock")
            )
        if self.owns and self._interrupted:
            await self._interrupted_by()

    def _opened(self) -> Machine:
        # A function of its own: what it holds besides would be kept by the frame of `_live` for as long as it waits.
        created = self._created
        if created is not None and created.record is not None:
            record, tail = created.record, created.tail
        else:
            record, tail = open_record(self._stored), open_tail(self._stored)
        columns = self._stored.columns
        # Whatever makes this instance open it again reads it from the store again.
        known = self._stored
        self._stored = Stored(known.key, known.run, known.version, known.nonce, columns, b"", known.mail)
        return Machine(self.key.tenant, self.key.id, record, tail, columns.takeovers, deflate=self._store.deflates)

    @property
    def _interrupted(self) -> bool:
        return bool(
            self._ending
            or self._blocking
            or self._leaving
            or self._handing_back is not None
            or (self._cancelling is not None and self._waits and self.machine.record.cancel is None)
            or not self._engine.lease_is_valid
        )

    async def _interrupted_by(self) -> None:
        """Do what came first instead of going on."""
        await self.settled()
        if self._blocking is None and self._ending is None and self._engine.lease_is_valid:
            try:
                await self._keep_what_waits()
            except BlockedError as error:
                self._blocking = error
        await self._let_go()
        if self._blocking is not None:
            await self._block(self._blocking)
        elif self._ending is not None and self.machine.record.status is Status.PUBLISHING:
            await self._publish()  # the guest had finished before: what came later is listed as undelivered
        elif self._ending is not None:
            await self._close_as(self._ending)
        elif self._leaving:
            await self.commit(self.machine.released(self.now(), self._calls.cut))
            self.report("released", logging.DEBUG, f"run {self.run} of {self.key} is released: the worker leaves")
        elif self._handing_back is not None:
            await self.commit(self.machine.sleeps(self._handing_back))
            self.report("released", logging.DEBUG, f"run {self.run} of {self.key} is released: it waits for a time")
        elif self._cancelling is not None:
            await self._take(self._cancelling)
            raise _Evicted  # its activity was cancelled, and its guest is gone: it goes on as after a crash

    async def _keep_what_waits(self) -> None:
        """Keep the guest of an instance that is given up as it waits, if it can be kept so."""
        if self.turns is None and self._waits:
            await self._keep(enters_again=False)
        elif self.turns is not None and self._leaving:
            await self.turns.keep()

    async def _take(self, cancel: Cancel) -> None:
        """Take a cancel from the mail: the guest is told at once where it waits for a call."""
        machine, asked = self.machine, self.machine.asked
        if machine.record.cancel is not None:
            return  # it was taken by the commit before
        if asked is not None:
            number, name = asked
            self.log.info("run %s of %s is cancelled while it waits for activity %r", self.run, self.key, name)
            await self.commit(machine.cancelled(number, name, cancel, self.now()))
        else:
            await self.commit(machine.mail_taken(cancel, ()))

    async def _readied(self) -> bool:
        """Load the guest, and say whether it is to run; what comes before that is done."""
        machine = self.machine
        publishing = machine.record.status is Status.PUBLISHING
        taken = False
        if self._stored.mail and not publishing:
            messages = await self._store.mail(self.key)
            terminating = ending(messages)
            if terminating is not None:
                await self._close_as(terminating)
                return False
            taken = await self._take_mail(messages)
        if self.expires is not None and self.now() >= self.expires and not publishing:
            await self._close_as(machine.timed_out())
            return False
        if machine.record.status is Status.BLOCKED:
            # Claimed for mail that does not end it: it goes on standing still.
            await anyio.sleep(0 if taken else _HOLD)
            await self.commit(evolve(machine.released(self.now()), wake=None))
            return False
        while machine.begins > self.now():  # claimed early, such as for mail
            await self.sleep_until(machine.begins)
        if not publishing:
            await self._load()
        return not publishing

    # Coming back

    async def _load(self) -> None:
        """Take up the run where its log and its newest snapshot say it stands."""
        machine, record = self.machine, self.machine.record
        pinned = record.pinned
        if pinned.engine != SETTINGS:
            message = (
                f"run {self.run} of {self.key} was started under compile settings {pinned.engine!r} and this wasman "
                f"has {SETTINGS!r}, under which the guest may do otherwise; run it with the wasman that started it"
            )
            raise UnsupportedStateError(message)
        self._module = module = await self._engine.module(pinned.module)
        self._entry = self._engine.entry(module, pinned.entry)
        origin = None
        if not module.snapshots:
            origin = await self._engine.origin(module, self._entry, pinned.limits.guest, record.image)
        self._origin = origin if origin is not None and not origin.unfinished else None
        if self._origin is not None:
            machine.pin_image(self._origin.digest)
        # Without an image its initialisation belongs to the run, which only a replay repeats.
        kept = module.turns or module.continues or module.reentrant or pinned.resume == "checkpoint"
        self._reentrant = kept and self._origin is not None
        if module.turns and self._origin is None:
            message = f"module {module.digest[:12]} cannot be kept between its turns: {module.snapshots}"
            raise InvalidModuleError(message)

        snapshot = record.snapshot if self._reentrant else None
        past, created, self._created = self._past, self._created, None
        entries: list[Entry] = []
        if created is not None:
            first = Entry(0, created.tail.time, 0, EMPTY_CHAIN, (), created.delivered)
        else:
            first, entries = await past.since(snapshot.entry if snapshot else 0, snapshot.chain if snapshot else None)
        restored = None
        if self._origin is not None and snapshot is not None:
            restored = await past.restored(self._origin, self._engine.images)
        machine.remember(first, None if restored is None else restored.state, entries)
        self._suspended, self._answered, self._computed = None, 0, 0.0
        if module.turns and self._origin is not None:
            self.turns = Turns(self, self._origin.block, None if restored is None else restored.state["turns"])
        elif module.version:
            self.turns = Blocking(self, 0, None if restored is None else restored.state["turns"])
        if restored is not None and module.continues:
            self._suspended = Suspended.from_json(restored.state["suspended"])
            if restored.state.get("asking"):
                machine.asks_again()
        self._make_guest(restored)
        if restored is not None:
            self._streams.token = restored.state.get("token")
            await past.load_kept()
        await past.load_given()
        if self.turns is not None:
            self.turns.pulls()

    def _make_guest(self, restored: Restored | None) -> None:
        """A guest of the run's module, with the memory that it goes on with."""
        machine, module, origin = self.machine, self._module, self._origin
        world = World(f"wasman run {self.run}".encode(), output=self._output)
        initialised = origin is not None and bool(module.initialisers(self._entry))
        image = None
        if restored is not None:
            image = restored.image
        elif origin is not None and (initialised or self._reentrant):
            image = origin.image
        guest = self.guest = Guest(module, world, machine.pinned.limits.guest, image)
        guest.transfer = self._host_calls.transfer
        if self.turns is not None:
            guest.exchange, world.turns = self.turns.exchange, module.turns
        self._engine.residents.enters(self)
        baseline: Baseline | None = None
        if restored is not None:
            calls_anew = self.turns is None and self._suspended is None
            keep = module.binary.stack_pointer if calls_anew else None
            guest.restore(restored.image, restored.globals, keep=keep)
            baseline = Baseline(restored.image, restored.touched)
            world.random = machine.random
        elif origin is not None and initialised:
            guest.restore(origin.image, origin.globals)
            baseline = Baseline(origin.image)
        elif origin is not None and self._reentrant:
            guest.lay(origin.image)
            baseline = Baseline(origin.image)
        self.checkpoints = (
            Checkpoints(machine, origin, baseline) if origin is not None and baseline is not None else None
        )
        world.time = machine.time

    async def revive(self) -> None:
        """A guest with the memory of the newest snapshot, which is as the evicted one was."""
        assert self._origin is not None, "a guest of turns was laid over an image"
        self._make_guest(await self._past.restored(self._origin, self._engine.images))

    async def loaded(self, payload: Payload) -> Payload:
        """The payload with its bytes."""
        if payload.data is not None and not payload.codec:
            return payload
        return await self._past.loaded(payload)

    @property
    def _past(self) -> Past:
        return Past(self._store, self.machine, self._engine.codec)

    # Running

    async def _run(self) -> None:
        """Call the guest's entry, and finish the run by how it ends."""
        if self.turns is not None:
            await self.turns.run()
            return
        ended = await self.drive()
        if isinstance(ended, Trapped) or ended.code:
            await self.fail(self.failure_of(ended))
            return
        assert isinstance(ended, Ended), "a trap has ended the run"
        early = self.machine.finished_early()
        if early is not None:
            raise early
        result = self.machine.result or self._integers(ended.values)
        await self.finish(result)

    def drive(self) -> Awaitable[Ended | Trapped]:
        """Call what initialises the guest, where that belongs to the run, then its entry: how it ends."""
        initialisers = [] if self._origin is not None else self._module.initialisers(self._entry)
        # Without a frame of its own where it has nothing more to do: thousands of instances may wait in the entry.
        return self._drive_all(initialisers) if initialisers else self._drive(self._entry, self._arguments())

    async def _drive_all(self, initialisers: Sequence[str]) -> Ended | Trapped:
        for name in initialisers:
            ended = await self._drive(name, ())
            if isinstance(ended, Trapped) or ended.code:
                return ended
        return await self._drive(self._entry, self._arguments())

    def _drive(self, name: str, arguments: Sequence[int]) -> Awaitable[Ended | Trapped]:
        """Run an exported function of the guest from one host call to the next, until it has returned."""
        # Without a frame of its own: thousands of instances may wait in there.
        assert self.guest is not None, "the guest was loaded"
        kept = self._suspended is not None
        return self.driven(self._entered(self.guest, name, arguments), kept=kept)

    async def driven(
        self, outcome: Parked | Yielded | Ended | Trapped | Exceeded, *, kept: bool = False
    ) -> Ended | Trapped:
        """Go on with a guest that was entered and came to `outcome`, as it was kept or not, until it has returned."""
        guest, machine = self.guest, self.machine
        assert guest is not None, "the guest was loaded"
        unwaited, spent, since = 0, 0.0, 0.0  # host calls in a row that waited for nothing, and their processor time
        computed = 0.0
        while True:
            if isinstance(outcome, Parked):
                self._computed += computed
                computed = 0.0
                if not kept and self._is_to_be_kept(guest, outcome.request):
                    outcome = await self._keep(enters_again=True) or outcome
                kept = False
                version, replaying = self._version, machine.replaying
                answer = await self._answer(guest, outcome.request)
                guest.answer(answer)
                guest.world.time = machine.time
                moved = answer > 0 and isinstance(outcome.request, _MOVES)
                if moved or replaying or version != self._version:
                    unwaited, spent = 0, 0.0
                    self._answered += not (moved or replaying)
                    if version != self._version and self.crowded:
                        outcome = await self._engine.cohort.resume(guest)
                    else:
                        outcome = guest.resume()
                    continue
                # Such as a refused one: it must neither keep the event loop nor begin a new turn.
                unwaited += 1
                if unwaited % _POLITE == 0:
                    spent += time.thread_time() - since if unwaited > _POLITE else 0.0
                    if spent > machine.pinned.limits.turn_seconds:
                        message = (
                            f"the guest of {self.key} has computed for {spent:.2f} s with {unwaited:,} host calls that "
                            f"wait for nothing, and may for {machine.pinned.limits.turn_seconds:g} s; mend the guest "
                            f"or raise the limit, then unblock"
                        )
                        raise GuestTimeoutError(message, "turn_seconds")
                    await anyio.lowlevel.checkpoint()
                    since = time.thread_time()
            elif isinstance(outcome, Yielded):
                allowed = machine.pinned.limits.turn_seconds
                if outcome.seconds > allowed:
                    message = (
                        f"the guest of {self.key} has computed for {outcome.seconds:.2f} s without a host call and "
                        f"may for {allowed:g} s; mend the guest or raise the limit, then unblock"
                    )
                    raise GuestTimeoutError(message, "turn_seconds")
                computed = outcome.seconds
                began = time.thread_time()
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
                if computed >= _TO_REST or not self._comes_to_rest:
                    await anyio.lowlevel.checkpoint_if_cancelled()
                since += time.thread_time() - began  # what others did meanwhile is not its own
            elif isinstance(outcome, Exceeded):
                raise exceeded(self.key, machine.pinned.limits, outcome)
            else:
                guest.world.flush()
                return outcome
            outcome = guest.resume()

    @property
    def _comes_to_rest(self) -> bool:
        """Whether a guest that computes goes on, although its worker leaves, to where it can be kept."""
        keeps = self.turns is not None or self._module.continues
        return keeps and self._leaving and self._ending is None and self._blocking is None

    def _entered(
        self, guest: Guest, name: str, arguments: Sequence[int]
    ) -> Parked | Yielded | Ended | Trapped | Exceeded:
        """Run an exported function until the guest waits or yields: from its begin, or from where it was kept."""
        kept, self._suspended = self._suspended, None
        if kept is not None:
            return asyncify.rewind(guest, name, arguments, kept)
        guest.enter(name, arguments)
        return guest.resume()

    def _arguments(self) -> list[int]:
        """The entry's integers: the input itself, or its list."""
        wanted = self._module.exports[self._entry].params
        if not wanted:
            return []
        assert self.machine.input is not None, "every run has an input"
        value = self.machine.input.value()
        given = value if isinstance(value, list) else [value]
        if not integers_fit(given, wanted):
            message = (
                f"the entry {self._entry!r} of {self.key} takes {len(wanted)} integers ({', '.join(wanted)}) and the "
                f"input is {self.machine.input.content[:80]!r}; terminate it and start it with an input that fits"
            )
            raise InputMismatchError(message)
        return given

    @staticmethod
    def _integers(values: Sequence[int]) -> Payload:
        if not values:
            return Payload.of_value(None)
        return Payload.of_value(values[0] if len(values) == 1 else list(values))

    def failure_of(self, outcome: Ended | Trapped) -> Failure:
        """Why the run has failed, where its guest trapped or exited."""
        early = self.machine.finished_early()
        if early is not None:
            raise early
        panic = panicked(self.guest.world.said, outcome) if self.guest else None
        if panic is not None:
            return panic
        if isinstance(outcome, Ended):
            return Failure("GuestExit", f"the guest exited with code {outcome.code}")
        message = of_stack(outcome.message, outcome.backtrace)
        return Failure("GuestTrap", message, backtrace=outcome.backtrace)

    def _answer(self, guest: Guest, request: Request) -> Awaitable[int]:
        return self._host_calls.answer(guest, request)

    def _output(self, stream: int, line: str) -> None:
        if not self.machine.replaying:
            self.log.info("%s: %s", "stdout" if stream == 1 else "stderr", line)

    # Snapshots

    def keeps(self, turns: int, seconds: float) -> bool:
        """Whether a guest that has had `turns` turns since its last snapshot, of `seconds` together, is to be kept."""
        policy = self._engine.snapshots
        return turns >= policy.turns or seconds >= policy.seconds

    async def keep(self, more: Mapping[str, Any], commit: Callable[[Callable[[], Proposal]], Awaitable[None]]) -> None:
        """Keep a guest that is at rest, with `more` of the host's own state, where anything has changed."""
        guest, checkpoints = self.guest, self.checkpoints
        assert guest is not None, "a guest that is kept is in memory"
        assert checkpoints is not None, "a guest of turns was laid over an image"
        token = await self._streams.sync(self.machine)
        held, changed = checkpoints.holds(guest, token, more), checkpoints.changed(guest)
        if held == checkpoints.last and not changed:
            return
        await commit(lambda: self.snapshot(guest, held, changed))
        checkpoints.kept(guest, held, changed)
        self._streams.token = token
        await self.trim(commit)

    def park(self) -> None:
        """Give up the memory of a guest that is kept as it is; the process holds its image, while there is room."""
        guest, checkpoints, snapshot = self.guest, self.checkpoints, self.machine.record.snapshot
        if guest is not None and checkpoints is not None and checkpoints.last is not None and snapshot is not None:
            self._engine.images.hold(snapshot.deltas[-1][1], checkpoints.restored(guest))
        self.close_guest()

    async def checkpoint(self, guest: Guest) -> None:
        """The guest has asked for a checkpoint."""
        replaying = self.machine.replaying
        await self._checkpoint(guest)
        if self._engine.checkpointed is not None and not replaying:
            await self._engine.checkpointed(self)

    async def _checkpoint(self, guest: Guest) -> None:
        """Keep all that can influence a re-entrant guest; for others their log is all that is needed."""
        machine = self.machine
        if not self._reentrant or machine.replaying or self._module.continues:
            return
        token = await self._streams.sync(machine)
        checkpoints = self.checkpoints
        assert checkpoints is not None, "a re-entrant guest was laid over an image"
        held, changed = checkpoints.holds(guest, token), checkpoints.changed(guest)
        if held == checkpoints.last and not changed:
            return  # it would be the last one again, and a guest could have it written for ever
        await self.commit(self.snapshot(guest, held, changed))
        checkpoints.kept(guest, held, changed)
        self._streams.token = token
        await self.trim(self.propose)

    async def trim(self, commit: Callable[[Callable[[], Proposal]], Awaitable[None]]) -> None:
        """Let what the newest snapshot has made superfluous leave the log.

        Args:
            commit: Makes durable, and then true, what the function that it is given proposes.
        """
        machine, policy = self.machine, self._engine.snapshots
        archive = Archive(self._store, self.key, self.run)
        while (entries := machine.superfluous(policy.chunk)) is not None:
            chunk = await archive.leaving(entries, machine.record.archive)
            dropped = await archive.expired(chunk, machine.record.archive, policy.archive)
            await commit(partial(machine.archived, chunk, dropped, keeps=policy.archive != 0))

    async def keep_waiting(
        self, more: Mapping[str, Any], commit: Callable[[Callable[[], Proposal]], Awaitable[None]]
    ) -> None:
        """Keep a guest of the blocking form in the middle of its `wait`, where its stack can be unwound; as `keep`."""
        guest = self.guest
        if guest is None or not self.suspendable(guest):
            return
        suspended = asyncify.unwind(guest)
        await self.keep({**more, "suspended": suspended.to_json()}, commit)
        asyncify.rewind(guest, self._entry, (), suspended)

    def suspendable(self, guest: Guest) -> bool:
        """Whether the stack of the guest, which is parked, can be unwound where it is."""
        marks = self._module.asyncified
        return (
            marks is not None
            and self._module.continues
            and self._reentrant
            and guest.waits_in is not None
            and guest.waits_in[0] in marks.imports
            and not self.machine.replaying
        )

    def _is_to_be_kept(self, guest: Guest, request: Request) -> bool:
        """Whether a guest that has parked just now is kept before it is answered."""
        if isinstance(request, abi_v0.Checkpoint):
            return self.suspendable(guest)
        if self.turns is not None:
            return False  # it is kept in its wait, by `Blocking`
        policy = self._engine.snapshots
        due = self._answered >= policy.turns or self._computed >= policy.seconds
        return due and self.suspendable(guest)

    async def _keep(self, *, enters_again: bool) -> Parked | None:
        """Unwind the guest and keep it; None where it cannot be unwound where it is.

        Args:
            enters_again: Whether it goes on: it is parked as before then. Else its memory may only be given up.
        """
        guest = self.guest
        if guest is None or not self.suspendable(guest) or (not enters_again and not self.machine.is_asking):
            return None
        token = await self._streams.sync(self.machine)
        proposal, suspended, held, changed = self._unwound(guest, token)
        if proposal is not None:
            await self.commit(proposal)
            assert self.checkpoints is not None, "a guest that is kept was laid over an image"
            self.checkpoints.kept(guest, held, changed)
            self._streams.token = token
        self._answered, self._computed = 0, 0.0
        return asyncify.rewind(guest, self._entry, self._arguments(), suspended) if enters_again else None

    def _unwound(
        self, guest: Guest, token: Mapping[str, Any] | None
    ) -> tuple[Proposal | None, Suspended, Held, dict[int, bytes]]:
        """Unwind the guest: what to commit to keep it as it is, or None where the last snapshot does."""
        checkpoints = self.checkpoints
        assert checkpoints is not None, "a guest that is kept was laid over an image"
        suspended = asyncify.unwind(guest)
        state = {"suspended": suspended.to_json(), "asking": self.machine.is_asking}
        held, changed = checkpoints.holds(guest, token, state), checkpoints.changed(guest)
        proposal = None
        if held != checkpoints.last or changed:
            proposal = self.snapshot(guest, held, changed)
        return proposal, suspended, held, changed

    async def _keep_and_close(self) -> None:
        """Keep and evict a guest that waits for an activity, unless it waits no more; its own task waits for that."""
        token: Mapping[str, Any] | None = None

        async def prepare() -> None:
            nonlocal token
            token = await self._streams.sync(self.machine)

        def propose() -> Proposal | None:
            guest = self.guest
            if guest is None or not self.machine.is_asking or not self.suspendable(guest):
                return None
            try:
                proposal, *_ = self._unwound(guest, token)
            finally:
                self.guest = None
                self._engine.residents.leaves(self)
                guest.close()
            return proposal

        try:
            await self.commit_beside(propose, prepare)
        except BlockedError as error:
            self.block(error)

    def snapshot(self, guest: Guest, held: Held, changed: dict[int, bytes]) -> Proposal:
        """What to commit to keep all that can influence the guest. Raises `GuestLimitError`."""
        assert self.checkpoints is not None, "a re-entrant guest was laid over an image"
        return self.checkpoints.proposal(
            guest,
            held,
            changed,
            name=f"snapshot-{self._version + 1}",
            policy=self._engine.snapshots,
            deflate=self._store.deflates,
        )

    # Ending

    async def finish(self, result: Payload) -> None:
        """The guest has returned: decide the result and the sinks' lengths in one commit."""
        publishing = await self._streams.finished(self.machine)
        await self._commit_end(self.machine.completed(encoded(result, self.codec), publishing, self.now()))

    async def _publish(self) -> None:
        """Give the sinks their names; after a crash again, which changes nothing."""
        self.close_guest()
        await self._streams.publish(self.machine)
        await self._commit_end(self.machine.published(self.now()))

    async def fail(self, failure: Failure) -> None:
        """The guest has failed its run."""
        await self._commit_end(self.machine.failed(failure, self.now()))
        await self._streams.discard(self.machine)

    async def _close_as(self, terminating: Terminating) -> None:
        await self._commit_end(self.machine.ended(terminating, self.now()))
        await self._streams.discard(self.machine)

    # Mail

    async def _take_mail(self, messages: Sequence[Message]) -> bool:
        """Take mail off the instance, or it would be claimed for it again and again; whether nothing is left."""
        signals = signals_in(messages)
        if signals:
            await self.commit(self.machine.signalled(signals))
        cancel = None if self.machine.record.cancel is not None else cancel_in(messages, self.run)
        late = [(m.id, m.kind) for m in messages if m.kind == "cancel" and (cancel is None or m.id != cancel.message)]
        if cancel is not None or late:
            await self.commit(self.machine.mail_taken(cancel, late))
        self._cancelling = None
        return bool(messages) and len(signals) + len(late) + (cancel is not None) == len(messages)

    async def _commit_end(self, proposal: Proposal) -> None:
        """Commit the run's end; mail that came too late is listed as undelivered, unless it ends the run itself."""
        while True:
            try:
                await self.commit(proposal)
            except _MailFirst:
                unread = [m for m in await self._store.mail(self.key) if m.id not in proposal.consumes]
                proposal = self.machine.closed_with_mail(proposal, [(message.id, message.kind) for message in unread])
            else:
                record = self.machine.record
                if record.closed is not None and (self.reports or record.status is not Status.COMPLETED):
                    self._tell_end(record)
                return

    def _tell_end(self, record: Record) -> None:
        kind = _ENDS[record.status]
        reason = "" if record.failure is None else str(record.failure)
        level = logging.DEBUG if kind == "completed" else logging.INFO
        words = f"run {self.run} of {self.key} has ended: {kind.replace('_', ' ')}{', ' if reason else ''}{reason}"
        self.report(kind, level, words, reason=reason)

    # Standing still

    async def _block(self, error: BlockedError) -> None:
        await self._let_go()
        error = with_command(error, self.key)
        text = f"run {self.run} of {self.key} is blocked: {error}"
        self.report("blocked", logging.WARNING, text, reason=str(error))
        if isinstance(error, DamagedMailError):
            proposal = self.machine.blocked(CorruptSnapshotError(str(error)))
            proposal = self.machine.closed_with_mail(proposal, error.messages)
        else:
            proposal = self.machine.blocked(error)
        await self.commit(proposal)

    async def _stand_unread(self, error: BlockedError) -> None:
        """The record itself cannot be read: the columns say that it stands still, and its bytes stay as they are.

        Only a person who ends the run has them replaced, by what the columns and that person say.
        """
        stored = self._stored
        try:
            terminating = ending(await self._store.mail(self.key)) if stored.mail else None
        except CorruptSnapshotError as damaged:
            self.log.warning("mail for run %s of %s: %s", self.run, self.key, damaged)
            terminating = None
        if terminating is not None:
            await self._end_unread(terminating)
            return
        text = f"run {self.run} of {self.key} is blocked: {error}"
        self.report("blocked", logging.WARNING, text, reason=str(error))
        if stored.columns.status is Status.BLOCKED:
            self._scope = anyio.CancelScope()
            with self._scope:
                await anyio.sleep(0 if self._interrupted else _HOLD)
        # Not by its timeout either, which would be looked at again and again: unblock writes it anew.
        columns = evolve(stored.columns, status=Status.BLOCKED, owner=None, wake=None, expires=None)
        change = Change(
            key=self.key,
            expected=(stored.run, stored.version),
            run=stored.run,
            nonce=secrets.token_hex(8),
            record=stored.record,
            columns=columns,
            tail=stored.tail,
        )
        self.owns = False
        await self._store.commit([change])

    async def _end_unread(self, terminating: Terminating) -> None:
        proposal = unread_end(self._stored, terminating, self.now())
        assert proposal.record is not None, "a run's end is written down"
        self.machine = Machine(self.key.tenant, self.key.id, proposal.record, proposal.tail)
        await self._commit_end(proposal)

    # Commits

    async def commit(self, proposal: Proposal) -> None:
        """Make `proposal` durable, then true. While it is under way nothing may interrupt this task.

        Raises:
            ConcurrentExecutionError: Somebody else has the instance.
            StoreUnavailableError: The store did not take it for as long as the lease held.
        """
        assert self._beside is None, "what is committed next is made over what is committed beside this task"
        # One inside of the commit would leave its outcome unknown, and what is committed instead would be taken for the
        # same commit, by its nonce.
        await self.feel()
        self._committing = True
        try:
            change = self._change(proposal)
            self.require_lease()
            try:
                [outcome] = await self._store.commit((change,))
            except StoreUnavailableError as error:
                outcome = await self._durable(change, error)
        finally:
            self._committing = False
        self._accept(proposal, outcome)
        # What is durable and not in the memory of a guest of turns yet comes into it first, so that it can be kept.
        if self._interrupted and (self.turns is None or self.turns.is_at_rest):
            await self.heed()

    def concludes(self) -> None:
        """What has happened is certain: nothing may interrupt this task until what comes of it is committed."""
        self._committing = True

    async def feel(self) -> None:
        """An interruption that this task has not felt yet comes first."""
        if self._scope.cancel_called:
            await anyio.lowlevel.checkpoint_if_cancelled()

    async def heed(self) -> None:
        """Stop here, if something has come first while it could not interrupt."""
        if self.owns and self._interrupted:
            self._scope.cancel()
            await anyio.lowlevel.checkpoint_if_cancelled()

    def _accept(self, proposal: Proposal, outcome: Won | Lost | Unread) -> None:
        match outcome:
            case Won():
                if proposal.consumes:
                    before = self._heard if len(self._heard) < _HEARD else _NOTHING
                    self._heard = before | frozenset(proposal.consumes)
                self._version, self._ahead, self.mailed = outcome.version, None, outcome.mail > 0
                self.machine.accept(proposal)
            case Lost(found=found):
                self.owns = False
                message = (
                    f"run {self.run} of {self.key} was moved on by somebody else (found {found}); this copy is dropped"
                )
                raise ConcurrentExecutionError(message)
            case Unread():
                raise _MailFirst
            case _:
                assert_never(outcome)
        self.owns = proposal.keeps_owner

    def soon(self, callback: Callable[[], None]) -> None:
        """Call it on the worker's event loop, from any thread."""
        self._engine.soon(callback)

    def beside(self, work: Callable[[], Awaitable[None]]) -> None:
        """Let `work` run beside this task, as a task of the worker."""
        self._engine.beside(work)

    async def propose(self, make: Callable[[], Proposal]) -> None:
        """Make what `make` gives durable, then true; it is called when nothing else is being committed."""
        await self.settled()
        await self.commit(make())

    async def commit_beside(
        self, propose: Callable[[], Proposal | None], prepare: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        """Commit while this instance's own task waits for an activity; False where it is about something else.

        There is one commit at a time, and the next one is made over this one: the task waits by `settled` where its
        activity has ended or was interrupted, before it proposes anything.

        Args:
            propose: Makes what is committed; None for nothing.
            prepare: What is to be done before that.
        """
        if self._committing or not self._waits or not self.owns or self._scope.cancel_called:
            return False
        self._beside, self._committing, self._interrupt_due = anyio.Event(), True, False
        try:
            if prepare is not None:
                await prepare()
            proposal = propose()
            if proposal is not None:
                self._accept(proposal, await self._durable(self._change(proposal)))
        except ConcurrentExecutionError as error:
            self.log.info("%s", error)
            self.owns = False
        finally:
            self._committing = False
            self._beside.set()
            self._beside = None
        if not self.owns or self._interrupt_due:
            self._scope.cancel()
        return self.owns

    @property
    def is_written_beside(self) -> bool:
        """Whether something is being committed beside this task."""
        return self._beside is not None

    async def settled(self) -> None:
        """Wait until what is committed beside this task is durable."""
        while self._beside is not None:
            await self._beside.wait()
        if self.turns is not None:
            await self.turns.settled()

    def _change(self, proposal: Proposal) -> Change | Step:
        nonce, tail, record = f"{self._nonce}-{self._version}", encode_tail(proposal.tail), proposal.record
        entries, blobs = proposal.entries, proposal.blobs
        if self._ahead is not None:
            entries, blobs = (*self._ahead.entries, *entries), (*self._ahead.blobs, *blobs)
        if record is None:
            return Step(self.key, self.run, self._version, nonce, tail, entries, blobs)
        return Change(
            key=self.key,
            expected=(self.run, self._version),
            run=self.run,
            nonce=nonce,
            record=sealed_record(self.key, record),
            columns=self._columns(record, proposal),
            tail=tail,
            entries=entries,
            blobs=blobs,
            drops=proposal.drops,
            cuts=proposal.cuts,
            consumes=proposal.consumes,
        )

    def _columns(self, record: Record, proposal: Proposal) -> Columns:
        owner = self._engine.worker if proposal.keeps_owner else None
        takeovers = 0 if proposal.settles else self.machine.takeovers
        return columns_of(record, proposal.tail.stored, owner=owner, wake=proposal.wake, takeovers=takeovers)

    async def _durable(self, change: Change | Step, failed: StoreUnavailableError | None = None) -> Won | Lost | Unread:
        """Have the store take it, which has failed once where `failed` is given."""
        pause = 0.05
        while True:
            if failed is not None:
                # Nothing was written. The identical change is repeated for as long as this worker may.
                self.log.warning("%s of %s cannot be committed: %s", self.run, self.key, failed)
                await anyio.sleep(pause)
                pause = min(2 * pause, 2.0)
            self.require_lease()
            try:
                return (await self._store.commit((change,)))[0]
            except StoreUnavailableError as error:
                failed = error

    def require_lease(self) -> None:
        """Raise `ConcurrentExecutionError` where this worker may no longer act for its instances."""
        if not self._engine.lease_is_valid:
            message = f"the lease of worker {self._engine.worker} has ended; run {self.run} of {self.key} is dropped"
            raise ConcurrentExecutionError(message)

    # Letting go

    async def _let_go(self) -> None:
        """Close the guest and its streams; what is durable stays."""
        await self.settled()
        self._forget_guest()
        await self._streams.close()

    def _forget_guest(self) -> None:
        self.close_guest()
        self.turns = None

    def close_guest(self) -> None:
        """Give the guest's memory up."""
        guest, self.guest = self.guest, None
        self._waits = False
        if guest is not None:
            self._engine.residents.leaves(self)
            guest.close()
