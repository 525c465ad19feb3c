"""The life of one instance, top to bottom: claimed, restored, replayed, run, committed, waiting, finished.

One task lives one claimed instance. The guest is parked in every host call that waits; this task answers it. What the
guest is about to see is committed first, and every commit is fenced by (run, version): a copy that has lost the
instance finds out at its next commit, and is dropped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from typing import TYPE_CHECKING, assert_never

import anyio
import anyio.lowlevel
from attrs import evolve
from isal import isal_zlib

from wasman_host.activity import ActivityCall, failure_of
from wasman_host.errors import (
    ApplicationError,
    BlockedError,
    ConcurrentExecutionError,
    CorruptSnapshotError,
    Failure,
    GuestLimitError,
    GuestTimeoutError,
    InputMismatchError,
    ModuleError,
    StoreUnavailableError,
    UnsupportedStateError,
)
from wasman_host.guest import abi_v0
from wasman_host.guest.engine import SETTINGS
from wasman_host.guest.live import Ended, Guest, Parked, Trapped, Yielded
from wasman_host.guest.wasi import Sleep
from wasman_host.guest.world import World
from wasman_host.machine import Machine, Proposal, Terminating
from wasman_host.oplog import Delivery, Entry, decode_entry
from wasman_host.payload import Payload
from wasman_host.record import Pinned, Publishing, Record, decode_record, encode_record
from wasman_host.seal import Address, digest_of, seal, unseal
from wasman_host.snapshot import Delta, apply, decode_delta, difference, encode_delta
from wasman_host.store.protocol import Change, Columns, Lost, Status, Unread, Won

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wasman_host.engine import Engine
    from wasman_host.record import StreamSpec
    from wasman_host.store.protocol import Claim, Key, Message, Stored
    from wasman_host.streams import Sink, Source

__all__ = ["Instance", "columns_of", "integers_fit", "mail_address", "open_record"]

logger = logging.getLogger("wasman.instance")

_FOLD = 16  # deltas in a chain before the next one is taken over the image again
_POLITE = 64  # replayed answers between two turns of the event loop
_UNREGISTERED = 5.0  # seconds until somebody looks again whether an activity is registered
_HOLD = 5.0  # seconds that a blocked run is held for mail that does not end it: it could be claimed again at once
_STORE_PAUSE = 0.5  # seconds between two looks at a store that does not answer
_HOST = "wasman."


def open_record(stored: Stored) -> Record:
    """The record inside what a store holds.

    Raises:
        CorruptSnapshotError: It is damaged, or does not fit the columns beside it.
        UnsupportedStateError: A newer wasman wrote it.
    """
    address = Address(stored.key.tenant, stored.key.id, stored.run, "record")
    record = decode_record(unseal(address, stored.record), str(address))
    if record.run != stored.run or record.status != stored.columns.status:
        message = (
            f"{address} says {record.status.value} and the store's column {stored.columns.status.value}; "
            f"restore it from a backup, then unblock"
        )
        raise CorruptSnapshotError(message)
    return record


def columns_of(record: Record, *, owner: str | None, wake: int | None, takeovers: int = 0) -> Columns:
    """What the store should search a record by."""
    pinned = record.pinned
    return Columns(
        status=record.status,
        workflow=pinned.workflow,
        module=pinned.module,
        queue=pinned.queue,
        owner=owner,
        wake=wake,
        expires=None if record.is_closed else pinned.expires,
        takeovers=takeovers,
        size=record.snapshot.size if record.snapshot else 0,
        parent=pinned.parent.id if pinned.parent is not None else None,
        created=record.created,
        closed=record.closed,
        attributes=pinned.attributes,
    )


def mail_address(key: Key, kind: str, message: str) -> Address:
    """Where the body of a message belongs."""
    return Address(key.tenant, key.id, "", "mail", f"{kind}/{message}")


def integers_fit(given: Sequence[object], wanted: Sequence[str]) -> bool:
    """Whether `given` are integers that fit an entry's parameters of types "i32" and "i64", signed or not."""
    return len(given) == len(wanted) and all(
        type(number) is int and -(1 << int(kind[1:]) - 1) <= number < 1 << int(kind[1:])
        for number, kind in zip(given, wanted, strict=True)
    )


class _MailFirst(Exception):  # noqa: N818  not an error: mail came before the run could close
    """The store refused to close the run because of mail that nobody has read."""


class _GivenUp(Exception):  # noqa: N818  not an error: the guest needs no more driving
    """The run was closed, or the instance released, in the middle of a host call."""


