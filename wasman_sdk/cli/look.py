"""`wasman list` and `wasman show`: how instances stand, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from attrs import asdict

from wasman_host.store.protocol import Status
from wasman_sdk import BlockedError
from wasman_sdk.cli.durations import TIME
from wasman_sdk.cli.errors import IMPOSSIBLE, Refused
from wasman_sdk.cli.options import existing, json_option, over, pairs, store_option, tenant_option
from wasman_sdk.cli.output import moment, one_line, plain, print_fields, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from wasman_sdk import Client, HistoryEvent, WaitingSignal, WorkflowDescription, WorkflowFilter


__all__ = ["list_", "show"]

_SIGNAL_NAMES = 10  # that `show` prints
_SHOWN = 20  # log entries that `show` prints if not told otherwise


@click.command(name="list")
@click.option(
    "--status", multiple=True, type=click.Choice([one.value for one in Status]), help="Repeat it for several."
)
@click.option("--workflow", help="The workflow's name.")
@click.option("--prefix", help="How the id begins.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="What it is found by; repeat it.")
@click.option("--started-after", type=TIME, help="Started then or later, such as 2026-01-31, or 2h for two hours ago.")
@click.option("--started-before", type=TIME, help="Started earlier.")
@click.option("--closed-after", type=TIME, help="Ended then or later.")
@click.option("--closed-before", type=TIME, help="Ended earlier.")
@click.option("--count", "only_count", is_flag=True, help="Print how many there are, and nothing else.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="The newest so many.")
@json_option
@store_option
@tenant_option
def list_(
    status: Sequence[str],
    workflow: str | None,
    prefix: str | None,
    attributes: Sequence[str],
    started_after: datetime | None,
    started_before: datetime | None,
    closed_after: datetime | None,
    closed_before: datetime | None,
    limit: int,
    store: str | None,
    tenant: str,
    *,
    only_count: bool,
    as_json: bool,
) -> None:
    """List instances, newest first: those that match all that is given."""
    where: WorkflowFilter = {
        "status": frozenset(status) or None,
        "workflow": workflow,
        "id_prefix": prefix,
        "search_attributes": pairs("attribute", attributes),
        "started_after": started_after,
        "started_before": started_before,
        "closed_after": closed_after,
        "closed_before": closed_before,
    }
    if only_count:
        click.echo(f"{over(existing(store, tenant), lambda client: client.count(**where))}")
        return

    async def found(client: Client) -> list[WorkflowDescription]:
        rows = []
        async for description in client.list_workflows(page_size=min(limit + 1, 1000), **where):
            rows.append(description)
            if len(rows) > limit:
                break
        return rows

    rows = over(existing(store, tenant), found)
    if as_json:
        print_json([asdict(row) for row in rows[:limit]])
    else:
        print_table(
            ("ID", "WORKFLOW", "STATUS", "STARTED", "ENDED", "LOG", "REASON"),
            [
                (
                    row.id,
                    row.workflow,
                    row.status,
                    moment(row.created),
                    moment(row.closed),
                    f"{row.log_entries}",
                    one_line(row.reason),
                )
                for row in rows[:limit]
            ],
        )
    if len(rows) > limit:
        click.echo(f"wasman: there are more than these {limit}; --limit shows more", err=True)


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--run", "run_id", metavar="RUN", help="One particular run; by default the current one.")
@click.option("--all", "whole_log", is_flag=True, help=f"The whole log, not only its last {_SHOWN} entries.")
@json_option
@store_option
@tenant_option
def show(id_: str, run_id: str | None, store: str | None, tenant: str, *, whole_log: bool, as_json: bool) -> None:
    """Show an instance: how it stands, why, what it waits for, and the timeline of its log and its newest snapshot.

    Payloads and sessions are not shown, only their sizes.
    """

    async def found(client: Client) -> tuple[WorkflowDescription, list[HistoryEvent], BlockedError | None]:
        handle = client.get_handle(id_, run_id=run_id)
        description = await handle.describe()
        try:
            return description, await handle.history(), None
        except BlockedError as error:
            return description, [], error

    description, events, damage = over(existing(store, tenant), found)
    if as_json:
        log = None if damage else [asdict(event) for event in events]
        print_json({**asdict(description), "log": log})
    else:
        _print_description(description)
        first = 0 if whole_log else max(0, description.log_entries - _SHOWN)
        _print_timeline([event for event in events if event.entry >= first], description)
        if first and events:
            click.echo(f"\n{first} earlier entries are not shown; --all shows them")
    if damage:
        raise Refused(f"the log cannot be read: {damage}", IMPOSSIBLE)


def _print_description(description: WorkflowDescription) -> None:
    snapshots = limits = ""
    if description.snapshots:
        snapshots = (
            f"{description.snapshots} over the base image, {description.snapshot_bytes:,} bytes, "
            f"the newest before log entry {description.snapshot_entry}"
        )
    if (given := description.limits) is not None:
        limits = (
            f"memory {given.memory:,} bytes, tables {given.table_elements:,} elements, stack {given.stack:,} bytes, "
            f"turn {given.turn_seconds:g} s, stored {given.stored:,} bytes, request {given.request:,} bytes, "
            f"response {given.response:,} bytes, signals {given.signals:,}"
        )
    fields = {
        "id": description.id,
        "run": description.run_id,
        "workflow": description.workflow,
        "module": description.module,
        "status": description.status,
        "reason": description.reason,
        "backtrace": description.backtrace,
        "worker": description.owner or "",
        "started": f"{moment(description.created)} UTC",
        "ended": f"{moment(description.closed)} UTC" if description.closed else "",
        "timeout": f"{moment(description.expires)} UTC" if description.expires and not description.closed else "",
        "before": description.previous_run_id,
        "limits": limits,
        "snapshots": snapshots,
        "memo": json.dumps(description.memo, ensure_ascii=False) if description.memo else "",
        "attributes": ", ".join(f"{name}={value}" for name, value in description.search_attributes.items()),
        "mail": f"{description.unread} messages that no worker has taken yet" if description.unread else "",
        "signals": _waiting(description.signals),
        "undelivered": ", ".join(f"{kind} {message}" for message, kind in description.undelivered),
    }
    print_fields(fields)
    for pending in description.pending:
        when = f", next at {moment(pending.next_attempt)} UTC" if pending.next_attempt else ""
        failure = f", last failure: {one_line(pending.last_failure)}" if pending.last_failure else ""
        click.echo(f"{'pending':12}{plain(pending.name)}, {pending.attempts} attempts begun{when}{failure}")


def _waiting(signals: Sequence[WaitingSignal]) -> str:
    """The signals that wait, by their names; a thousand of one name are few words."""
    named: dict[str, list[WaitingSignal]] = {}
    for signal in signals:
        named.setdefault(signal.name, []).append(signal)
    words = [
        f"{name}{f' ({len(found):,})' if len(found) > 1 else ''} since {moment(found[0].sent)}"
        for name, found in list(named.items())[:_SIGNAL_NAMES]
    ]
    if len(named) > _SIGNAL_NAMES:
        words.append(f"and {len(named) - _SIGNAL_NAMES:,} more names")
    return ", ".join(words)


def _print_timeline(events: Sequence[HistoryEvent], description: WorkflowDescription) -> None:
    """What was handed to the guest, and its newest snapshot between."""
    snapshot = description.snapshot_entry
    rows = []
    for event in events:
        if snapshot is not None and event.entry >= snapshot:
            rows.append(_snapshot_row(description))
            snapshot = None
        rows.append(
            (
                f"{event.entry}",
                event.time.strftime("%H:%M:%S.%f")[:-3],
                event.kind,
                "" if event.operation is None else f"{event.operation}",
                f"{int(event.name) / 1e9:g} s" if event.kind == "fired" and event.name.isdecimal() else event.name,
                f"{event.size:,} encoded by {event.codec}" if event.codec else f"{event.size:,}",
                one_line(event.failure),
            )
        )
    if snapshot is not None and events:
        rows.append(_snapshot_row(description))
    if rows:
        click.echo()
        print_table(("ENTRY", "TIME", "EVENT", "OPERATION", "NAME", "BYTES", "FAILURE"), rows)


def _snapshot_row(description: WorkflowDescription) -> tuple[str, ...]:
    name = f"{description.snapshots} over the base image"
    return ("", "", "snapshot", "", name, f"{description.snapshot_bytes:,}", "")
