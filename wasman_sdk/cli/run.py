"""`wasman run`: start a workflow, with a worker beside it, and wait for what it gives."""

from __future__ import annotations

import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Any

import anyio
import click
from attrs import frozen
from pydantic import TypeAdapter

from wasman_host.store import MemoryStore
from wasman_sdk import Client, Session, Workflow, WorkflowAlreadyExistsError, WorkflowNotFoundError
from wasman_sdk.cli.errors import IMPOSSIBLE, USAGE, Refused
from wasman_sdk.cli.objects import imported_module, named, session_class, validated, worker_of
from wasman_sdk.cli.options import DEFAULT_STORE, store_option, tenant_option
from wasman_sdk.cli.output import log_to_stderr
from wasman_sdk.cli.waiting import closed
from wasman_sdk.cli.worker import run_to_its_end

if TYPE_CHECKING:
    from wasman_sdk import Worker, WorkflowHandle

__all__ = ["run"]


@click.command()
@click.argument("name", metavar="MODULE:ATTRIBUTE")
@click.option("--id", "id_", required=True, help="The workflow id.")
@click.option("--input", "given", metavar="JSON|@FILE|-", help="What it is started with. Default: null.")
@click.option("--session", metavar="JSON|@FILE|-", help="How it is bound to the outside world.")
@click.option("--session-type", metavar="MODULE:CLASS", help="The Session class that --session is read as.")
@click.option(
    "--worker",
    "worker_name",
    metavar="MODULE:ATTRIBUTE",
    help="The worker to run beside it, as for `wasman worker`. Default: `worker` of the same module, if it is there.",
)
@click.option(
    "--attach", is_flag=True, help="Where the id is there already, go on with it; --input is not needed then."
)
@click.option("-v", "--verbose", is_flag=True, help="Show guests' output on stderr.")
@store_option
@tenant_option
def run(
    name: str,
    id_: str,
    given: str | None,
    session: str | None,
    session_type: str | None,
    worker_name: str | None,
    store: str | None,
    tenant: str,
    *,
    attach: bool,
    verbose: bool,
) -> None:
    """Start a workflow, wait for it and print its result as JSON.

    MODULE:ATTRIBUTE is a Workflow. It is run by the worker beside it, or by any other of the same store. After a crash,
    or where it was left, `--attach` goes on with it.
    """
    log_to_stderr(logging.INFO if verbose else logging.WARNING)
    workflow: Workflow[Any, Any] = named(name, Workflow)
    if (session is None) != (session_type is None):
        raise Refused("--session and --session-type MODULE:CLASS come together", USAGE)
    start = _Start(
        workflow=workflow,
        id=id_,
        given=None if given is None else validated("input", TypeAdapter(workflow.input_type), given),
        is_given=given is not None,
        session=None
        if session is None or session_type is None
        else validated("session", TypeAdapter(session_class(session_type)), session),
        attach=attach,
    )
    if worker_name is None:
        module_name = name.partition(":")[0]
        worker_name = f"{module_name}:worker" if hasattr(imported_module(module_name), "worker") else None
    found = None if worker_name is None else worker_of(worker_name, store)
    if found is None:
        client = Client.connect(store or DEFAULT_STORE, tenant=tenant)
        if isinstance(client.store, MemoryStore):
            raise Refused("memory:// needs a worker in this process: name one by --worker", USAGE)
        click.echo("wasman: no worker runs here; waiting for one elsewhere (--worker names one)", err=True)
    else:
        client = found.client
    run_to_its_end(lambda: _run(start, client, found, tenant))


@frozen
class _Start:
    """What `run` was asked for."""

    workflow: Workflow[Any, Any]
    id: str
    given: Any
    is_given: bool
    session: Session | None
    attach: bool


async def _run(start: _Start, client: Client, worker: Worker | None, tenant: str) -> None:
    waiting = anyio.CancelScope()
    ended_by: list[int] = []

    async def leave_on_signals() -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                ended_by.append(number)
                waiting.cancel()  # not the worker: it leaves in order

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave_on_signals)
        async with contextlib.AsyncExitStack() as stack:
            # A worker opens the client that it shares with the command.
            await stack.enter_async_context(client if worker is None else worker)
            with waiting:
                await _started(start, client if client.tenant == tenant else Client.over(client.store, tenant))
        tasks.cancel_scope.cancel()
    if ended_by:
        click.echo(f"wasman: left {start.id}, which is not done; the same command with --attach goes on", err=True)
        raise click.exceptions.Exit(128 + ended_by[0])


async def _started(start: _Start, client: Client) -> None:
    """Start the workflow, or find it; print what it gives."""
    handle = await _found(start, client) if start.attach else None
    if handle is None:
        given = start.given if start.is_given else validated("input", TypeAdapter(start.workflow.input_type), "null")
        try:
            handle = await client.start_workflow(
                start.workflow, given, id=start.id, session=start.session, id_reuse_policy="reject_duplicate"
            )
        except WorkflowAlreadyExistsError as error:
            handle = await _found(start, client) if start.attach else None  # somebody else has started it just now
            if handle is None:
                raise Refused(f"{error} (--attach goes on with the one that is there)", IMPOSSIBLE) from None
    await closed(client, handle)
    result = await handle.result()
    if isinstance(result, bytes):
        click.echo(result, nl=False)
        return
    output: TypeAdapter[Any] = TypeAdapter(start.workflow.output_type)
    click.echo(output.dump_json(result).decode())


async def _found(start: _Start, client: Client) -> WorkflowHandle[Any] | None:
    handle = client.get_handle(start.id, workflow=start.workflow)
    try:
        there = (await handle.describe()).workflow
    except WorkflowNotFoundError:
        return None
    if there != start.workflow.name:
        raise Refused(f"{start.id!r} is an instance of workflow {there!r}, not of {start.workflow.name!r}", USAGE)
    return handle
