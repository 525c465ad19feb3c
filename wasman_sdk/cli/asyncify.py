"""`wasman build --asyncify`: a module of another language to one that can be kept in the middle of a call."""

from __future__ import annotations

from pathlib import Path

import click

from wasman_host.guest.inspection import inspect
from wasman_sdk import Limits
from wasman_sdk._build.asyncify import asyncify
from wasman_sdk._build.errors import BuildError
from wasman_sdk.cli.errors import USAGE, Refused
from wasman_sdk.cli.output import plain, print_fields, print_json, write_whole
from wasman_sdk.cli.waiting import progress

__all__ = ["instrument"]


def instrument(source: Path, output: Path | None, *, as_json: bool) -> None:
    """Instrument the module in `source`, write it to `output`, and say what was done. Raises `Refused`."""
    output = output or Path(f"{source.stem}-asyncified.wasm")
    try:
        data = source.read_bytes()
    except OSError as error:
        raise Refused(f"the module {source} cannot be read: {error.strerror}", USAGE) from None
    try:
        with progress(f"{source}: wasm-opt --asyncify"):
            made = asyncify(data, str(source))
    except BuildError as error:
        if error.output:
            click.echo(plain(error.output.rstrip()), err=True)
        raise Refused(str(error), USAGE) from None
    found = inspect(made.module, f"the module of {source}", Limits().guest)
    if found.problem:
        raise Refused(found.problem, USAGE)
    assert found.comeback is not None, "a module without a problem comes back somehow"
    write_whole(output, made.module)
    facts = {
        "file": str(output),
        "module": found.digest,
        "size": found.size,
        "before": made.before,
        "imports": list(made.imports),
        "wasm_opt": made.wasm_opt,
        "comes_back": found.comeback.how,
        "because": found.comeback.why,
    }
    if as_json:
        print_json(facts)
        return
    print_fields(
        {
            "file": str(output),
            "module": found.digest,
            "size": f"{found.size:,} bytes, {made.before:,} before",
            "compiler": made.wasm_opt,
            "waits in": ", ".join(made.imports),
            "comes back": found.comeback.how,
            "because": found.comeback.why,
        }
    )
