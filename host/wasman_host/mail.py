"""What mail says: opened, and looked through for what a run must know."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from wasman_host.errors import CorruptSnapshotError
from wasman_host.machine import Terminating
from wasman_host.record import Cancel
from wasman_host.seal import unseal
from wasman_host.store.protocol import Status
from wasman_host.stored import mail_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wasman_host.store.protocol import Message

__all__ = ["DamagedMailError", "cancel_in", "ending"]


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
        body = _body(message)
        if message.kind == "terminate" and terminating is None:
            terminating = Terminating(Status.TERMINATED, "terminate", str(body["reason"]), (message.id,))
    return terminating


def cancel_in(messages: Sequence[Message], run: str) -> Cancel | None:
    """The cancel of `run` among `messages`, the first one. Raises `DamagedMailError`."""
    for message in messages:
        if message.kind == "cancel":
            body = _body(message)
            if body["run"] == run:
                return Cancel(message.id, str(body["reason"]))
    return None


def _body(message: Message) -> Any:
    address = mail_address(message.key, message.kind, message.id)
    try:
        return json.loads(unseal(address, message.body))
    except CorruptSnapshotError as error:
        raise DamagedMailError(str(error), [(message.id, "damaged")]) from error
