"""Runs the tests: `make test` gives it the interpreters of all environments, the main one first.

Most tests wait more than they compute, so parts of them run at the same time, in processes of their own:

1. all of them on the main Python: one process runs those on trio, the other one all else;
2. those of restoring on the main Python where pages are compared instead of mapped, and on each other Python what is
   not marked `once`, on one of the event loops, in turn.

What a process prints is shown when it has ended; the first one is watched live. Exit code 1 where one of them fails.
"""

import itertools
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

ON_TRIO, ELSE = "trio", "not trio"  # tests that run on an event loop have its name in theirs
RESTORING = ["tests/engine/test_recovery.py", "tests/engine/test_abi_v0.py", "tests/samples/test_memory.py"]


@dataclass(frozen=True)
class Part:
    """One process of pytest."""

    python: str
    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join([*settings, self.python, "-m", "pytest", "-q", *self.words])


def main() -> int:
    """Run both stages; the second one also where the first has failed."""
    first, *others = sys.argv[1:]
    compared = Part(first, ["-p", "no:cacheprovider", *RESTORING], {"WASMAN_MEMORY": "compare"})
    elsewhere = [
        Part(python, ["-p", "no:cacheprovider", "-m", "not once", "-k", words])
        for python, words in zip(others, itertools.cycle([ELSE, "not asyncio"]), strict=False)
    ]
    failed = [*run([Part(first, ["-k", ELSE]), Part(first, ["-p", "no:cacheprovider", "-k", ON_TRIO])])]
    failed += run([compared, *elsewhere])
    for part in failed:
        print(f"FAILED: {part}")
    if not failed:
        print("Tested on Python", *map(version, [first, *others]))
    return 1 if failed else 0


def run(parts: Sequence[Part]) -> list[Part]:
    """Run them at the same time, the first one's output shown as it comes. Those that have failed."""
    begun = time.monotonic()
    running: list[tuple[Part, subprocess.Popen[bytes], IO[str]]] = []
    for part in parts:
        print(part, flush=True)
        output: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as its process
        process = subprocess.Popen(
            [part.python, "-m", "pytest", "-q", *part.words],
            env={**os.environ, **part.environment},
            stdin=subprocess.DEVNULL,
            stdout=None if not running else output,
            stderr=None if not running else output,
        )
        running.append((part, process, output))
    failed = []
    for part, process, printed in running:
        if process.wait():
            failed.append(part)
        printed.seek(0)
        print(f"\n{part}:\n{printed.read()}" if part is not parts[0] else "", end="", flush=True)
    print(f"these took {time.monotonic() - begun:.0f} s", flush=True)
    return failed


def version(python: str) -> str:
    """What it is, in full."""
    command = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
