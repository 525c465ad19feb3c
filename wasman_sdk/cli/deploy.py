"""`wasman deploy`: point a workflow's name at a module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from wasman_host.deployments import deployed
from wasman_sdk import Workflow
from wasman_sdk.cli.errors import USAGE, Refused
from wasman_sdk.cli.objects import named
from wasman_sdk.cli.options import json_option, lasting, over, store_option, tenant_option
from wasman_sdk.cli.output import plain, print_json
from wasman_sdk.cli.waiting import progress

if TYPE_CHECKING:
    from wasman_host.deployments import Deployment
    from wasman_sdk import Client

__all__ = ["deploy"]


@click.command()
@click.argument("name", metavar="MODULE:ATTRIBUTE|NAME")
@click.option("--module", "path", type=click.Path(dir_okay=False, path_type=Path), help="The compiled guest of NAME.")
@click.option("--entry", default="", help="The export that a run calls. Default: run, else _start.")
@click.option(
    "--resume",
    type=click.Choice(["replay", "checkpoint"]),
    default="replay",
    help="How its runs come back; with --module.",
)
@json_option
@store_option
@tenant_option
def deploy(
    name: str,
    path: Path | None,
    entry: str,
    resume: Literal["replay", "checkpoint"],
    store: str | None,
    tenant: str,
    *,
    as_json: bool,
) -> None:
    """Point a workflow's name at a module: runs that start from now on use it, those that have started keep theirs.

    MODULE:ATTRIBUTE is a Workflow that has a module. With --module FILE it is the workflow's NAME.
    """
    workflow: Workflow[Any, Any]
    if path is None:
        workflow = named(name, Workflow)
        if entry:
            raise Refused("--entry goes with --module; a Workflow says its own", USAGE)
    else:
        workflow = Workflow(name, Any, Any, module=path, entry=entry, resume=resume)

    async def pointed(client: Client) -> tuple[Deployment | None, str]:
        before = await deployed(client.store, client.tenant, workflow.name)
        return before, await client.deploy(workflow)

    with progress(f"{workflow.name}: looking at its module"):
        before, module = over(lasting(store, tenant), pointed)
    was = before.module if before is not None else None
    if as_json:
        print_json({"workflow": workflow.name, "module": module, "before": was})
    elif was == module:
        click.echo(f"{plain(workflow.name)} points at module {module} already")
    else:
        click.echo(f"{plain(workflow.name)} points at module {module}" + (f", no longer at {was}" if was else ""))
