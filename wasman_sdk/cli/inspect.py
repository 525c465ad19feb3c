"""`wasman inspect`: what can be told of a module, and how its runs come back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict

from wasman_host.deployments import deployed as pointed_at
from wasman_host.deployments import module_of
from wasman_host.guest.inspection import inspect as inspected
from wasman_sdk import Limits, Workflow, WorkflowNotFoundError
from wasman_sdk.cli.errors import USAGE, Refused
from wasman_sdk.cli.objects import named
from wasman_sdk.cli.options import existing, json_option, over, store_option, tenant_option
from wasman_sdk.cli.output import plain, print_fields, print_json, print_table
from wasman_sdk.cli.waiting import progress

if TYPE_CHECKING:
    from wasman_host.deployments import Deployment
    from wasman_host.guest.inspection import Inspection
    from wasman_sdk import Client

__all__ = ["inspect"]

_PAGE = 65536


@click.command()
@click.argument("name", metavar="FILE|MODULE:ATTRIBUTE|NAME")
@click.option("--deployed", is_flag=True, help="The module that the workflow NAME points at in the store.")
@click.option("--entry", default="", help="The export that a run calls. Default: run, else _start.")
@json_option
@store_option
@tenant_option
def inspect(name: str, entry: str, store: str | None, tenant: str, *, deployed: bool, as_json: bool) -> None:
    """Show a module: imports, exports, memory, globals, custom sections, and how its runs come back, and why.

    FILE is a compiled guest, MODULE:ATTRIBUTE a Workflow that has one, NAME with --deployed a workflow in the store.
    What the module initialises is run, with a fixed clock, nothing else of it. Exit code 2 where it cannot be run; what
    can be told of it is shown all the same.
    """
    data, workflow = _deployed(name, existing(store, tenant)) if deployed else _module(name)
    resume, limits = ("replay", Limits()) if workflow is None else (workflow.resume, workflow.limits)
    if workflow is not None:
        entry = entry or workflow.entry
    with progress(f"{name}: compiling"):
        found = inspected(data, f"module {name!r}", limits.guest, entry, resume=resume)
    if as_json:
        print_json(asdict(found))
    else:
        _print(found)
    if found.problem:
        raise Refused(found.problem, USAGE)


def _deployed(name: str, client: Client) -> tuple[bytes, Workflow[Any, Any]]:
    async def found(client: Client) -> tuple[Deployment, bytes]:
        there = await pointed_at(client.store, client.tenant, name)
        if there is None:
            raise WorkflowNotFoundError(f"no workflow is deployed under the name {name!r}")
        return there, await module_of(client.store, there.module)

    there, data = over(client, found)
    resume: Any = there.resume
    return data, Workflow(name, Any, Any, module=data, entry=there.entry, resume=resume)


def _module(name: str) -> tuple[bytes, Workflow[Any, Any] | None]:
    path = Path(name)
    if path.is_file() or ":" not in name:
        try:
            return path.read_bytes(), None
        except OSError as error:
            raise Refused(f"the module {name} cannot be read: {error.strerror}", USAGE) from None
    workflow: Workflow[Any, Any] = named(name, Workflow)
    data = workflow.module()
    if data is None:
        raise Refused(f"workflow {workflow.name!r} has no module of its own: it is deployed from elsewhere", USAGE)
    return data, workflow


def _print(found: Inspection) -> None:
    fields = {"module": found.digest, "size": f"{found.size:,} bytes"}
    binary = found.binary
    if binary is None:
        print_fields(fields)
        return
    fields["abi"] = found.abi
    fields["entry"] = f"{found.entry} {binary.functions[found.entry]}" if found.entry in binary.functions else ""
    fields["initialised"] = ", ".join(found.initialisers)
    if binary.memory is not None:
        first, most = binary.memory
        upper = "no maximum" if most is None else f"at most {most * _PAGE:,}"
        fields["memory"] = f"{first * _PAGE:,} bytes at first, {upper}"
        if found.image is not None:
            fields["memory"] += f"; its image holds {found.image:,}"
    kinds = [kind for _, kind in binary.globals]
    fields["globals"] = f"{len(kinds)} mutable: {', '.join(kinds)}" if kinds else "none that are mutable"
    if binary.stack_pointer is not None:
        fields["globals"] += f"; number {binary.stack_pointer} is the stack pointer"
    fields["tables"] = f"{len(binary.tables)}"
    if found.comeback is not None:
        fields["comes back"] = found.comeback.how
        fields["because"] = found.comeback.why
    print_fields(fields)
    click.echo()
    names = {(one.module, one.name) for one in found.unknown}
    print_table(
        ("IMPORT", "TYPE", ""),
        [
            (
                f"{one.module}.{one.name}",
                f"{one.type or one.kind}",
                "not provided so" if (one.module, one.name) in names else "",
            )
            for one in binary.imports
        ],
    )
    click.echo()
    print_table(("EXPORT", "TYPE"), [(name, f"{type_}") for name, type_ in sorted(binary.functions.items())])
    if found.sections:
        click.echo()
        print_table(("SECTION", "BYTES"), [(plain(name), f"{size:,}") for name, size in found.sections])
