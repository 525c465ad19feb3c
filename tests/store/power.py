"""What a disk may hold after a loss of power: a recorder of file operations, and the states that each prefix may leave.

The model is the weakest that a program may count on. A file's content is safe once it was synced; before, any of it may
be there. A name is safe once its folder was synced after the change; before, each change of a name since the last sync
may have reached the disk or not, whatever happened to those before and behind it. A rename is two such changes, one in
each folder. A folder whose own name is not safe takes all that is in it along.
"""

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
from typing_extensions import override

from wasman_host.store.files import Files


@attrs.frozen
class Operation:
    """One call of `Files`, with paths relative to the folder that is recorded."""

    kind: str
    path: str
    other: str = ""
    data: bytes = b""
    sync: bool = False


class Recorder(Files):
    """Does everything, and keeps it. Nothing is really synced: the disk of the test does not lose power."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[Operation] = []
        self._lock = threading.Lock()

    def _path(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @override
    def write(self, path: Path, data: bytes, *, sync: bool) -> None:
        with self._lock:
            super().write(path, data, sync=False)
            self.operations.append(Operation("write", self._path(path), data=data, sync=sync))

    @override
    def sync_folder(self, path: Path) -> None:
        with self._lock:
            if not path.is_dir():
                raise FileNotFoundError(2, "no such folder", str(path))
            self.operations.append(Operation("sync", self._path(path)))

    @override
    def rename(self, source: Path, target: Path) -> None:
        with self._lock:
            super().rename(source, target)
            self.operations.append(Operation("rename", self._path(source), self._path(target)))

    @override
    def unlink(self, path: Path) -> None:
        with self._lock:
            super().unlink(path)
            self.operations.append(Operation("unlink", self._path(path)))

    @override
    def make_folder(self, path: Path) -> None:
        with self._lock:
            super().make_folder(path)
            self.operations.append(Operation("mkdir", self._path(path)))

    @override
    def remove_folder(self, path: Path) -> None:
        with self._lock:
            super().remove_folder(path)
            self.operations.append(Operation("rmdir", self._path(path)))


@attrs.define(eq=False)
class _File:
    data: bytes
    synced: bool


@attrs.define(eq=False)
class _Folder:
    safe: "dict[str, _File | _Folder]" = attrs.field(factory=dict)
    now: "dict[str, _File | _Folder]" = attrs.field(factory=dict)
    pending: "list[tuple[int, str, _File | _Folder | None]]" = attrs.field(factory=list)

    def change(self, age: int, name: str, node: "_File | _Folder | None") -> None:
        self.pending.append((age, name, node))
        if node is None:
            self.now.pop(name, None)
        else:
            self.now[name] = node


Kept = Callable[[int], bool]  # whether the pending change of that age reached the disk


class Disk:
    """A folder's content, as it is and as far as it is safe."""

    def __init__(self) -> None:
        self.root = _Folder()
        self._age = 0

    def _at(self, path: str) -> _Folder:
        folder: _File | _Folder = self.root
        for word in path.split("/"):
            if word != ".":
                assert isinstance(folder, _Folder)
                folder = folder.now[word]
        assert isinstance(folder, _Folder)
        return folder

    def _parent(self, path: str) -> tuple[_Folder, str]:
        above, _, name = path.rpartition("/")
        return self._at(above or "."), name

    def do(self, operation: Operation) -> None:
        if operation.kind == "sync":
            folder = self._at(operation.path)
            folder.safe, folder.pending = dict(folder.now), []
            return
        parent, name = self._parent(operation.path)
        self._age += 2
        if operation.kind == "write":
            parent.change(self._age, name, _File(operation.data, operation.sync))
        elif operation.kind == "mkdir":
            parent.change(self._age, name, _Folder())
        elif operation.kind == "rename":
            target, other = self._parent(operation.other)
            target.change(self._age, other, parent.now[name])
            parent.change(self._age - 1, name, None)
        else:
            parent.change(self._age, name, None)

    def states(self, chance: random.Random, more: int, newest: int = 3) -> Iterator[dict[str, bytes | None]]:
        """Contents by path (None for a folder) that a loss of power may leave now: the telling ones, and some more.

        Args:
            chance: Chooses.
            more: How many are chosen by chance.
            newest: Of how many of the last changes each is dropped, or kept, alone.
        """
        ages = [age for age, _ in sorted(_pending(self.root), key=lambda one: one[0])]
        yield from self._torn(lambda _: False, chance)
        yield from self._torn(lambda _: True, chance)
        for one in ages[-newest:]:
            yield from self._torn(lambda age, one=one: age == one, chance)  # type: ignore[misc]
            yield from self._torn(lambda age, one=one: age != one, chance)  # type: ignore[misc]
        for _ in range(more if len(ages) > 1 else 0):
            yield from self._torn(lambda _: chance.random() < 0.5, chance)

    def _torn(self, kept: Kept, chance: random.Random) -> Iterator[dict[str, bytes | None]]:
        for how in ("whole", "empty", "torn"):
            state: dict[str, bytes | None] = {}
            unsafe = _collect(self.root, "", kept, state, how, chance)
            yield state
            if not unsafe:
                break  # there is nothing to tear


def _pending(folder: _Folder) -> Iterator[tuple[int, object]]:
    yield from ((age, node) for age, _, node in folder.pending)
    for _, node in _children(folder):
        if isinstance(node, _Folder):
            yield from _pending(node)


def _children(folder: _Folder) -> Sequence[tuple[str, _File | _Folder]]:
    """All that ever stood in the folder since its last sync, each once."""
    seen = [*folder.safe.items(), *((name, node) for _, name, node in folder.pending if node is not None)]
    return list({id(node): (name, node) for name, node in seen}.values())


def _collect(
    folder: _Folder, prefix: str, kept: Kept, state: dict[str, bytes | None], how: str, chance: random.Random
) -> bool:
    """Fill in what the folder holds; whether some of it was never synced."""
    names = dict(folder.safe)
    for age, name, node in folder.pending:
        if kept(age):
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node
    unsafe = False
    for _, node in _children(folder):
        inside: dict[str, bytes | None] = {}
        if isinstance(node, _Folder):
            torn = _collect(node, "", kept, inside, how, chance)
        else:
            torn = not node.synced
            inside[""] = node.data if node.synced or how == "whole" else _bytes(node.data, how, chance)
        for name in [name for name, there in names.items() if there is node]:
            unsafe |= torn
            path = prefix + name
            if isinstance(node, _Folder):
                state[path] = None
                state.update((f"{path}/{inner}", data) for inner, data in inside.items())
            else:
                state[path] = inside[""]
    return unsafe


def _bytes(data: bytes, how: str, chance: random.Random) -> bytes:
    if how == "empty" or not data:
        return b""
    half = chance.randrange(len(data))
    return data[:half] + (b"" if chance.random() < 0.5 else bytes(len(data) - half))


def lay_out(state: Mapping[str, bytes | None], root: Path) -> None:
    """Make the files of a state."""
    root.mkdir()
    for path, data in sorted(state.items()):
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)
