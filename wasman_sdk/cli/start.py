"""`wasman start`: start a workflow, and leave it to whichever worker claims it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from pydantic import TypeAdapter

from wasman_host.starting import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from wasman_sdk import Workflow
from wasman_sdk.cli.durations import DURATION
from wasman_sdk.cli.errors import USAGE, Refused
from wasman_sdk.cli.objects import imported, named, session_class, validated
from wasman_sdk.cli.options import codec_option, json_option, lasting, over, pairs, store_option, tenant_option
from wasman_sdk.cli.output import plain, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from wasman_sdk import Client, WorkflowHandle

__all__ = ["start"]

_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)
_MEMO: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


@click.command()
@click.argument("name", metavar="MODULE:ATTRIBUTE|NAME")
@click.option("--id", "id_", required=True, help="The workflow id.")
@click.option("--input", "given", metavar="JSON|@FILE|-", help="What it is started with. Default: null.")
@click.option("--session", metavar="JSON|@FILE|-", help="How it is bound to the outside world.")
@click.option("--session-type", metavar="MODULE:CLASS", help="The Session class that --session is read as.")
@click.option("--memo", metavar="JSON|@FILE|-", help="An object, for people who look at it.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="To find it by; repeat it.")
@click.option("--queue", default="default", show_default=True, help="The task queue whose workers may run it.")
@click.option("--start-delay", type=DURATION, help="It begins so much later, such as 10m.")
@click.option("--run-timeout", type=DURATION, help="It is timed out so long after it has begun, such as 1h.")
@click.option("--execution-timeout", type=DURATION, help="The same, counting what continues it.")
@click.option(
    "--id-conflict-policy",
    type=click.Choice([one.value for one in WorkflowIDConflictPolicy]),
    default="fail",
    show_default=True,
    help="Where the id has a run that is open.",
)
@click.option(
    "--id-reuse-policy",
    type=click.Choice([one.value for one in WorkflowIDReusePolicy]),
    default="reject_duplicate",
    show_default=True,
    help="Where it has only runs that have ended.",
)
@codec_option
@json_option
@store_option
@tenant_option
def start(
    name: str,
    id_: str,
    given: str | None,
    session: str | None,
    session_type: str | None,
    memo: str | None,
    attributes: Sequence[str],
    queue: str,
    start_delay: timedelta | None,
    run_timeout: timedelta | None,
    execution_timeout: timedelta | None,
    id_conflict_policy: Any,
    id_reuse_policy: Any,
    codec_name: str | None,
    store: str | None,
    tenant: str,
    *,
    as_json: bool,
) -> None:
    """Start a workflow and return; it is on disk then, and a worker of the same store runs it.

    MODULE:ATTRIBUTE is a Workflow: its input is validated, and its module deployed if its name is new. NAME is one that
    is deployed. The same command again is an error (exit code 4), so that a script that runs twice starts it once;
    --id-reuse-policy and --id-conflict-policy say otherwise.
    """
    if (session is None) != (session_type is None):
        raise Refused("--session and --session-type MODULE:CLASS come together", USAGE)
    if [given, session, memo].count("-") > 1:
        raise Refused("only one of --input, --session and --memo can be read from stdin", USAGE)
    workflow: Workflow[Any, Any] | str = named(name, Workflow) if ":" in name else name
    input_type = _ANYTHING if isinstance(workflow, str) else TypeAdapter(workflow.input_type)
    options: dict[str, Any] = {
        "given": validated("input", input_type, "null" if given is None else given),
        "session": None
        if session is None or session_type is None
        else validated("session", TypeAdapter(session_class(session_type)), session),
        "memo": None if memo is None else validated("memo", _MEMO, memo),
        "search_attributes": pairs("attribute", attributes),
        "queue": queue,
        "start_delay": start_delay,
        "run_timeout": run_timeout,
        "execution_timeout": execution_timeout,
        "id_conflict_policy": id_conflict_policy,
        "id_reuse_policy": id_reuse_policy,
    }

    async def started(client: Client) -> WorkflowHandle[Any]:
        return await client.start_workflow(workflow, id=id_, **options)

    handle = over(lasting(store, tenant, None if codec_name is None else imported(codec_name)), started)
    if as_json:
        print_json({"id": handle.id, "run_id": handle.run_id})
    else:
        click.echo(f"{plain(handle.id)} is started as run {handle.run_id}")
