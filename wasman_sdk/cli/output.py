"""What is printed: JSON for programs, tables and plain text for people, logs on stderr."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from typing_extensions import override

from wasman_host.store import redacted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "log_to_stderr",
    "moment",
    "one_line",
    "plain",
    "print_fields",
    "print_json",
    "print_line",
    "print_table",
    "write_whole",
]

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Text that others chose, safe to print: no control characters, and no password of a URL."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), redacted(text))


def one_line(text: str) -> str:
    """The first line of a message; a backtrace may follow it, which `show` prints."""
    return plain(text.partition("\n")[0])


def write_whole(output: Path, data: bytes) -> None:
    """Write a file as a whole: who reads it meanwhile sees the old one or the new one. Raises `Refused`."""
    from wasman_sdk.cli.errors import USAGE, Refused

    new = output.with_name(f"{output.name}.new")
    try:
        new.write_bytes(data)
        new.replace(output)
    except OSError as error:
        raise Refused(f"{output} cannot be written: {error.strerror}", USAGE) from None


class _Stderr(logging.Handler):
    """Looks stderr up at each line: a progress display may stand in for it."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(plain(self.format(record)), err=True)


def log_to_stderr(level: int) -> None:
    """Show logs of this level and above."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def moment(time: datetime | None) -> str:
    """A time for people, to the second; "" for none."""
    return "" if time is None else time.strftime("%Y-%m-%d %H:%M:%S")


def print_json(value: Any) -> None:
    """JSON for programs, times as ISO 8601."""

    def other(one: Any) -> str:
        assert isinstance(one, datetime), f"no JSON for {one!r}"
        return one.isoformat()

    click.echo(redacted(json.dumps(value, default=other, indent=2, ensure_ascii=False)))


def print_line(value: Any) -> None:
    """JSON of one line: what a workflow gave."""
    click.echo(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def print_fields(fields: Mapping[str, str]) -> None:
    """Names and what they stand for, those that stand for nothing left out."""
    for name, value in fields.items():
        if value:
            first, *more = value.splitlines()
            click.echo("\n".join([f"{name:12}{plain(first)}", *(f"{'':12}{plain(line)}" for line in more)]))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as the terminal; into a pipe, nothing is cut off."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Into a pipe nothing is cut off.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=100_000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in head:
        table.add_column(title, justify="right" if title in {"LOG", "BYTES", "OPERATION", "ENTRY"} else "left")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    with console.capture() as captured:
        console.print(table)
    click.echo("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()), nl=False)
