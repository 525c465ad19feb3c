"""One run with something of everything in it, and all that must be the same however it is disturbed.

The run has the same run id wherever it is lived, so that its idempotency keys and its random bytes are the same. Its
guest reads the clock and keeps of it only whether it has moved on.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, field, frozen

from tests import wat
from tests.lab import COMPILED, Lab, answers, sink, source
from wasman_host import control, deployments, starting
from wasman_host.activity import ActivityCall, ActivityDefinition, Retry
from wasman_host.engine import Engine
from wasman_host.errors import ApplicationError, StoreUnavailableError, WorkflowAlreadyExistsError
from wasman_host.payload import Payload
from wasman_host.residents import Residency
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import CLOSED, Change, Key, SqliteStore, Status, Store
from wasman_sdk.testing import Fault, FaultyStore

__all__ = ["KEY", "SHAPES", "Lived", "Outcome", "Shape", "World", "live", "quickly"]

KEY = Key("default", "w")
RUN = "f" * 32
SNAPSHOTS = SnapshotPolicy(chunk=2)  # so that entries leave the log within such a short run
LARGE = 100_000  # bytes of a result that is kept as a blob of its own
SOURCE = random.Random(7).randbytes(5000)
PATIENCE = 30.0  # seconds until a run counts as stuck

_PLACE = 4 * 65536  # where the guest takes the large result
_BEFORE = "(global $before (mut i64) (i64.const 0))"


def _large(program: wat.Program) -> str:
    named, request = program.text(b"large"), program.text(b"7")
    asked = f"(call $host_call_api {named} {request} (i32.const {_PLACE}) (i32.const {2 * LARGE}))"
    last = f"(i32.load8_u (i32.const {_PLACE + LARGE - 2}))"
    return wat.value(asked)(program) + wat.value(last)(program)


def _some(count: int) -> wat.Step:
    """Move `count` bytes from the source to the sink."""
    return wat.raw(
        f"(global.set $got (call $stream_data (i32.const 0) (i32.const {wat.BUFFER}) (i32.const {count})))"
        f"(drop (call $stream_data (i32.const 1) (i32.const {wat.BUFFER}) (global.get $got)))"
    )


def _random(program: wat.Program) -> str:
    get = program.import_wasi("random_get", "ww")
    return (
        f"(drop (call {get} (i32.const {wat.SCRATCH}) (i32.const 8)))"
        f"(call $number (i64.load32_u (i32.const {wat.SCRATCH}))) (call $comma)"
    )


def _moved_on(program: wat.Program) -> str:
    """Whether the clock has moved on since it was looked at before; the global is cleared, so that no time is kept."""
    later = "(i64.gt_u (call $host_get_time) (global.get $before))"
    return wat.value(later)(program) + "(global.set $before (i64.const 0))"


def guest(*, reentrant: bool) -> bytes:
    """Calls, one that fails and is tried again, one that fails for good, a timer, streams, a large result, checkpoints.

    Args:
        reentrant: Whether it comes back by its snapshots, and not by its whole log.
    """
    return wat.script(
        wat.call("note", b"1"),
        wat.raw("(global.set $before (call $host_get_time))"),
        wat.call("flaky", b"2"),
        _moved_on,
        _random,
        _some(1500),
        wat.checkpoint(),
        wat.sleep(1_000_000),
        _large,
        wat.call("fails", b"3"),
        wat.checkpoint(),
        wat.copy(700),
        _random,
        wat.call("note", b'"last"', 2),  # its answer does not fit, and is taken later
        wat.checkpoint(),
        wat.call("note", b'"last"'),
        reentrant=reentrant,
        pages=8,
        fields=_BEFORE,
    )


@frozen
class Shape:
    """How the run comes to be, and how it comes back.

    Attributes:
        module: Its guest.
        adopted: Whether the worker that is there begins it, so that nobody has to claim it.
        evicted: Whether its guest loses its memory whenever it waits, and activities take longer than that.
    """

    module: bytes = field(repr=False)
    adopted: bool = False
    evicted: bool = False


SHAPES = {
    "replayed": Shape(guest(reentrant=False), adopted=True),
    "re-entrant": Shape(guest(reentrant=True)),
    "evicted": Shape(guest(reentrant=True), evicted=True),
}


@define
class World:
    """What is outside of the run: what its activities do, by idempotency key.

    Attributes:
        done: (name, request) of what took effect, by key.
        attempts: Which attempts of each have begun.
        pause: Seconds that each takes.
    """

    pause: float = 0.0
    done: dict[str, tuple[str, bytes]] = field(factory=dict)
    attempts: dict[str, list[int]] = field(factory=dict)
    failed_once: set[str] = field(factory=set)

    def _begin(self, call: ActivityCall) -> None:
        self.attempts.setdefault(call.idempotency_key, []).append(call.attempt)

    def _end(self, call: ActivityCall) -> None:
        done = (call.name, call.request)
        assert self.done.setdefault(call.idempotency_key, done) == done, "one key, and two things were done under it"

    def _note(self, call: ActivityCall) -> bytes:
        self._begin(call)
        self._end(call)
        return call.request

    def _flaky(self, call: ActivityCall) -> bytes:
        self._begin(call)
        if call.idempotency_key not in self.failed_once:
            self.failed_once.add(call.idempotency_key)
            raise ApplicationError("not yet", type="Flaky")
        self._end(call)
        return call.request

    def _large(self, call: ActivityCall) -> bytes:
        self._begin(call)
        self._end(call)
        return b'"' + random.Random(call.request).randbytes(LARGE // 2 - 1).hex().encode() + b'"'

    def _fails(self, call: ActivityCall) -> bytes:
        self._begin(call)
        self._end(call)
        raise ApplicationError("never", type="Never", non_retryable=True)

    @property
    def activities(self) -> Sequence[ActivityDefinition]:
        soon = Retry(initial_interval=0.001, maximum_attempts=100)
        named = {"note": self._note, "flaky": self._flaky, "large": self._large, "fails": self._fails}
        return [answers(name, partial(self._slowly, handler), retry=soon) for name, handler in named.items()]

    async def _slowly(self, handler: Callable[[ActivityCall], bytes], call: ActivityCall) -> bytes:
        await anyio.sleep(self.pause)
        return handler(call)


@frozen
class Outcome:
    """What must be the same.

    Attributes:
        result: The run's result.
        pages: sha256 of the guest's memory and globals when it had ended, as often as that was so.
        done: What activities did, by idempotency key.
        sink: What was published.
        left: Names of files beside it that nobody needs any more.
    """

    result: bytes
    pages: frozenset[str]
    done: Mapping[str, tuple[str, bytes]]
    sink: bytes
    left: Sequence[str]


@contextmanager
def quickly(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody waits long for a store that has failed once."""
    with patch.context() as inside:
        inside.setattr("wasman_host.instance._STORE_PAUSE", 0.005)
        inside.setattr("wasman_host.engine._POLL", 0.01)
        inside.setattr("wasman_host.engine._AGAIN", 0.01)
        yield


