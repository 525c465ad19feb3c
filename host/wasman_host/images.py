"""Memory images that this process holds: those of modules, and those of snapshots that may be restored again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from wasman_host.guest.memory import Image, image_of
from wasman_host.snapshot import parts_of

if TYPE_CHECKING:
    from wasman_host.snapshot import Delta

__all__ = ["Images", "Origin", "Restored"]

_MAX_BYTES = 256 * 1024 * 1024
_MAX_HELD = 128  # each costs up to two descriptors, of which a process often has no more than 1,024


@frozen(eq=False)
class Origin:
    """A module's state after its initialisation, the same for all its instances.

    Attributes:
        image: Its memory.
        globals: Its mutable globals in the module's order.
        digest: By which runs pin it, in hex.
        unfinished: The host call that the initialisation made, for which it needs a run; "" for none.
        block: Where a guest of turns says what it wants; 0 for others.
        parts: What the memory holds besides zeros, as (offset, bytes).
    """

    image: Image
    globals: Sequence[tuple[int, bytes]]
    digest: str
    unfinished: str
    block: int
    parts: Sequence[tuple[int, memoryview]] = field(repr=False)

    @classmethod
    def of(cls, delta: Delta, digest: str) -> Origin:
        """The state that a module's stored image holds."""
        parts = parts_of(delta)
        image, state = image_of(delta.size, parts), delta.state
        return cls(image, delta.globals, digest, str(state["unfinished"]), int(state.get("block", 0)), parts)


@frozen(eq=False)
class Restored:
    """What a snapshot holds, ready to be laid under a guest.

    Attributes:
        image: The memory.
        globals: The mutable globals in the module's order.
        state: The host's own state.
        touched: Pages in which the memory may differ from the module's image.
    """

    image: Image
    globals: Sequence[tuple[int, bytes]]
    state: Mapping[str, Any]
    touched: frozenset[int]

    @classmethod
    def of(cls, origin: Origin, deltas: Sequence[Delta]) -> Restored:
        """The snapshot whose chain over `origin` is `deltas`, of which there is at least one."""
        parts = list(origin.parts)
        touched: set[int] = set()
        for delta in deltas:
            parts += parts_of(delta)
            for first, count in delta.runs:
                touched.update(range(first, first + count))
        last = deltas[-1]
        return cls(image_of(last.size, parts), last.globals, last.state, frozenset(touched))


class Images:
    """The snapshots that were restored last, by the digest of their last delta: what is restored again is only mapped.

    Args:
        max_bytes: Bytes of memory that they may stand for; the least recently used go first. Guests under which one
            lies keep it for as long as they live.
        max_held: How many there may be, however small.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES, max_held: int = _MAX_HELD) -> None:
        self._held: OrderedDict[str, Restored] = OrderedDict()
        self._max, self._bytes = max_bytes, 0
        self._most = max_held

    def get(self, digest: str) -> Restored | None:
        """The snapshot, if it is held."""
        found = self._held.get(digest)
        if found is not None:
            self._held.move_to_end(digest)
        return found

    def hold(self, digest: str, restored: Restored) -> None:
        """Hold it, as long as there is room."""
        if restored.image.size > self._max or digest in self._held:
            return
        self._held[digest] = restored
        self._bytes += restored.image.size
        while self._bytes > self._max or len(self._held) > self._most:
            _, gone = self._held.popitem(last=False)
            self._bytes -= gone.image.size
