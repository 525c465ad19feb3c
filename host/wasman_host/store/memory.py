"""The store in the memory of one process: for tests, and for workflows that need not outlive it.

The same promises as the durable stores, without the durability. Each method does its work between two turns of the
event loop, so it is atomic by construction. A worker is dead when its lease has ended.
"""

from __future__ import annotations

import heapq
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field
from typing_extensions import override

from wasman_host.errors import CorruptSnapshotError, InvalidArgumentError, StoreUnavailableError
from wasman_host.store.protocol import (
    CLOSED,
    Claim,
    Key,
    Lost,
    Message,
    Page,
    Sent,
    Status,
    Step,
    Store,
    Stored,
    Unread,
    Won,
)
from wasman_host.store.rules import (
    REMEMBER_CONSUMED,
    check_change,
    check_message,
    check_page,
    claim_order,
    claimable,
    cursor_after,
    matches,
    opened_twice,
    step_verdict,
    turned_away,
    verdict,
)
from wasman_host.store.watchers import Watchers
from wasman_host.wake import Answer, others_wait, turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from wasman_host.store.protocol import Change, Columns, Filter

__all__ = ["MemoryStore"]

_TIMED = frozenset({Status.RUNNING, Status.WAITING, Status.PUBLISHING})


@define
class _Instance:
    """What is kept of one id: all that `Change` with no record takes away."""

    number: int
    stored: Stored | None = None
    runs: set[str] = field(factory=set)
    former: dict[str, Stored] = field(factory=dict)
    letters: dict[str, Message] = field(factory=dict)  # in the order of arrival
    consumed: set[str] = field(factory=set)


