"""The past of one run, read from its store and checked: what it was started with, its log, its newest snapshot.

Everything here either gives what the record names, or says what is damaged; nothing is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, frozen

from wasman_host.codec import PayloadCodec, decoded
from wasman_host.errors import CorruptSnapshotError, GuestLimitError
from wasman_host.images import Restored
from wasman_host.machine import Machine
from wasman_host.oplog import EMPTY_CHAIN, open_entries
from wasman_host.payload import Payload
from wasman_host.seal import Address, TooLargeError, digest_of, unseal
from wasman_host.snapshot import decode_delta
from wasman_host.store.protocol import Key, Store

if TYPE_CHECKING:
    from wasman_host.images import Images, Origin
    from wasman_host.oplog import Entry
    from wasman_host.snapshot import Delta

__all__ = ["Past"]

_BESIDES = 16 * 1024 * 1024  # bytes that a snapshot may hold besides pages: globals, the host's state


@frozen
class Past:
    """Reads what happened to the run that `machine` stands for.

    Attributes:
        store: Where it is kept.
        machine: Its state machine, whose record and tail say what there must be.
        codec: What payloads were encoded by, or None.
    """

    store: Store
    machine: Machine
    codec: PayloadCodec | None = None

    @property
    def key(self) -> Key:
        """The instance."""
        return Key(self.machine.tenant, self.machine.id)

    async def load_given(self) -> None:
        """Read what the run was started with, as far as it is not here yet.

        Raises:
            CorruptSnapshotError: It is gone or damaged.
            GuestLimitError: It is more than the guest may be given.
        """
        machine, pinned = self.machine, self.machine.pinned
        machine.input = machine.input and await self.loaded(machine.input)
        machine.session = machine.session and await self.loaded(machine.session)
        for name, given in (("input", machine.input), ("session", machine.session)):
            if given is not None and given.size > pinned.limits.response:
                message = (
                    f"the {name} of {self.key} has {given.size:,} bytes and its guest may be given "
                    f"{pinned.limits.response:,}; raise the limit and unblock, or terminate it"
                )
                raise GuestLimitError(message, "response")

    async def since(self, start: int, chain: str | None) -> tuple[Entry, list[Entry]]:
        """Entry 0, and what is to be repeated: the entries from `start` on, entry 0 aside, checked against the tail.

        Args:
            start: The first entry that the newest snapshot does not hold; 0 where there is none.
            chain: Digest of the entry before that one, in hex, or None.

        Raises:
            CorruptSnapshotError: The log is not the one that the record was written over.
        """
        entries = await self._entries(start, None, EMPTY_CHAIN if chain is None else bytes.fromhex(chain))
        if start == 0:
            return entries[0], entries[1:]
        return (await self._entries(0, 1, EMPTY_CHAIN))[0], entries

    async def _entries(self, start: int, stop: int | None, after: bytes) -> list[Entry]:
        """The log from entry `start` on; where it is read to its end, it must be the one that the tail names."""
        tail = self.machine.tail
        rows = await self.store.read(self.machine.run, start, stop)
        expected = range(start, tail.entries if stop is None else stop)
        if [n for n, _ in rows] != list(expected):
            found = f"{len(rows)}, from {rows[0][0]} to {rows[-1][0]}" if rows else "none"
            message = (
                f"the log of run {self.machine.run} of {self.key} should hold entries {expected.start} to "
                f"{expected.stop - 1} and holds {found}; restore it from a backup, then unblock"
            )
            raise CorruptSnapshotError(message)
        entries = open_entries(self.key.tenant, self.key.id, self.machine.run, rows, after)
        ends = (entries[-1].time, digest_of(rows[-1][1])) if rows else (tail.time, after)
        if stop is None and ends != (tail.time, tail.chain):
            message = (
                f"the log of run {self.machine.run} of {self.key} is not the one that its record was written over; "
                f"restore it from a backup, then unblock"
            )
            raise CorruptSnapshotError(message)
        return entries

    async def restored(self, origin: Origin, images: Images) -> Restored | None:
        """The newest snapshot, if there is one: read, unless this process still holds it among `images`.

        Args:
            origin: The state of its module that it lies over.
            images: Where it is looked for and held.

        Raises:
            CorruptSnapshotError: A delta is missing or is not the one that the record names.
            GuestLimitError: It is more than the instance may have.
        """
        snapshot = self.machine.record.snapshot
        if snapshot is None:
            return None
        held = images.get(snapshot.deltas[-1][1])
        if held is not None:
            return held
        parent = origin.digest
        deltas: list[Delta] = []
        at_most = self.machine.pinned.limits.memory + _BESIDES
        for name, digest in snapshot.deltas:
            address = Address(self.key.tenant, self.key.id, self.machine.run, "snapshot", name)
            sealed = await self.store.blob(self.machine.run, name)
            try:
                data = unseal(address, sealed, at_most=at_most)
            except TooLargeError as error:
                message = (
                    f"{address} says that it holds {error.length:,} bytes, and no more than {at_most:,} fit into the "
                    f"memory that the instance may have, {self.machine.pinned.limits.memory:,}; raise the limit and "
                    f"unblock, or restore it from a backup"
                )
                raise GuestLimitError(message, "memory") from error
            delta = decode_delta(data, str(address))
            if sealed is None or digest_of(sealed).hex() != digest or delta.parent != parent:
                message = f"{address} is not the one that the record names; restore it from a backup, then unblock"
                raise CorruptSnapshotError(message)
            deltas.append(delta)
            parent = digest
        if deltas[-1].size > self.machine.pinned.limits.memory:
            message = (
                f"the snapshot of {self.key} holds {deltas[-1].size:,} bytes of memory and the instance may have "
                f"{self.machine.pinned.limits.memory:,}; raise the limit and unblock"
            )
            raise GuestLimitError(message, "memory")
        restored = Restored.of(origin, deltas)
        images.hold(parent, restored)
        return restored

    async def load_kept(self) -> None:
        """Read the result again that the guest had not taken when the snapshot was made.

        Raises:
            CorruptSnapshotError: It is gone or damaged.
        """
        kept = self.machine.kept
        if kept is None:
            return
        # The entry before it is what its digest comes after.
        rows = await self.store.read(self.machine.run, kept.entry - 1, kept.entry + 1)
        if [n for n, _ in rows] == [kept.entry - 1, kept.entry]:
            after = digest_of(rows[0][1])
            [entry] = open_entries(self.key.tenant, self.key.id, self.machine.run, rows[1:], after)
            for delivery in entry.deliveries:
                if delivery.operation == kept.operation and delivery.payload is not None:
                    self.machine.kept = evolve(kept, payload=await self.loaded(delivery.payload))
                    return
        message = (
            f"entry {kept.entry} of run {self.machine.run} of {self.key} is missing; restore it from a backup, "
            f"then unblock"
        )
        raise CorruptSnapshotError(message)

    async def loaded(self, payload: Payload) -> Payload:
        """The payload as it was, with its bytes. Raises `CorruptSnapshotError` and `PayloadCodecError`."""
        if payload.data is not None:
            return decoded(payload, self.codec)
        address = Address(self.key.tenant, self.key.id, self.machine.run, "payload", payload.blob)
        loaded = payload.with_data(
            unseal(address, await self.store.blob(self.machine.run, payload.blob), at_most=payload.size)
        )
        if len(loaded.content) != payload.size or Payload.of(loaded.content).digest != payload.stated:
            message = f"{address} is not the one that the log names; restore it from a backup, then unblock"
            raise CorruptSnapshotError(message)
        return decoded(loaded, self.codec)
