"""The command `wasman`.

Results go to stdout, everything else to stderr. Exit codes, for scripts:

    0    done; for `run` and `result`: the workflow completed
    1    `run`, `result`: the workflow failed, was cancelled, terminated or timed out; `doctor`: something is broken
    2    what was given cannot be used: options, names, input, a module
    3    `run`, `result`: the workflow is blocked; it keeps all its data
    4    no such instance, an id that is taken, a run that has ended, a store that cannot be used, damage
    5    `result --timeout`: the workflow has not ended yet
    70   a defect of wasman, or of what it was given to import; WASMAN_TRACEBACK=1 shows where
    130  left by SIGINT; 143 by SIGTERM. A workflow goes on where a worker is
"""

from __future__ import annotations

import os
import sys

from wasman_sdk.cli.build import build
from wasman_sdk.cli.deploy import deploy
from wasman_sdk.cli.doctor import doctor
from wasman_sdk.cli.group import wasman
from wasman_sdk.cli.inspect import inspect
from wasman_sdk.cli.look import list_, show
from wasman_sdk.cli.new import new
from wasman_sdk.cli.result import result
from wasman_sdk.cli.run import run
from wasman_sdk.cli.start import start
from wasman_sdk.cli.steer import cancel, signal, terminate, unblock
from wasman_sdk.cli.stubs import stubs
from wasman_sdk.cli.worker import worker

__all__ = ["main", "wasman"]

for command in (
    run, start, worker, list_, show, result, signal, cancel, terminate, unblock, deploy,
    new, build, stubs, inspect, doctor,
):  # fmt: skip
    wasman.add_command(command)


def main() -> None:
    """The command `wasman`."""
    try:
        wasman(prog_name="wasman")
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
