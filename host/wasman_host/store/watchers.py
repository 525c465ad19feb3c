"""Who waits for which instance, within one process. Hints only: a lost one costs time, never correctness."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from wasman_host.wake import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wasman_host.store.protocol import Key

__all__ = ["Visible", "Watchers"]

_REMEMBERED = 10_000
Visible: TypeAlias = tuple[str, str, int]  # run, status, unread mail


class Watchers:
    """Waiting tasks by key, so that a commit wakes those of its own key and not all others.

    A step of a running instance is nothing that others could see, so it wakes nobody: what wakes those who watch a key
    is another run, status or mail, and what wakes those who watch for anything is what a worker may take or must read.

    It also remembers at which state this process last read a key. A change that fell between the reading and the
    watching is then seen when the watching starts, and a foreign commit wakes only those whose key it moved.
    """

    def __init__(self) -> None:
        self._keys: dict[Key, set[Answer[None]]] = {}
        self._anything: set[Answer[None]] = set()
        self._known: dict[Key, tuple[Visible | None, int]] = {}  # and when that was
        self._time = 0  # counts the moments from which on whoever watches only then is not told any more
        self._made: set[Key] = set()  # by this process, at the last of them
        self._watched: Answer[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._keys or self._anything)

    @property
    def keys(self) -> list[Key]:
        """The keys that somebody watches."""
        return list(self._keys)

    def saw(self, key: Key, state: Visible | None) -> None:
        """Somebody is given the key at `state`, or is told that it is not there (None)."""
        if len(self._known) >= _REMEMBERED:
            self._known.clear()  # those that are forgotten are woken once too often
        self._known[key] = (state, self._time)

    def made(self, key: Key) -> None:
        """This process has just made the key: as good as seeing it, where nobody has seen that it was not there."""
        if key not in self._known:
            self._made.add(key)

    def passes(self) -> None:
        """This process has committed something, or is about to look for what others have."""
        self._time += 1
        self._made.clear()

    def is_fresh(self, key: Key) -> bool:
        """Whether this process has seen or made the key so lately that of any move of it since then it is still told.

        Its own commits tell of moves as they happen. Those of others are told of by looks, of which there was none.
        """
        if key in self._made:
            return True
        known = self._known.get(key)
        return known is not None and known[1] == self._time

    def moved(self, key: Key, state: Visible | None) -> bool:
        """Whether the key, now at `state`, is not where this process last saw it."""
        known = self._known.get(key)
        return known is not None and known[0] != state

    def hint(self, keys: Iterable[Key], *, claimable: bool) -> None:
        """Wake who watches one of the keys and, where something is claimable or mailed, who watches anything."""
        if self._keys:
            for key in keys:
                self._wake(self._keys.get(key, ()))
        if claimable:
            self._wake(self._anything)

    def foreign(self, states: Mapping[Key, Visible]) -> None:
        """Another process committed something, after which those of the watched keys that exist are at `states`."""
        for key, answers in self._keys.items():
            state = states.get(key)
            known = self._known.get(key)
            if known is None or known[0] != state:
                self._wake(answers)
                self.saw(key, state)
        self._wake(self._anything)

    def wake_all(self) -> None:
        """The store is closed: whoever watches looks again, and finds that out."""
        for answers in list(self._keys.values()):
            self._wake(answers)
        self._wake(self._anything)

    @staticmethod
    def _wake(answers: Iterable[Answer[None]]) -> None:
        for answer in answers:
            answer.set(None)

    async def watch(self, key: Key | None, timeout: float) -> None:
        """Wait for a hint, at most `timeout` seconds."""
        answer: Answer[None] = Answer()
        answers = self._anything if key is None else self._keys.setdefault(key, set())
        answers.add(answer)
        if self._watched is not None:
            self._watched.set(None)
        try:
            await answer.within(timeout)
        finally:
            answers.discard(answer)
            if key is not None and not answers and self._keys.get(key) is answers:
                del self._keys[key]

    async def watched(self) -> None:
        """Wait until somebody watches."""
        while not self:
            # Always a new one: an unsettled one may be of an event loop that has ended.
            self._watched = Answer()
            await self._watched.wait()
