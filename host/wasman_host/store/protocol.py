"""What a store promises, and the values that cross its border.

A store keeps sealed bytes (`wasman_host.seal`) and never looks inside; what it searches by stands in columns beside
them. Its methods are few on purpose: a new need is first tried with what is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from enum import Enum, StrEnum
from typing import Any, NamedTuple

import anyio
from attrs import field

from wasman_host.ids import drawn
from wasman_host.values import frozen

__all__ = [
    "CLOSED",
    "OPEN",
    "Blob",
    "Change",
    "Claim",
    "Columns",
    "Filter",
    "Key",
    "Lost",
    "Message",
    "Page",
    "Room",
    "Sent",
    "Status",
    "Step",
    "Store",
    "Stored",
    "Unread",
    "Won",
]


class Status(StrEnum):
    """Where an instance stands. A claimed instance is RUNNING or WAITING; a closed one is never claimed."""

    RUNNING = "running"
    WAITING = "waiting"
    BLOCKED = "blocked"
    PUBLISHING = "publishing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"
    TIMED_OUT = "timed_out"
    CONTINUED = "continued"
    MOVED = "moved"


OPEN = frozenset({Status.RUNNING, Status.WAITING, Status.BLOCKED, Status.PUBLISHING})
CLOSED = frozenset(Status) - OPEN


class Key(NamedTuple):
    """Where an instance lives: its tenant and its workflow id."""

    tenant: str
    id: str

    def __str__(self) -> str:
        return self.id if self.tenant == "default" else f"{self.tenant}:{self.id}"


@frozen
class Columns:
    """What a store can search by. Times are nanoseconds since 1970 by the store's clock.

    Attributes:
        status: Where the instance stands.
        workflow: The workflow's name. "" makes it a reserved record: never listed, counted or claimed, and mail to it
            is ABSENT.
        module: sha256 of the module that the run is pinned to, in hex.
        queue: The task queue whose workers may claim it.
        owner: The worker that holds it, or None where it may be claimed.
        wake: When it wants to be claimed again although nothing arrived; None for "only when mail arrives".
            Looked at only where nobody owns it.
        expires: When its execution timeout ends it; None for never. Looked at only where nobody owns it.
        takeovers: How often it was taken from a dead worker since its owner last wrote this column.
        size: Bytes stored for the run, as its owner counts them.
        parent: The id of the instance that started it, or None.
        created: When the run was created.
        closed: When it was closed, or None while it is open.
        attributes: Search attributes.
    """

    status: Status
    workflow: str
    module: str
    queue: str = "default"
    owner: str | None = None
    wake: int | None = None
    expires: int | None = None
    takeovers: int = 0
    size: int = 0
    parent: str | None = None
    created: int = 0
    closed: int | None = None
    attributes: Mapping[str, str] = field(factory=dict)


@frozen
class Blob:
    """Immutable bytes of one run, written with the commit that names them. Names are never reused within a run."""

    name: str
    data: bytes = field(repr=False)


@frozen
class Room:
    """What a message is accepted by only: it bounds what waits for an instance, however many send at once.

    Attributes:
        version: The version that its receiver must be at still; 0 for any.
        unread: It must have fewer unread messages than this.
    """

    version: int
    unread: int


@frozen
class Message:
    """Mail: what others send to an instance. It is consumed by its id in the commit that logs it.

    Attributes:
        key: The receiving instance, whichever run is the current one.
        id: Chosen by the sender; a repeated send of one id is a duplicate.
        kind: Such as "terminate".
        body: Sealed bytes.
        sent: When the store accepted it (0 until then), ns since 1970.
        run: The run that it is for, or "" for whichever is the current one; looked at when it is sent.
        room: What it needs to find when it is sent; None to be accepted by any open instance. No store keeps it.
    """

    key: Key
    id: str
    kind: str
    body: bytes = field(repr=False)
    sent: int = 0
    run: str = ""
    room: Room | None = field(default=None, repr=False)


class Sent(Enum):
    """What became of a message. One that was there before is a duplicate, also where there is no room for it now."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CLOSED = "closed"
    ABSENT = "absent"
    MOVED = "moved"  # its receiver is at another version than its room says
    FULL = "full"  # there is no room


