"""Waiting for the end of a run: for people with a display, for programs silently."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from wasman_host.store.protocol import Key, Status
from wasman_sdk.cli.errors import BLOCKED, Refused
from wasman_sdk.cli.output import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wasman_sdk import Client, WorkflowDescription, WorkflowHandle

__all__ = ["closed", "progress"]

_LOOK = 0.5  # seconds between two looks at an instance where no hint comes


@contextlib.contextmanager
def progress(words: str) -> Iterator[Callable[[str], None]]:
    """Show that something takes long, and what is told of it, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(one_line(words))) as status:
        yield lambda told: status.update(escape(one_line(told)))


async def closed(client: Client, handle: WorkflowHandle[Any]) -> WorkflowDescription:
    """Wait until the run has ended. One that is blocked is not waited for: it is refused."""
    told = ""
    with progress(f"{handle.id}: starting") as tell:
        while True:
            description = await handle.describe()
            if description.status == Status.BLOCKED:
                raise Refused(f"{handle.id} is blocked: {description.reason}", BLOCKED)
            if description.closed is not None:
                return description
            if description.reason and description.reason != told:
                told = description.reason
                click.echo(f"wasman: {handle.id} is {description.status}: {one_line(told)}", err=True)
            words = [f"{description.id}: {description.status}", f"{description.log_entries:,} log entries"]
            words += [f"{pending.name}, attempt {pending.attempts}" for pending in description.pending[:1]]
            tell(", ".join(words))
            await client.store.watch(Key(client.tenant, handle.id), _LOOK)