class MemoryStore(Store):
    """Instances in dictionaries. Two parts of a program share them by sharing the object.

    Args:
        clock: Gives the time in ns since 1970; for tests.
        lease_clock: Gives the time that leases are measured by; the same by default.
    """

    deflates = False  # inflating what is read back takes longer than everything else about it

    def __init__(
        self, *, clock: Callable[[], int] = time.time_ns, lease_clock: Callable[[], int] | None = None
    ) -> None:
        self._clock = clock
        self._lease_clock = lease_clock or clock
        self._is_open = False
        self._numbers = 0
        self._instances: dict[Key, _Instance] = {}
        self._free: dict[Key, _Instance] = {}  # open ones that nobody owns
        self._mailed: dict[Key, _Instance] = {}  # those of them that have mail
        self._alarms: list[tuple[int, int, Key]] = []  # a heap: when one of them may be claimed, and its number
        self._ripe: dict[str, list[tuple[tuple[int, int], Key]]] = {}  # whose time has come: a heap for each queue
        self._owned: dict[str, dict[Key, _Instance]] = {}
        self._logs: dict[str, dict[int, bytes]] = {}
        self._blobs: dict[str, dict[str, bytes]] = {}
        self._modules: dict[str, bytes] = {}
        self._images: dict[str, bytes] = {}
        self._leases: dict[str, int] = {}
        self._met: set[str] = set()
        self._to_forget: deque[tuple[int, Key, str]] = deque()
        self._watchers = Watchers()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @override
    def now(self) -> int:
        return self._clock()

    @override
    async def open(self) -> None:
        if self._is_open:
            raise opened_twice("in memory")
        self._is_open = True

    @override
    async def close(self) -> None:
        self._is_open = False
        self._watchers.wake_all()

    @override
    async def serve(self) -> None:
        # Nobody else writes here, and the store's own commits wake their watchers themselves.
        await Answer[None]().wait()

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreUnavailableError("the store in memory is not open")

    async def _turn(self) -> None:
        """Let the others run, as a write to disk would, where there are any."""
        if others_wait():
            await turn()

    def _stored(self, key: Key) -> Stored | None:
        """The instance. Raises `CorruptSnapshotError` where only its runs or its mail are there."""
        self._check_open()
        instance = self._instances.get(key)
        if instance is None:
            return None
        if instance.stored is None:
            raise CorruptSnapshotError(f"the instance {key} has rows of its runs or mail, but its record is missing")
        return instance.stored

    # -- changes ------------------------------------------------------------------------------------------------------

    @override
    async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        for change in changes:
            check_change(change)
        if len(changes) == 1 and isinstance(changes[0], Step):
            result = self._step(changes[0])
            await self._turn()
            return [result]
        results: list[Won | Lost | Unread | Exception] = []
        touched: list[Key] = []
        for change in changes:
            try:
                results.append(self._apply(change, touched))
            except (CorruptSnapshotError, InvalidArgumentError, StoreUnavailableError) as error:
                results.append(error)  # the others are decided all the same
        self._watchers.hint(touched, claimable=self._claimable(touched))
        await self._turn()
        return [_raised(result) for result in results]

    def _claimable(self, keys: Sequence[Key]) -> bool:
        """Whether a worker may take, or must read, one of them."""
        found = [self._instances[key].stored for key in keys if key in self._instances]
        return any(
            stored is not None and ((stored.columns.owner is None and stored.columns.closed is None) or stored.mail > 0)
            for stored in found
        )

    @override
    def wake(self) -> None:
        self._watchers.hint((), claimable=True)

    def _apply(self, change: Change | Step, touched: list[Key]) -> Won | Lost | Unread:
        if isinstance(change, Step):
            return self._step(change)
        key, stored = change.key, self._stored(change.key)
        found, unconsumed = None, 0
        if stored is not None:
            instance = self._instances[key]
            found = (stored.run, stored.version, stored.nonce, stored.mail)
            unconsumed = sum(
                message in instance.letters and message not in instance.consumed for message in change.consumes
            )
        decided = verdict(change, found, unconsumed)
        if isinstance(decided, Unread) and len(self._unread(key)) != decided.mail:
            raise CorruptSnapshotError(f"{key} should have {decided.mail} unread messages, and has not")
        if decided is not None:
            return decided
        if change.record is None or change.columns is None:
            self._delete(key)
            won = Won(0, 0)
        else:
            won = self._put(change, change.record, change.columns, stored)
        if stored is None or won.version == 0 or change.consumes or change.columns != stored.columns:
            touched.append(key)
        for child in change.creates:
            if child.key not in self._instances:
                self._apply(child, touched)
        for message in change.sends:
            self._deliver(message, touched)
        return won

    def _step(self, step: Step) -> Won | Lost:
        stored = self._stored(step.key)
        found = None if stored is None else (stored.run, stored.version, stored.nonce, stored.mail)
        decided = step_verdict(step, found)
        if decided is not None or stored is None:
            return decided or Lost(None)
        self._check_fresh(step, stored)
        columns = stored.columns if not stored.columns.takeovers else evolve(stored.columns, takeovers=0)
        self._instances[step.key].stored = Stored(
            step.key, step.run, step.version + 1, step.nonce, columns, stored.record, stored.mail, step.tail
        )
        self._keep(step)
        return Won(step.version + 1, 0)

    def _keep(self, change: Change | Step) -> None:
        """What a change adds to its run beside the record."""
        if change.entries:
            self._logs.setdefault(change.run, {}).update(change.entries)
        if change.blobs:
            self._blobs.setdefault(change.run, {}).update((blob.name, blob.data) for blob in change.blobs)

    def _owner_is(self, instance: _Instance, stored: Stored, before: Stored | None) -> None:
        """Keep in mind whose the instance is now."""
        if before is not None and before.columns.owner is not None:
            self._owned.get(before.columns.owner, {}).pop(stored.key, None)
        self._mailed.pop(stored.key, None)
        if stored.columns.status in CLOSED or stored.columns.owner is not None:
            self._free.pop(stored.key, None)
        else:
            self._free[stored.key] = instance
            if stored.mail > 0:
                self._mailed[stored.key] = instance
            self._set_alarms(instance.number, stored)
        if stored.columns.owner is not None:
            self._owned.setdefault(stored.columns.owner, {})[stored.key] = instance

    def _set_alarms(self, number: int, stored: Stored) -> None:
        """Have a claim look at a free instance when its time comes; what is outdated by then is seen to be so."""
        for moment in _moments(stored.columns):
            heapq.heappush(self._alarms, (moment, number, stored.key))
        if len(self._alarms) > 4 * len(self._free) + 1000:  # whose times were changed again and again
            self._alarms = [
                (moment, instance.number, key)
                for key, instance in self._free.items()
                if instance.stored is not None
                for moment in _moments(instance.stored.columns)
            ]
            heapq.heapify(self._alarms)

    def _put(self, change: Change, record: bytes, columns: Columns, stored: Stored | None) -> Won:
        key = change.key
        self._check_fresh(change, stored)
        if stored is None:
            self._numbers += 1
            self._instances[key] = _Instance(self._numbers)
            version, mail = 1, 0
        else:
            version, mail = stored.version + 1, stored.mail - len(change.consumes)
        instance = self._instances[key]
        if stored is not None and change.run != stored.run:
            instance.former[stored.run] = evolve(stored, mail=0)
        if columns.attributes:
            columns = evolve(columns, attributes=dict(columns.attributes))
        instance.stored = Stored(key, change.run, version, change.nonce, columns, record, mail, change.tail)
        self._owner_is(instance, instance.stored, stored)
        instance.runs.add(change.run)
        now = self.now()
        for message in change.consumes:
            instance.consumed.add(message)
            self._to_forget.append((now, key, message))
        self._keep(change)
        for name in change.drops:
            self._blobs[change.run].pop(name, None)
        for n in change.cuts:
            self._logs[change.run].pop(n, None)
        return Won(version, mail)

    def _check_fresh(self, change: Change | Step, stored: Stored | None) -> None:
        """Nothing that the change adds is there already."""
        key, run = change.key, change.run
        if stored is not None and run != stored.run and run in self._instances[key].runs:
            raise InvalidArgumentError(f"change of {key}: it had a run {run} before; draw a new one")
        if not change.blobs and len(change.entries) == 1 and change.entries[0][0] not in self._logs.get(run, ()):
            return  # what a step of every workflow adds
        log, blobs = self._logs.get(run, {}), self._blobs.get(run, {})
        if any(n in log for n, _ in change.entries):
            raise CorruptSnapshotError(f"the log of a run holds entries that are still to come ({run})")
        names = [blob.name for blob in change.blobs]
        if any(name in blobs for name in names) or len(set(names)) < len(names):
            raise CorruptSnapshotError(f"{key}: a blob of its run {run} is there already")

    def _delete(self, key: Key) -> None:
        instance = self._instances.pop(key)
        self._free.pop(key, None)
        self._mailed.pop(key, None)
        if instance.stored is not None and instance.stored.columns.owner is not None:
            self._owned.get(instance.stored.columns.owner, {}).pop(key, None)
        for run in instance.runs:
            self._logs.pop(run, None)
            self._blobs.pop(run, None)

    # -- reading ------------------------------------------------------------------------------------------------------

    @override
    async def load(self, key: Key) -> Stored | None:
        stored = self._stored(key)
        self._watchers.saw(key, None if stored is None else (stored.run, stored.columns.status, stored.mail))
        return stored

    @override
    async def former(self, key: Key, run: str) -> Stored | None:
        self._check_open()
        instance = self._instances.get(key)
        return None if instance is None else instance.former.get(run)

    @override
    async def read(self, run: str, start: int = 0, stop: int | None = None) -> list[tuple[int, bytes]]:
        self._check_open()
        log = self._logs.get(run, {})
        return sorted((n, entry) for n, entry in log.items() if n >= start and (stop is None or n < stop))

    @override
    async def blob(self, run: str, name: str) -> bytes | None:
        self._check_open()
        return self._blobs.get(run, {}).get(name)

    @override
    async def put_module(self, digest: str, data: bytes) -> None:
        self._check_open()
        self._modules.setdefault(digest, data)

    @override
    async def module(self, digest: str) -> bytes | None:
        self._check_open()
        return self._modules.get(digest)

    @override
    async def put_image(self, name: str, data: bytes) -> None:
        self._check_open()
        self._images.setdefault(name, data)

    @override
    async def image(self, name: str) -> bytes | None:
        self._check_open()
        return self._images.get(name)

    # -- mail ---------------------------------------------------------------------------------------------------------

    @override
    async def send(self, message: Message) -> Sent:
        check_message(message)
        self._stored(message.key)
        touched: list[Key] = []
        sent = self._deliver(message, touched)
        self._watchers.hint(touched, claimable=self._claimable(touched))
        await self._turn()
        return sent

    def _deliver(self, message: Message, touched: list[Key]) -> Sent:
        instance = self._instances.get(message.key)
        if instance is None or instance.stored is None or not instance.stored.columns.workflow:
            return Sent.ABSENT
        if message.id in instance.letters:
            return Sent.DUPLICATE
        if instance.stored.columns.status in CLOSED or (message.run and message.run != instance.stored.run):
            return Sent.CLOSED
        refused = turned_away(message, instance.stored.version, instance.stored.mail)
        if refused is not None:
            return refused
        instance.letters[message.id] = evolve(message, sent=self.now(), room=None)
        instance.stored = evolve(instance.stored, mail=instance.stored.mail + 1)
        if message.key in self._free:
            self._mailed[message.key] = instance
        touched.append(message.key)
        return Sent.ACCEPTED

    @override
    async def mail(self, key: Key) -> list[Message]:
        self._check_open()
        return self._unread(key)

    def _unread(self, key: Key) -> list[Message]:
        instance = self._instances.get(key)
        if instance is None:
            return []
        return [letter for name, letter in instance.letters.items() if name not in instance.consumed]

    @override
    async def mailed(self, worker: str) -> list[Key]:
        self._check_open()
        return [
            key
            for key, instance in self._owned.get(worker, {}).items()
            if instance.stored is not None and instance.stored.mail > 0
        ]

    def _forget(self, now: int) -> None:
        while self._to_forget and self._to_forget[0][0] < now - REMEMBER_CONSUMED:
            _, key, message = self._to_forget.popleft()
            instance = self._instances.get(key)
            if instance is not None and message in instance.consumed:
                instance.consumed.discard(message)
                instance.letters.pop(message, None)

    # -- workers ------------------------------------------------------------------------------------------------------

    def _is_alive(self, worker: str) -> bool:
        return self._leases.get(worker, 0) > self._lease_clock()

    def _of_the_dead(self) -> list[_Instance]:
        """What dead workers own."""
        dead = [owner for owner in self._owned if not self._is_alive(owner)]
        return [instance for owner in dead for instance in self._owned[owner].values()]

    def _first_due(self, queue: str, limit: int, now: int) -> list[_Instance]:
        """Of what nobody owns in a queue and whose time has come, what a claim takes first."""
        while self._alarms and self._alarms[0][0] <= now:
            _, number, key = heapq.heappop(self._alarms)
            instance = self._free.get(key)
            if instance is not None and instance.stored is not None and instance.number == number:
                self._ripens(instance, instance.stored, now)
        ripe = self._ripe.get(queue, [])
        first: dict[Key, _Instance] = {}
        while ripe and len(first) < limit:
            order, key = heapq.heappop(ripe)
            instance = self._free.get(key)
            if key in first or instance is None or instance.stored is None:
                continue
            columns = instance.stored.columns
            if not claimable(columns, 0, now, owner_dead=True):
                continue  # it was put off since, and has a new alarm
            if (claim_order(columns, instance.number, now), columns.queue) == (order, queue):
                first[key] = instance
            else:
                self._ripens(instance, instance.stored, now)
        for instance in first.values():  # they are ripe until they are taken
            if instance.stored is not None:
                self._ripens(instance, instance.stored, now)
        return list(first.values())

    def _ripens(self, instance: _Instance, stored: Stored, now: int) -> None:
        order = claim_order(stored.columns, instance.number, now)
        heapq.heappush(self._ripe.setdefault(stored.columns.queue, []), (order, stored.key))

    @override
    async def claim(self, worker: str, queues: Sequence[str], limit: int) -> list[Claim]:
        self._check_open()
        now = self.now()
        if limit < 1 or not self._is_alive(worker):
            return []
        found: list[tuple[tuple[int, int], _Instance, Stored]] = []
        due = [instance for queue in queues for instance in self._first_due(queue, limit, now)]
        unattended = [*due, *self._mailed.values(), *self._of_the_dead()]
        for instance in {instance.number: instance for instance in unattended}.values():
            stored = instance.stored
            if stored is None or stored.columns.queue not in queues:
                continue
            if claimable(stored.columns, stored.mail, now, owner_dead=True):
                found.append((claim_order(stored.columns, instance.number, now), instance, stored))
        claims: list[Claim] = []
        for _, instance, stored in sorted(found, key=lambda one: one[0])[:limit]:
            takeover = stored.columns.owner is not None
            if stored.columns.owner is not None:
                self._leases.pop(stored.columns.owner, None)
            columns = evolve(stored.columns, owner=worker, takeovers=stored.columns.takeovers + takeover)
            nonce = secrets.token_hex(16)
            instance.stored = evolve(stored, version=stored.version + 1, nonce=nonce, columns=columns)
            self._owner_is(instance, instance.stored, stored)
            claims.append(Claim(instance.stored, takeover))
        if claims:
            await self._turn()
        return claims

    @override
    async def beat(self, worker: str, ttl: float, info: Mapping[str, Any]) -> int | None:
        self._check_open()
        now = self.now()
        self._forget(now)
        if worker in self._met and worker not in self._leases:
            return None
        self._met.add(worker)
        self._leases[worker] = self._lease_clock() + round(ttl * 1e9)
        return now

    @override
    async def leave(self, worker: str) -> None:
        self._check_open()
        now = self.now()
        self._met.add(worker)
        self._leases.pop(worker, None)
        touched: list[Key] = []
        for instance in self._owned.pop(worker, {}).values():
            stored = instance.stored
            if stored is None:
                continue
            wake = stored.columns.wake
            if stored.columns.status in _TIMED:
                wake = now if wake is None else min(wake, now)
            columns = evolve(stored.columns, owner=None, wake=wake)
            nonce = secrets.token_hex(16)
            instance.stored = evolve(stored, version=stored.version + 1, nonce=nonce, columns=columns)
            self._owner_is(instance, instance.stored, None)
            touched.append(stored.key)
        self._watchers.hint(touched, claimable=self._claimable(touched))

    # -- watching -----------------------------------------------------------------------------------------------------

    @override
    async def watch(self, key: Key | None, timeout: float) -> None:
        if key is not None:
            instance = self._instances.get(key)
            stored = None if instance is None else instance.stored
            state = None if stored is None else (stored.run, stored.columns.status, stored.mail)
            if self._watchers.moved(key, state):
                self._watchers.saw(key, state)
                return
        await self._watchers.watch(key, timeout)

    # -- listing ------------------------------------------------------------------------------------------------------

    @override
    async def list(self, where: Filter, limit: int = 100, cursor: str | None = None) -> Page:
        after = check_page(limit, cursor)
        rows = sorted(self._matching(where), key=_newest_first)
        if after is not None:
            rows = [row for row in rows if _newest_first(row) > (-after[0], after[1].encode())]
        return Page(rows[:limit], cursor_after(rows, limit))

    @override
    async def count(self, where: Filter) -> int:
        return len(self._matching(where))

    def _matching(self, where: Filter) -> Sequence[Stored]:
        self._check_open()
        stored = (instance.stored for instance in self._instances.values())
        return [one for one in stored if one is not None and matches(where, one)]


def _moments(columns: Columns) -> list[int]:
    return [moment for moment in (columns.wake, columns.expires) if moment is not None]


def _newest_first(stored: Stored) -> tuple[int, bytes]:
    return (-stored.columns.created, stored.key.id.encode())


def _raised(result: Won | Lost | Unread | Exception) -> Won | Lost | Unread:
    if isinstance(result, Exception):
        raise result
    return result
