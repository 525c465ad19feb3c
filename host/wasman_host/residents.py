"""Guests in memory, and which of them go first when there are too many, or they use too much.

A guest is kept for as long as its instance lives here, so that nothing is replayed; one that waits may be evicted,
least recently used first. What is counted is what a guest has written: the pages that an image
under it provides are shared.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from wasman_host.instance import Instance

__all__ = ["Residency", "Residents", "most_guests"]

_MAPPINGS_FILE = Path("/proc/sys/vm/max_map_count")
_MAPPINGS = 65_530  # of a process, where the kernel does not say
_MAPPINGS_EACH = 5  # its memory in two parts, the rest of its reservation, its stack and that one's guard
_SPARED = 0.75  # of the mappings: the process needs some besides


def most_guests() -> int:
    """How many guests the kernel's limit of mappings leaves room for."""
    try:
        mappings = int(_MAPPINGS_FILE.read_text())
    except (OSError, ValueError):
        mappings = _MAPPINGS
    return int(mappings * _SPARED) // _MAPPINGS_EACH


@frozen
class Residency:
    """How much room guests have in one worker.

    Attributes:
        guests: Guests in memory at once; None for what the kernel's limit of mappings leaves room for.
        memory: Bytes that they may have written together.
    """

    guests: int | None = None
    memory: int = 2 * 1024 * 1024 * 1024


class Residents:
    """The guests of one worker, the one that has waited longest first."""

    def __init__(self, residency: Residency) -> None:
        self._most = most_guests() if residency.guests is None else residency.guests
        self._memory = residency.memory
        self._known: OrderedDict[Instance, int] = OrderedDict()  # with the bytes that each has written
        self._stirred: set[Instance] = set()
        self._uncounted: set[Instance] = set()  # known by the size of their memory only
        self.written = 0  # by all, or what those could have written that were not counted

    def __len__(self) -> int:
        return len(self._known)

    def enters(self, instance: Instance) -> None:
        """A guest was made."""
        self._known[instance] = 0
        self._stirred.add(instance)
        if len(self._known) > self._most:
            self._evict(len(self._known) - self._most)

    def leaves(self, instance: Instance) -> None:
        """A guest was closed."""
        self.written -= self._known.pop(instance, 0)
        self._stirred.discard(instance)
        self._uncounted.discard(instance)

    def waits(self, instance: Instance) -> None:
        """A guest waits, and has run before that."""
        if instance in self._known:
            self._known.move_to_end(instance)
            self._stirred.add(instance)

    def look(self) -> None:
        """Evict until what the guests have written fits.

        A guest has written no more than its memory holds: the kernel is asked what it is only where that is too much.
        """
        for instance in self._stirred:
            guest = instance.guest
            if guest is not None and instance in self._known:
                self._counts(instance, guest.linear.size)
                self._uncounted.add(instance)
        self._stirred.clear()
        if self.written <= self._memory:
            return
        for instance in self._uncounted:
            guest = instance.guest
            if guest is not None:
                self._counts(instance, guest.written())
        self._uncounted.clear()
        if self.written > self._memory:
            self._evict(0)

    def counted(self) -> int:
        """Bytes that all of them have written together: the kernel is asked for each."""
        return sum(instance.guest.written() for instance in self._known if instance.guest is not None)

    def _counts(self, instance: Instance, size: int) -> None:
        self.written += size - self._known[instance]
        self._known[instance] = size

    def _evict(self, count: int) -> None:
        """Evict `count` guests that wait, and more while too much is written."""
        for instance in list(self._known):
            if count <= 0 and self.written <= self._memory:
                return
            size = self._known[instance]
            if instance.evict():
                count -= 1
                if instance.guest is None:
                    self.leaves(instance)
                else:  # its task hands it back, and closes the guest then
                    self.written -= size
                    self._known[instance] = 0
