"""Breaks wasman in one place after the other, and expects the test that is named for it to fail.

    python tools/run_mutants.py [--look] [R04 N03 ...]

A mutant is a unified diff in tests/defects/mutants. R01 to R13 bring the defects of the original back, and P01 leaves a
sync out: R05a.patch must make a test of tests/defects fail whose name begins with test_r05a, and so must
R05a-anything.patch. The others, N01 and so on, are defects that this core could have; each names its test in its first
line, `Test: FILE::NAME`. A mutant is applied to a copy of the tree, so nothing here changes. Before that all these
tests must pass on the copy as it is. `--look` runs nothing: it says whether each patch fits, and its test is there.

Exit codes: 1 a defect went unnoticed, 2 a patch no longer fits, or a test fails without it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = ROOT / "tests" / "defects" / "mutants"
COPIED = ("host", "wasman_sdk", "samples", "tests", "pyproject.toml")
PATIENCE = 300  # seconds for the tests of one mutant


def main() -> int:
    """Run the chosen mutants, or all of them."""
    every = sorted(patch.stem for patch in MUTANTS.glob("*.patch"))
    named = [argument for argument in sys.argv[1:] if argument != "--look"]
    chosen = [name for name in every if not named or name.startswith(tuple(named))]
    problems: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="wasman-mutants-") as folder:
        plain = _copy(Path(folder) / "plain")
        places = sorted({place for name in chosen for place in _place(name)[:1]})
        if "--look" in sys.argv:
            return _looked_at(plain, chosen, places)
        done = _test(plain, places)
        if done.returncode:
            print(done.stdout)
            print("The tests fail without any mutant.")
            return 2
        for name in chosen:
            copy = _copy(Path(folder) / name)
            problem, caught = _unapplied(copy, name), ""
            if not problem:
                problem, caught = _noticed(copy, name)
            shutil.rmtree(copy)
            print(f"{name:32} {problem or caught}", flush=True)
            if problem:
                problems[name] = problem
    missing = {f"R{n:02}" for n in range(1, 14)} - {name[:3] for name in chosen}
    if missing and not named:
        problems["missing"] = ", ".join(sorted(missing))
        print("no mutant for", problems["missing"])
    print(f"{len(chosen) - len(problems)} of {len(chosen)} mutants caught")
    if any(problem.startswith("does not apply") for problem in problems.values()):
        return 2
    return 1 if problems else 0


def _looked_at(plain: Path, chosen: Sequence[str], places: Sequence[str]) -> int:
    """Whether each patch fits and each test is there, by exit code."""
    unfit = [f"{name} {problem}" for name in chosen if (problem := _unapplied(plain, name, "--check"))]
    done = _test(plain, places, more="--collect-only")
    print("\n".join(unfit) or "every mutant applies")
    if done.returncode:
        print(f"{done.stdout[-2000:]}{done.stderr[-2000:]}\nThe tests that are named cannot all be run.")
    return 2 if unfit or done.returncode else 0


def _copy(copy: Path) -> Path:
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def _place(name: str) -> tuple[str, str]:
    """Where the test of a mutant is, for pytest, and how its name begins."""
    first = (MUTANTS / f"{name}.patch").read_text().partition("\n")[0]
    if first.startswith("Test: "):
        place = first.removeprefix("Test: ")
        return place, place.rpartition("::")[2]
    return "tests/defects", f"test_{name.partition('-')[0].lower()}"


def _test(copy: Path, places: Sequence[str], word: str = "", more: str = "-x") -> subprocess.CompletedProcess[str]:
    """Run the tests at these places whose names hold `word`."""
    environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'host'}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", more, "-p", "no:cacheprovider", *places, "-k", word]
    return subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def _unapplied(copy: Path, name: str, *options: str) -> str:
    # Where the copy lies inside a repository, git would look for the files from its root on.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    command = ["git", "apply", *options, str(MUTANTS / f"{name}.patch")]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    return f"does not apply: {done.stderr.strip()}" if done.returncode else ""


def _noticed(copy: Path, name: str) -> tuple[str, str]:
    """What is wrong with the tests' answer to the mutant, "" where they fail as they should; and how they fail."""
    place, test = _place(name)
    try:
        done = _test(copy, [place], test)
    except subprocess.TimeoutExpired:
        return f"hangs: no answer in {PATIENCE} s", ""
    if done.returncode == 0:
        return "SURVIVES: no test noticed it", ""
    failed = re.search(rf"^FAILED \S+::({test}\w*)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        return f"is no defect but a breakdown:\n{done.stdout[-2000:]}{done.stderr[-2000:]}", ""
    error = re.search(r"^(?:E|[ |]*\|) +(.*(?:Error|assert|Cancelled)\b.*)", done.stdout, re.MULTILINE)
    return "", f"caught by {failed[1]}: {error[1][:100] if error else ''}"


if __name__ == "__main__":
    sys.exit(main())