class _DamagedMailError(CorruptSnapshotError):
    """Mail that cannot be read. It is taken off the instance, which would be claimed for it again and again."""

    def __init__(self, message: str, messages: Sequence[tuple[str, str]]) -> None:
        super().__init__(message)
        self.messages = messages


class Instance:
    """One claimed instance and the task that lives it.

    Attributes:
        key: Which instance it is.
        run: Its run id.
        expires: When its execution timeout ends it, ns since 1970, or None.
        owns: Whether the store still says, as far as this task knows, that this worker has it.
    """

    def __init__(self, engine: Engine, claim: Claim) -> None:
        self.key = claim.stored.key
        self.run = claim.stored.run
        self.expires = claim.stored.columns.expires
        self._engine = engine
        self._store = engine.store
        self._stored = claim.stored
        self._version = claim.stored.version
        self._log = logging.LoggerAdapter(
            logger,
            {"tenant": self.key.tenant, "workflow": claim.stored.columns.workflow, "id": self.key.id, "run": self.run},
        )
        self._nonce = secrets.token_hex(8)  # drawn once: with the version behind it, it is drawn for each commit
        self._record_address = Address(self.key.tenant, self.key.id, self.run, "record")
        self._scope = anyio.CancelScope()
        self._committing = False
        self._ending: Terminating | None = None
        self._blocking: BlockedError | None = None
        self._leaving = False
        self.owns = True
        self._guest: Guest | None = None
        self._source: Source | None = None
        self._sink: Sink | None = None
        self._repeated = 0

    # From outside: the engine says that something else comes first

    def end(self, terminating: Terminating) -> None:
        """End the run as soon as nothing is being committed."""
        self._ending = terminating
        self._interrupt()

    def block(self, error: BlockedError) -> None:
        """Make the instance stand still as soon as nothing is being committed."""
        self._blocking = error
        self._interrupt()

    def leave(self) -> None:
        """Give the instance up in order as soon as nothing is being committed."""
        self._leaving = True
        self._interrupt()

    def drop(self) -> None:
        """The lease is lost: stop, and write nothing any more."""
        self._ending, self._leaving = None, False  # the lease is no longer valid, and that is what `_interrupted` sees
        self._interrupt()

    def _interrupt(self) -> None:
        if not self._committing:
            self._scope.cancel()

    # The life

    async def live(self) -> None:
        """From the claim to the run's end, or until somebody else has the instance. Raises nothing."""
        try:
            while True:
                try:
                    await self._live()
                except StoreUnavailableError as error:
                    self._log.warning("run %s of %s waits for its store: %s", self.run, self.key, error)
                    await self._claimed_again()
                else:
                    return
        except ConcurrentExecutionError as error:
            self._log.info("%s", error)
        finally:
            with anyio.CancelScope(shield=True):
                await self._let_go()

    async def _claimed_again(self) -> None:
        """Read the instance again, as soon as the store answers, for as long as this worker owns it."""
        await self._let_go()
        while True:
            self._require_lease()
            await anyio.sleep(_STORE_PAUSE)
            try:
                stored = await self._store.load(self.key)
            except StoreUnavailableError:
                continue
            if stored is None or stored.run != self.run or stored.columns.owner != self._engine.worker:
                self.owns = False
                message = f"run {self.run} of {self.key} was moved on by somebody else; this copy is dropped"
                raise ConcurrentExecutionError(message)
            self._stored, self._version = stored, stored.version
            return

    async def _live(self) -> None:
        try:
            self._machine = Machine(
                self.key.tenant, self.key.id, open_record(self._stored), self._stored.columns.takeovers
            )
        except BlockedError as error:
            await self._stand_unread(error)
            return
        self._scope = anyio.CancelScope()
        try:
            with self._scope:
                if not self._interrupted:
                    await self._work()
        except _GivenUp:
            return
        except BlockedError as error:
            await self._block(error)
        except ModuleError as error:
            await self._block(BlockedError(f"{error}; terminate {self.key}, or mend the cause and unblock"))
        except (ConcurrentExecutionError, StoreUnavailableError):
            raise
        except Exception as error:  # noqa: BLE001  a defect of wasman must not lose the run, nor be lost itself
            self._log.exception("run %s of %s is blocked by an internal error", self.run, self.key)
            await self._block(
                BlockedError(f"an internal error of wasman: {error!r}; see the worker's log, then unblock")
            )
        if self.owns and self._interrupted:
            await self._let_go()
            if self._blocking is not None:
                await self._block(self._blocking)
            elif self._ending is not None and self._machine.record.status is Status.PUBLISHING:
                await self._publish()  # the guest had finished before: what came later is listed as undelivered
            elif self._ending is not None:
                await self._close_as(self._ending)
            elif self._leaving:
                await self._commit(self._machine.released(self._store.now()))

    @property
    def _interrupted(self) -> bool:
        return bool(self._ending or self._blocking or self._leaving or not self._engine.lease_is_valid)

    async def _work(self) -> None:
        machine = self._machine
        if self._stored.mail and machine.record.status is not Status.PUBLISHING:
            terminating = self.ending(await self._store.mail(self.key))
            if terminating is not None:
                await self._close_as(terminating)
                return
        if (
            self.expires is not None
            and self._store.now() >= self.expires
            and machine.record.status is not Status.PUBLISHING
        ):
            await self._close_as(Terminating(Status.TIMED_OUT, "timed_out", "the execution timeout is over"))
            return
        if machine.record.status is Status.BLOCKED:
            # Claimed for mail that does not end it: it goes on standing still.
            await anyio.sleep(_HOLD)
            await self._commit(evolve(machine.released(self._store.now()), wake=None))
            return
        if machine.record.status is not Status.PUBLISHING:
            await self._load()
            await self._run()
        if machine.record.status is Status.PUBLISHING:
            await self._publish()

    # Coming back

    async def _load(self) -> None:
        """Take up the run where its log and its newest snapshot say it stands."""
        machine, record = self._machine, self._machine.record
        pinned = record.pinned
        if pinned.engine != SETTINGS:
            message = (
                f"run {self.run} of {self.key} was started under compile settings {pinned.engine!r} and this wasman "
                f"has {SETTINGS!r}, under which the guest may do otherwise; run it with the wasman that started it"
            )
            raise UnsupportedStateError(message)
        self._module = module = await self._engine.module(pinned.module)
        self._entry = self._engine.entry(module, pinned.entry)
        image = None
        if not module.snapshots:
            image = await self._engine.image(module, self._entry, pinned.limits.memory, record.image)
        self._image = image if image is not None and not image.unfinished else None
        if self._image is not None:
            machine.pin_image(self._image.digest)
        # Without an image its initialisation belongs to the run, which only a replay repeats.
        self._reentrant = (module.reentrant or pinned.resume == "checkpoint") and self._image is not None

        snapshot = record.snapshot if self._reentrant else None
        start = snapshot.entry if snapshot else 0
        entries = await self._entries(start, snapshot.chain if snapshot else None)
        first = entries[0] if start == 0 else (await self._entries(0, None, only_first=True))[0]
        world = World(seed=f"wasman run {self.run}".encode(), output=self._output)
        guest = self._guest = Guest(module, world, pinned.limits.memory)
        if snapshot is not None:
            assert self._image is not None, "a module that can be snapshotted has an image"
            memory, delta = await self._restored(snapshot.deltas)
            machine.remember(first, delta.state, entries)
            guest.restore(memory, delta.globals, keep=module.binary.stack_pointer)
            self._memory, self._token = bytes(memory), delta.state.get("token")
            world.random = machine.random
            await self._load_kept()
        else:
            machine.remember(first, None, entries[1:])
            self._memory, self._token = b"", None
            if self._image is not None and module.initialisers(self._entry):
                guest.restore(self._image.memory, self._image.globals)
                self._memory = self._image.memory
        world.time = machine.time
        machine.input = machine.input and await self._loaded(machine.input)
        machine.session = machine.session and await self._loaded(machine.session)

    async def _entries(self, start: int, chain: str | None, *, only_first: bool = False) -> list[Entry]:
        """The log from entry `start` on, checked against the record's chain of digests."""
        record = self._machine.record
        rows = await self._store.read(self.run, start, 1 if only_first else None)
        expected = range(start, 1 if only_first else record.entries)
        if [n for n, _ in rows] != list(expected):
            found = f"{len(rows)}, from {rows[0][0]} to {rows[-1][0]}" if rows else "none"
            message = (
                f"the log of run {self.run} of {self.key} should hold entries {expected.start} to "
                f"{expected.stop - 1} and holds {found}; restore it from a backup, then unblock"
            )
            raise CorruptSnapshotError(message)
        entries = []
        for n, sealed in rows:
            address = Address(self.key.tenant, self.key.id, self.run, "entry", str(n))
            entries.append(decode_entry(unseal(address, sealed), n, str(address)))
        if not only_first and not self._machine.chain_fits(chain, [sealed for _, sealed in rows]):
            message = (
                f"the log of run {self.run} of {self.key} is not the one that its record was written over; "
                f"restore it from a backup, then unblock"
            )
            raise CorruptSnapshotError(message)
        return entries

    async def _restored(self, deltas: Sequence[tuple[str, str]]) -> tuple[bytearray, Delta]:
        """The memory of the newest snapshot, and its last delta."""
        assert self._image is not None, "deltas lie over an image"
        memory = bytearray(self._image.memory)
        parent = self._image.digest
        delta: Delta | None = None
        for name, digest in deltas:
            address = Address(self.key.tenant, self.key.id, self.run, "snapshot", name)
            sealed = await self._store.blob(self.run, name)
            delta = decode_delta(unseal(address, sealed), str(address))
            if sealed is None or digest_of(sealed) != digest or delta.parent != parent:
                message = f"{address} is not the one that the record names; restore it from a backup, then unblock"
                raise CorruptSnapshotError(message)
            apply(memory, delta)
            parent = digest
        assert delta is not None, "a snapshot has at least one delta"
        return memory, delta

    async def _load_kept(self) -> None:
        """Read the result again that the guest had not taken when the snapshot was made."""
        kept = self._machine.kept
        if kept is None:
            return
        for n, sealed in await self._store.read(self.run, kept.entry, kept.entry + 1):
            address = Address(self.key.tenant, self.key.id, self.run, "entry", str(n))
            for delivery in decode_entry(unseal(address, sealed), n, str(address)).deliveries:
                if delivery.operation == kept.operation and delivery.payload is not None:
                    self._machine.kept = evolve(kept, payload=await self._loaded(delivery.payload))
                    return
        message = (
            f"entry {kept.entry} of run {self.run} of {self.key} is missing; restore it from a backup, then unblock"
        )
        raise CorruptSnapshotError(message)

    async def _loaded(self, payload: Payload) -> Payload:
        """The payload with its bytes."""
        if payload.data is not None:
            return payload
        address = Address(self.key.tenant, self.key.id, self.run, "payload", payload.blob)
        data = unseal(address, await self._store.blob(self.run, payload.blob))
        if len(data) != payload.size or hashlib.sha256(data).hexdigest() != payload.digest:
            message = f"{address} is not the one that the log names; restore it from a backup, then unblock"
            raise CorruptSnapshotError(message)
        return payload.with_data(data)

    # Running

    async def _run(self) -> None:
        """Drive the guest from one host call to the next until its entry has returned."""
        machine, guest, pinned = self._machine, self._guest, self._machine.record.pinned
        assert guest is not None, "the guest was loaded"
        initialisers = [] if self._image is not None else self._module.initialisers(self._entry)
        outcome: Parked | Yielded | Ended | Trapped = Ended()
        for name in (*initialisers, self._entry):
            guest.enter(name, self._arguments() if name == self._entry else ())
            while True:
                outcome = guest.resume()
                if isinstance(outcome, Parked):
                    guest.answer(await self._answer(guest, outcome))
                    guest.world.time = machine.time
                elif isinstance(outcome, Yielded):
                    if outcome.seconds > pinned.limits.turn_seconds:
                        message = (
                            f"the guest of {self.key} has computed for {outcome.seconds:.2f} s without a host call and "
                            f"may for {pinned.limits.turn_seconds:g} s; mend the guest or raise the limit, then unblock"
                        )
                        raise GuestTimeoutError(message)
                    await anyio.lowlevel.checkpoint()
                else:
                    break
            assert isinstance(outcome, Ended | Trapped), "the loop above goes on until then"
            guest.world.flush()
            if isinstance(outcome, Trapped) or outcome.code:
                await self._fail(self._failure_of(outcome))
                return
        assert isinstance(outcome, Ended), "a trap has ended the run"
        early = machine.finished_early()
        if early is not None:
            raise early
        result = machine.result or self._integers(outcome.values)
        await self._finish(result)

    def _arguments(self) -> list[int]:
        """The entry's integers: the input itself, or its list."""
        wanted = self._module.exports[self._entry].params
        if not wanted:
            return []
        assert self._machine.input is not None, "every run has an input"
        value = self._machine.input.value()
        given = value if isinstance(value, list) else [value]
        if not integers_fit(given, wanted):
            message = (
                f"the entry {self._entry!r} of {self.key} takes {len(wanted)} integers ({', '.join(wanted)}) and the "
                f"input is {self._machine.input.content[:80]!r}; terminate it and start it with an input that fits"
            )
            raise InputMismatchError(message)
        return given

    @staticmethod
    def _integers(values: Sequence[int]) -> Payload:
        if not values:
            return Payload.of_value(None)
        return Payload.of_value(values[0] if len(values) == 1 else list(values))

    def _failure_of(self, outcome: Ended | Trapped) -> Failure:
        early = self._machine.finished_early()
        if early is not None:
            raise early
        if isinstance(outcome, Ended):
            return Failure("GuestExit", f"the guest exited with code {outcome.code}")
        if outcome.limit:
            limit, advice = "the end of its stack", "its calls nest too deep: terminate it and mend the guest"
            if outcome.limit == "memory":
                limit = f"its memory limit of {self._machine.record.pinned.limits.memory:,} bytes"
                advice = "mend the guest or raise the limit, then unblock"
            message = f"the guest of {self.key} ran into {limit} ({outcome.message}); {advice}\n{outcome.backtrace}"
            raise GuestLimitError(message)
        return Failure("GuestTrap", outcome.message, backtrace=outcome.backtrace)

    def _output(self, stream: int, line: str) -> None:
        if not self._machine.replaying:
            self._log.info("%s: %s", "stdout" if stream == 1 else "stderr", line)

    async def _answer(self, guest: Guest, parked: Parked) -> int:
        """What the host call that the guest is parked in returns."""
        match parked.request:
            case abi_v0.Call() as call:
                return await self._call(guest, call)
            case abi_v0.Download(view=view):
                return await self._download(view)
            case abi_v0.Upload(view=view):
                return await self._upload(view)
            case abi_v0.Checkpoint():
                await self._checkpoint(guest)
                return 0
            case Sleep() as sleep:
                return await self._sleep(guest, sleep)
            case abi_v0.Refused(type=kind, message=message):
                return self._refuse(kind, message)
            case other:
                raise AssertionError(f"a host call parked with {other!r}")

    def _refuse(self, kind: str, message: str) -> int:
        self._machine.last_failure = Failure(kind, message)
        if not self._machine.replaying:
            self._log.warning("the guest of %s: %s", self.key, message)
        return abi_v0.FAILED

    # Calls

    async def _call(self, guest: Guest, call: abi_v0.Call) -> int:
        machine, limit = self._machine, self._machine.record.pinned.limits.payload
        if call.name.startswith(_HOST):
            return await self._host_call(guest, call)
        if len(call.request) > limit:
            return self._refuse("TooLarge", f"a request of {len(call.request):,} bytes; at most {limit:,} may be sent")
        request = hashlib.sha256(call.request).hexdigest()
        kept = machine.kept_for(call.name, request)
        if kept is not None:
            taken = self._respond(guest, call, kept.content)
            if taken >= 0:
                machine.took()
            return taken
        number = machine.issue("call", call.name, request)
        delivery = await self._replayed(number)
        if delivery is None:
            delivery = await self._perform(number, call)
            await self._commit(machine.answered([delivery], self._store.now()))
        if delivery.payload is None:
            return abi_v0.FAILED
        payload = await self._loaded(delivery.payload)
        answer = self._respond(guest, call, payload.content)
        if answer == abi_v0.TOO_LARGE:
            machine.keep(number, call.name, request, payload)
        return answer

    async def _replayed(self, number: int) -> Delivery | None:
        delivery = self._machine.replayed(number)
        if delivery is not None:
            self._repeated += 1
            if self._repeated % _POLITE == 0:
                await anyio.lowlevel.checkpoint()
        return delivery

    @staticmethod
    def _respond(guest: Guest, call: abi_v0.Call, data: bytes) -> int:
        if len(data) > call.capacity:
            return abi_v0.TOO_LARGE
        # The place was inside memory when the guest asked, and memory never shrinks.
        written = guest.write(call.response, data)
        assert written, "memory never shrinks"
        return len(data)

    async def _host_call(self, guest: Guest, call: abi_v0.Call) -> int:
        """Names of the host's own: no operations, so they are neither numbered nor logged."""
        machine = self._machine
        match call.name.removeprefix(_HOST):
            case "input":
                assert machine.input is not None, "every run has an input"
                return self._respond(guest, call, machine.input.content)
            case "session":
                return self._respond(guest, call, machine.session.content if machine.session else b"null")
            case "error":
                failure = machine.last_failure
                return self._respond(guest, call, json.dumps(failure.as_json() if failure else None).encode())
            case "result":
                if not _is_json(call.request):
                    return self._refuse("BadJSON", "wasman.result was given bytes that are not JSON")
                if len(call.request) > machine.record.pinned.limits.payload:
                    return self._refuse("TooLarge", f"a result of {len(call.request):,} bytes")
                machine.result = Payload.of(call.request)
                return 0
            case "fail":
                early = machine.finished_early()
                if early is not None:
                    raise early
                await self._fail(_failure_by_guest(call.request))
                raise _GivenUp
        return self._refuse("UnknownName", f"{call.name!r} is none of the host's own names")

    async def _perform(self, number: int, call: abi_v0.Call) -> Delivery:
        """Call the activity until it succeeds, fails for good, or runs out of attempts."""
        machine = self._machine
        definition = self._engine.activities.get(call.name)
        if definition is None:
            reason = f"activity {call.name!r} is registered with no worker that has seen it; start one that has it"
            wake = self._store.now() + int(_UNREGISTERED * 1e9)
            self._log.warning("%s waits: %s", self.key, reason)
            await self._commit(machine.waits(number, call.name, reason, wake))
            raise _GivenUp
        retry = definition.retry
        attempt = machine.attempts(number) + 1
        known = machine.open_operation(number)
        failure = known.failure if known else None
        while True:
            known = machine.open_operation(number)
            if known is not None and known.retry_at is not None:
                await anyio.sleep(max(0.0, (known.retry_at - self._store.now()) / 1e9))
            if retry.maximum_attempts and attempt > retry.maximum_attempts:
                message = f"activity {call.name!r} began {attempt - 1} times and no worker survived to tell"
                return Delivery(
                    "failed", number, failure=failure or Failure("WorkerDied", message, None, call.name, attempt - 1)
                )
            if known is not None:
                await self._commit(machine.begun(number, attempt))
            self._require_lease()
            failure, non_retryable = None, False
            try:
                response = await self._attempt(number, attempt, call)
                limit = machine.record.pinned.limits.payload
                if len(response) <= limit:
                    return Delivery("result", number, Payload.of(response))
                message = f"activity {call.name!r} returned {len(response):,} bytes; at most {limit:,} may be returned"
                failure, non_retryable = Failure("TooLarge", message, None, call.name, attempt), True
            except Exception as error:  # noqa: BLE001  whatever an activity raises is its failure
                failure, non_retryable = failure_of(error, call.name, attempt)
                self._log.warning(
                    "attempt %d of activity %r failed: %s: %s", attempt, call.name, failure.type, failure.message
                )
            if not retry.retries(failure, attempt, non_retryable=non_retryable):
                return Delivery("failed", number, failure=failure)
            retry_at = self._store.now() + int(retry.delay(attempt) * 1e9)
            await self._commit(machine.backoff(number, call.name, failure, retry_at))
            attempt += 1

    async def _attempt(self, number: int, attempt: int, call: abi_v0.Call) -> bytes:
        definition = self._engine.activities[call.name]
        given = ActivityCall(
            key=self.key,
            run=self.run,
            workflow=self._machine.record.pinned.workflow,
            operation=number,
            name=call.name,
            attempt=attempt,
            request=call.request,
            session=self._machine.session,
            started=self._store.now(),
        )
        if definition.timeout is None:
            return await definition.handler(given)
        with anyio.move_on_after(definition.timeout):
            return await definition.handler(given)
        message = f"activity {call.name!r} did not end within {definition.timeout:g} s"
        raise ApplicationError(message, type="StartToCloseTimeout")

    async def _sleep(self, guest: Guest, sleep: Sleep) -> int:
        """A durable timer: it is due at the guest's own time, which a replay repeats, so nothing more is stored."""
        machine = self._machine
        due = machine.time + sleep.duration
        number = machine.issue("timer", str(sleep.duration), "")
        if await self._replayed(number) is None:
            while (left := due - self._store.now()) > 0:
                await anyio.sleep(left / 1e9)
            await self._commit(machine.answered([Delivery("fired", number)], max(due, self._store.now())))
        guest.world.time = machine.time
        return sleep.fired(guest)

    # Streams

    async def _download(self, view: memoryview) -> int:
        machine, sources = self._machine, self._machine.record.pinned.sources
        name = _only(sources, "download")
        if name is None:
            return self._refuse(
                "NoSource", "the session has no source, or several and none of them is called 'download'"
            )
        if self._source is None:
            self._source = await self._engine.streams.open_source(sources[name])
        count = await self._source.read_into(machine.read, view)
        machine.read += count
        return count

    async def _upload(self, view: memoryview) -> int:
        machine, sinks = self._machine, self._machine.record.pinned.sinks
        name = _only(sinks, "upload")
        if name is None:
            return self._refuse("NoSink", "the session has no sink, or several and none of them is called 'upload'")
        if not view:
            machine.upload_closed = True
            return 0
        if machine.upload_closed:
            return self._refuse("SinkClosed", "the guest has closed its upload and writes to it")
        sink = await self._opened_sink(name)
        self._require_lease()
        await sink.write(machine.written, view)
        machine.crc = isal_zlib.crc32(view, machine.crc)
        machine.written += len(view)
        return len(view)

    async def _opened_sink(self, name: str) -> Sink:
        if self._sink is None:
            self._sink = await self._engine.streams.open_sink(
                self._machine.record.pinned.sinks[name], self.run, self._token
            )
        return self._sink

    # Snapshots

    async def _checkpoint(self, guest: Guest) -> None:
        """Keep all that can influence a re-entrant guest; for others their log is all that is needed."""
        machine = self._machine
        if not self._reentrant or machine.replaying:
            return
        assert self._image is not None, "a module that can be snapshotted has an image"
        machine.random = guest.world.random
        state = machine.state()
        sink_name = _only(machine.record.pinned.sinks, "upload")
        if sink_name is not None and machine.written:
            sink = await self._opened_sink(sink_name)
            state["token"] = dict(await sink.sync(machine.written))
        memory = guest.memory()
        chain = machine.record.snapshot.deltas if machine.record.snapshot else ()
        if len(chain) >= _FOLD:
            chain = ()
        parent = chain[-1][1] if chain else self._image.digest
        runs, pages = difference(self._memory if chain else self._image.memory, memory)
        delta = Delta(parent, len(memory), runs, pages, guest.globals(), state)
        name = f"snapshot-{self._version + 1}"
        sealed = seal(Address(self.key.tenant, self.key.id, self.run, "snapshot", name), encode_delta(delta))
        await self._commit(machine.checkpoint(name, sealed, chain))
        self._memory, self._token = memory, state.get("token")

    # Ending

    async def _finish(self, result: Payload) -> None:
        """The guest has returned: decide the result and the sinks' lengths in one commit."""
        machine = self._machine
        publishing = None
        sinks = {}
        name = _only(machine.record.pinned.sinks, "upload")
        if name is not None:
            sink = await self._opened_sink(name)
            token = await sink.sync(machine.written)
            sinks[name] = (machine.written, await sink.digest(machine.written), dict(token))
            publishing = Publishing(sinks)
        await self._commit_end(machine.completed(result, publishing, self._store.now()))

    async def _publish(self) -> None:
        """Give the sinks their names; after a crash again, which changes nothing."""
        machine = self._machine
        assert machine.record.publishing is not None, "a publishing run knows its sinks"
        await self._let_go()
        for name, (length, digest, token) in machine.record.publishing.sinks.items():
            sink = await self._engine.streams.open_sink(machine.record.pinned.sinks[name], self.run, None)
            try:
                self._require_lease()
                await sink.publish(length, digest, token)
            finally:
                await sink.close()
        await self._commit_end(machine.published(self._store.now()))

    async def _fail(self, failure: Failure) -> None:
        await self._commit_end(self._machine.failed(failure, self._store.now()))
        await self._discard()

    async def _close_as(self, terminating: Terminating) -> None:
        await self._commit_end(self._machine.ended(terminating, self._store.now()))
        await self._discard()

    async def _discard(self) -> None:
        """A run without a result leaves no part behind."""
        name = _only(self._machine.record.pinned.sinks, "upload")
        if name is None:
            return
        try:
            sink = await self._engine.streams.open_sink(self._machine.record.pinned.sinks[name], self.run, None)
            try:
                await sink.discard()
            finally:
                await sink.close()
        except (BlockedError, OSError) as error:
            self._log.warning("the part of run %s of %s stays: %s", self.run, self.key, error)

    # Mail

    def ending(self, messages: Sequence[Message]) -> Terminating | None:
        """How `messages` end the run, if one of them does.

        Raises:
            CorruptSnapshotError: A message cannot be read.
        """
        terminating = None
        for message in messages:
            address = mail_address(message.key, message.kind, message.id)
            try:
                body = json.loads(unseal(address, message.body))
            except CorruptSnapshotError as error:
                raise _DamagedMailError(str(error), [(message.id, "damaged")]) from error
            if message.kind == "terminate" and terminating is None:
                terminating = Terminating(Status.TERMINATED, "terminate", str(body["reason"]), (message.id,))
        return terminating

    async def _commit_end(self, proposal: Proposal) -> None:
        """Commit the run's end; mail that came too late is listed as undelivered, unless it ends the run itself."""
        while True:
            try:
                await self._commit(proposal)
            except _MailFirst:
                unread = [m for m in await self._store.mail(self.key) if m.id not in proposal.consumes]
                proposal = self._machine.closed_with_mail(proposal, [(message.id, message.kind) for message in unread])
            else:
                return

    # Standing still

    async def _block(self, error: BlockedError) -> None:
        await self._let_go()
        self._log.warning("run %s of %s is blocked: %s", self.run, self.key, error)
        if isinstance(error, _DamagedMailError):
            proposal = self._machine.blocked(CorruptSnapshotError(str(error)))
            proposal = self._machine.closed_with_mail(proposal, error.messages)
        else:
            proposal = self._machine.blocked(error)
        await self._commit(proposal)

    async def _stand_unread(self, error: BlockedError) -> None:
        """The record itself cannot be read: the columns say that it stands still, and its bytes stay as they are.

        Only a person who ends the run has them replaced, by what the columns and that person say.
        """
        stored = self._stored
        try:
            terminating = self.ending(await self._store.mail(self.key)) if stored.mail else None
        except CorruptSnapshotError as damaged:
            self._log.warning("mail for run %s of %s: %s", self.run, self.key, damaged)
            terminating = None
        if terminating is not None:
            await self._end_unread(terminating)
            return
        self._log.warning("run %s of %s is blocked: %s", self.run, self.key, error)
        if stored.columns.status is Status.BLOCKED:
            self._scope = anyio.CancelScope()
            with self._scope:
                await anyio.sleep(0 if self._interrupted else _HOLD)
        columns = evolve(stored.columns, status=Status.BLOCKED, owner=None, wake=None)
        change = Change(
            key=self.key,
            expected=(stored.run, stored.version),
            run=stored.run,
            nonce=secrets.token_hex(8),
            record=stored.record,
            columns=columns,
        )
        self.owns = False
        await self._store.commit([change])

    async def _end_unread(self, terminating: Terminating) -> None:
        columns, now = self._stored.columns, self._store.now()
        pinned = Pinned(columns.workflow, columns.module, queue=columns.queue, attributes=columns.attributes)
        failure = Failure(terminating.status.value, terminating.reason)
        record = Record(
            self.run, pinned, terminating.status, failure=failure, created=columns.created, closed=now, time=now
        )
        self._machine = Machine(self.key.tenant, self.key.id, record)
        await self._commit_end(Proposal(record, consumes=terminating.messages, keeps_owner=False))

    # Commits

    async def _commit(self, proposal: Proposal) -> None:
        """Make `proposal` durable, then true. While it is under way nothing may interrupt this task.

        Raises:
            ConcurrentExecutionError: Somebody else has the instance.
            StoreUnavailableError: The store did not take it for as long as the lease held.
        """
        owner = self._engine.worker if proposal.keeps_owner else None
        record = proposal.record
        change = Change(
            key=self.key,
            expected=(self.run, self._version),
            run=self.run,
            nonce=f"{self._nonce}-{self._version}",
            record=seal(self._record_address, encode_record(record)),
            columns=columns_of(
                record, owner=owner, wake=proposal.wake, takeovers=0 if proposal.settles else self._machine.takeovers
            ),
            entries=proposal.entries,
            blobs=proposal.blobs,
            consumes=proposal.consumes,
        )
        self._committing = True
        try:
            outcome = await self._durable(change)
        finally:
            self._committing = False
        match outcome:
            case Won(version=version):
                self._version = version
                self._machine.accept(proposal)
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
        if self.owns and self._interrupted:
            self._scope.cancel()
            await anyio.lowlevel.checkpoint_if_cancelled()

    async def _durable(self, change: Change) -> Won | Lost | Unread:
        pause = 0.05
        while True:
            self._require_lease()
            try:
                return (await self._store.commit([change]))[0]
            except StoreUnavailableError as error:
                # Nothing was written. The identical change is repeated for as long as this worker may.
                self._log.warning("%s of %s cannot be committed: %s", self.run, self.key, error)
                await anyio.sleep(pause)
                pause = min(2 * pause, 2.0)

    def _require_lease(self) -> None:
        if not self._engine.lease_is_valid:
            message = f"the lease of worker {self._engine.worker} has ended; run {self.run} of {self.key} is dropped"
            raise ConcurrentExecutionError(message)

    # Letting go

    async def _let_go(self) -> None:
        """Close the guest and its streams; what is durable stays."""
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()
        source, self._source = self._source, None
        if source is not None:
            await source.close()
        sink, self._sink = self._sink, None
        if sink is not None:
            await sink.close()


def _only(streams: Mapping[str, StreamSpec], name: str) -> str | None:
    """The one stream there is, or the one called `name`: `stream_data` has no names."""
    if len(streams) == 1:
        return next(iter(streams))
    return name if name in streams else None


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _failure_by_guest(request: bytes) -> Failure:
    """What the guest said of its own failure; guests that send no JSON have sent the message."""
    try:
        given = json.loads(request)
        return Failure(str(given.get("type") or "GuestFailure"), str(given["message"]), given.get("details"))
    except (ValueError, KeyError, AttributeError, TypeError):
        return Failure("GuestFailure", request.decode(errors="replace"))
