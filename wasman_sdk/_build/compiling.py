"""Compiles a folder of Go to a module."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from wasman_sdk._build.compilers import Compiler
from wasman_sdk._build.errors import BuildError
from wasman_sdk._build.flags import FAST, NO_DEBUG
from wasman_sdk._build.sdk import MODULE, workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Built", "build"]

_STACK = re.compile(r"[1-9]\d*KB")
_NAME_OF_ERRORS = re.compile(r'(?:^|[;(])\s*(?:import\s+)?(\w+\s+)?"errors"', re.MULTILINE)
_COMMENT = re.compile(r"""("(?:\\.|[^"\\\n])*"|`[^`]*`|'(?:\\.|[^'\\\n])+')|//[^\n]*|/\*.*?\*/""", re.DOTALL)
_EXPORT = re.compile(r"^//(?:go:wasmexport|export)\s+(\S+)", re.MULTILINE)
_OF_THE_COMPILER = re.compile(r"memory|_initialize|_start|asyncify_\w+")


@frozen
class Built:
    """A module that was built.

    Attributes:
        module: Its bytes.
        form: "v1" or "v0".
        seconds: How long it took.
    """

    module: bytes = field(repr=False)
    form: str
    seconds: float


def build(folder: Path, compiler: Compiler, *, stack: str = "", optimize: str = "size", debug: bool = False) -> Built:
    """Compile the guest in a folder, with the SDK of this package; nothing is written there.

    Args:
        folder: A main package, in a Go module.
        compiler: By which.
        stack: Of each goroutine, such as "64KB"; "" for the size that is right for most. Only TinyGo's are fixed.
        optimize: For "size" or for "speed". Only TinyGo knows the difference.
        debug: Leave in what is for debuggers, lines and variables.

    Raises:
        BuildError: It does not compile, or would not work.
    """
    began = time.monotonic()
    if stack and not _STACK.fullmatch(stack):
        raise BuildError(f"{stack!r} is no size of a stack: write 64KB")
    if stack and compiler.kind != "tinygo":
        raise BuildError(f"the stacks of goroutines grow by themselves under {compiler.version}: leave out their size")
    if optimize == "speed" and compiler.kind != "tinygo":
        raise BuildError(f"{compiler.version} always builds for speed: leave out what to optimize for")
    if not folder.is_dir():
        raise BuildError(f"{folder} is no folder: name the one of the guest's main package")
    with tempfile.TemporaryDirectory(prefix="wasman-build-") as temporary:
        work = Path(temporary) / "go.work"
        work.write_text(workspace(folder, compiler.go, compiler.environment), "utf-8")
        run = _Runner(folder, compiler, {**compiler.environment, "GOWORK": str(work)})
        packages = run.packages()
        form = _form(folder, packages)
        if compiler.kind == "tinygo" and "encoding/json" in packages:
            _refuse_json_beside_as(run)
        target = Path(temporary) / "guest.wasm"
        flags = [flag for flag in compiler.flags[form] if not (debug and flag == NO_DEBUG)]
        if optimize == "speed":
            flags.append(FAST)  # of two that say the same the last one counts
        if stack:
            flags.append(f"-stack-size={stack}")
        try:
            run("build", *flags, "-o", str(target), ".")
        except BuildError as error:
            _refuse_exports(run, error)
            raise
        return Built(target.read_bytes(), form, time.monotonic() - began)


@frozen
class _Runner:
    """Runs the compiler in the guest's folder."""

    folder: Path
    compiler: Compiler
    environment: Mapping[str, str]

    def __call__(self, command: str, *words: str) -> str:
        told = subprocess.run(  # noqa: S603  the compiler that was found
            [self.compiler.program, command, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode:
            what = f"{self.compiler.version} exited with {told.returncode}"
            if f"{MODULE}@" in told.stderr:
                what += (
                    f"; take `require {MODULE}` out of go.mod: wasman build supplies it, and Go looks for it elsewhere"
                )
            raise BuildError(f"the guest in {self.folder} does not compile: {what}", told.stderr or told.stdout)
        return told.stdout

    def packages(self) -> Sequence[str]:
        """The packages that the guest consists of."""
        return self("list", *self.compiler.listing, "-deps", ".").split()

    def sources(self) -> Iterator[tuple[str, Path]]:
        """(package, file) of all that is not of the standard library."""
        text, decoder = self("list", *self.compiler.listing, "-deps", "-json", "."), json.JSONDecoder()
        while text := text.lstrip():
            package: Any
            package, end = decoder.raw_decode(text)
            text = text[end:]
            if not package.get("Standard"):
                for name in package.get("GoFiles") or ():
                    yield package["ImportPath"], Path(package["Dir"], name)


def _form(folder: Path, packages: Sequence[str]) -> str:
    if {MODULE, f"{MODULE}/v0"} <= {*packages}:
        raise BuildError(f"the guest in {folder} imports both {MODULE} and {MODULE}/v0: a guest is of one form")
    if f"{MODULE}/v0" in packages:
        return "v0"
    if MODULE in packages:
        return "v1"
    raise BuildError(f"the guest in {folder} does not import {MODULE}, by which it would register its workflows")


def _refuse_exports(run: _Runner, error: BuildError) -> None:
    """Compilers and linkers say of two exports with one name where they stand in the module, and not in the source."""
    ours: set[str] = set()
    found: list[tuple[str, str]] = []
    for package, file in run.sources():
        for name in _EXPORT.findall(file.read_text("utf-8", "replace")):
            if package.startswith(MODULE):
                ours.add(name)
            else:
                found.append((name, f"{package}, {file.name}"))
    for name, where in found:
        if name in ours or _OF_THE_COMPILER.fullmatch(name):
            message = f"{error}; it exports {name!r} ({where}), which the host or the compiler uses"
            raise BuildError(message, error.output) from None


def _refuse_json_beside_as(run: _Runner) -> None:
    """TinyGo 0.39: in a program that has both, every json.Marshal panics."""
    users = sorted({package for package, file in run.sources() if _calls_as(file.read_text("utf-8", "replace"))})
    if users:
        message = (
            f"the guest has both encoding/json and errors.As, called in {', '.join(users)}: under TinyGo 0.39 every "
            f"json.Marshal of such a program panics. Leave out either (wasman.ErrorOf does what errors.As does, and "
            f"the SDK reads and writes payloads without encoding/json), or build with --compiler go"
        )
        raise BuildError(message)


def _calls_as(source: str) -> bool:
    source = _COMMENT.sub(lambda found: found[1] or " ", source)
    names = {(found[1] or "errors").strip() for found in _NAME_OF_ERRORS.finditer(source)}
    return any(re.search(rf"(?<!\.)\b{name}\.As\b", source) for name in names)
