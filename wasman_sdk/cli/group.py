"""The group of all commands."""

from __future__ import annotations

import signal
from typing import Any

import click
from typing_extensions import override

from wasman_sdk.cli.errors import refused

__all__ = ["wasman"]


class _Commands(click.Group):
    """Turns what wasman raises into one line and an exit code."""

    @override
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise click.exceptions.Exit(128 + signal.SIGINT) from None
        except Exception as error:
            problem = refused(error)
            if problem is error:
                raise
            raise problem from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="wasman", prog_name="wasman", message="%(prog)s %(version)s")
def wasman() -> None:
    """Durable WebAssembly workflows: run them, look at them, mend them.

    Exit codes: 0 done, 1 the workflow ended otherwise, 2 what was given cannot be used, 3 the workflow is blocked,
    4 not found, taken, ended already, or the store cannot be used, 5 not ended yet, 70 a defect, 130 and 143 left by a
    signal.
    """
