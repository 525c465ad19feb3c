"""Fuzzing on demand.

    python -m tests.fuzz [--count 100000] [--seed 0]    a fifth generated, two fifths each flipped and arguments
    python -m tests.fuzz KIND SEED                      one case again

Generated modules that the corpus does not have are made by tools/wasm_smith, which needs cargo; without it there are
only those of the corpus.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.campaign import Report, campaign
from tests.fuzz.cases import KINDS, ROOT, corpus

SMITH = ROOT / ".cache" / "wasm_smith" / "release" / "wasman-smith"
PART = 1000  # cases of one child


def built() -> bool:
    """Whether the generator is there; it is built if it can be."""
    if shutil.which("cargo") is None:
        return False
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--target-dir", str(SMITH.parent.parent)]
    subprocess.run(command, check=True, cwd=ROOT / "tools" / "wasm_smith")
    return True


def part(kind: str, first: int, count: int) -> Report:
    """One child's cases."""
    with tempfile.TemporaryDirectory(prefix="wasman-fuzz-") as folder:
        if kind == "generated" and first + count > len(corpus()):
            subprocess.run([SMITH, folder, str(first), str(count)], check=True)
        return campaign(kind, first, count, Path(folder))


def main() -> int:
    """Run what was asked for; 1 if something failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kind", nargs="?", choices=list(KINDS))
    parser.add_argument("case", nargs="?", type=int)
    parser.add_argument("--count", type=int, default=100_000, help="cases in all")
    parser.add_argument("--seed", type=int, help="the first case of each kind; a random one if not said")
    asked = parser.parse_args()
    if asked.kind:
        if asked.case is None:
            parser.error("name the case as well")
        if asked.kind == "generated" and asked.case >= len(corpus()) and not built():
            parser.error(f"the corpus has modules 0 to {len(corpus()) - 1}; others need cargo")
        report = part(asked.kind, asked.case, 1)
        print(report, *report.failures, sep="\n")
        return bool(report.failures)
    first = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    counts = {"generated": asked.count // 5, "flipped": 2 * asked.count // 5, "arguments": 2 * asked.count // 5}
    firsts = dict.fromkeys(counts, first)
    if not built():
        print("cargo is not on this machine: only the generated modules of the corpus are run")
        firsts["generated"], counts["generated"] = 0, len(corpus())
    print(f"{asked.count} cases from number {first} of each kind", flush=True)
    failures = 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = [
            threads.submit(part, kind, begin, min(PART, firsts[kind] + count - begin))
            for kind, count in counts.items()
            for begin in range(firsts[kind], firsts[kind] + count, PART)
        ]
        for future in parts:
            report = future.result()
            print(report, *report.failures, sep="\n", flush=True)
            failures += len(report.failures)
    print(f"{failures} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
