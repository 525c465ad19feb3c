"""Errors as scripts and people get them: one line on stderr, and an exit code."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import click
from typing_extensions import override

from wasman_sdk import InvalidArgumentError, ModuleError, RunEndedError, WasmanError
from wasman_sdk.cli.output import one_line

__all__ = ["BLOCKED", "DEFECT", "ENDED", "IMPOSSIBLE", "UNFINISHED", "USAGE", "Refused", "refused"]

ENDED, USAGE, BLOCKED, IMPOSSIBLE, UNFINISHED = 1, 2, 3, 4, 5
DEFECT = 70  # EX_SOFTWARE of sysexits.h


class Refused(click.ClickException):
    """One line on stderr, and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance

    @override
    def show(self, file: Any = None) -> None:
        click.echo(f"wasman: {one_line(self.message)}", file=file, err=True)


def _leaves(error: BaseException) -> list[BaseException]:
    """Task groups wrap what happened in them; this is what happened."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def refused(error: BaseException) -> BaseException:
    """What to raise for an error: a line and a code."""
    leaves = _leaves(error)
    for leaf in leaves:
        if isinstance(leaf, click.ClickException | click.exceptions.Exit):
            return leaf
        if isinstance(leaf, InvalidArgumentError | ModuleError):
            return Refused(str(leaf), USAGE)
        if isinstance(leaf, WasmanError):
            return Refused(str(leaf), ENDED if isinstance(leaf, RunEndedError) else IMPOSSIBLE)
    if "WASMAN_TRACEBACK" in os.environ:
        return error
    first = leaves[0]
    if isinstance(first, OSError) and first.strerror:
        return Refused(f"{first.strerror}: {first.filename}" if first.filename else first.strerror, IMPOSSIBLE)
    frames = traceback.extract_tb(first.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    message = f"{type(first).__name__}: {first}".partition("\n")[0]
    return Refused(f"{message}{where}; with WASMAN_TRACEBACK=1 the whole traceback is shown", DEFECT)