@frozen
class Change:
    """One atomic compare-and-swap of one instance.

    Attributes:
        key: The instance.
        expected: (run, version) that the store must hold, or None where the key must be absent. A closed instance
            is restarted by a change that expects its last (run, version) and brings a new `run`; how the run stood
            that it had is kept for `Store.former`.
        run: The run that the record belongs to afterwards.
        nonce: Drawn for this change and kept beside the record, so that an unknown outcome can be resolved: the same
            change again, while the record still has its nonce, is `Won` and writes nothing.
        record: Sealed record, or None to delete the instance with all its rows.
        columns: What the store searches by; None only together with `record`.
        tail: Where the log ends: a few bytes that stand beside the record.
        entries: Log entries to append, as (n, sealed entry), n rising without a gap.
        blobs: Immutable bytes to keep with the run.
        drops: Names of the run's blobs that nothing names any more.
        cuts: Numbers of the run's log entries to delete, rising by one; what else must be known of them is in `blobs`.
        consumes: Ids of the mail that this change takes.
        sends: Messages for other instances, delivered in the same transaction after `creates`; one whose receiver is
            closed or absent, or has it already, is dropped.
        creates: Instances to create in the same transaction (children); a create whose key is taken is dropped.
    """

    key: Key
    expected: tuple[str, int] | None
    run: str
    nonce: str
    record: bytes | None = field(repr=False)
    columns: Columns | None
    tail: bytes = b""
    entries: Sequence[tuple[int, bytes]] = ()
    blobs: Sequence[Blob] = ()
    drops: Sequence[str] = ()
    cuts: range = range(0)
    consumes: Sequence[str] = ()
    sends: Sequence[Message] = ()
    creates: Sequence[Change] = ()


@frozen
class Step:
    """What most changes are: entries are appended, and nothing is different that others could see or search by.

    It stands for the change that writes the record and the columns as they are, takeovers of 0, and this tail.

    Attributes:
        key: The instance.
        run: Its run.
        version: The version that the store must hold.
        nonce: As that of a change.
        tail: Where the log ends now.
        entries: As those of a change.
        blobs: As those of a change.
    """

    key: Key
    run: str
    version: int
    nonce: str
    tail: bytes
    entries: Sequence[tuple[int, bytes]]
    blobs: Sequence[Blob] = ()


@frozen
class Won:
    """The change is durable; the instance is at `version`, with `mail` messages that nobody has consumed.

    After a deletion both are 0. After a step `mail` is 0 whatever is there: a step does not look.
    """

    version: int
    mail: int


@frozen
class Lost:
    """Nothing of the change was written: the instance is not at the expected (run, version).

    Or it is, and mail that the change consumes is not there, or was consumed before.

    Attributes:
        found: What is there instead, or None where there is no such instance.
    """

    found: tuple[str, int] | None


@frozen
class Unread:
    """Nothing of the change was written: it would close an instance that has mail which the change does not consume."""

    mail: int


@frozen
class Stored:
    """An instance as the store holds it."""

    key: Key
    run: str
    version: int
    nonce: str
    columns: Columns
    record: bytes = field(repr=False)
    mail: int = 0
    tail: bytes = b""


@frozen
class Claim:
    """An instance that a worker now owns; `stored` is what the claim's own commit wrote."""

    stored: Stored
    takeover: bool


@frozen
class Filter:
    """Which instances to list; every given field must match. Times are ns since 1970."""

    tenant: str = "default"
    status: frozenset[Status] | None = None
    workflow: str | None = None
    id_prefix: str | None = None
    created_from: int | None = None  # and later
    created_to: int | None = None  # and not this time itself
    closed_from: int | None = None
    closed_to: int | None = None
    parent: str | None = None  # the id of the instance that started it
    attributes: Mapping[str, str] = field(factory=dict)


@frozen
class Page:
    """One page of a listing, newest first, and where the next one starts (None at the end)."""

    rows: Sequence[Stored]
    cursor: str | None


