"""Snapshots of one guest: what has changed since the last one, and what is to be committed to keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from wasman_host.errors import GuestLimitError
from wasman_host.guest.memory import PAGE, changed, image_of
from wasman_host.images import Restored
from wasman_host.seal import Address, seal
from wasman_host.snapshot import Delta, encode_delta, runs_of
from wasman_host.store.protocol import Key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wasman_host.guest.live import Guest
    from wasman_host.guest.memory import Baseline
    from wasman_host.images import Origin
    from wasman_host.machine import Machine, Proposal
    from wasman_host.snapshot import SnapshotPolicy

__all__ = ["Checkpoints", "Held"]


class Held(NamedTuple):
    """What a snapshot holds besides pages, and where in the log it was made."""

    size: int
    globals: Sequence[tuple[int, bytes]]
    state: dict[str, Any]
    entries: int


class Checkpoints:
    """Takes the snapshots of a guest that was laid over an image.

    Attributes:
        last: What the last snapshot holds, if this one has taken it.
    """

    __slots__ = ("_baseline", "_machine", "_origin", "last")

    def __init__(self, machine: Machine, origin: Origin, baseline: Baseline) -> None:
        """Its memory is `baseline` now, which the last snapshot holds, or the image of `origin`."""
        self._machine, self._origin, self._baseline = machine, origin, baseline
        self.last: Held | None = None

    def holds(self, guest: Guest, token: Any = None, more: Mapping[str, Any] | None = None) -> Held:
        """What a snapshot of the guest as it is would hold besides pages.

        Args:
            guest: The guest.
            token: What its sink needs.
            more: What the host must remember besides.
        """
        machine = self._machine
        machine.random = guest.world.random
        state = machine.state()
        if token is not None:
            state["token"] = token
        if more is not None:
            state.update(more)
        return Held(len(guest.memory()), guest.globals(), state, machine.tail.entries)

    def changed(self, guest: Guest) -> dict[int, bytes]:
        """The pages of the guest that differ from the last snapshot."""
        return self._baseline.difference(guest.base, guest.memory())

    def proposal(
        self, guest: Guest, held: Held, changed: dict[int, bytes], *, name: str, policy: SnapshotPolicy, deflate: bool
    ) -> Proposal:
        """What to commit to keep all that can influence the guest, as blob `name`.

        Raises:
            GuestLimitError: The run would have more stored than it may.
        """
        machine, pages = self._machine, changed
        chain = machine.record.snapshot.deltas if machine.record.snapshot else ()
        if policy.folds(machine.record.snapshot):
            chain = ()
        if not chain:
            pages = self._baseline.fold(guest.base, guest.memory(), self._origin.image)
        parent = chain[-1][1] if chain else self._origin.digest
        delta = Delta(parent, held.size, runs_of(pages), b"".join(pages.values()), held.globals, held.state)
        address = Address(machine.tenant, machine.id, machine.run, "snapshot", name)
        proposal = machine.checkpoint(name, seal(address, encode_delta(delta), deflate=deflate), chain)
        allowed = machine.pinned.limits.stored
        if proposal.tail.stored > allowed:
            message = (
                f"with this snapshot {Key(machine.tenant, machine.id)} would have {proposal.tail.stored:,} bytes "
                f"stored and may have {allowed:,}; raise the limit and unblock, or terminate it"
            )
            raise GuestLimitError(message, "stored")
        return proposal

    def restored(self, guest: Guest) -> Restored:
        """What restoring the last snapshot gives, made of the guest itself, which is as that holds it."""
        assert self.last is not None, "the guest was kept"
        memory = guest.memory()
        runs = [(first * PAGE, (first + count) * PAGE) for first, count in changed(b"", memory)]
        image = image_of(len(memory), [(begin, memory[begin:end]) for begin, end in runs])
        return Restored(image, self.last.globals, self.last.state, self._baseline.touched)

    def kept(self, guest: Guest, held: Held, changed: dict[int, bytes]) -> None:
        """A snapshot of the guest as it is, which holds `changed` beyond the last one, is durable."""
        self.last = held
        self._baseline.kept(changed)
        rebased = self._baseline.rebased(guest.memory())
        if rebased is not None:
            guest.lay(rebased.image)
            self._baseline = rebased
