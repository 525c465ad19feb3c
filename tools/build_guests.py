"""Builds the guest modules that are committed, or verifies that they are what their sources build.

    python tools/build_guests.py             build all, write each module with its digest
    python tools/build_guests.py --check     build all into a temporary folder and compare, byte for byte
    python tools/build_guests.py --digests   only compare the committed modules with their digests; needs no toolchain

The builds are the same in every folder. They are made by exactly these compilers:

TinyGo 0.39.0, as tools/tinygo.sh installs it: --tinygo, else $WASMAN_TINYGO, else .tools/tinygo in the repository, else
on the path. Its LLVM, libc and wasm-opt are Debian 12's; a difference is reported with their versions.

Go 1.26.8, whatever `go` there is: GOTOOLCHAIN makes any `go` from 1.21 on fetch that release, and check it against Go's
checksum database. Two releases of Go never build the same bytes, and asking for the one that happens to be installed
would make every update of a machine a difference.

A digest file is in the format of sha256sum, and always of the module itself: a module that is committed as .gz is
compared by what is in it, because zlib's versions compress differently.

Exit codes: 1 something differs or does not build, 3 a compiler is absent.
"""

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from wasman_sdk._build.flags import FAST, GO, MEDDLING, TINYGO, TINYGO_VERSION

ROOT = Path(__file__).resolve().parent.parent

GO_TOOLCHAIN = "go1.26.8"

# Programs of tests, which use no SDK; all other guests are built as `wasman build` builds them.
TINYGO_COMMAND = ("-target=wasip1", "-scheduler=asyncify", "-stack-size=64KB", "-opt=z", "-no-debug")
GO_COMMAND = ("-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=")


@dataclass(frozen=True)
class Guest:
    """A committed module: where it is, without .gz, and what it is built from, relative to the repository."""

    module: str
    source: str
    compiler: str
    flags: tuple[str, ...]
    compressed: bool = False

    @property
    def path(self) -> Path:
        """The committed file."""
        return ROOT / (self.module + ".gz" if self.compressed else self.module)

    @property
    def digest_path(self) -> Path:
        """The file with its digest."""
        return ROOT / (self.module + ".sha256")


GUESTS = (
    Guest("samples/fastapi_orders/order.wasm", "samples/fastapi_orders/guest", "tinygo", TINYGO["v0"]),
    Guest("samples/order_saga/order.wasm", "samples/order_saga/guest", "tinygo", TINYGO["v1"]),
    Guest("samples/subscription/subscription.wasm", "samples/subscription/guest", "tinygo", TINYGO["v1"]),
    Guest("samples/fan_out/batch.wasm", "samples/fan_out/guest", "tinygo", TINYGO["v1"]),
    Guest("samples/process_csv/process_csv.wasm", "samples/process_csv/guest", "tinygo", TINYGO["v0"]),
    Guest("samples/process_csv/plain.wasm", "samples/process_csv/guest/plain", "tinygo", (*TINYGO["v1"], FAST)),
    Guest("tests/guests/gcchurn.wasm", "tests/guests/gcchurn", "tinygo", TINYGO["v0"]),
    Guest("tests/guests/sdk_tour.wasm", "tests/guests/sdk_tour", "tinygo", TINYGO["v0"]),
    Guest("tests/guests/saga_tinygo.wasm", "tests/guests/saga", "tinygo", TINYGO["v1"]),
    Guest("tests/guests/saga_go.wasm", "tests/guests/saga", "go", GO["v1"], compressed=True),
    Guest("tests/guests/programs_tinygo.wasm", "tests/guests/programs", "tinygo", TINYGO["v1"]),
    Guest("tests/guests/programs_go.wasm", "tests/guests/programs", "go", GO["v1"], compressed=True),
    Guest("tests/guests/mixed_tinygo.wasm", "tests/guests/mixed", "tinygo", TINYGO_COMMAND),
    Guest("tests/guests/mixed_go.wasm", "tests/guests/mixed", "go", GO_COMMAND, compressed=True),
)


class GuestError(Exception):
    """A module differs from what it should be, or cannot be built; the message says how."""


class NoCompilerError(Exception):
    """A compiler is absent or of another version; the message says how to get the right one."""


@dataclass(frozen=True)
class Compilers:
    """The programs to call."""

    tinygo: str
    go: str

    def versions(self) -> str:
        """What decides over the bytes, for a person who looks for the cause of a difference."""
        commands = ([self.tinygo, "version"], ["wasm-opt", "--version"], [self.go, "version"])
        return "; ".join(output_of(command) for command in commands)


def find_compilers(tinygo: str | None) -> Compilers:
    """The compilers, of the right versions."""
    if tinygo is None:
        local = ROOT / ".tools" / "tinygo" / "bin" / "tinygo"
        tinygo = os.environ.get("WASMAN_TINYGO") or (str(local) if local.exists() else "tinygo")
    program = shutil.which(tinygo)
    advice = "run tools/tinygo.sh .tools/tinygo, or name another one by --tinygo or WASMAN_TINYGO"
    if program is None:
        raise NoCompilerError(f"TinyGo is not there ({tinygo}): {advice}")
    version = output_of([program, "version"])
    if not version.startswith(f"tinygo version {TINYGO_VERSION} "):
        raise NoCompilerError(f"{tinygo} is not TinyGo {TINYGO_VERSION} but says {version!r}: {advice}")
    go = shutil.which("go")
    if go is None:
        raise NoCompilerError("Go is not there: install any release from 1.21 on")
    version = output_of([go, "version"])
    if f" {GO_TOOLCHAIN} " not in version:
        raise NoCompilerError(
            f"go cannot become {GO_TOOLCHAIN}, it says {version!r}: it needs 1.21 or later and its proxy"
        )
    return Compilers(os.path.abspath(program), go)  # noqa: PTH100 - a link stays a link


