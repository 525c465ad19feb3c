"""What an object store must be able to do for `ObjectStore`: four primitives, and three hints.

Names are words joined by slashes, in ASCII. Each primitive is atomic: nobody ever reads half an object. A `put` or a
`mark` is durable when it returns. A call that raises `StoreUnavailableError` may have taken effect all the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from attrs import field, frozen

from wasman_host.seal import Address, seal

if TYPE_CHECKING:
    import builtins

__all__ = ["NOTHING", "Backend", "Found"]

# What an object holds of which only the name counts: a gzip file of no bytes.
NOTHING = seal(Address("", "", "", "mark"), b"")


@frozen
class Found:
    """An object, and what tells this content from any other that was there or will be (a quoted digest, a counter)."""

    data: bytes = field(repr=False)
    etag: str


class Backend(ABC):
    """Where objects are kept.

    Attributes:
        place: What errors call it, such as the path of the folder.
        read_only: Whether every write raises `StoreUnavailableError`.
    """

    place: str
    read_only: bool = False

    @abstractmethod
    async def open(self) -> None:
        """Open or create it; raises `StoreSchemaError` and `StoreUnavailableError`."""

    @abstractmethod
    async def close(self) -> None:
        """Give up what is held. May be called twice."""

    # -- the primitives -----------------------------------------------------------------------------------------------

    @abstractmethod
    async def get(self, name: str) -> Found | None:
        """The object, durable as it is given, or None where there is none."""

    @abstractmethod
    async def put(self, name: str, data: bytes, match: str | None) -> str | None:
        """Write the object if it has the etag `match`, or if it is absent where that is None.

        Returns:
            The new etag, or None where the condition does not hold and nothing was written.
        """

    @abstractmethod
    async def list(self, folder: str, start: str = "") -> list[str]:
        """What stands in `folder` and begins with `start`, sorted: objects, and folders with a slash behind them."""

    @abstractmethod
    async def delete(self, name: str, match: str | None = None, *, sure: bool = False) -> bool:
        """Remove the object if it is there, and has the etag `match` where one is given.

        It is durable only where it has to be `sure`.

        Returns:
            Whether it was removed, or was not there at all.
        """

    # -- what follows from them, and can be done cheaper --------------------------------------------------------------

    async def mark(self, name: str, *, sure: bool = True) -> None:
        """Make an object of which only the name counts, unless it is there.

        It is durable only where it has to be `sure`.
        """
        del sure
        await self.put(name, NOTHING, None)

    async def walk(self, folder: str) -> builtins.list[str]:
        """The names of all objects below `folder`, without it."""
        names: list[str] = []
        for name in await self.list(folder):
            if name.endswith("/"):
                names += [name + inner for inner in await self.walk(f"{folder}/{name[:-1]}")]
            else:
                names.append(name)
        return names

    # -- hints ---------------------------------------------------------------------------------------------------------

    async def prune(self, folder: str) -> None:  # noqa: B027  only a folder of files can be empty
        """Remove a folder that may be empty, and what was never finished in it."""

    async def pulse(self) -> object:
        """Tell all who look at `pulse_seen` that something changed; what they will see."""
        return None

    async def pulse_seen(self) -> object:
        """What the last `pulse` of anybody left, or None where nobody can tell."""
        return None

    def has_died(self, worker: str) -> bool:
        """Whether it is certain that the process of a worker that was registered is gone."""
        del worker
        return False

    def register(self, worker: str) -> None:  # noqa: B027
        """This process is that worker now: `has_died` is to find out when it dies."""

    def unregister(self, worker: str, *, delete: bool) -> None:  # noqa: B027
        """The worker is nobody any more."""
