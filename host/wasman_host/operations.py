"""What a guest of ABI v1 has asked for and was not answered yet. No io; all of it is part of every snapshot.

A guest that is restored does not ask again: what it waits for is known from here, requests included.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from wasman_host.guest.abi_v1 import (
    CallCommand,
    CancelCommand,
    CompleteCommand,
    FailCommand,
    MalformedError,
    ReceiveCommand,
    commands,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wasman_host.guest.abi_v1 import Exchange
    from wasman_host.machine import Machine
    from wasman_host.oplog import Delivery

__all__ = ["Asked", "Operations"]


class Asked(NamedTuple):
    """An operation without an answer.

    Attributes:
        number: Its number within the run.
        kind: "call" or "receive".
        name: The activity's name, or the signal's.
        request: What the activity is sent.
        options: In what it differs from what the application has registered, JSON, or empty.
        asked: When the guest asked, by its own time, ns since 1970.
    """

    number: int
    kind: str
    name: str
    request: bytes
    options: bytes
    asked: int


class Operations:
    """The open operations of one run.

    Attributes:
        open: Those without an answer, by number, in the order in which they were asked for.
        cancelled: Calls among them that the guest wants to be cut short.
        end: The command that ended the run, if one did.
        deadline: When the guest wants a turn though nothing has happened, ns since 1970, or -1.
    """

    __slots__ = ("cancelled", "deadline", "end", "open")

    def __init__(self) -> None:
        self.open: dict[int, Asked] = {}
        self.cancelled: set[int] = set()
        self.end: CompleteCommand | FailCommand | None = None
        self.deadline = -1

    def take(self, given: bytes | memoryview, machine: Machine) -> None:
        """Take the commands in `given`, in order, up to one that ends the run.

        Raises:
            MalformedError: They do not follow the ABI.
            NondeterminismError: They are not those that the log holds at this place.
        """
        for command in commands(given):
            if self.end is not None:
                return
            if type(command) is CallCommand:
                number, name, options, request = command
                self._check_number(number, machine)
                sent = request if not options else b"\0".join((options, request))
                machine.issue("call", name, hashlib.sha256(sent).hexdigest())
                self.open[number] = Asked(number, "call", name, request, options, machine.time)
            elif isinstance(command, ReceiveCommand):
                number, name = command
                self._check_number(number, machine)
                machine.issue("receive", name, "")
                self.open[number] = Asked(number, "receive", name, b"", b"", machine.time)
            elif isinstance(command, CancelCommand):
                self._cancel(command.operation, machine)
            elif isinstance(command, (CompleteCommand, FailCommand)):
                self.end = command

    @staticmethod
    def _check_number(number: int, machine: Machine) -> None:
        if number != machine.operations:
            raise MalformedError(f"asks for operation {number}, and its next one is {machine.operations}")

    def _cancel(self, number: int, machine: Machine) -> None:
        if number >= machine.operations:
            raise MalformedError(f"cancels operation {number}, for which it has not asked")
        known = self.open.get(number)
        if known is None:
            return  # it was answered meanwhile
        if known.kind == "receive":
            del self.open[number]
        else:
            self.cancelled.add(number)

    def answered(self, deliveries: Iterable[Delivery]) -> None:
        """What is delivered is no longer open."""
        for delivery in deliveries:
            if delivery.operation >= 0:
                self.open.pop(delivery.operation, None)
                self.cancelled.discard(delivery.operation)

    def calls(self) -> list[Asked]:
        """The open calls."""
        return [asked for asked in self.open.values() if asked.kind == "call"]

    def receives(self) -> list[Asked]:
        """The open receives, the oldest first."""
        return [asked for asked in self.open.values() if asked.kind == "receive"]

    def waits_for(self) -> str:
        """What is open, in words."""
        parts = [
            ("activity", sorted({asked.name for asked in self.calls()})),
            ("signal", sorted({asked.name for asked in self.receives()})),
        ]
        return " and ".join(f"{what} {', '.join(map(repr, names))}" for what, names in parts if names)

    # Snapshots

    def state(self, exchange: Exchange) -> dict[str, Any]:
        """What a snapshot must hold of it, and of answers that the guest has not taken."""
        return {
            "open": [
                [asked.number, asked.kind, asked.name, _text(asked.request), _text(asked.options), asked.asked]
                for asked in self.open.values()
            ],
            "cancelled": sorted(self.cancelled),
            "deadline": self.deadline,
            "end": self._end(),
            "untaken": [[number, _text(data), failed] for number, (data, failed) in exchange.untaken.items()],
        }

    def _end(self) -> list[str] | None:
        match self.end:
            case CompleteCommand(result):
                return ["complete", _text(result)]
            case FailCommand(failure):
                return ["fail", _text(failure)]
        return None

    @classmethod
    def of_state(cls, state: Mapping[str, Any], exchange: Exchange) -> Operations:
        """The inverse of `state`."""
        found = cls()
        for number, kind, name, request, options, asked in state["open"]:
            found.open[number] = Asked(number, kind, name, _data(request), _data(options), asked)
        if state["end"] is not None:
            kind, said = state["end"]
            found.end = CompleteCommand(_data(said)) if kind == "complete" else FailCommand(_data(said))
        found.cancelled = set(state["cancelled"])
        found.deadline = state["deadline"]
        exchange.untaken = {number: (_data(data), failed) for number, data, failed in state["untaken"]}
        return found


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _data(text: str) -> bytes:
    return base64.b64decode(text)