class Store(ABC):
    """Durable instances. All methods may raise `StoreUnavailableError`, having written nothing.

    What the caller gives is checked before anything is written: `InvalidArgumentError`. Damage to the rows of one
    instance is `CorruptSnapshotError`; damage that the store cannot see is found by the digests in the record.

    One `Store` object belongs to one event loop at a time. `open` is called on it first, `close` last; then it may be
    opened again, in the same loop or in another.

    Attributes:
        deflates: Whether what is kept here is to be compressed: everywhere but where reading soon matters more.
        crowded: Whether what has become durable just now did so with much else: those who waited go on together.
    """

    deflates: bool = True
    crowded: bool = False

    @abstractmethod
    async def open(self) -> None:
        """Open or create the store.

        Raises:
            InvalidArgumentError: It is open already, and whoever has opened it will close it.
            StoreSchemaError: What is there is of another program, or of another wasman.
            StoreUnavailableError: It cannot be opened.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give up connections and locks. Whatever is durable stays."""

    @abstractmethod
    async def serve(self) -> None:
        """Run until cancelled: turn what other processes commit into wake-ups of `watch`."""

    @abstractmethod
    async def commit(self, changes: Sequence[Change | Step]) -> list[Won | Lost | Unread]:
        """Each change alone is atomic and durable when this returns; one loser harms nobody.

        A change to a closed status wins only if it consumes all the mail there is, else it is `Unread`. An unknown
        outcome (a lost connection, a time-out) is resolved inside, by the nonce. Raises `CorruptSnapshotError` where
        rows of an id are found without their instance; the other changes are decided all the same.
        """

    @abstractmethod
    async def load(self, key: Key) -> Stored | None:
        """The instance, or None where there is none. `CorruptSnapshotError` where only its other rows are there."""

    @abstractmethod
    async def former(self, key: Key, run: str) -> Stored | None:
        """An earlier run of the instance as it stood when another took its place; None where there was none such.

        `read` and `blob` give its log and its blobs, as before.
        """

    @abstractmethod
    async def read(self, run: str, start: int = 0, stop: int | None = None) -> list[tuple[int, bytes]]:
        """Log entries of a run, n from `start` to below `stop`, in order. A missing row is simply not there."""

    @abstractmethod
    async def blob(self, run: str, name: str) -> bytes | None:
        """A blob of a run, or None where it is missing."""

    @abstractmethod
    async def put_module(self, digest: str, data: bytes) -> None:
        """Keep a sealed module under its sha256. Idempotent; nothing is overwritten."""

    @abstractmethod
    async def module(self, digest: str) -> bytes | None:
        """The sealed module, or None."""

    @abstractmethod
    async def put_image(self, name: str, data: bytes) -> None:
        """Keep a sealed base image, shared by all instances of a module. Idempotent; nothing is overwritten."""

    @abstractmethod
    async def image(self, name: str) -> bytes | None:
        """The sealed base image, or None."""

    @abstractmethod
    async def send(self, message: Message) -> Sent:
        """Deliver mail durably. It never changes the receiver's version.

        A message id is remembered for at least an hour after its consumption, also once the receiver has closed. One
        for another run than the current one is CLOSED.
        """

    @abstractmethod
    async def mail(self, key: Key) -> list[Message]:
        """What has not been consumed, oldest first."""

    @abstractmethod
    async def mailed(self, worker: str) -> list[Key]:
        """Instances that `worker` owns and that have unconsumed mail."""

    @abstractmethod
    async def claim(self, worker: str, queues: Sequence[str], limit: int) -> list[Claim]:
        """Take up to `limit` open instances of `queues` that are due, have mail, expired, or whose owner is dead.

        Each claim is a fenced commit: version + 1, owner set, a nonce of its own, `takeovers` + 1 where the previous
        owner died without releasing it (never registered counts as dead). A blocked instance is claimed only for its
        mail or because it expired. Those that have waited longest come first. A worker that has not beaten, or whose
        lease has ended, gets none.
        """

    @abstractmethod
    async def beat(self, worker: str, ttl: float, info: Mapping[str, Any]) -> int | None:
        """Register the worker, or let its lease end in `ttl` seconds. The store's time in ns, or None: it was given up.

        A lease that ran out and that nobody took over is prolonged; one whose instances may have been taken is lost:
        the worker must drop all it holds and come back under a new id. Ids are never used again.
        """

    @abstractmethod
    async def leave(self, worker: str) -> None:
        """End the worker's lease in order; what it still owns is claimable at once, without counting as a takeover.

        Blocked instances stay blocked. The versions of what it owned move on, so its late commits lose.
        """

    @abstractmethod
    async def watch(self, key: Key | None, timeout: float) -> None:
        """Return when another run, status or mail of `key` may be there, or after `timeout` seconds; it may be early.

        None watches for anything that a worker may claim, or must read as mail. A key that has changed so since this
        store object last gave it out by `load` is answered at once.
        """

    @abstractmethod
    async def list(self, where: Filter, limit: int = 100, cursor: str | None = None) -> Page:
        """Instances, newest first, in keyset pages. Raises `InvalidArgumentError` for a cursor it did not give."""

    @abstractmethod
    async def count(self, where: Filter) -> int:
        """How many instances match."""

    @abstractmethod
    def now(self) -> int:
        """The store's clock, in ns since 1970."""

    def sleep_until(self, time: int, key: Key) -> Awaitable[None]:
        """Wait for the store's clock to come to `time`, ns since 1970, on behalf of an instance that does nothing else.

        It may return early, where the store's clock and this machine's disagree. A store whose clock is not that of the
        world has its own.
        """
        # Not async itself: thousands of instances may wait here, and each would hold a frame more.
        del key
        return anyio.sleep(max(0.0, (time - self.now()) / 1e9))

    async def load_in_turn(self, key: Key) -> Stored | None:
        """As `load`, but one look may serve all who ask for `key` in the same turn of the event loop."""
        return await self.load(key)

    def remembered(self, key: Key) -> Stored | None:
        """What this process knows of an instance without looking, if anything; others may have moved it on since.

        A run that is closed in it stays so, and who waits for another state `watch`es, which looks.
        """
        del key
        return None

    @abstractmethod
    def wake(self) -> None:
        """Wake those of this process who watch for anything, for they can take more now than when they looked."""

    def new_run(self, key: Key) -> str:
        """A run id for `key` that no run has had: 128 random bits, in hex."""
        del key
        return drawn(32)
