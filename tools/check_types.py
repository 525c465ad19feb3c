"""Asks pyright what it thinks of the public surface: `make check` runs it beside mypy.

Every type that an application can see must be known; what tests/typing/right.py does must be accepted, and each line of
tests/typing/wrong.py that says so, and no other one, must be refused. Pyright is kept in an environment of its own,
`.cache/types`, made from its lock when it is first needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "types"
REQUIREMENTS = ROOT / "requirements" / "types.txt"
TYPING = ROOT / "tests" / "typing"
# A stream of anyio's, whose metaclass pyright does not look for where it is told to ignore other packages.
EXCEPT = {"wasman_sdk.Channel", "wasman_sdk._channel.Channel"}


def main() -> int:
    """Ask it, print what is wrong."""
    problems = [*_unknown(), *_misjudged()]
    for problem in problems:
        print(problem)
    if not problems:
        print("pyright: every public type is known; what is right is accepted, what is wrong is refused")
    return 1 if problems else 0


def _pyright() -> Path:
    """The program, installed if it is not yet."""
    stamp = hashlib.sha256(sys.version.encode() + str(ROOT).encode() + REQUIREMENTS.read_bytes()).hexdigest()
    made, program = FOLDER / "made-of", FOLDER / "bin" / "basedpyright"
    if not made.exists() or made.read_text("utf-8") != stamp:
        print("making the environment of pyright (once)", file=sys.stderr)
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-I", "-m", "venv", str(FOLDER)], check=True)
        pip = [
            str(FOLDER / "bin" / "python"),
            "-I",
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
        ]
        subprocess.run([*pip, "install", "--require-hashes", "--requirement", str(REQUIREMENTS)], check=True)
        made.write_text(stamp, "utf-8")
    return program


def _ask(*words: str) -> Any:
    command = [str(_pyright()), "--pythonpath", sys.executable, "--outputjson", *words]
    # An editable installation of the folder in which it runs is none that it would look into.
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "host")])}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        sys.exit(f"pyright cannot be asked ({done.returncode}): {done.stdout}{done.stderr}")


def _unknown() -> list[str]:
    """What of the public surface has no known type."""
    answer = _ask("--verifytypes", "wasman_sdk", "--ignoreexternal")
    problems = []
    for symbol in answer["typeCompleteness"]["symbols"]:
        name = symbol["name"]
        if symbol["isTypeKnown"] or name in EXCEPT or name.startswith("wasman_sdk.cli"):
            continue
        said = "; ".join(one["message"].replace("\n", " ") for one in symbol["diagnostics"])
        if said or symbol["isExported"]:
            problems.append(f"{name}: its type is not known{said and ': '}{said}")
    return problems if answer["typeCompleteness"]["symbols"] else ["pyright has seen nothing of wasman_sdk"]


def _misjudged() -> list[str]:
    """What of tests/typing it accepts or refuses wrongly."""
    answer = _ask(str(TYPING))
    refused: dict[Path, dict[int, str]] = {TYPING / "right.py": {}, TYPING / "wrong.py": {}}
    for one in answer["generalDiagnostics"]:
        if one["severity"] == "error":
            refused[Path(one["file"])][one["range"]["start"]["line"] + 1] = one["message"].partition("\n")[0]
    lines = (TYPING / "wrong.py").read_text("utf-8").splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    problems = [
        f"{path.name}:{number}: {said}"
        for path, found in refused.items()
        for number, said in found.items()
        if path.name == "right.py" or number not in wrong
    ]
    problems += [f"wrong.py:{number}: it is accepted" for number in sorted(wrong - set(refused[TYPING / "wrong.py"]))]
    return problems


if __name__ == "__main__":
    sys.exit(main())
