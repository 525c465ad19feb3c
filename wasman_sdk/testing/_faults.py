"""A store that fails at one of its operations, and is as good as the one behind it before and after that.

Operations are numbered as they are called: `Point("commit", 3)` is the third commit that is asked of this store, in
this run. What can become of one:

    dies before      the process is gone before the store hears of it
    dies after       it took effect, and the process is gone before it hears so
    error before     the store says that it did nothing, and did nothing
    error after      the store did it, and the answer is lost: an error arrives instead
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

import anyio
from attrs import frozen

from wasman_host.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wasman_host.store import Store

__all__ = ["Fault", "FaultyStore", "How", "Point"]

# Everything that a store promises, but for the clock, and for `open`, `close` and `serve`, which are no part of a run.
_NUMBERED = {
    "commit", "load", "former", "read", "blob", "put_module", "module", "put_image", "image", "send",
    "mail", "mailed", "claim", "beat", "leave", "watch", "list", "count",
}  # fmt: skip


class How(StrEnum):
    """What becomes of an operation."""

    DIES_BEFORE = "dies before"
    DIES_AFTER = "dies after"
    ERROR_BEFORE = "error before"
    ERROR_AFTER = "error after"

    @property
    def kills(self) -> bool:
        """Whether the process is gone."""
        return self in {How.DIES_BEFORE, How.DIES_AFTER}

    @property
    def passes(self) -> bool:
        """Whether the operation took effect."""
        return self in {How.DIES_AFTER, How.ERROR_AFTER}


@frozen(order=True)
class Point:
    """The n-th call, from 1, of one operation of a store."""

    operation: str
    n: int

    def __str__(self) -> str:
        return f"{self.operation} {self.n}"


@frozen
class Fault:
    """What happens, and at which operation."""

    point: Point
    how: How

    def __str__(self) -> str:
        return f"{self.point} {self.how.value}"


class FaultyStore:
    """See above. It stands where a `Store` is expected.

    Attributes:
        passed: The operations that were asked for, in order.
        struck: Whether the fault has come about.
        dead: Whether the process that uses this store is gone.
        die: Ends everything that uses this store.
        seen: Is called with the arguments of each operation that is passed on, before it is.
    """

    def __init__(
        self,
        store: Store,
        fault: Fault | None = None,
        *,
        counting: Callable[[str, tuple[Any, ...]], bool] = lambda *_: True,
    ) -> None:
        """Nothing has happened yet.

        Args:
            store: The store behind it.
            fault: What goes wrong, if anything does.
            counting: Which operations are numbered, by name and arguments; the others are passed on. All by default.
        """
        self.store = store
        self.passed: list[Point] = []
        self.struck = self.dead = False
        self.die: Callable[[], None] = lambda: None
        self.seen: Callable[[str, tuple[Any, ...]], None] = lambda *_: None
        self._fault = fault
        self._counting = counting
        self._counts: Counter[str] = Counter()

    def asked(self, operation: str) -> int:
        """How often an operation was asked for, of those that are numbered."""
        return self._counts[operation]

    @property
    def as_store(self) -> Store:
        """This object, as what it stands for."""
        return cast("Store", self)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        name = "load" if name == "load_in_turn" else name  # one that may serve several
        if name not in _NUMBERED:
            return method

        async def numbered(*given: Any, **named: Any) -> Any:
            if self.dead:  # a task that has not felt it yet
                await anyio.sleep_forever()
            if not self._counting(name, given):
                self.seen(name, given)
                return await method(*given, **named)
            self._counts[name] += 1
            point = Point(name, self._counts[name])
            self.passed.append(point)
            fault = self._fault if self._fault is not None and self._fault.point == point else None
            if fault is None:
                self.seen(name, given)
                return await method(*given, **named)
            self.struck = True
            if fault.how.passes:
                self.seen(name, given)
                await method(*given, **named)
            if fault.how.kills:
                self.dead = True
                self.die()
                await anyio.sleep_forever()
            raise StoreUnavailableError(f"the store is not there ({fault})")

        return numbered
