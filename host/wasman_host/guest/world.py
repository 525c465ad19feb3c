"""What a guest sees of the world: a clock that stands still between deliveries, seeded randomness, and its output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from attrs import define, field

__all__ = ["World", "initial_world"]

_INITIAL_TIME = 946_684_800 * 10**9  # 2000-01-01: every instance of a module is initialised at the same moment
_REMEMBERED = 100  # lines
_LINE = 64 * 1024  # bytes of output kept for one log line
_BLOCK = 4096  # random bytes made at once: a guest may ask for hundreds of megabytes in one call


def _discard(_stream: int, _line: str) -> None:
    """Output of an initialisation belongs to no run."""


@define
class World:
    """The virtual world of one guest.

    Attributes:
        seed: What its random bytes are drawn from.
        time: Its clock, ns since 1970.
        random: How many random bytes it has drawn.
        output: Called with (1 for stdout or 2 for stderr, line) for every finished line.
        initialising: Whether the module is being initialised: nothing may wait or call then.
        wanted_host: A host call that was made while initialising, or "".
        idle_deadline: When a scheduler that sleeps in `poll_oneoff` wants to be woken, ns since 1970; -1 for never.
        said: The last lines that it wrote, to stdout (TinyGo) or stderr (Go): a guest that panics says so there.
        turns: Whether the guest returns to its host when it has nothing to do: it never sleeps by itself then.
    """

    seed: bytes
    time: int = 0
    random: int = 0
    output: Callable[[int, str], None] = _discard
    initialising: bool = False
    wanted_host: str = ""
    idle_deadline: int = -1
    turns: bool = False
    said: list[str] = field(factory=list)
    _partial: dict[int, bytearray] = field(factory=dict)
    _block: tuple[int, bytes] = (-1, b"")

    def draw(self, count: int) -> bytes:
        """The next random bytes: SHAKE128 of the seed and a counter, so any position can be taken up again."""
        out = bytearray()
        while len(out) < count:
            number, skip = divmod(self.random, _BLOCK)
            if self._block[0] != number:
                self._block = (number, hashlib.shake_128(self.seed + number.to_bytes(8, "little")).digest(_BLOCK))
            part = self._block[1][skip : skip + count - len(out)]
            out += part
            self.random += len(part)
        return bytes(out)

    def write(self, stream: int, data: bytes) -> None:
        """Collect output and hand on its lines; an endless line is cut."""
        partial = self._partial.setdefault(stream, bytearray())
        partial += data
        while (end := partial.find(b"\n")) >= 0 or len(partial) > _LINE:
            end = end if 0 <= end <= _LINE else _LINE
            self._say(stream, partial[:end].decode(errors="replace"))
            del partial[: end + (partial[end : end + 1] == b"\n")]

    def _say(self, stream: int, line: str) -> None:
        self.said.append(line)
        del self.said[:-_REMEMBERED]
        self.output(stream, line)

    def flush(self) -> None:
        """The guest has ended: hand on what it wrote behind its last line's end."""
        for stream, partial in self._partial.items():
            if partial:
                self._say(stream, partial.decode(errors="replace"))
                partial.clear()


def initial_world() -> World:
    """The world in which modules are initialised: the same for every instance, on every machine."""
    return World(seed=b"wasman initialisation", time=_INITIAL_TIME, initialising=True)
