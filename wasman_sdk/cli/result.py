"""`wasman result`: wait for a run that is there, and print what it gave."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import click
from pydantic_core import from_json

from wasman_sdk._workflow import Workflow
from wasman_sdk.cli.durations import DURATION
from wasman_sdk.cli.errors import UNFINISHED, Refused
from wasman_sdk.cli.objects import imported
from wasman_sdk.cli.options import codec_option, existing, over, store_option, tenant_option
from wasman_sdk.cli.output import print_line
from wasman_sdk.cli.waiting import closed

if TYPE_CHECKING:
    from datetime import timedelta

    from wasman_sdk import Client

__all__ = ["result"]


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--run", "run_id", metavar="RUN", help="One particular run; by default the current one.")
@click.option("--timeout", type=DURATION, help="Wait no longer than this, such as 30s or 0; by default for ever.")
@codec_option
@store_option
@tenant_option
def result(
    id_: str, run_id: str | None, timeout: timedelta | None, codec_name: str | None, store: str | None, tenant: str
) -> None:
    """Wait until a run has ended, and print its result as JSON, or as it is where it is none.

    Exit codes: 1 where it failed, was cancelled, terminated or timed out, 3 where it is blocked, 5 where it has not
    ended within --timeout.
    """

    async def found(client: Client) -> bytes:
        handle = client.get_handle(id_, run_id=run_id, workflow=Workflow("", object, bytes))
        if timeout is None or (await handle.describe()).closed is not None:
            await closed(client, handle)
        else:
            with anyio.move_on_after(timeout.total_seconds()) as waited:
                await closed(client, handle)
            if waited.cancelled_caught:
                status = (await handle.describe()).status
                raise Refused(f"{id_} is {status}, and has not ended within {timeout.total_seconds():g} s", UNFINISHED)
        return await handle.result()

    given = over(existing(store, tenant, None if codec_name is None else imported(codec_name)), found)
    try:
        value = from_json(given or b"null")
    except ValueError:
        click.echo(given, nl=False)
    else:
        print_line(value)