@define
class _Pages:
    """Looks at the memory of the guest when its run is about to end."""

    engine: Engine | None = None
    digests: set[str] = field(factory=set)

    def seen(self, operation: str, given: tuple[Any, ...]) -> None:
        if operation != "commit" or self.engine is None:
            return
        for change in given[0]:
            if isinstance(change, Change) and change.columns is not None:
                if change.columns.status not in {Status.PUBLISHING, Status.COMPLETED}:
                    continue
                instance = self.engine._live.get(change.key)
                if instance is not None and instance.guest is not None:
                    values = b"".join(value for _, value in instance.guest.globals())
                    self.digests.add(hashlib.sha256(bytes(instance.guest.memory()) + values).hexdigest())


@frozen
class Lived:
    """What became of one run: what must be the same, what its activities did, and the stores that its workers had."""

    outcome: Outcome
    world: World
    stores: Sequence[FaultyStore]


async def live(lab: Lab, folder: Path, shape: Shape, *faults: Fault) -> Lived:
    """Start the run and live it to its end, by as many workers as it takes.

    Args:
        lab: An empty store.
        folder: Where its sink is; its source is beside it.
        shape: What kind of run it is.
        faults: What goes wrong for the first worker, for the one that comes after its death, and so on.
    """
    source_, out = folder.parent / "in", folder / "out"
    if not source_.exists():
        source_.write_bytes(SOURCE)
    world, pages = World(pause=0.004 if shape.evicted else 0.0), _Pages()
    # Whoever repeats a start that may have landed, and have run to its end, says that one run is enough.
    once = starting.WorkflowIDReusePolicy.REJECT_DUPLICATE
    options = starting.StartOptions(sources=source(source_), sinks=sink(out), reuse=once)
    stores: list[FaultyStore] = []
    for fault in (*faults, None):
        faulty = FaultyStore(await lab.handle(), fault)
        faulty.seen = pages.seen
        stores.append(faulty)
        if await _works(faulty, shape, world, pages, options):
            break
        assert pages.engine is not None
        await lab.bury(faulty.store, pages.engine.worker)
    found = await control.describe(lab.store, KEY)
    assert found.status is Status.COMPLETED, found
    assert found.record is not None
    assert found.record.result is not None
    history = await control.history(lab.store, found.stored)
    assert [entry.n for entry in history] == list(range(found.entries))
    result = await control.load_payload(lab.store, found.stored, found.record.result)
    left = sorted(path.name for path in folder.glob("out?*"))  # noqa: ASYNC240  a folder of this test
    outcome = Outcome(result.content, frozenset(pages.digests), world.done, out.read_bytes(), left)
    return Lived(outcome, world, stores)


async def _works(
    faulty: FaultyStore, shape: Shape, world: World, pages: _Pages, options: starting.StartOptions
) -> bool:
    """One worker, until the run has ended and it has left in order; False where it has died before."""
    residency = Residency(memory=0) if shape.evicted else Residency()
    pages.engine = engine = Engine(
        faulty.as_store, {one.name: one for one in world.activities}, residency=residency, snapshots=SNAPSHOTS
    )
    engine._modules = COMPILED
    with anyio.CancelScope() as scope, anyio.fail_after(PATIENCE):
        faulty.die = scope.cancel
        if not shape.adopted:
            await _begin(faulty.as_store, shape, options)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.run)
            await engine.serving.wait()
            if shape.adopted:
                await _begin(faulty.as_store, shape, options, [engine])
            while True:
                stored = await faulty.store.load(KEY)
                assert stored is not None, "it was started"
                assert stored.columns.status is not Status.BLOCKED, control.describe_stored(stored).reason
                if stored.columns.status in CLOSED:
                    break
                await anyio.sleep(0.001)
            await engine.leave()
    return not scope.cancelled_caught


async def _begin(
    store: Store, shape: Shape, options: starting.StartOptions, workers: Sequence[starting.Adopter] = ()
) -> None:
    """As an application does it that knows no more than that its first attempt may have failed."""
    while True:
        try:
            await deployments.deploy(store, "default", "flow", shape.module)
            with pytest.MonkeyPatch.context() as patch:
                for kind in (Store, SqliteStore):
                    patch.setattr(kind, "new_run", lambda *_: RUN)
                await starting.start(store, "default", KEY.id, "flow", Payload.of(b"{}"), None, options, workers)
        except StoreUnavailableError:
            continue
        except WorkflowAlreadyExistsError:
            pass
        return
