"""Builds the committed guests in other languages (tests/guests/asyncified), or verifies them; as build_guests.py.

    python -m tools.build_asyncified             build all, write each module with its digest
    python -m tools.build_asyncified --check     build all into a temporary folder and compare, byte for byte
    python -m tools.build_asyncified --digests   only compare the committed modules with their digests

By exactly these compilers, which are no part of the environment that `make env` makes:

Zig 0.17.1, also for C: `pip install ziglang==0.17.1`, for this Python, or `zig` on the path.
AssemblyScript 0.28.20: `npm install assemblyscript@0.28.20` in the repository, or `asc` on the path.
wasm-opt 108, Debian 12's.

Exit codes: 1 something differs or does not build, 3 a compiler is absent.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from tools.build_guests import ROOT, Guest, GuestError, committed, compare, for_each, output_of, write
from wasman_sdk._build.asyncify import asyncify, find_wasm_opt
from wasman_sdk._build.errors import BuildError

ZIG_VERSION, ASC_VERSION, WASM_OPT_VERSION = "0.17.1", "0.28.20", "108"

BARE = ("-target", "wasm32-freestanding")
C = (*BARE, "-O2", "-nostdlib", "-Wl,--no-entry,--strip-debug,-z,stack-size=65536")
FOLDER = "tests/guests/asyncified"
ZIG = (*BARE, "-O", "ReleaseSmall", "-fno-entry", "-rdynamic", "-fstrip", "--stack", "65536")
ASSEMBLYSCRIPT = ("-O2", "--use", "abort=", "--runtime", "incremental")
GUESTS = tuple(
    Guest(f"{FOLDER}/{name}_{compiler}.wasm", f"{FOLDER}/{name}.{suffix}", compiler, flags)
    for name in ("loop", "waits")  # ABI v0, ABI v1
    for compiler, suffix, flags in (("c", "c", C), ("zig", "zig", ZIG), ("as", "ts", ASSEMBLYSCRIPT))
)


class NoCompilerError(Exception):
    """A compiler is absent or of another version; the message says how to get the right one."""


def _right(command: list[str], asked: str, version: str, advice: str) -> list[str]:
    found = output_of([*command, asked])
    if version not in found.split():
        raise NoCompilerError(f"{' '.join(command)} is not of version {version} but says {found!r}: {advice}")
    return command


def find_compilers() -> dict[str, list[str]]:
    """How each compiler is called, by the guests' names for it."""
    zig = [sys.executable, "-m", "ziglang"] if importlib.util.find_spec("ziglang") else ["zig"]
    zig = _right(zig, "version", ZIG_VERSION, f"pip install ziglang=={ZIG_VERSION}")
    local = ROOT / "node_modules" / ".bin" / "asc"
    asc = [str(local) if local.exists() else shutil.which("asc") or "asc"]
    asc = _right(asc, "--version", ASC_VERSION, f"npm install assemblyscript@{ASC_VERSION}")
    try:
        _right([find_wasm_opt()], "--version", WASM_OPT_VERSION, "Debian 12's binaryen has it")
    except BuildError as error:
        raise NoCompilerError(str(error)) from error
    return {"c": [*zig, "cc"], "zig": [*zig, "build-exe"], "as": asc}


def build(guest: Guest, compilers: dict[str, list[str]], folder: Path) -> bytes:
    """The module that the guest's source builds, asyncified."""
    source = Path(guest.source)
    target = folder / Path(guest.module).name
    output = [f"-femit-bin={target}"] if guest.compiler == "zig" else ["-o", str(target)]
    run = subprocess.run(
        [*compilers[guest.compiler], source.name, *guest.flags, *output],
        cwd=ROOT / source.parent,
        env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(folder / "zig"), "ZIG_LOCAL_CACHE_DIR": str(folder / "zig")},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        raise GuestError(f"does not build ({guest.compiler} exited with {run.returncode}):\n{run.stderr.strip()}")
    try:
        return asyncify(target.read_bytes(), guest.source).module
    except BuildError as error:
        raise GuestError(f"{error}\n{error.output}") from error


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare instead of writing")
    mode.add_argument("--digests", action="store_true", help="only compare the committed modules with their digests")
    options = parser.parse_args()
    if options.digests:
        return 0 if for_each(lambda guest: f"matches its digest, {len(committed(guest)):,} bytes", GUESTS) else 1
    try:
        compilers = find_compilers()
    except NoCompilerError as error:
        print(f"build_asyncified: {error}", file=sys.stderr)
        return 3
    finish = compare if options.check else write
    with tempfile.TemporaryDirectory(prefix="wasman-guests-") as folder:
        built = partial(build, compilers=compilers, folder=Path(folder))
        return 0 if for_each(lambda guest: finish(guest, built(guest)), GUESTS) else 1


if __name__ == "__main__":
    sys.exit(main())
