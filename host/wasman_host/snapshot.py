"""Snapshots: all that can influence a guest, at one position of its log.

An image is a delta over nothing; a delta holds the 4 KiB pages that changed since its parent, and the host's state
beside them. Both have one stored form: one line of JSON, then the pages one behind the other. A run's record names
its image and the chain of deltas over it by digest, so an old delta can never be laid over newer memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from pydantic_core import from_json, to_json

from wasman_host.errors import CorruptSnapshotError, InvalidArgumentError, UnsupportedStateError
from wasman_host.guest.memory import PAGE

if TYPE_CHECKING:
    from wasman_host.record import SnapshotReference

__all__ = ["Delta", "SnapshotPolicy", "decode_delta", "encode_delta", "parts_of", "runs_of"]

_VERSION = 1


@frozen
class SnapshotPolicy:
    """When a guest is kept as it waits, a chain of deltas merged into one over the image, and the log behind it cut.

    Restoring reads every delta of the chain, so a long one makes coming back slow; merging one writes everything that
    differs from the image again.

    Attributes:
        turns: A guest is kept after so many turns, or answers, so that no more of them are repeated after a crash.
        seconds: And after so much processor time.
        max_chain: Deltas in a chain: reading one more costs about as much as a page or two of a merged one.
        max_bytes: Their stored bytes together, whatever their number, in excess of what the first of them has.
        chunk: Log entries that leave the live log together, once a snapshot has made them superfluous. A run keeps the
            number that it began with.
        archive: How many of them are kept for `history`, the newest ones, as whole chunks; None for all.
    """

    turns: int = 32
    seconds: float = 0.05
    max_chain: int = 16
    max_bytes: int = 16 * 1024 * 1024
    chunk: int = 256
    archive: int | None = None

    def __attrs_post_init__(self) -> None:
        """Raises `InvalidArgumentError`."""
        if type(self.turns) is not int or self.turns < 1:
            message = f"a guest is kept after some number of turns from 1 on, not {self.turns!r}"
            raise InvalidArgumentError(message)
        if self.archive is not None and (type(self.archive) is not int or self.archive < 0):
            message = f"archive is how many log entries are kept, from 0 on, or None for all, not {self.archive!r}"
            raise InvalidArgumentError(message)
        if self.chunk < 2:  # noqa: PLR2004  entry 0 stays in the log, and a chunk of nothing else would have no end
            message = f"a chunk of an archive has 2 entries or more, not {self.chunk}"
            raise InvalidArgumentError(message)

    def folds(self, snapshot: SnapshotReference | None) -> bool:
        """Whether the next delta is taken over the image, and not over `snapshot`."""
        if snapshot is None:
            return True
        return len(snapshot.deltas) >= self.max_chain or snapshot.size - snapshot.first > self.max_bytes


@frozen
class Delta:
    """Pages that changed since the parent, and the state beside them.

    Attributes:
        parent: Digest of the sealed parent, "" for an image.
        size: Length of the whole memory in bytes.
        runs: (first page, number of pages), rising, without overlap.
        pages: The pages of all runs, one behind the other.
        globals: Mutable globals in the module's order: (value kind, value bytes).
        state: The host's own state, as JSON: versions are in its keys.
    """

    parent: str
    size: int
    runs: Sequence[tuple[int, int]]
    pages: bytes | memoryview = field(repr=False)
    globals: Sequence[tuple[int, bytes]] = ()
    state: dict[str, Any] = field(factory=dict)


def runs_of(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive pages; `pages` rise."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and sum(runs[-1]) == page:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page, 1))
    return runs


def parts_of(delta: Delta) -> list[tuple[int, memoryview]]:
    """The bytes of each run, with its offset in the memory."""
    pages = memoryview(delta.pages)
    parts = []
    at = 0
    for first, count in delta.runs:
        parts.append((first * PAGE, pages[at : at + count * PAGE]))
        at += count * PAGE
    return parts


def encode_delta(delta: Delta) -> bytes:
    """The stored form, to be sealed."""
    head = {
        "v": _VERSION,
        "parent": delta.parent,
        "size": delta.size,
        "runs": [list(run) for run in delta.runs],
        "globals": [[kind, value.hex()] for kind, value in delta.globals],
        "state": delta.state,
    }
    return b"".join((to_json(head), b"\n", delta.pages))


def decode_delta(data: bytes, place: str) -> Delta:
    """The inverse of `encode_delta`.

    Raises:
        UnsupportedStateError: A newer wasman wrote it.
        CorruptSnapshotError: It is not what it should be; `place` names it.
    """
    end = data.find(b"\n")
    pages = memoryview(data)[end + 1 :]
    try:
        fields = from_json(data[: max(end, 0)])
        if fields["v"] != _VERSION:
            message = f"{place} was written by a newer wasman (version {fields['v']}); use that one"
            raise UnsupportedStateError(message)
        delta = Delta(
            parent=fields["parent"],
            size=fields["size"],
            runs=tuple((first, count) for first, count in fields["runs"]),
            pages=pages,
            globals=tuple((kind, bytes.fromhex(value)) for kind, value in fields["globals"]),
            state=fields["state"],
        )
    except (ValueError, KeyError, TypeError) as error:
        message = f"{place} cannot be read ({error!r}); restore it from a backup, then unblock"
        raise CorruptSnapshotError(message) from error
    end = 0
    for first, count in delta.runs:
        if first < end or count < 1 or (first + count) * PAGE > delta.size:
            break
        end = first + count
    else:
        if sum(count for _, count in delta.runs) * PAGE == len(pages):
            return delta
    message = f"{place} names pages that it does not hold; restore it from a backup, then unblock"
    raise CorruptSnapshotError(message)
