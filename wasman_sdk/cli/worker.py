"""`wasman worker`: work until a signal."""

from __future__ import annotations

import functools
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import click

from wasman_sdk.cli.objects import worker_of
from wasman_sdk.cli.options import store_option
from wasman_sdk.cli.output import log_to_stderr

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["run_to_its_end", "worker"]

T = TypeVar("T")


@click.command()
@click.argument("name", metavar="MODULE:ATTRIBUTE")
@store_option
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Written, with the process's id, as long as the worker takes instances up.",
)
@click.option("-q", "--quiet", is_flag=True, help="Warnings only; by default guests' output is shown as well.")
def worker(name: str, store: str | None, ready_file: Path | None, *, quiet: bool) -> None:
    """Run a worker until SIGINT or SIGTERM.

    Activities that have begun may end then; a second signal does not wait for them.

    MODULE:ATTRIBUTE is a Worker, or a function that makes one: it takes the store's URL, or nothing.
    """
    found = worker_of(name, store)  # before anything is logged: what is refused is one line
    log_to_stderr(logging.WARNING if quiet else logging.INFO)
    run_to_its_end(functools.partial(found.run, ready_file=ready_file))


def run_to_its_end(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives; it sees to signals itself."""
    try:
        return anyio.run(work)
    except KeyboardInterrupt:  # before the signals were taken over
        raise click.exceptions.Exit(128 + signal.SIGINT) from None
