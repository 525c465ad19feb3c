"""Snapshots: all that can influence a guest, at one position of its log.

An image is a delta over nothing; a delta holds the 4 KiB pages that changed since its parent, and the host's state
beside them. Both have one stored form: one line of JSON, then the pages one behind the other. A run's record names
its image and the chain of deltas over it by digest, so an old delta can never be laid over newer memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attrs import field, frozen
from pydantic_core import to_json

from wasman_host.errors import CorruptSnapshotError, UnsupportedStateError

__all__ = ["PAGE", "Delta", "apply", "changed", "decode_delta", "difference", "encode_delta"]

PAGE = 4096
_VERSION = 1
_BLOCK = 16 * PAGE  # compared whole first: most of a memory has not changed


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
    pages: bytes = field(repr=False)
    globals: Sequence[tuple[int, bytes]] = ()
    state: dict[str, Any] = field(factory=dict)


def changed(old: bytes, new: bytes) -> list[tuple[int, int]]:
    """Runs of pages in which `new` differs from `old`; what `old` lacks counts as zeros."""
    before, after = memoryview(old), memoryview(new)
    zeros = memoryview(bytes(_BLOCK))
    runs: list[tuple[int, int]] = []
    for block in range(0, len(new), _BLOCK):
        known = before[block : block + _BLOCK] if block < len(old) else zeros
        if after[block : block + _BLOCK] == known:
            continue
        for at in range(block, min(block + _BLOCK, len(new)), PAGE):
            known = before[at : at + PAGE] if at < len(old) else zeros[:PAGE]
            if after[at : at + PAGE] != known:
                page = at // PAGE
                if runs and sum(runs[-1]) == page:
                    runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                else:
                    runs.append((page, 1))
    return runs


def difference(old: bytes, new: bytes) -> tuple[list[tuple[int, int]], bytes]:
    """The runs of changed pages and their bytes."""
    runs = changed(old, new)
    return runs, b"".join(new[first * PAGE : (first + count) * PAGE] for first, count in runs)


def apply(memory: bytearray, delta: Delta) -> None:
    """Lay `delta` over `memory`, which grows to the delta's size."""
    if len(memory) < delta.size:
        memory.extend(bytes(delta.size - len(memory)))
    at = 0
    for first, count in delta.runs:
        memory[first * PAGE : (first + count) * PAGE] = delta.pages[at : at + count * PAGE]
        at += count * PAGE


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
    head, _, pages = data.partition(b"\n")
    try:
        fields = json.loads(head)
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
