"""`wasman new`: a project to begin with."""

from __future__ import annotations

from pathlib import Path

import click

from wasman_sdk._build.errors import BuildError
from wasman_sdk._build.scaffold import write_project
from wasman_sdk.cli.errors import USAGE, Refused

__all__ = ["new"]


@click.command()
@click.argument("folder", metavar="NAME", type=click.Path(path_type=Path))
def new(folder: Path) -> None:
    """Write a project into the new folder NAME: a guest in Go with its test, and an application that runs it.

    Its README.md says what to do with it. A folder that is there already is left alone.
    """
    try:
        files = write_project(folder)
    except BuildError as error:
        raise Refused(str(error), USAGE) from None
    for file in files:
        click.echo(f"{folder / file}")
    click.echo(f"\ncd {folder} && wasman build guest && go -C guest test && python app.py")
