"""What mail says: written, opened, and looked through for what a run must know."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from wasman_host.errors import CorruptSnapshotError
from wasman_host.machine import Terminating
from wasman_host.payload import Payload
from wasman_host.record import Cancel, KeptSignal
from wasman_host.seal import unseal
from wasman_host.store.protocol import Status
from wasman_host.stored import mail_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.store.protocol import Message

__all__ = ["SIGNAL", "DamagedMailError", "cancel_in", "ending", "signal_body", "signals_in"]

SIGNAL = "signal"  # the kind of mail


class DamagedMailError(CorruptSnapshotError):
    """Mail that cannot be read. It is taken off the instance, which would be claimed for it again and again.

    Attributes:
        messages: (id, "damaged") of each message.
    """

    def __init__(self, message: str, messages: Sequence[tuple[str, str]]) -> None:
        super().__init__(message)
        self.messages = messages


def ending(messages: Sequence[Message]) -> Terminating | None:
    """How `messages` end the run, if one of them does.

    Raises:
        DamagedMailError: A message cannot be read.
    """
    terminating = None
    for message in messages:
        body = _opened(message)  # all of it: what cannot be read must not stay in the mail
        if message.kind == "terminate" and terminating is None:
            reason = str(json.loads(body)["reason"])
            terminating = Terminating(Status.TERMINATED, "terminate", reason, (message.id,))
    return terminating


def cancel_in(messages: Sequence[Message], run: str) -> Cancel | None:
    """The cancel of `run` among `messages`, the first one. Raises `DamagedMailError`."""
    for message in messages:
        if message.kind == "cancel":
            body = _body(message)
            if body["run"] == run:
                return Cancel(message.id, str(body["reason"]))
    return None


def signal_body(name: str, value: Payload) -> bytes:
    """What is sealed of a signal: one line of JSON, then the bytes of its value."""
    return b"\n".join((to_json({"name": name, "payload": value.as_json()}), value.content))


def signals_in(messages: Sequence[Message]) -> list[KeptSignal]:
    """The signals among `messages`, the oldest first. Raises `DamagedMailError`."""
    found = []
    for message in messages:
        if message.kind == SIGNAL:
            head, _, value = _opened(message).partition(b"\n")
            fields = json.loads(head)
            payload = Payload.of_json(fields["payload"]).with_data(value)
            found.append(KeptSignal(message.id, fields["name"], payload, message.sent))
    return found


def _body(message: Message) -> Any:
    return json.loads(_opened(message))


def _opened(message: Message) -> bytes:
    try:
        return unseal(mail_address(message.key, message.kind, message.id), message.body)
    except CorruptSnapshotError as error:
        raise DamagedMailError(str(error), [(message.id, "damaged")]) from error
