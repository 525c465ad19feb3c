"""One worker's engine: it claims instances, keeps them alive, and gives them up when it leaves.

What instances share lives here: compiled modules, images, activities, stream types, the room that their guests have,
and the lease under which all of them run.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from attrs import evolve

from wasman_host.cohort import Cohort
from wasman_host.errors import CorruptSnapshotError, StoreUnavailableError
from wasman_host.guest.memory import PAGE, changed
from wasman_host.guest.module import compile_module, entry_of, initial_state
from wasman_host.images import Images, Origin
from wasman_host.instance import Instance
from wasman_host.known_streams import known_types
from wasman_host.mail import cancel_in, ending, signals_in
from wasman_host.residents import Residency, Residents
from wasman_host.seal import Address, digest_of, seal, unseal
from wasman_host.snapshot import Delta, SnapshotPolicy, decode_delta, encode_delta
from wasman_host.store.protocol import Change, Claim
from wasman_host.wake import poster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from anyio.abc import TaskGroup

    from wasman_host.activity import ActivityDefinition
    from wasman_host.codec import PayloadCodec
    from wasman_host.events import Event
    from wasman_host.guest.limits import GuestLimits
    from wasman_host.guest.module import GuestModule
    from wasman_host.machine import Proposal
    from wasman_host.store.protocol import Key, Store, Stored
    from wasman_host.streams import StreamTypes

__all__ = ["Engine"]

logger = logging.getLogger("wasman.engine")

_TTL = 10.0  # seconds of a lease: how long a worker that hangs keeps its instances from others
_POLL = 0.25  # seconds between two looks at the store where no hint comes
_LOOK = 0.005  # seconds between two looks at whether all that leaves has left
_AGAIN = 1.0  # seconds until an instance that was dropped by an error is tried again
_CLAIM = 64  # instances taken at once, so that one worker does not empty the queue before others wake up


class Engine:
    """Lives instances of some queues of one store, until cancelled or told to leave.

    Attributes:
        store: Where the instances are.
        activities: What answers their calls, by name.
        streams: How their sources and sinks are opened.
        snapshots: When chains of snapshots are merged.
        residents: The guests in memory.
        images: Snapshots that this process holds.
        codec: What payloads are encoded by, or None.
        worker: This worker's id; a new one after a lost lease.
        observers: Called with what happens to instances.
        checkpointed: Called when a guest that is not repeating its past has asked for a checkpoint, and it is made.
    """

    def __init__(
        self,
        store: Store,
        activities: Mapping[str, ActivityDefinition],
        *,
        streams: StreamTypes | None = None,
        queues: Sequence[str] = ("default",),
        max_instances: int = 10_000,
        lease: float = _TTL,
        residency: Residency | None = None,
        snapshots: SnapshotPolicy | None = None,
        fallback: ActivityDefinition | None = None,
        codec: PayloadCodec | None = None,
        observers: Sequence[Callable[[Event], None]] = (),
    ) -> None:
        """Nothing is opened yet.

        Args:
            store: An open store.
            activities: Handlers by name.
            streams: Types of sources and sinks; by default those that every worker knows.
            queues: Task queues to serve.
            max_instances: How many instances live at once, in memory or evicted.
            lease: Seconds after which others may take over from this worker if it hangs.
            residency: How much room guests have.
            snapshots: When chains of snapshots are merged.
            fallback: What answers calls of names that no handler is registered for.
            codec: What payloads are encoded by before they are stored.
            observers: Called with what happens to instances, in the middle of their work: it must be quick.
        """
        self.store = store
        self.activities = activities
        self.streams = streams or known_types()
        self.snapshots = snapshots or SnapshotPolicy()
        self.residents = Residents(residency or Residency())
        self.images = Images()
        self.cohort = Cohort()
        self.worker = _worker_id()
        self.checkpointed: Callable[[Instance], Awaitable[None]] | None = None
        self.observers = tuple(observers)
        self._fallback = fallback
        self.codec = codec
        self._queues = tuple(queues)
        self._max = max_instances
        self._ttl = lease
        self._lease_ends = 0.0
        self._live: dict[Key, Instance] = {}
        self._orphans: set[Key] = set()
        self._modules: dict[str, GuestModule] = {}
        self._entries: dict[tuple[str, str], str] = {}  # by module and what its runs say
        self._origins: dict[str, Origin] = {}
        self._loading = anyio.Lock()
        self._tasks: TaskGroup | None = None
        # To the event loop, which runs in this thread.
        self._post: Callable[[Callable[[], object]], None] | None = None
        self._thread = 0
        self._leaving = anyio.Event()
        self._grace = 0.0
        self._left = anyio.Event()
        self.serving = anyio.Event()

    # What instances ask

    @property
    def lease_is_valid(self) -> bool:
        """Whether this worker may still act for its instances, by its own monotonic clock."""
        return time.monotonic() < self._lease_ends

    @property
    def is_ready(self) -> bool:
        """Whether it claims instances: it serves, its lease is valid, and it is not leaving."""
        return self._tasks is not None and self.lease_is_valid and not self._leaving.is_set()

    def activity(self, name: str) -> ActivityDefinition | None:
        """What answers calls of `name`, or None."""
        return self.activities.get(name, self._fallback)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call it on this worker's event loop, at once or soon, from any thread; where none runs, it is left undone."""
        if self._post is not None and threading.get_ident() != self._thread:
            self._post(callback)
        elif self._tasks is not None:
            callback()

    def beside(self, work: Callable[[], Awaitable[None]]) -> None:
        """Let `work` run as a task of this worker; where it runs none, it is left undone."""
        if self._tasks is not None:
            self._tasks.start_soon(self._guarded, work)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            logger.exception("worker %s: work beside an instance was given up by an internal error", self.worker)

    async def module(self, digest: str) -> GuestModule:
        """A run's module, compiled once a process.

        Raises:
            CorruptSnapshotError: The store no longer has it, or has something else.
        """
        if digest not in self._modules:
            async with self._loading:
                if digest not in self._modules:
                    address = Address("", "", "", "module", digest)
                    data = unseal(address, await self.store.module(digest))
                    name = f"module {digest[:12]}"
                    self._modules[digest] = await anyio.to_thread.run_sync(compile_module, data, name)
        return self._modules[digest]

    def entry(self, module: GuestModule, entry: str) -> str:
        """The export that a run of `module` calls."""
        known = self._entries.get((module.digest, entry))
        if known is None:
            known = self._entries[module.digest, entry] = entry_of(module.binary, entry, f"module {module.digest[:12]}")
        return known

    async def origin(self, module: GuestModule, entry: str, limits: GuestLimits, pinned: str) -> Origin:
        """A module's state after its initialisation: made once, kept in the store, and from then on never made anew.

        Args:
            module: The module.
            entry: What will be called; `_start` is an initialiser of modules that are entered elsewhere.
            limits: What the initialisation may use.
            pinned: The digest that the run was started on, or "".

        Raises:
            CorruptSnapshotError: The image that the run was started on is gone or damaged.
        """
        name = _image_name(module, entry)
        if name not in self._origins:
            async with self._loading:
                if name not in self._origins:
                    self._origins[name] = await self._load_origin(module, entry, limits, name, pinned)
        origin = self._origins[name]
        if pinned and origin.digest != pinned:
            message = f"the image of module {module.digest[:12]} is not the one that the run was started on"
            raise CorruptSnapshotError(message)
        return origin

    async def _load_origin(
        self, module: GuestModule, entry: str, limits: GuestLimits, name: str, pinned: str
    ) -> Origin:
        address = Address("", "", "", "image", name)
        sealed = await self.store.image(name)
        if sealed is None and not pinned:
            made = await anyio.to_thread.run_sync(initial_state, module, entry, limits)
            runs = changed(b"", made.memory)
            pages = b"".join(made.memory[first * PAGE : (first + count) * PAGE] for first, count in runs)
            state = {"unfinished": made.unfinished, **({"block": made.block} if made.block else {})}
            delta = Delta("", len(made.memory), runs, pages, made.globals, state)
            await self.store.put_image(name, seal(address, encode_delta(delta), deflate=self.store.deflates))
            sealed = await self.store.image(name)  # another worker's may have come first
        delta = decode_delta(unseal(address, sealed), str(address))
        assert sealed is not None, "unseal refuses what is missing"
        return Origin.of(delta, digest_of(sealed).hex())

    # The worker's life

    async def run(self) -> None:
        """Claim and live instances until cancelled, or until `leave`."""
        try:
            async with anyio.create_task_group() as tasks:
                while not await self._beat():
                    await anyio.sleep(_POLL)
                tasks.start_soon(self._keep_lease)
                tasks.start_soon(self._claim, tasks)
                self._tasks, self._post, self._thread = tasks, poster(), threading.get_ident()
                self.serving.set()
                await self._leaving.wait()
                await self._drain()
                for instance in list(self._live.values()):
                    instance.leave()
                while self._live:
                    await anyio.sleep(_LOOK)
                tasks.cancel_scope.cancel()
            await self._leave(self.worker)
        finally:
            self._tasks = None
            self._left.set()

    async def leave(self, grace: float = 0.0) -> None:
        """Give everything up in order: what waits is released, what is being committed is committed first.

        Args:
            grace: Seconds that activities which have begun may take to end, so that their answers are kept.
        """
        self._grace = grace
        self._leaving.set()
        await self._left.wait()

    def hurry(self) -> None:
        """Do not wait for activities any longer."""
        self._grace = 0.0

    async def _drain(self) -> None:
        """Let activities that have begun end, for as long as `leave` grants; all else is given up already."""
        since = time.monotonic()
        for instance in list(self._live.values()):
            if not (self._grace and instance.is_in_activity):
                instance.leave()
            else:
                instance.leave_when_answered()
        if waiting := sum(instance.is_in_activity for instance in self._live.values()):
            text = "worker %s leaves, and waits for activities that have begun: %d, at most %g s"
            logger.info(text, self.worker, waiting, self._grace)
        while self._live and time.monotonic() - since < self._grace:
            await anyio.sleep(_LOOK)

    async def _beat(self) -> bool:
        """Prolong the lease; False where the store did not answer."""
        if 0.0 < self._lease_ends <= time.monotonic():
            await self._come_back_anew()
        begun = time.monotonic()
        info = {"host": socket.gethostname(), "pid": os.getpid(), "queues": list(self._queues)}
        try:
            answer = await self.store.beat(self.worker, self._ttl, info)
        except StoreUnavailableError as error:
            logger.warning("worker %s cannot reach its store: %s", self.worker, error)
            return False
        if answer is None:
            self._lose()
            return False
        self._lease_ends = begun + self._ttl
        return True

    async def _come_back_anew(self) -> None:
        """The lease ran out, so what was live here was dropped: a prolonged lease would keep it from everybody."""
        late = self.worker
        self._lose()
        await self._leave(late)

    async def _leave(self, worker: str) -> None:
        try:
            await self.store.leave(worker)
        except StoreUnavailableError:
            logger.warning("worker %s cannot tell its store that it has ended; its lease there ends by itself", worker)

    def _lose(self) -> None:
        logger.warning("worker %s has lost its lease; it drops what it holds and comes back anew", self.worker)
        self._lease_ends = 0.0
        for instance in list(self._live.values()):
            instance.drop()
        self.worker = _worker_id()

    async def _keep_lease(self) -> None:
        while True:
            await anyio.sleep(self._ttl / 4)
            if not await self._beat() and not self.lease_is_valid and self._live:
                for instance in list(self._live.values()):
                    instance.drop()

    async def _claim(self, tasks: TaskGroup) -> None:
        while not self._leaving.is_set():
            taken = 0
            try:
                if self.lease_is_valid:
                    await self._hand_back()
                    free = self._max - len(self._live)
                    claims = await self.store.claim(self.worker, self._queues, min(free, _CLAIM)) if free > 0 else []
                    taken = len(claims)
                    for claim in claims:
                        self._begin(tasks, claim)
                    await self._look_after()
                if not taken:
                    await self.store.watch(None, _POLL)
            except StoreUnavailableError as error:
                logger.warning("worker %s waits for its store: %s", self.worker, error)
                await anyio.sleep(_POLL)

    def serve(self, queue: str) -> None:
        """Claim instances of this queue as well from now on."""
        if queue not in self._queues:
            self._queues = (*self._queues, queue)

    def adopts(self, queue: str) -> str | None:
        """The owner to create an instance of `queue` with, so that it begins here at once; None where it may not."""
        ready = self.lease_is_valid and self._tasks is not None and not self._leaving.is_set()
        return self.worker if ready and queue in self._queues and len(self._live) < self._max else None

    def image(self, module: str, entry: str) -> str:
        """Digest of the image under its guests of that module and entry; "" where it has laid none yet."""
        loaded = self._modules.get(module)
        origin = None if loaded is None else self._origins.get(_image_name(loaded, self.entry(loaded, entry)))
        return "" if origin is None or origin.unfinished else origin.digest

    def adopt(self, stored: Stored, created: Proposal) -> None:
        """Live an instance that was just created by `created`, owned by this worker."""
        present = self._live.get(stored.key)  # the run before, which has ended, and whose task is about to
        if (
            self._tasks is None
            or stored.columns.owner != self.worker
            or (present is not None and present.run == stored.run)
        ):
            self._orphans.add(stored.key)  # this worker left, or lost its lease, while the instance was created
        else:
            self._begin(self._tasks, Claim(stored, takeover=False), created)

    def abandon(self, key: Key) -> None:
        """Nobody knows whether an instance was created that this worker would own: if it was, it is handed back."""
        self._orphans.add(key)

    def _begin(self, tasks: TaskGroup, claim: Claim, created: Proposal | None = None) -> None:
        instance = Instance(self, claim, created)
        if claim.takeover:
            text = f"run {instance.run} of {instance.key} is taken over from a dead worker"
            instance.report("claimed", logging.INFO, text, reason="its worker has died")
        elif instance.reports:
            instance.report("claimed", logging.DEBUG, f"run {instance.run} of {instance.key} is claimed")
        self._live[instance.key] = instance
        self.residents.look()
        if self._leaving.is_set():  # it was claimed while the others were told
            instance.leave()

        tasks.start_soon(self._lives, instance, name=f"instance {instance.key}")

    async def _lives(self, instance: Instance) -> None:
        try:
            await instance.live()
        except Exception:
            # A defect of wasman: it must not touch the neighbours, and whoever claims the instance next tries again.
            logger.exception("run %s of %s was dropped by an internal error", instance.run, instance.key)
        finally:
            if instance.owns:
                self._orphans.add(instance.key)
            if self._live.get(instance.key) is instance:
                full = len(self._live) >= self._max
                del self._live[instance.key]
                if full:
                    self.store.wake()

    async def _hand_back(self) -> None:
        """Release what was dropped here and is still this worker's in the store, such as after the process slept."""
        while self._orphans:
            key = next(iter(self._orphans))
            stored = await self.store.load(key)
            if stored is not None and stored.columns.owner == self.worker and key not in self._live:
                wake = self.store.now() + int(_AGAIN * 1e9)
                change = Change(
                    key=key,
                    expected=(stored.run, stored.version),
                    run=stored.run,
                    nonce=secrets.token_hex(8),
                    record=stored.record,
                    columns=evolve(stored.columns, owner=None, wake=wake),
                    tail=stored.tail,
                )
                await self.store.commit([change])
            self._orphans.discard(key)

    async def _look_after(self) -> None:
        """Tell live instances of mail, of their execution timeout, and of the room that their guests need."""
        self.residents.look()
        for key in await self.store.mailed(self.worker):
            instance = self._live.get(key)
            if instance is None:
                continue
            messages = await self.store.mail(key)
            try:
                terminating, cancel = ending(messages), cancel_in(messages, instance.run)
                signals = signals_in(messages)
            except CorruptSnapshotError as error:
                instance.block(error)
                continue
            if terminating is not None:
                instance.end(terminating)
                continue
            if cancel is not None:
                instance.tell(cancel)
            if signals:
                instance.signalled(signals)
        now = self.store.now()
        for instance in list(self._live.values()):
            if instance.expires is not None and now >= instance.expires:
                instance.expire()


def _image_name(module: GuestModule, entry: str) -> str:
    return f"{module.digest}-{'command' if entry == '_start' else 'reactor'}"


def _worker_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
