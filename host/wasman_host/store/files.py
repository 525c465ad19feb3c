"""The few operations by which a folder is changed. A test puts a recorder, or a failing disk, in their place.

Nothing here is atomic against a loss of power by itself. What a disk keeps then: of a file, what was written before its
last sync; of a folder, the names that stood in it at its last sync; of anything later, any part, in any order.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "darwin":
    import fcntl

__all__ = ["Files"]


class Files:
    """The operating system's own."""

    def write(self, path: Path, data: bytes, *, sync: bool) -> None:
        """Make a file that must not be there; `sync` it where its content has to outlive a loss of power."""
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            if sync:
                _sync(file)
        finally:
            os.close(file)

    def sync_folder(self, path: Path) -> None:
        """Have the names that stand in the folder outlive a loss of power."""
        file = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _sync(file)
        finally:
            os.close(file)

    def rename(self, source: Path, target: Path) -> None:
        """Give the file another name, instead of whatever has that name."""
        os.rename(source, target)  # noqa: PTH104  Path.rename is this with a new object

    def unlink(self, path: Path) -> None:
        """Remove a name of a file."""
        os.unlink(path)  # noqa: PTH108

    def make_folder(self, path: Path) -> None:
        """Make a folder that only this user may look into."""
        os.mkdir(path, 0o700)  # noqa: PTH102

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        os.rmdir(path)  # noqa: PTH106


def _sync(file: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # an fsync alone does not reach the disk there
    else:
        os.fsync(file)
