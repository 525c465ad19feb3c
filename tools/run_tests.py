"""Runs the tests: `make test` gives it the interpreters of all environments, the main one first.

Most tests wait more than they compute, so parts of them run at the same time, in processes of their own:

- on the main Python all of them: one process runs those on trio, one what else is marked `once` (long campaigns,
  documentation), another one the rest;
- on the main Python those of restoring, where pages are compared instead of mapped;
- on each other Python what is not marked `once`, on one of the event loops, in turn; the first of them has the oldest
  packages that are allowed.

What a process prints is shown when it has ended, and why it failed once more at the end: of a long log, that is what
is left. Exit code 1 where one of them fails.
"""

import itertools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

AT_ONCE = 3  # more processes than this would wait for the processor, and not for what they test
REASONS = 40  # lines of a failed process that are shown once more
TRIO, ELSE = "trio", "not trio"  # tests that run on an event loop have its name in theirs
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

    def run(self) -> tuple[int, str, float]:
        """Its exit code, what it has printed, and the seconds that it took."""
        begun = time.monotonic()
        done = subprocess.run(
            [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *self.words],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        return done.returncode, done.stdout, time.monotonic() - begun


def main() -> int:
    """Run all parts, the longest ones first."""
    first, *others = sys.argv[1:]
    parts = [
        Part(first, ["-m", "once", "-k", ELSE]),
        Part(first, ["-m", "not once", "-k", ELSE]),
        Part(first, ["-k", TRIO]),
        *(
            Part(python, ["-m", "not once", "-k", words])
            for python, words in zip(others, itertools.cycle([ELSE, "not asyncio"]), strict=False)
        ),
        Part(first, RESTORING, {"WASMAN_MEMORY": "compare"}),
    ]
    print(*parts, sep="\n", flush=True)
    failed: list[tuple[Part, str]] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun = {pool.submit(part.run): part for part in parts}
        for future in as_completed(begun):
            code, printed, seconds = future.result()
            print(f"\n{begun[future]}\n{printed}it took {seconds:.0f} s", flush=True)
            if code:
                failed.append((begun[future], printed))
    for part, printed in failed:
        print(f"\nFAILED: {part}", *why(printed), sep="\n")
    if not failed:
        print("Tested on Python", *map(version, [first, *others]))
    return 1 if failed else 0


def why(printed: str) -> Sequence[str]:
    """The lines of what a failed pytest has printed that say most: which tests failed, or the end where it had none."""
    lines = printed.splitlines()
    failures = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return (failures or lines)[-REASONS:]


def version(python: str) -> str:
    """What it is, in full."""
    command = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
