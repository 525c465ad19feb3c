"""`wasman signal`, `cancel`, `terminate` and `unblock`: what a person tells an instance, or decides about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from attrs import asdict
from pydantic import TypeAdapter

from wasman_host.guest.limits import MAX_STACK, MAX_TABLE, STACK_STEP
from wasman_sdk import Limits
from wasman_sdk.cli.objects import validated
from wasman_sdk.cli.options import existing, over, store_option, tenant_option

if TYPE_CHECKING:
    from wasman_sdk import Client

__all__ = ["cancel", "signal", "terminate", "unblock"]


_ANY: TypeAdapter[Any] = TypeAdapter(Any)


@click.command()
@click.argument("id_", metavar="ID")
@click.argument("name", metavar="NAME")
@click.argument("value", metavar="[JSON]", default="null")
@click.option("--message-id", metavar="MESSAGE", help="By which a repeated send is known, which changes nothing then.")
@click.option("--run", "run_id", metavar="RUN", help="Only if this is its current run.")
@store_option
@tenant_option
def signal(
    id_: str, name: str, value: str, message_id: str | None, run_id: str | None, store: str | None, tenant: str
) -> None:
    """Send a run the signal NAME with a value: JSON, @FILE, or - for stdin. It is kept until the guest receives it."""
    said = validated("value", _ANY, value)

    async def send(client: Client) -> None:
        await client.get_handle(id_, run_id=run_id).signal(name, said, message_id=message_id)

    over(existing(store, tenant), send)
    click.echo(f"{id_} was sent {name}")


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--reason", default="cancelled by request", show_default=True, help="What the guest is told.")
@click.option("--run", "run_id", metavar="RUN", help="Only if this is its current run.")
@store_option
@tenant_option
def cancel(id_: str, reason: str, run_id: str | None, store: str | None, tenant: str) -> None:
    """Ask a run to end in its own way. It is durable when this returns; the guest is told at its current or next call.

    It may tidy up, and may complete all the same: `wasman result` tells how it ended.
    """
    over(existing(store, tenant), lambda client: client.get_handle(id_, run_id=run_id).cancel(reason))
    click.echo(f"{id_} is asked to end, by the worker that has it or the next one that runs")


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--reason", required=True, help="Kept with the run.")
@click.option("--run", "run_id", metavar="RUN", help="Only if this is its current run.")
@store_option
@tenant_option
def terminate(id_: str, reason: str, run_id: str | None, store: str | None, tenant: str) -> None:
    """End a run without asking its guest. It is durable when this returns; the next worker that sees it does it."""
    over(existing(store, tenant), lambda client: client.get_handle(id_, run_id=run_id).terminate(reason))
    click.echo(f"{id_} is to be terminated, by the worker that has it or the next one that runs")


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--memory", type=click.IntRange(min=65536), help="Bytes of linear memory from now on.")
@click.option("--table-elements", type=click.IntRange(1, MAX_TABLE), help="Elements of each of its tables from now on.")
@click.option("--stack", type=click.IntRange(STACK_STEP, MAX_STACK), help="Bytes its calls may nest from now on.")
@click.option(
    "--turn-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Processor time from one host call to the next, in seconds, from now on.",
)
@click.option("--stored", type=click.IntRange(min=1), help="Bytes that the run may have stored from now on.")
@click.option("--request", type=click.IntRange(min=1), help="Bytes that it may send at once from now on.")
@click.option("--response", type=click.IntRange(min=1), help="Bytes that it may be given at once from now on.")
@click.option("--signals", type=click.IntRange(min=1), help="Signals that may wait for it from now on.")
@store_option
@tenant_option
def unblock(id_: str, store: str | None, tenant: str, **limits: float | None) -> None:
    """Let a blocked run go on from where it stands, perhaps with other limits."""

    async def go_on(client: Client) -> None:
        handle = client.get_handle(id_)
        stated = {name: limit for name, limit in limits.items() if limit is not None}
        now = (await handle.describe()).limits or Limits()
        await handle.unblock(limits=Limits(**{**asdict(now), **stated}) if stated else None)

    over(existing(store, tenant), go_on)
    click.echo(f"{id_} goes on from where it stands, as soon as a worker claims it")
