"""Guests that go on at the same time are resumed in a row.

A step of an instance runs through more code than the nearer caches of a processor hold. Where one transaction lets
many instances go on, each of them would read all of it from memory again. So they go through a step's stages together:
all are given their answers, then all guests run, then all activities are called, then all entries are made.
Source: J. Larus and M. Parkes, "Using cohort scheduling to enhance server performance", USENIX 2002.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wasman_host.wake import turn

if TYPE_CHECKING:
    from wasman_host.guest.live import Ended, Exceeded, Guest, Parked, Trapped, Yielded

__all__ = ["Cohort"]


class Cohort:
    """The guests of one worker that are to be resumed in the next turn of its event loop."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due: dict[Guest, Parked | Yielded | Ended | Trapped | Exceeded | BaseException | None] = {}

    async def resume(self, guest: Guest) -> Parked | Yielded | Ended | Trapped | Exceeded:
        """As `guest.resume()`, in the next turn and together with all others that are to be resumed then."""
        due = self._due
        due[guest] = None
        try:
            await turn()
            if due[guest] is None:  # the first one resumes them all
                for other, outcome in due.items():
                    if outcome is None:
                        due[other] = _outcome(other)
        finally:
            result = due.pop(guest)
        assert result is not None, "it was resumed"
        if isinstance(result, BaseException):
            raise result
        return result


def _outcome(guest: Guest) -> Parked | Yielded | Ended | Trapped | Exceeded | BaseException:
    try:
        return guest.resume()
    except BaseException as error:  # noqa: BLE001  it is raised where it belongs
        return error