def build_environment() -> dict[str, str]:
    """This process's environment, with what would change a build set as it must be."""
    environment = {name: value for name, value in os.environ.items() if name not in MEDDLING}
    return environment | {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-buildvcs=false",
        "GOTOOLCHAIN": GO_TOOLCHAIN,
        "GOWORK": "off",
    }


def output_of(command: list[str]) -> str:
    """What a program prints, on one line; why it does not run, otherwise."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=build_environment())
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return " ".join((run.stdout or run.stderr).split())


def build(guest: Guest, compilers: Compilers, folder: Path) -> bytes:
    """The module that the guest's source builds."""
    target = folder / Path(guest.module).name
    environment = build_environment()
    if guest.compiler == "go":
        environment |= {"GOOS": "wasip1", "GOARCH": "wasm"}
    elif guest.flags[: len(TINYGO["v1"])] == TINYGO["v1"]:
        environment |= {"WASMOPT": str(ROOT / "guest_sdk" / "tools" / "wasm-opt")}
    command = [
        compilers.go if guest.compiler == "go" else compilers.tinygo,
        "build",
        *guest.flags,
        "-o",
        str(target),
        ".",
    ]
    run = subprocess.run(command, cwd=ROOT / guest.source, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise GuestError(f"does not build ({guest.compiler} exited with {run.returncode}):\n{run.stderr.strip()}")
    return target.read_bytes()


def committed(guest: Guest) -> bytes:
    """The committed module, which its digest vouches for."""
    if not guest.path.exists():
        raise GuestError("is not there")
    data = guest.path.read_bytes()
    if guest.compressed:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise GuestError(f"cannot be uncompressed: {error}") from error
    if not guest.digest_path.exists():
        raise GuestError(f"has no digest file {guest.digest_path.name}")
    if guest.digest_path.read_text(encoding="ascii") != digest_line(guest, data):
        raise GuestError(f"is not what {guest.digest_path.name} says: its sha256 is {hashlib.sha256(data).hexdigest()}")
    return data


def digest_line(guest: Guest, data: bytes) -> str:
    """The content of the digest file."""
    return f"{hashlib.sha256(data).hexdigest()}  {Path(guest.module).name}\n"


def write(guest: Guest, data: bytes) -> str:
    """Replaces the committed module; tells what it did."""
    try:
        if committed(guest) == data:
            return f"unchanged, {len(data):,} bytes"
    except GuestError:
        pass  # it is about to be mended
    stored = gzip.compress(data, compresslevel=9, mtime=0) if guest.compressed else data
    replace(guest.path, stored)
    replace(guest.digest_path, digest_line(guest, data).encode())
    return f"written, {len(data):,} bytes" + (f", {len(stored):,} compressed" if guest.compressed else "")


def replace(path: Path, data: bytes) -> None:
    """Writes a file as a whole: whoever reads it meanwhile sees the old one or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    new.replace(path)


def compare(guest: Guest, data: bytes) -> str:
    """Raises GuestError if the committed module is not the one just built."""
    kept = committed(guest)
    if kept != data:
        at = next((i for i, (a, b) in enumerate(zip(kept, data, strict=False)) if a != b), min(len(kept), len(data)))
        raise GuestError(
            f"differs from what its source builds: {len(kept):,} bytes, built {len(data):,}, from byte {at:,} on"
        )
    return f"is what its source builds, {len(data):,} bytes"


def for_each(act: Callable[[Guest], str], guests: Sequence[Guest] = GUESTS) -> bool:
    """Acts on every guest, two at a time (a build keeps one core busy), prints a line each; whether all went well."""

    def attempt(guest: Guest) -> tuple[bool, str]:
        try:
            return True, act(guest)
        except GuestError as error:
            return False, str(error)

    good = True
    with ThreadPoolExecutor(max_workers=2) as pool:
        for guest, (well, text) in zip(guests, pool.map(attempt, guests), strict=True):
            good &= well
            print(f"{'ok  ' if well else 'FAIL'} {guest.path.relative_to(ROOT)} {text}", flush=True)
    return good


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--check | --digests] [--tinygo PATH]",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare instead of writing")
    mode.add_argument("--digests", action="store_true", help="only compare the committed modules with their digests")
    parser.add_argument("--tinygo", metavar="PATH", help=f"the program tinygo, version {TINYGO_VERSION}")
    options = parser.parse_args()
    if options.digests:
        return 0 if for_each(lambda guest: f"matches its digest, {len(committed(guest)):,} bytes") else 1
    try:
        compilers = find_compilers(options.tinygo)
    except NoCompilerError as error:
        print(f"build_guests: {error}", file=sys.stderr)
        return 3
    finish = compare if options.check else write
    with tempfile.TemporaryDirectory(prefix="wasman-guests-") as folder:
        good = for_each(lambda guest: finish(guest, build(guest, compilers, Path(folder))))
    if not good:
        print(f"build_guests: with {compilers.versions()}", file=sys.stderr)
        if options.check:
            print("build_guests: `python tools/build_guests.py` writes what the sources build", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
