"""Whether another worker's process still lives: an operating-system lock on a file a worker.

A worker holds the lock from its first beat on. The kernel frees it when the process dies, however it dies, so others
need not wait for the lease to end. Files are made, and removed, only inside a write transaction of the store, so
whoever holds the store's write lock knows that a file without a row in `worker` belongs to nobody; ids are never used
twice, so nobody waits for a file that is being removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

__all__ = ["WorkerLocks"]


class WorkerLocks:
    """The lock files beside one store, and those among them that this process holds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}

    def __contains__(self, worker: str) -> bool:
        return worker in self._held

    def _path(self, worker: str) -> Path:
        return self._folder / hashlib.sha256(worker.encode()).hexdigest()[:32]

    def has_died(self, worker: str) -> bool:
        """Whether the process of a registered worker is gone; False where that cannot be told."""
        if worker in self._held:
            return False
        try:
            file = os.open(self._path(worker), os.O_RDONLY)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            # Shared, so that two who look at once do not take each other for the worker.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(file)

    def take(self, worker: str) -> None:
        """Inside a transaction: make and lock the file of a worker that has no row yet."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._path(worker)
        path.unlink(missing_ok=True)  # no row bears this id, so a file is left over
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        self._held[worker] = file
        os.write(file, f"{os.getpid()} {worker}\n".encode())
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def give_up(self, worker: str, *, delete: bool = False) -> None:
        """Let go of a lock that this process holds, if it does."""
        file = self._held.pop(worker, None)
        if file is not None:
            os.close(file)
            if delete:
                self.delete(worker)

    def delete(self, worker: str) -> None:
        """Inside a transaction: remove the file of a worker that is nobody any more."""
        self._path(worker).unlink(missing_ok=True)

    def sweep(self, workers: AbstractSet[str]) -> None:
        """Inside a transaction: remove every file that belongs neither to one of `workers` nor to this process."""
        known = {self._path(worker).name for worker in (*workers, *self._held)}
        if self._folder.is_dir():
            for file in self._folder.iterdir():
                if file.name not in known:
                    file.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of everything; the files stay, and show whoever looks that their workers are gone."""
        for worker in list(self._held):
            self.give_up(worker)
