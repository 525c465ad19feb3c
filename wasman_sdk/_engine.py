"""Direct use: an application calls exports of a guest, whose memory is durable between the calls."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.from_thread
import anyio.to_thread

from wasman_host import direct
from wasman_host.engine import Engine as HostEngine
from wasman_host.errors import InvalidArgumentError, WorkflowFailedError
from wasman_host.guest.module import check, digest
from wasman_host.ids import validated_id
from wasman_host.payload import Payload
from wasman_host.record import Limits
from wasman_host.residents import Residency
from wasman_host.seal import Address, seal
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import Store, open_store
from wasman_host.store.protocol import Key
from wasman_sdk._handlers import FallbackHandler, definitions, fallback_definition
from wasman_sdk._portal import Portal
from wasman_sdk._retry import RetryPolicy
from wasman_sdk._threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

__all__ = ["Engine", "SyncEngine"]

_NOTHING = Payload.of_value(None)


class Engine:
    """Executes exports of one module on durable instances: `async with Engine.from_path("guest.wasm") as engine`.

    An execution that returns is in the store, with all that it changed in the guest's memory. One that raises has
    changed nothing, but for the activities that it called. An execution whose process dies in the middle of it is
    finished by the next `execute` on the same instance, or by `recover`, from its log: activities that have answered
    are not called again.

    Use one engine at a time for an instance: of two, one loses its execution by `ConcurrentExecutionError`.

    Attributes:
        store: Where the instances are.
        tenant: Whose they are.
    """

    def __init__(
        self,
        module: bytes,
        *,
        store: Store | str = "memory://",
        activities: Sequence[Callable[..., Any]] = (),
        fallback: FallbackHandler | None = None,
        fallback_retry: RetryPolicy | None = None,
        resources: Sequence[object] = (),
        limits: Limits | None = None,
        keep_alive: bool = True,
        max_guests: int | None = None,
        max_guest_memory: int = 2 * 1024**3,
        max_sync_activities: int = 40,
        archive: int | None = None,
        tenant: str = "default",
    ) -> None:
        """Nothing is opened yet; see `from_path` and `from_bytes`.

        Args:
            module: The compiled guest.
            store: Where its instances are: an open store, or the URL of one that is opened and closed here.
            activities: Functions decorated with `@activity`.
            fallback: Answers activities that are not among them, by (name, the guest's bytes) to bytes.
            fallback_retry: When a call of the fallback is tried again.
            resources: Objects injected into activities by their type.
            limits: What each instance may use, from now on.
            keep_alive: Whether a guest stays in memory after an execution; else each restores it.
            max_guests: How many stay, the least recently used go first; by default as many as the kernel allows.
            max_guest_memory: Bytes that they may have written together, evicted likewise beyond it.
            max_sync_activities: How many sync activities run at once, in threads.
            archive: How many log entries of an instance are kept that it needs no more, the newest ones, for `history`;
                None for all, as long as the instance is there.
            tenant: Whose instances they are.

        Raises:
            InvalidArgumentError: An activity cannot be called, or the URL names no kind of store.
        """
        self._module = module
        self._own = isinstance(store, str)
        self.store: Store = open_store(store) if isinstance(store, str) else store
        self.tenant = tenant
        self._limits = limits or Limits()
        self._keep_alive = keep_alive
        self._given = (tuple(activities), tuple(resources), fallback, fallback_retry, max_sync_activities)
        # Looked at now, so that a mistake shows where it was made and not when the engine is entered.
        definitions(activities, resources, Threads(max_sync_activities))
        self._residency = Residency(max_guests, max_guest_memory)
        self._snapshots = SnapshotPolicy(archive=archive)
        self._instances: dict[str, direct.DirectInstance] = {}
        self._locks: dict[str, anyio.Lock] = defaultdict(partial(anyio.Lock, fast_acquire=True))
        self._host: HostEngine | None = None
        self._digest = ""

    @classmethod
    def from_path(cls, path: Path | str, **options: Any) -> Self:
        """An engine for the module in a file; options as in `Engine`.

        Raises:
            InvalidArgumentError: The file cannot be read.
        """
        return cls(_read(path), **options)

    @classmethod
    def from_bytes(cls, module: bytes, **options: Any) -> Self:
        """An engine for a module; options as in `Engine`."""
        return cls(bytes(module), **options)

    async def __aenter__(self) -> Self:
        activities, resources, fallback, retry, most = self._given
        threads = Threads(most)
        await anyio.to_thread.run_sync(check, self._module, "the module")
        if self._own:
            await self.store.open()
        try:
            self._digest = digest(self._module)
            sealed = seal(Address("", "", "", "module", self._digest), self._module)
            await self.store.put_module(self._digest, sealed)
            answers = fallback and fallback_definition(fallback, retry or RetryPolicy(), threads)
            self._host = HostEngine(
                self.store,
                definitions(activities, resources, threads),
                residency=self._residency,
                snapshots=self._snapshots,
                fallback=answers or None,
            )
            await self._host.module(self._digest)
        except BaseException:
            if self._own:
                await self.store.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            for id_ in list(self._instances):
                await self.close_instance(id_)
            self._host = None
            if self._own:
                await self.store.close()

    async def execute(self, id: str, entry: str = "", *arguments: int, input: Any = None) -> Any:
        """Call an export on the instance, which is made if there is none. One execution at a time; others wait.

        Args:
            id: The instance: 1 to 200 bytes of UTF-8 without "/", ".." or control characters.
            entry: The export, "" for `run`, else `_start`.
            arguments: Its integers, i32 or i64.
            input: What the guest reads as its input, anything that is JSON.

        Returns:
            What the guest gave by `wasman.result`, else what the export returned: an integer, a list of several, None.

        Raises:
            WorkflowFailedError: The guest trapped, failed or exited with a code; its memory is as it was.
            InvalidArgumentError: The id cannot be used, or an activity is missing.
            InvalidModuleError: There is no such export, or the module cannot be executed directly.
            InputMismatchError: The arguments do not fit the export.
            WasmVersionMismatchError: The instance was made of another module.
            WorkflowAlreadyExistsError: The id is a workflow's.
            WorkflowClosedError: The instance was terminated.
            BlockedError: A limit was reached, or what is stored is damaged; its memory is as it was.
            ConcurrentExecutionError: Another engine has executed on it meanwhile.
            StoreUnavailableError: The store does not answer.
        """
        given = _NOTHING if input is None else Payload.of_value(input)
        async with self._locks[id]:
            instance = self._instances.get(id) or await self._opened(id, entry)
            try:
                return (await instance.execute(entry, arguments, given)).value()
            except direct.ExecutionFailed as failed:
                message = f"execution of {entry or 'run'!r} on {id!r} failed: {failed.failure}"
                raise WorkflowFailedError(message, failed.failure) from None
            finally:
                if instance.spent or not self._keep_alive:
                    await self._close(id)

    async def recover(self, id: str) -> Any:
        """Finish the execution that a process has left in the middle; its result, None where there is none.

        Raises:
            As `execute`.
        """
        async with self._locks[id]:
            instance = self._instances.get(id) or await self._opened(id, "")
            try:
                result = await instance.recover()
            except direct.ExecutionFailed as failed:
                message = f"the interrupted execution on {id!r} failed: {failed.failure}"
                raise WorkflowFailedError(message, failed.failure) from None
            finally:
                if instance.spent or not self._keep_alive:
                    await self._close(id)
            return None if result is None else result.value()

    async def _opened(self, id_: str, entry: str) -> direct.DirectInstance:
        if self._host is None:
            message = "the engine is not open: use it inside `async with engine:`"
            raise InvalidArgumentError(message)
        key = Key(self.tenant, validated_id(id_))
        instance = await direct.opened(self._host, key, self._digest, entry, self._limits)
        self._instances[id_] = instance
        return instance

    async def _close(self, id_: str) -> None:
        instance = self._instances.pop(id_, None)
        if instance is not None:
            with anyio.CancelScope(shield=True):
                await instance.close()

    async def close_instance(self, id: str) -> None:
        """Give the instance's memory up; what is durable stays, and the next execution restores it."""
        async with self._locks[id]:
            await self._close(id)
        if not self._locks[id].locked():  # whoever waits for it has it now
            del self._locks[id]


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        message = f"the module {path} cannot be read: {error.strerror}"
        raise InvalidArgumentError(message) from error


class SyncEngine:
    """The same for code without an event loop: `with SyncEngine.from_path("guest.wasm") as engine`.

    Its methods are those of `Engine`, and may be called from any thread.
    """

    def __init__(self, module: bytes, **options: Any) -> None:
        """As `Engine`."""
        self._module, self._options = module, options
        self._portal = Portal()
        self._engine: Engine | None = None

    @classmethod
    def from_path(cls, path: Path | str, **options: Any) -> Self:
        """As `Engine.from_path`."""
        return cls(_read(path), **options)

    @classmethod
    def from_bytes(cls, module: bytes, **options: Any) -> Self:
        """As `Engine.from_bytes`."""
        return cls(bytes(module), **options)

    def __enter__(self) -> Self:
        self._engine = self._portal.open(Engine(self._module, **self._options))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine = None
        self._portal.close(kind, error, traceback)

    @property
    def store(self) -> Store:
        """Where the instances are."""
        return self._open().store

    def execute(self, id: str, entry: str = "", *arguments: int, input: Any = None) -> Any:
        """As `Engine.execute`."""
        engine = self._open()
        return self._portal.call(lambda: engine.execute(id, entry, *arguments, input=input))

    def recover(self, id: str) -> Any:
        """As `Engine.recover`."""
        return self._portal.call(self._open().recover, id)

    def close_instance(self, id: str) -> None:
        """As `Engine.close_instance`."""
        self._portal.call(self._open().close_instance, id)

    def _open(self) -> Engine:
        if self._engine is None:
            message = "the engine is not open: use it inside `with engine:`"
            raise InvalidArgumentError(message)
        return self._engine
