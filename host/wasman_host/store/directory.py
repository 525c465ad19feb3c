"""A folder as the backend of an object store, for any number of processes of one machine.

Writing. An object is written to a file of its own beside its place and synced; then, with the lock of its name held,
the condition is looked at, the file renamed to its place and that folder synced. So a name always stands for a whole
object, and whoever is told of a `put` is told after it is on disk. A mark is made in its place, because its content
does not matter.

Locks. Up to 4,096 files under `locks/`, chosen by a hash of the name and never removed. Readers share the lock, so
that nobody reads what is not yet on disk: otherwise they could act on a state that a loss of power takes back. Who is
killed between the renaming and the sync leaves the folder's name in the lock file, and the next to come syncs it. The
same goes for the making of a folder. Lock files begin as a gzip file of no bytes, as all files here do.

Looking (`get`, `list`) is done on the thread of the event loop, since it takes microseconds. Writing waits for the
disk, on a thread; writes to different objects wait side by side.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
from typing_extensions import override

from wasman_host.errors import StoreSchemaError, StoreUnavailableError
from wasman_host.seal import Address, seal
from wasman_host.store.backend import NOTHING, Backend, Found
from wasman_host.store.files import Files
from wasman_host.store.group import pause
from wasman_host.store.locks import WorkerLocks
from wasman_host.store.rules import opened_twice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FORMAT", "DirectoryBackend"]

T = TypeVar("T")

FORMAT = b'{"wasman objects": 1}\n'
_FORMAT = seal(Address("", "", "", "format"), FORMAT)
_OURS = frozenset({"format", "locks"})  # what is there before anything else is
_THREADS = 16
_PATIENCE = 0.02
_NEW = ".wasman-"  # begins the names of files that are not yet at their place
_LEFT_OVER = 3600  # seconds after which such a file is nobody's
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class _LockedError(Exception):
    """Somebody holds the lock."""


class DirectoryBackend(Backend):
    """Objects in the files of a folder.

    Args:
        path: The folder; it is made if there is none, but the one that it stands in must be there. A network file
            system will not do.
        busy_timeout: For how long a locked object is tried again, in seconds.
        read_only: Open what is there, and write nothing.
        files: For tests.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout: float = 30.0,
        read_only: bool = False,
        files: Files | None = None,
    ) -> None:
        self.path = Path(path).resolve()
        self.place = str(self.path)
        self.busy_timeout = busy_timeout
        self.read_only = read_only
        self._files = files or Files()
        self._root: tuple[int, int] | None = None
        self._limiter: anyio.CapacityLimiter | None = None
        self._folders: dict[Path, int] = {}  # those that outlive a loss of power, and their inodes
        self._known = threading.Lock()
        self._workers = WorkerLocks(self.path / "workers")

    # -- opening ------------------------------------------------------------------------------------------------------

    @override
    async def open(self) -> None:
        if self._root is not None:
            raise opened_twice(self.place)
        self._limiter = anyio.CapacityLimiter(_THREADS)
        with self._explaining():
            await self._on_thread(self._prepare)
        self._root = self._identity()

    def _prepare(self) -> None:
        if not self.path.parent.is_dir():
            raise StoreUnavailableError(f"the store {self.place} cannot be opened: {self.path.parent} must exist")
        if not self.path.exists() and not self.read_only:
            with contextlib.suppress(FileExistsError):
                self._files.make_folder(self.path)
        if not self.path.is_dir():
            what = "must be a folder" if self.path.exists() else "is not there"
            raise StoreUnavailableError(f"the store {self.place} cannot be opened: it {what}")
        form = self._form()
        if form is None:
            if foreign := sorted(found.name for found in self.path.iterdir() if not _is_ours(found.name)):
                raise StoreSchemaError(
                    f"{self.place} is the folder of another program ({foreign[0]} is in it): give the store its own"
                )
            if self.read_only:
                raise StoreUnavailableError(f"the store {self.place} cannot be opened: nothing is in it yet")
        elif form != _FORMAT:
            raise StoreSchemaError(
                f"the store {self.place} has another format than this wasman knows: use the wasman that made it"
            )
        if self.read_only:
            return
        with contextlib.suppress(FileExistsError):
            self._files.make_folder(self.path / "locks")
        if form is None:
            self._files.sync_folder(self.path.parent)
            self._put("format", _FORMAT, None)
        self._sweep(self.path)

    def _sweep(self, folder: Path) -> None:
        """Remove what a killed process has left of a file that it was writing."""
        oldest = time.time() - _LEFT_OVER
        for left in folder.glob(f"{_NEW}*"):
            with contextlib.suppress(FileNotFoundError):
                if left.stat().st_mtime < oldest:
                    self._files.unlink(left)

    def _form(self) -> bytes | None:
        try:
            return (self.path / "format").read_bytes()
        except FileNotFoundError:
            return None

    @override
    async def close(self) -> None:
        self._root = None
        self._workers.close()

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.place)  # noqa: PTH116  once a write: Path.stat costs three times as much
        except OSError:
            return None
        return (status.st_dev, status.st_ino)

    def _check(self, *, writing: bool) -> None:
        if self._root is None:
            raise StoreUnavailableError(f"the store {self.place} is not open")
        if writing and self.read_only:
            raise StoreUnavailableError(f"the store {self.place} is read-only: open it for writing")
        if writing and self._identity() != self._root:
            raise StoreUnavailableError(
                f"the store {self.place} was deleted, moved or replaced while it was open: put it back and start again"
            )

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                what = "is full: free some space on its disk"
            elif error.errno in _FORBIDDEN:
                what = "is read-only: make the folder, and all in it, writable for this user"
            else:
                what = "cannot be read or written: look at its disk"
            raise StoreUnavailableError(
                f"the store {self.place} {what} ({error.strerror}: {error.filename})"
            ) from error

    async def _on_thread(self, work: Callable[[], T]) -> T:
        """Do it on a thread, and again a little later where somebody holds the lock of what it needs."""
        deadline, attempt = time.monotonic() + self.busy_timeout, 0
        while True:
            try:
                # Not abandoned when the caller is cancelled: what has begun is finished.
                return await anyio.to_thread.run_sync(work, limiter=self._limiter)
            except _LockedError:
                if time.monotonic() >= deadline:
                    held = f"was locked by another process for {self.busy_timeout:g} s"
                    raise StoreUnavailableError(
                        f"the store {self.place} {held}: find out which one, and end it"
                    ) from None
            attempt += 1
            await anyio.sleep(pause(attempt))

    # -- locks --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, name: str, *, alone: bool, patience: float = _PATIENCE) -> Iterator[int]:
        """Hold the lock of a name; what a killed process has left unsynced under it is synced first.

        A thread waits for as long as it has `patience`, in seconds: a stopped process must not use up all threads.
        """
        path = self.path / "locks" / hashlib.sha256(name.encode()).hexdigest()[:3]
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            how = (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB
            deadline, attempt = time.monotonic() + patience, 0
            while True:
                try:
                    fcntl.flock(file, how)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise _LockedError from None
                attempt += 1
                time.sleep(pause(attempt))
            left = os.pread(file, 4096, 0)
            if not left:
                os.pwrite(file, NOTHING, 0)
            elif left := left[len(NOTHING) :]:
                folder = self.path / left.decode(errors="replace").strip("\n\0")
                # After a loss of power the lock file may hold anything; what is on disk then needs no sync.
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
                    self._files.sync_folder(folder)
                os.ftruncate(file, len(NOTHING))
            yield file
        finally:
            os.close(file)

    @contextmanager
    def _syncing(self, lock: int, folder: Path) -> Iterator[None]:
        """Sync the folder after the change that is made to it inside; whoever dies in between is cleared up after."""
        os.pwrite(lock, f"{folder.relative_to(self.path)}\n".encode(), len(NOTHING))
        yield
        self._files.sync_folder(folder)
        os.ftruncate(lock, len(NOTHING))

    def _ensure(self, folder: Path, *, known: bool) -> None:
        """Make a folder, and all above it, that outlive a loss of power.

        Only what is put where something is may take the folder to be the one that it has `known`: another process may
        have removed it since, and made one that has the same inode.
        """
        if folder == self.path:
            return
        try:
            inode = os.stat(folder).st_ino  # noqa: PTH116
        except FileNotFoundError:
            inode = -1
        if known and self._folders.get(folder) == inode:
            return
        self._ensure(folder.parent, known=True)
        with self._locked(f"{folder.relative_to(self.path)}/", alone=True) as lock:
            if not folder.exists():
                with self._syncing(lock, folder.parent):
                    self._files.make_folder(folder)
            inode = folder.stat().st_ino
        with self._known:
            if len(self._folders) > 100_000:  # noqa: PLR2004  those that are forgotten are looked at once more
                self._folders.clear()
            self._folders[folder] = inode

    # -- reading ------------------------------------------------------------------------------------------------------

    @override
    async def get(self, name: str) -> Found | None:
        self._check(writing=False)
        with self._explaining():
            try:
                return self._get(name, patience=0.0)
            except _LockedError:
                return await self._on_thread(partial(self._get, name))

    def _get(self, name: str, *, patience: float = _PATIENCE) -> Found | None:
        if self.read_only:  # it may have no lock files
            data = self._read(self.path / name)
        else:
            try:
                with self._locked(name, alone=False, patience=patience):
                    data = self._read(self.path / name)
            except FileNotFoundError:
                self._check(writing=True)  # it says what became of the folder
                raise
        return None if data is None else Found(data, _etag(data))

    @staticmethod
    def _read(path: Path) -> bytes | None:
        try:
            file = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            size = os.fstat(file).st_size
            data = os.read(file, size + 1)
            while len(data) < size:
                more = os.read(file, size - len(data))
                if not more:
                    break
                data += more
            return data
        finally:
            os.close(file)

    @override
    async def list(self, folder: str, start: str = "") -> list[str]:
        self._check(writing=False)
        try:
            with self._explaining(), os.scandir(f"{self.place}/{folder}") as found:
                return sorted(
                    one.name + "/" if one.is_dir() else one.name
                    for one in found
                    if one.name.startswith(start) and not one.name.startswith(_NEW)
                )
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                if self._identity() != self._root:
                    self._check(writing=True)
                return []
            raise

    # -- writing ------------------------------------------------------------------------------------------------------

    @override
    async def put(self, name: str, data: bytes, match: str | None) -> str | None:
        self._check(writing=True)
        with self._explaining():
            return await self._on_thread(partial(self._put, name, data, match))

    def _put(self, name: str, data: bytes, match: str | None) -> str | None:
        target = self.path / name
        temporary = target.with_name(_NEW + secrets.token_hex(12))
        try:
            while True:
                self._ensure(target.parent, known=match is not None)
                try:
                    self._files.write(temporary, data, sync=True)
                except FileNotFoundError:
                    continue  # the folder was empty, and somebody has removed it
                break
            with self._locked(name, alone=True) as lock:
                found = self._read(target)
                if (None if found is None else _etag(found)) == match:
                    with self._syncing(lock, target.parent):
                        self._files.rename(temporary, target)
                    return _etag(data)
        except BaseException:
            with contextlib.suppress(OSError):
                self._files.unlink(temporary)
            raise
        self._files.unlink(temporary)
        return None

    @override
    async def mark(self, name: str, *, sure: bool = True) -> None:
        self._check(writing=True)
        with self._explaining():
            if not sure:
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    self._files.write(self.path / name, NOTHING, sync=False)
                return
            await self._on_thread(partial(self._mark, name))

    def _mark(self, name: str) -> None:
        target = self.path / name
        while True:
            self._ensure(target.parent, known=False)
            try:
                with contextlib.suppress(FileExistsError):
                    self._files.write(target, NOTHING, sync=False)
                self._files.sync_folder(target.parent)
            except FileNotFoundError:
                if target.parent.exists():
                    raise
            else:
                return

    @override
    async def delete(self, name: str, match: str | None = None, *, sure: bool = False) -> bool:
        self._check(writing=True)
        with self._explaining():
            if match is None and not sure:
                with contextlib.suppress(FileNotFoundError):
                    self._files.unlink(self.path / name)
                return True
            return await self._on_thread(partial(self._delete, name, match))

    def _delete(self, name: str, match: str | None) -> bool:
        target = self.path / name
        with self._locked(name, alone=True) as lock:
            found = self._read(target)
            if found is not None:
                if match is not None and _etag(found) != match:
                    return False
                with self._syncing(lock, target.parent):
                    self._files.unlink(target)
            elif target.parent.exists():
                self._files.sync_folder(target.parent)
        return True

    @override
    async def prune(self, folder: str) -> None:
        path = self.path / folder
        # Whoever finds it gone makes it again, and syncs the folder above.
        with contextlib.suppress(OSError):
            self._sweep(path)
            self._files.remove_folder(path)
            with self._known:
                self._folders.pop(path, None)

    # -- hints --------------------------------------------------------------------------------------------------------

    @override
    async def pulse(self) -> object:
        with self._explaining():
            path, now = f"{self.place}/locks/pulse", time.time_ns()
            try:
                os.utime(path, ns=(now, now))
            except FileNotFoundError:
                file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
                os.write(file, NOTHING)
                os.close(file)
                os.utime(path, ns=(now, now))
            return now

    @override
    async def pulse_seen(self) -> object:
        try:
            return os.stat(f"{self.place}/locks/pulse").st_mtime_ns  # noqa: PTH116
        except OSError:
            return None

    @override
    def has_died(self, worker: str) -> bool:
        return self._workers.has_died(worker)

    @override
    def register(self, worker: str) -> None:
        with self._explaining():
            if worker not in self._workers:
                self._workers.take(worker)

    @override
    def unregister(self, worker: str, *, delete: bool) -> None:
        with self._explaining():
            self._workers.give_up(worker)
            if delete:
                self._workers.delete(worker)


def _is_ours(name: str) -> bool:
    return name in _OURS or name.startswith(_NEW)


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
