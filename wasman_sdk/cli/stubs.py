"""`wasman stubs`: typed Go handles of a worker's activities and signals."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wasman_sdk import Signal
from wasman_sdk._build.errors import BuildError
from wasman_sdk._build.stubs import stubs as written
from wasman_sdk.cli.errors import USAGE, Refused
from wasman_sdk.cli.objects import worker_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["stubs"]

_PACKAGE = re.compile(r"[a-z][a-z0-9_]*")


@click.command()
@click.argument("name", metavar="MODULE:ATTRIBUTE")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The Go file. Default: standard output."
)
@click.option("--package", default="main", show_default=True, help="The package of the Go file.")
def stubs(name: str, output: Path | None, package: str) -> None:
    """Write Go handles of what the worker MODULE:ATTRIBUTE has: a wrong argument is a compile error in the guest then.

    Each activity is a handle, with the types of its payload and its result; so is each Signal of the same Python
    module. The types of workflows' inputs and outputs are declared as well. Timeouts and retries stay the worker's.
    """
    if not _PACKAGE.fullmatch(package):
        raise Refused(f"{package!r} is no name of a Go package: lower-case letters and digits", USAGE)
    worker = worker_of(name, None)
    try:
        text = written(name, package, worker.activities, worker.workflows, _signals(name))
    except BuildError as error:
        raise Refused(str(error), USAGE) from None
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        raise Refused(f"{output} cannot be written: {error.strerror}", USAGE) from None


def _signals(name: str) -> Sequence[Signal[Any]]:
    """The signals of the module that the worker was found in, imported ones too, each once."""
    module = sys.modules[name.partition(":")[0]]
    return list(dict.fromkeys(one for one in vars(module).values() if isinstance(one, Signal)))
