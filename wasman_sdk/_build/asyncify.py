"""Guests in other languages, passed through Binaryen's asyncify: kept in the middle of a call, they go on there.

Which imports are instrumented, and that the host may steer it, is said in the module by the section that
`wasman_host.guest.asyncify` reads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from attrs import field, frozen

from wasman_host.errors import InvalidModuleError
from wasman_host.guest.asyncify import EXPORTS, SECTION, asyncified, mark
from wasman_host.guest.binary import parse, section, without_section
from wasman_sdk._build.errors import BuildError

__all__ = ["Instrumented", "asyncify", "find_wasm_opt"]

# In which a guest may wait: of streams it does not, and so it is kept at its next call instead.
_WAITING = ("env.host_call_api", "env.checkpoint", "wasi_snapshot_preview1.poll_oneoff", "wasman.wait")
# What compilers of today use (Zig all of it), and wasmtime can snapshot. What is named here is allowed, not required.
_FEATURES = ("bulk-memory", "mutable-globals", "sign-ext", "nontrapping-float-to-int", "multivalue", "simd")
_ADVICE = (
    "install Binaryen (apt install binaryen, brew install binaryen, or npm install binaryen in the working directory), "
    "or name the program by WASMAN_WASM_OPT"
)


@frozen
class Instrumented:
    """A module that can be kept in the middle of a call.

    Attributes:
        module: Its bytes.
        imports: Where its stack can be unwound.
        before: Bytes of the module as it was.
        wasm_opt: The program that did it, and its version.
    """

    module: bytes = field(repr=False)
    imports: Sequence[str]
    before: int
    wasm_opt: str


def find_wasm_opt() -> str:
    """The program wasm-opt: WASMAN_WASM_OPT, else on the path, else npm's of this directory or one above it.

    Raises:
        BuildError: It is nowhere; the message says how to get it.
    """
    named = os.environ.get("WASMAN_WASM_OPT")
    here = Path.cwd()
    places = [folder / "node_modules" / ".bin" / "wasm-opt" for folder in (here, *here.parents)]
    candidates = [named] if named else ["wasm-opt", *map(str, places)]
    found = next(filter(None, map(shutil.which, candidates)), None)
    if found is None:
        raise BuildError(f"{f'{named} (WASMAN_WASM_OPT)' if named else 'wasm-opt'} is not there; {_ADVICE}")
    return found


def asyncify(data: bytes, name: str) -> Instrumented:
    """Instrument a module, so that its stack can be unwound wherever it waits, and mark it.

    Args:
        data: The module's bytes, as its compiler made it.
        name: What to call it in messages.

    Raises:
        BuildError: It cannot be done, or is not to be done to this module; the message says why.
    """
    try:
        imports = _waits_in(data, name)
    except InvalidModuleError as error:
        raise BuildError(f"{name} {error}") from error
    program = find_wasm_opt()
    with tempfile.TemporaryDirectory(prefix="wasman-build-") as folder:
        source, target = Path(folder) / "guest.wasm", Path(folder) / "asyncified.wasm"
        # What it says of features, in words that an older wasm-opt may not know: the flags are said here.
        source.write_bytes(without_section(data, "target_features"))
        named = ["-g"] if section(data, "name") else []
        command = [program, str(source), "-o", str(target), *(f"--enable-{feature}" for feature in _FEATURES)]
        command += ["--strip-dwarf", "-O2", "--asyncify", f"--pass-arg=asyncify-imports@{','.join(imports)}", *named]
        _run(command, name)
        made = mark(target.read_bytes(), imports)
    try:
        asyncified(made)
    except InvalidModuleError as error:
        raise BuildError(f"{name}, as {program} has instrumented it, {error}") from error
    return Instrumented(made, imports, len(data), f"{program} ({_run([program, '--version'], name).strip()})")


def _waits_in(data: bytes, name: str) -> list[str]:
    """The imports of a module in which it may wait."""
    _, binary = parse(data)
    producers = b"".join(section(data, "producers"))
    if section(data, SECTION):
        raise BuildError(f"{name} was asyncified already; what is there can be run as it is")
    language = "TinyGo" if b"TinyGo" in producers else "Go" if b"Go cmd/compile" in producers else ""
    if language:
        raise BuildError(
            f"{name} was compiled by {language}, whose runtime keeps stacks of its own: use the guest SDK, with which "
            f"nothing is replayed either (wasman build DIR; docs/guests.md)"
        )
    if EXPORTS[0] in binary.functions:
        raise BuildError(
            f"{name} exports {EXPORTS[0]}: it was passed through asyncify already, for a scheduler of its own; build "
            f"it without"
        )
    wanted = {f"{one.module}.{one.name}" for one in binary.imports}
    imports = [one for one in _WAITING if one in wanted]
    if not imports:
        raise BuildError(f"{name} imports none of {', '.join(_WAITING)}: it never waits, and there is nothing to do")
    return imports


def _run(command: Sequence[str], name: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  the user's own program
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}; {_ADVICE}") from error
    if run.returncode != 0:
        raise BuildError(f"{command[0]} refuses {name} (exit code {run.returncode})", run.stderr)
    return run.stdout
