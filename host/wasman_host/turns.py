"""The run of a guest of ABI v1: what has happened is committed, delivered, and a turn of the guest follows.

Between two turns nothing of the guest is on any stack: memory, globals and its open operations (`Operations`) are all
there is. So a guest can be kept by a snapshot whenever it is at rest, and given up; when something has happened its
memory is laid under a new guest, and the next turn goes on there. The entries of the log behind the last snapshot are
delivered again by whoever takes the run over after a crash.

Calls of activities run beside each other, each in a task of its own, and one task delivers. Where one call is all that
the guest waits for, the delivering task makes it itself, which saves a task a call; when something else happens
meanwhile, another task takes the delivering over.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

import anyio
from attrs import evolve
from pydantic_core import from_json, to_json

from wasman_host.calls import GivenUp
from wasman_host.codec import encoded_delivery
from wasman_host.concurrent_calls import ConcurrentCall
from wasman_host.errors import Failure, GuestDeadlockError, GuestLimitError, GuestProtocolError
from wasman_host.guest import abi_v1
from wasman_host.guest.abi_v1 import Block, Exchange, MalformedError
from wasman_host.guest.live import Ended
from wasman_host.guest.module import TURN
from wasman_host.machine import CANCELLED
from wasman_host.operations import Operations
from wasman_host.oplog import Delivery
from wasman_host.payload import Payload
from wasman_host.reasons import failed_by_guest
from wasman_host.wake import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyio.abc import TaskGroup

    from wasman_host.guest.live import Guest, Trapped
    from wasman_host.instance import Instance
    from wasman_host.machine import Machine, Proposal
    from wasman_host.operations import Asked
    from wasman_host.record import Cancel, KeptSignal
    from wasman_host.store.protocol import Key

__all__ = ["GuestEnded", "Turns"]

_EVENT = 24  # bytes of the inbox that an event takes at least
_POLITE = 64  # repeated turns between two turns of the event loop
_LINGER = 2.0  # seconds that a guest with nothing to do is kept in memory for what may come
_AHEAD = 10.0  # seconds until its deadline from which on that is worth it
_UNREGISTERED = 5.0  # seconds until somebody looks again whether an activity is registered
_TICKS = 1000  # turns in a row that do nothing but count time, until that is said
_LEVELS = ((8, logging.ERROR), (4, logging.WARNING), (0, logging.INFO))


class GuestEnded(Exception):  # noqa: N818  not an error of the host
    """The guest has trapped, or exited."""

    def __init__(self, outcome: Ended | Trapped) -> None:
        super().__init__()
        self.outcome = outcome


class Turns:
    """Lives one run from turn to turn.

    Attributes:
        operations: What the guest has asked for and was not answered yet.
        exchange: What the guest pulls and flushes.
    """

    __slots__ = (
        "_alone",
        "_answer",
        "_block",
        "_evicting",
        "_finished",
        "_instance",
        "_mail",
        "_most",
        "_problem",
        "_ready",
        "_resting",
        "_role",
        "_running",
        "_said",
        "_sleep",
        "_spent",
        "_stirred",
        "_tasks",
        "_ticks",
        "_turns",
        "_unregistered",
        "_writing",
        "_written",
        "exchange",
        "operations",
    )

    _in_turns = True
    _stuck = "its goroutines wait for each other"

    def __init__(self, instance: Instance, block: int, state: Mapping[str, Any] | None) -> None:
        """Nothing runs yet.

        Args:
            instance: Whose run it is; its guest is loaded.
            block: Where the guest says what it wants.
            state: What its snapshot holds of the operations; None for a run that begins anew.
        """
        self._instance = instance
        self._block = block
        self._said: Block | None = None  # after the last turn
        self._most = abi_v1.INBOX // _EVENT - 2  # of one turn: a cancel and the deadline may come with them
        self.exchange = Exchange(self._log, self._take, turns=self._in_turns)
        self.operations = Operations() if state is None else Operations.of_state(state, self.exchange)
        self.exchange.open = self.operations.open
        self._turns = 0  # since the last snapshot
        self._spent = 0.0  # seconds of processor time since then
        self._ticks = 0
        self._resting = state is not None
        self._running: dict[int, anyio.CancelScope] = {}
        self._unregistered: set[str] = set()
        self._ready: list[Delivery] = []
        self._mail: Sequence[KeptSignal] = ()
        self._problem: Exception | None = None
        self._evicting = False
        self._writing = False
        self._written: anyio.Event | None = None  # set when it is, for those who wait to write as well
        self._tasks: TaskGroup | None = None
        self._alone: int | None = None  # the call that the delivering task is in
        self._role = 0  # which task delivers
        self._finished: anyio.Event | None = None  # set by a task that has taken over, at the end
        self._stirred = False
        self._sleep: anyio.CancelScope | None = None
        self._answer: Answer[None] | None = None

    @property
    def _machine(self) -> Machine:
        return self._instance.machine

    @property
    def _key(self) -> Key:
        return self._instance.key

    # From outside

    @property
    def is_in_activity(self) -> bool:
        """Whether an activity is under way."""
        return bool(self._running)

    @property
    def is_at_rest(self) -> bool:
        """Whether the guest's memory holds all that is durable, and nothing of it is on any stack."""
        return self._resting

    @property
    def _may_be_evicted(self) -> bool:
        """Whether a guest that waits comes back, without its memory, to where it is."""
        return True

    def stir(self) -> None:
        """Something may have happened: look."""
        self._stirred = True
        if self._alone is not None and self._tasks is not None:
            self._alone = None
            self._role += 1
            self._finished = self._finished or anyio.Event()
            self._tasks.start_soon(self._take_over)
        if self._answer is not None:
            self._answer.set(None)
        if self._sleep is not None:
            self._sleep.cancel()

    def signalled(self, signals: Sequence[KeptSignal]) -> None:
        """There are signals in the mail."""
        self._mail = signals
        self.stir()

    def evict(self) -> bool:
        """Keep the guest, and give its memory up, as soon as it waits; False where it does not."""
        if not self._may_be_evicted or (self._answer is None and self._sleep is None and self._alone is None):
            return False
        self._evicting = True
        self.stir()
        return True

    # The run

    async def run(self) -> None:
        """Deliver, and let the guest have its turns, until it has ended its run."""
        problem: Exception | None = None
        try:
            await self._repeat()
            await self._keep_in_time()
        except GuestEnded as ended:
            problem = ended
        if problem is None and self.operations.end is None:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                try:
                    await self._go_on()
                    if self._finished is not None:  # another task has taken over, to the end
                        await self._finished.wait()
                        problem = self._problem
                except Exception as error:  # noqa: BLE001  raised again outside of the task group, which would wrap it
                    problem = error
                if self._running:
                    tasks.cancel_scope.cancel()
        self._tasks = None
        await self._settle(problem)

    async def _go_on(self) -> None:
        """Deliver until the run has ended, or until another task does."""
        # One scope for the calls that this task makes itself, one after the other: it is only ever cancelled in a call
        # from which another task has taken over, so that this one has nothing else to do.
        with anyio.CancelScope() as scope:
            call = ConcurrentCall(self, self._instance)
            while self.operations.end is None:
                alone = self._begin_calls()
                if alone is not None:
                    role, self._alone = self._role, alone.number
                    self._running[alone.number] = scope
                    self._instance.rests()
                    await self._make(call, alone)
                    if role != self._role:
                        return
                await self._deliver(*await self._happened())
        if scope.cancelled_caught:
            self._cut(call.asked)

    async def _take_over(self) -> None:
        """Deliver, because the task that did is in a call."""
        try:
            await self._go_on()
        except Exception as error:  # noqa: BLE001  the run's own task raises it
            self._problem = error
        if self._finished is not None and (self.operations.end is not None or self._problem is not None):
            self._finished.set()
            for scope in self._running.values():  # the call that the other task is in is one of them
                scope.cancel()

    async def _repeat(self) -> None:
        """What the log holds beyond the snapshot, or all of it."""
        machine = self._machine
        if not self._resting:
            await self._turn([Delivery("start")])
        repeated = 0
        while self.operations.end is None and (entry := machine.next_entry()) is not None:
            deliveries = [await self._loaded(delivery) for delivery in entry.deliveries]
            self.operations.answered(deliveries)
            await self._turn(deliveries)
            repeated += 1
            if repeated % _POLITE == 0:
                await anyio.lowlevel.checkpoint()

    async def _loaded(self, delivery: Delivery) -> Delivery:
        if delivery.payload is None:
            return delivery
        return evolve(delivery, payload=await self._instance.loaded(delivery.payload))

    async def _settle(self, problem: Exception | None) -> None:
        """What comes of the run, where it has ended or `problem` keeps it from going on."""
        await self.settled()  # a heartbeat of a call that was cut
        if isinstance(problem, GuestEnded):
            await self._instance.fail(self._instance.failure_of(problem.outcome))
        elif problem is not None:
            raise problem
        else:
            await self._end()

    async def _end(self) -> None:
        end = self.operations.end
        early = self._machine.finished_early()
        if early is not None:
            raise early
        if isinstance(end, abi_v1.CompleteCommand):
            limit = self._machine.pinned.limits.request
            if len(end.result) > limit:
                message = (
                    f"the guest of {self._key} gives a result of {len(end.result):,} bytes and may give {limit:,}; "
                    f"raise the limit and unblock, or terminate it"
                )
                raise GuestLimitError(message, "request")
            await self._instance.finish(Payload.of(end.result))
        elif isinstance(end, abi_v1.FailCommand):
            await self._instance.fail(failed_by_guest(end.failure, "Error"))

    # A turn

    async def _turn(self, deliveries: Sequence[Delivery]) -> None:
        """Give the guest what has happened, and take what it asks for."""
        guest, machine = self._instance.guest, self._machine
        assert guest is not None, "the guest was loaded"
        self._resting = False
        began = time.thread_time()
        guest.world.time = machine.time
        inbox, capacity, *_ = self._said or self._read_block(guest)
        given = self._events(deliveries, capacity)
        if not guest.write(inbox, given):
            raise self._protocol(f"has its inbox at {inbox:#x}, which is not inside its memory")
        guest.enter(TURN, (len(given),))
        outcome = guest.resume()
        if not isinstance(outcome, Ended):
            outcome = await self._instance.driven(outcome)
        if not isinstance(outcome, Ended) or not outcome.values:
            raise GuestEnded(outcome)
        if outcome.values[0]:
            raise self._protocol(f"gives {outcome.values[0]} for a turn, and 0 means that all is well")
        self._said = block = self._read_block(guest)
        outbox = guest.view(block.outbox, block.length)
        if outbox is None:
            raise self._protocol(f"has its outbox at {block.outbox:#x}, which is not inside its memory")
        self._take(outbox)
        self.operations.deadline = block.deadline
        self._turns += 1
        self._spent += time.thread_time() - began
        self._resting = True

    def _read_block(self, guest: Guest) -> Block:
        try:
            return Block.read(guest, self._block)
        except MalformedError as error:
            raise self._protocol(f"is at fault: {error}") from error

    def _take(self, commands: bytes | memoryview) -> None:
        """What the guest asks for."""
        try:
            self.operations.take(commands, self._machine)
        except MalformedError as error:
            raise self._protocol(str(error)) from error
        self.exchange.issued = self._machine.operations

    def _protocol(self, what: str) -> GuestProtocolError:
        message = (
            f"the guest of {self._key} {what}; docs/abi.md says what a guest may do. Its data is untouched: mend the "
            f"guest's SDK, or terminate it"
        )
        return GuestProtocolError(message)

    def _events(self, deliveries: Sequence[Delivery], room: int) -> bytes:
        parts: list[bytes] = []
        for delivery in deliveries:
            pulled, body = False, b""
            match delivery.kind:
                case "result":
                    assert delivery.payload is not None, "a result has a payload"
                    body = delivery.payload.content
                    part, pulled = abi_v1.event(abi_v1.RESULT, delivery.operation, body, room)
                case "failed":
                    body = to_json(delivery.failure.as_json() if delivery.failure else None)
                    part, pulled = abi_v1.event(abi_v1.FAILED, delivery.operation, body, room)
                case "start":
                    part = self._start(room)
                case "cancel":
                    reason = delivery.failure.message if delivery.failure else ""
                    part, _ = abi_v1.event(abi_v1.CANCEL, abi_v1.NO_OPERATION, reason.encode()[: abi_v1.INLINE], room)
                case _:
                    part, _ = abi_v1.event(abi_v1.FIRED, abi_v1.NO_OPERATION, b"", room)
            if pulled:
                self.exchange.untaken[delivery.operation] = (body, delivery.kind == "failed")
            parts.append(part)
            room -= len(part)
        return b"".join(parts)

    def _start(self, room: int) -> bytes:
        machine, pinned = self._machine, self._machine.pinned
        assert machine.input is not None, "every run has an input"
        info = {
            "entry": pinned.entry,
            "workflow": pinned.workflow,
            "id": machine.id,
            "run": machine.run,
            "tenant": machine.tenant,
        }
        return abi_v1.start_event(to_json(info), machine.input.content, room)

    def pulls(self) -> None:
        """What the run was started with is here: the guest may read it."""
        machine = self._machine
        self.exchange.issued = machine.operations
        if machine.positions is None:
            machine.positions = {}  # it names its streams
        self.exchange.input = machine.input.content if machine.input is not None else b"null"
        self.exchange.session = machine.session.content if machine.session is not None else b"null"

    def _log(self, level: int, message: str, attributes: bytes) -> None:
        if self._machine.replaying:
            return
        try:
            more = from_json(attributes) if attributes else {}
        except ValueError:
            more = None
        if not isinstance(more, dict):
            more = {"attributes": attributes.decode(errors="replace")}
        words = " ".join((message, *(f"{name}={value!r}" for name, value in more.items()))) if more else message
        to = next((python for least, python in _LEVELS if level >= least), logging.DEBUG)
        self._instance.log.log(to, "%s", words)

    # What happens

    async def _happened(self) -> tuple[list[Delivery], Cancel | None]:
        """Wait until there is something to deliver: what, and a cancel that the guest is to be told of with it."""
        instance, operations = self._instance, self.operations
        while True:
            self._stirred = False
            if self._problem is not None:
                raise self._problem
            if self._mail:
                await self._take_mail()
            deliveries = self._ready[: self._most]
            del self._ready[: self._most]
            if self._machine.record.signals:
                deliveries += await self._signals(self._most - len(deliveries))
            cancel = instance.cancel
            if cancel is not None:
                failure = Failure(CANCELLED, cancel.reason)
                deliveries.append(Delivery("cancel", failure=failure, message=cancel.message))
            due = operations.deadline
            if due >= 0 and instance.now() >= due:
                deliveries.append(Delivery("fired"))
            if deliveries:
                return deliveries, cancel
            if self._evicting:
                self._evicting = False
                if self._may_be_evicted:  # since that was asked for, something may have been delivered
                    await self._give_memory_up()
            elif not self._stirred:
                await self._wait(due)

    async def _wait(self, due: int) -> None:
        """Until something stirs, or `due` comes; a guest that has nothing to do for long is handed back meanwhile."""
        instance, operations = self._instance, self.operations
        if not self._running:
            if due < 0 and not operations.open:
                raise self._deadlock()
            if self._unregistered:
                await self._wait_for_worker()
        instance.rests()
        try:
            if self._running and due < 0:
                self._answer = Answer()
                await self._answer.wait()
                return
            lingers = not self._running and (due < 0 or due - instance.now() > int(_AHEAD * 1e9))
            with anyio.CancelScope() as self._sleep, anyio.move_on_after(_LINGER if lingers else None) as linger:
                await (anyio.sleep_forever() if due < 0 else instance.sleep_until(due))
            if linger.cancelled_caught and not self._stirred:
                self._evicting = True
        finally:
            self._answer = self._sleep = None

    def _deadlock(self) -> GuestDeadlockError:
        told = self._machine.record.cancel
        message = (
            f"the guest of {self._key} can never go on: its workflow has not returned, and it waits for no activity, "
            f"no signal and no timer; {self._stuck}"
            f"{', and somebody has asked that it be cancelled' if told is not None else ''}. "
            f"Mend the guest, then terminate this run and start it anew"
        )
        return GuestDeadlockError(message)

    async def _take_mail(self) -> None:
        signals, self._mail = self._instance.unheard(self._mail), ()
        if signals:
            await self.commit(lambda: self._machine.signalled(signals))

    async def _signals(self, room: int) -> list[Delivery]:
        """Signals that were kept, for receives that wait for them: the oldest first."""
        receives, kept = self.operations.receives(), self._machine.record.signals
        if not receives:
            return []
        by_name: dict[str, deque[KeptSignal]] = defaultdict(deque)
        for signal in kept:
            by_name[signal.name].append(signal)
        found: list[Delivery] = []
        for asked in receives:
            if len(found) < room and by_name[asked.name]:
                signal = by_name[asked.name].popleft()
                payload = signal.payload
                if payload.data is None:
                    payload = await self._instance.loaded(payload)
                found.append(Delivery("result", asked.number, evolve(payload, blob=""), message=signal.message))
        return found

    # Delivering

    async def _deliver(self, deliveries: list[Delivery], cancel: Cancel | None) -> None:
        """Make it durable, then give it to the guest."""
        instance = self._instance
        deliveries = await self._committed(deliveries, cancel)
        if instance.guest is None:
            await instance.revive()
        await self._turn(deliveries)
        await instance.heed()
        self._count_ticks(deliveries)
        await self._keep_in_time()

    async def _committed(self, deliveries: list[Delivery], cancel: Cancel | None) -> list[Delivery]:
        """Make it durable; what the guest is to be given."""
        instance, machine, operations = self._instance, self._machine, self.operations
        await instance.feel()
        self._resting = False  # what is durable from here on is not in the guest's memory yet
        operations.answered(deliveries)
        logged = deliveries
        if instance.codec is not None:
            logged = [
                one if one.payload is None or one.payload.codec else encoded_delivery(one, instance.codec)
                for one in deliveries
            ]
        now = instance.now()
        under_way = [(asked.number, asked.name) for asked in operations.calls()] if machine.takeovers else ()
        await self.commit(lambda: machine.delivered(logged, now, cancel, under_way))
        for one in deliveries:
            if one.payload is not None and (one.payload.data is None or one.payload.codec):
                return [await self._loaded(each) for each in deliveries]
        return deliveries

    def _count_ticks(self, deliveries: Sequence[Delivery]) -> None:
        only_time = len(deliveries) == 1 and deliveries[0].kind == "fired" and not self._machine.has_asked
        self._ticks = self._ticks + 1 if only_time else 0
        if self._ticks and self._ticks % _TICKS == 0:
            text = (
                f"the guest of {self._key} has had {self._ticks:,} turns in a row only because time went by: perhaps a "
                f"ticker that nobody stops; each is written to the store"
            )
            self._instance.log.warning("%s", text)

    async def settled(self) -> None:
        """Wait until nothing is being written, by a call or of one."""
        while self._writing:
            self._written = self._written or anyio.Event()
            await self._written.wait()

    async def commit(self, make: Callable[[], Proposal | None]) -> None:
        """Make durable what `make` gives, when nothing else is being written; calls do so beside the deliveries."""
        if self._writing:
            await self.settled()
        self._writing = True
        try:
            proposal = make()
            if proposal is not None:
                await self._instance.commit(proposal)
        finally:
            self._writing = False
            if self._written is not None:
                written, self._written = self._written, None
                written.set()

    # Calls

    def makes(self, number: int) -> bool:
        """Whether this call is under way, and what is written of it belongs to an instance that this worker has."""
        return number in self._running and self._instance.owns

    def _begin_calls(self, *, alone: bool = True) -> Asked | None:
        """Begin the calls that were asked for, each in a task of its own; or give the one that the guest waits for."""
        operations, running = self.operations, self._running
        if alone and (asked := self._only()) is not None:
            return asked
        for number in operations.cancelled:
            if number in running:
                running[number].cancel()
        if len(running) >= len(operations.open):
            return None
        known = {*running, *(delivery.operation for delivery in self._ready)} if running or self._ready else ()
        assert self._tasks is not None, "calls are made while the run goes on"
        self._unregistered.clear()
        for asked in operations.calls():
            if asked.number in known:
                continue
            if asked.number in operations.cancelled:
                self._cut(asked)
                continue
            if self._instance.activity(asked.name) is None:
                self._unregistered.add(asked.name)
                continue
            scope = running[asked.number] = anyio.CancelScope()
            self._tasks.start_soon(self._perform, asked, scope)
        return None

    def _only(self) -> Asked | None:
        """The call that the guest waits for, where it waits for nothing else and nothing else has happened."""
        operations = self.operations
        if len(operations.open) != 1 or operations.deadline >= 0 or operations.cancelled:
            return None
        if self._running or self._ready or self._mail or self._evicting or self._problem or self._instance.cancel:
            return None
        [asked] = operations.open.values()
        return asked if asked.kind == "call" and self._instance.activity(asked.name) is not None else None

    async def _perform(self, asked: Asked, scope: anyio.CancelScope) -> None:
        """A call in a task of its own."""
        with scope:
            await self._make(ConcurrentCall(self, self._instance), asked)
        if scope.cancelled_caught:
            self._cut(asked)

    async def _make(self, call: ConcurrentCall, asked: Asked) -> None:
        """Make a call, and have its answer delivered."""
        call.asked = asked
        try:
            call.calls.check(asked)
            self._ready.append(await call.calls.perform(asked.number, asked, asked.asked))
        except Exception as error:  # noqa: BLE001  the run's own task raises it
            self._problem = error
        finally:
            self._running.pop(asked.number, None)
            if self._alone == asked.number:
                self._alone = None
            self.stir()

    def _cut(self, asked: Asked) -> None:
        """Have the guest be told that the call that it has cancelled was cut short."""
        known = self._machine.open_operation(asked.number)
        attempt = known.attempts if known is not None else 0
        failure = Failure(CANCELLED, "the guest has cancelled it", None, asked.name, attempt)
        self._ready.append(Delivery("failed", asked.number, failure=failure))

    async def _wait_for_worker(self) -> None:
        """Nobody here has some of the activities: the instance is given up for a while, for whoever has them."""
        instance = self._instance
        asked = next(one for one in self.operations.calls() if one.name in self._unregistered)
        reason = f"activity {asked.name!r} is registered with no worker that has seen it; start one that has it"
        instance.report("waiting", logging.WARNING, f"{self._key} waits: {reason}", activity=asked.name, reason=reason)
        await self.keep()
        wake = instance.now() + int(_UNREGISTERED * 1e9)
        await self.commit(lambda: self._machine.waits(asked.number, asked.name, reason, wake))
        raise GivenUp

    # At rest

    async def keep(self) -> None:
        """Keep the guest as it is, if it is at rest and in memory: nothing that it has done is done again."""
        instance = self._instance
        if instance.guest is None or not self._resting:
            return
        await instance.keep({"turns": self.operations.state(self.exchange)}, self.commit)
        self._turns, self._spent = 0, 0.0

    async def _keep_in_time(self) -> None:
        """Keep it where it has done so much since the last time that nobody should do it again."""
        if self.operations.end is None and self._instance.keeps(self._turns, self._spent):
            await self.keep()

    async def _give_memory_up(self) -> None:
        """Keep the guest and close it; where nothing is under way, the store has the instance until something is."""
        instance, due = self._instance, self.operations.deadline
        await self.keep()
        instance.park()
        if self._running or self._ready:
            return
        wake = None if due < 0 else due
        waits_for = self.operations.waits_for()
        await self.commit(lambda: self._machine.sleeps(wake, waits_for))
        instance.report("released", logging.DEBUG, f"run {instance.run} of {self._key} is released: it waits")
        raise GivenUp
