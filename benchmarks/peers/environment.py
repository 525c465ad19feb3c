"""The peers' own environments under `.cache/peers`, made from locks with hashes when they are first needed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["UnavailableError", "python", "restate_server"]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "peers"
REQUIREMENTS = ROOT / "requirements" / "peers.txt"
PACKAGES = [ROOT / "benchmarks" / "peers" / name for name in ("package.json", "package-lock.json")]


class UnavailableError(Exception):
    """What this machine lacks."""


def _run(command: list[str], folder: Path) -> None:
    try:
        status = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=folder)
    except OSError as error:
        message = f"{command[0]} does not run: {error}"
        raise UnavailableError(message) from error
    if status.returncode:
        message = f"{' '.join(command[:4])} ... failed; the reason stands above"
        raise UnavailableError(message)


def _made(folder: Path, stamp: str) -> bool:
    file = folder / "made-of"
    return file.exists() and file.read_text("utf-8") == stamp


def python() -> Path:
    """The interpreter of the environment that holds DBOS and Restate's SDK.

    Raises:
        UnavailableError: It cannot be made; the reason.
    """
    folder = FOLDER / "python"
    stamp = hashlib.sha256(sys.version.encode() + str(ROOT).encode() + REQUIREMENTS.read_bytes()).hexdigest()
    interpreter = folder / "bin" / "python"
    if not _made(folder, stamp):
        print("making the peers' Python environment (once)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-I", "-m", "venv", str(folder)], ROOT)
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
        install = ["install", *quiet, "--require-hashes", "--requirement", str(REQUIREMENTS)]
        _run([str(interpreter), "-I", "-m", "pip", *install], ROOT)
        (folder / "made-of").write_text(stamp, "utf-8")
    return interpreter


def restate_server() -> Path:
    """The program of Restate's server, from npm; nothing that its packages want to run at installation is run.

    Raises:
        UnavailableError: There is no npm here, or no server for this machine; the reason.
    """
    if shutil.which("npm") is None:
        raise UnavailableError("there is no npm on this machine, which brings Restate's server")
    folder = FOLDER / "node"
    stamp = hashlib.sha256(b"".join(file.read_bytes() for file in PACKAGES)).hexdigest()
    if not _made(folder, stamp):
        print("fetching Restate's server (once)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in PACKAGES:
            shutil.copy(file, folder)
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
        (folder / "made-of").write_text(stamp, "utf-8")
    servers = sorted(folder.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    if not servers:
        raise UnavailableError("npm brought no Restate server for this kind of machine")
    return servers[0]
