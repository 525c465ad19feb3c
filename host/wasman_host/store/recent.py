"""Instances as one connection has last written or read them, for as long as nobody else can have changed them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.store.protocol import Key, Stored

__all__ = ["Recent"]

_MOST = 512  # instances: what is read again is read soon, as by those who wait for one that has just ended
_LONGEST = 16 * 1024  # bytes of a record; larger ones are read again


class Recent:
    """What `Stored` is known of keys. All of it is forgotten as soon as the number given with a look is another one."""

    def __init__(self) -> None:
        self._stored: dict[Key, Stored] = {}
        self._written: dict[Key, Stored] = {}  # by a transaction that is not on disk yet
        self._version = -1

    def looked(self, version: int) -> None:
        """`version` was just read: another one than before wherever another connection has committed since."""
        if version != self._version:
            self._stored.clear()
            self._version = version

    def get(self, key: Key, version: int) -> Stored | None:
        """What is known of the key; `version` as of `looked`."""
        self.looked(version)
        return self._stored.get(key)

    def known(self, key: Key) -> Stored | None:
        """What was known of the key at the last look, or is by what this connection has written since."""
        return self._stored.get(key)

    def read(self, stored: Stored) -> None:
        """It was read after the last `get`."""
        if len(stored.record) <= _LONGEST:
            self._stored.pop(stored.key, None)
            self._stored[stored.key] = stored
            if len(self._stored) > _MOST:
                del self._stored[next(iter(self._stored))]

    def written(self, stored: Stored) -> None:
        """This connection writes it, in a transaction that is still open."""
        self._written[stored.key] = stored

    def forget(self, key: Key) -> None:
        """This connection writes something else of the key."""
        self._stored.pop(key, None)
        if self._written:
            self._written.pop(key, None)

    def landed(self) -> Sequence[Stored]:
        """What was written is on disk: all of it."""
        if not self._written:
            return ()
        landed = tuple(self._written.values())
        for stored in landed:
            self.read(stored)
        self._written.clear()
        return landed

    def undone(self) -> None:
        """It was rolled back."""
        self._written.clear()
