"""Makes the virtual environments that make's targets run in: .venv/X.Y, one for each version of Python.

Into each go the hashed packages of requirements/dev.txt and then this project itself, editable. What was installed from
is stamped, last of all: a second run changes nothing and is quick, a changed lock makes a new environment, and one that
was interrupted is made again. Prints where the interpreter is, relative to the repository; the rest goes to stderr.

    python tools/setup_env.py            the environment of the Python that runs this
    python tools/setup_env.py --each     besides, one for every other version in range that this machine has

The first one of the others, .venv/X.Y-oldest, has the oldest packages that pyproject.toml allows, of
requirements/oldest.txt: a range says that both of its ends work.

Needs nothing but the standard library.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEWEST, OLDEST = ROOT / "requirements" / "dev.txt", ROOT / "requirements" / "oldest.txt"
PROJECT = ROOT / "pyproject.toml"
ENVIRONMENTS = ROOT / ".venv"

# What an interpreter says of itself. One that lacks ensurepip (Debian packs it apart) cannot make an environment.
PROBE = """
import importlib.util, json, sys
print(json.dumps({
    "version": list(sys.version_info[:2]),
    "build": sys.version,
    "prefix": sys.base_prefix,
    "complete": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
}))
"""


class SetupError(Exception):
    """What happened, and what the user can do about it."""


@dataclass(frozen=True)
class Interpreter:
    """A Python that has been run and asked what it is."""

    command: str
    version: tuple[int, int]
    build: str
    prefix: str
    complete: bool

    @property
    def name(self) -> str:
        """The version as people write it: 3.11."""
        return "{}.{}".format(*self.version)


def versions_in_range() -> list[tuple[int, int]]:
    """The versions of Python that pyproject.toml allows, oldest first."""
    spec = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["requires-python"]
    match = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", spec)
    if match is None:
        raise SetupError(f"requires-python in pyproject.toml is {spec!r}; this program reads only the form >=3.X,<3.Y")
    return [(3, minor) for minor in range(int(match[1]), int(match[2]))]


def probe(command: str) -> Interpreter | None:
    """Runs `command`; None if it does not run (a pyenv shim without its version is such a one) or is no Python 3."""
    try:
        run = subprocess.run(
            [command, "-I", "-c", PROBE],
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        answer = json.loads(run.stdout)
        version = (int(answer["version"][0]), int(answer["version"][1]))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None
    return Interpreter(command, version, answer["build"], answer["prefix"], answer["complete"])


def find_others(taken: tuple[int, int]) -> list[Interpreter]:
    """One complete interpreter for every version in range but `taken`, as far as this machine has them."""
    found = []
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for version in versions_in_range():
        if version == taken:
            continue
        name = "python{}.{}".format(*version)
        places = sorted(pyenv.glob(f"versions/*/bin/{name}"))
        candidates = [probe(command) for command in (name, *map(str, places), "python3")]
        fitting = [candidate for candidate in candidates if candidate and candidate.version == version]
        complete = [candidate for candidate in fitting if candidate.complete]
        if complete:
            found.append(complete[0])
        elif fitting:
            say(f"leaving out {fitting[0].command}: it cannot make virtual environments (no venv or ensurepip)")
    return found


def digest(*parts: str | bytes) -> str:
    """A sha256 over the parts and where each ends."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


def prepare(interpreter: Interpreter, requirements: Path) -> Path:
    """Makes or completes the environment of `interpreter`, unless it is as it should be, and gives its Python."""
    folder = ENVIRONMENTS / (interpreter.name + ("-oldest" if requirements == OLDEST else ""))
    python = folder / "bin" / "python"
    # An environment holds absolute paths: its own, the project's and its interpreter's.
    packages = digest(str(ROOT), interpreter.build, interpreter.prefix, requirements.read_bytes())
    project = digest(packages, PROJECT.read_bytes())
    packages_stamp, project_stamp = folder / "wasman-packages", folder / "wasman-project"
    if is_stamped(project_stamp, project) and python.exists():
        return python
    if not is_stamped(packages_stamp, packages) or not python.exists():
        say(f"making .venv/{folder.name} of {interpreter.command} (once, about half a minute)")
        shutil.rmtree(folder, ignore_errors=True)
        run([interpreter.command, "-I", "-m", "venv", str(folder)], f"making the virtual environment {folder}")
        locked = ["--require-hashes", "--requirement", str(requirements)]
        run([*pip(python), "install", *locked], f"installing {requirements.relative_to(ROOT)}")
        stamp(packages_stamp, packages)
    editable = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    run([*pip(python), "install", *editable], "installing the project itself")
    stamp(project_stamp, project)
    return python


def is_stamped(file: Path, value: str) -> bool:
    """Whether `file` says that what `value` stands for was completed."""
    return file.exists() and file.read_text(encoding="utf-8") == value


def stamp(file: Path, value: str) -> None:
    """Writes `value` to `file`, wholly or not at all."""
    part = file.with_suffix(".part")
    part.write_text(value, encoding="utf-8")
    part.replace(file)


def pip(python: Path) -> list[str]:
    """The command line of that environment's pip, shut off from the user's own packages and PYTHON variables."""
    return [str(python), "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]


def run(command: list[str], purpose: str) -> None:
    """Runs a step, its output going to stderr."""
    try:
        status = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            cwd=ROOT,
            close_fds=False,  # the lock is handed on: a step that outlives this program keeps the next one waiting
        ).returncode
    except OSError as error:
        raise SetupError(f"{purpose} failed: {error}") from error
    if status != 0:
        raise SetupError(
            f"{purpose} failed; the reason stands above.\n"
            "If it is the network or pip's configuration, mend that and run make again: what is half made is made anew."
        )


def say(text: str) -> None:
    """Tells the user what goes on."""
    print(f"setup_env: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Parses the command line, prepares the environments one after the other, prints their interpreters."""
    parser = argparse.ArgumentParser(description="Makes the virtual environments of this project.")
    parser.add_argument("--each", action="store_true", help="for every version of Python that the machine has")
    each = parser.parse_args().each
    this = probe(sys.executable)
    names = ", ".join("{}.{}".format(*version) for version in versions_in_range())
    if this is None or this.version not in versions_in_range():
        raise SetupError(f"this is Python {sys.version.split()[0]}, wasman runs on {names}")
    if not this.complete:
        raise SetupError(
            f"{sys.executable} cannot make virtual environments, for it lacks venv or ensurepip.\n"
            f"Install what has them (Debian and Ubuntu: python{this.name}-venv), or another Python ({names})."
        )
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)  # noqa: FBT003 the standard library's own signature
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits, then finds it done
        for place, interpreter in enumerate([this, *(find_others(this.version) if each else [])]):
            print(prepare(interpreter, OLDEST if place == 1 else NEWEST).relative_to(ROOT), flush=True)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"setup_env: {error}")
