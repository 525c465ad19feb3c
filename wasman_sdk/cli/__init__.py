"""The command `wasman`.

Results go to stdout, everything else to stderr. Exit codes, for scripts:

    0    done; for `run`: the workflow completed
    1    `run`: the workflow failed, was cancelled, was terminated or timed out
    2    what was given cannot be used: options, names, input, a module
    3    `run`: the workflow is blocked; it keeps all its data
    4    no such instance, an id that is taken, a run that has ended, a store that cannot be used, damage
    130  `run`: left by SIGINT; 143 by SIGTERM. The workflow goes on where a worker is
"""

from __future__ import annotations

import os
import sys

from wasman_sdk.cli.group import wasman
from wasman_sdk.cli.look import list_, show
from wasman_sdk.cli.run import run
from wasman_sdk.cli.steer import terminate, unblock
from wasman_sdk.cli.worker import worker

__all__ = ["main", "wasman"]

for command in (run, worker, list_, show, terminate, unblock):
    wasman.add_command(command)


def main() -> None:
    """The command `wasman`."""
    try:
        wasman(prog_name="wasman")
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
