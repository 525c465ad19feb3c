"""The command `wasman`.

Results go to stdout, everything else to stderr. Exit codes, for scripts:

    0    done; for `run`: the workflow completed
    1    `run`: the workflow failed, was terminated or timed out
    2    what was given cannot be used: options, names, input, a module
    3    `run`: the workflow is blocked; it keeps all its data
    4    no such instance, an id that is taken, a run that has ended, a store that cannot be used, damage
    130  `run`: left by SIGINT; 143 by SIGTERM. The workflow goes on where a worker is
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import logging
import os
import re
import signal
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import click
from attrs import asdict, frozen
from pydantic import TypeAdapter, ValidationError
from typing_extensions import override

from wasman_host.guest.limits import MAX_STACK, MAX_TABLE, STACK_STEP
from wasman_host.store import MemoryStore, open_store, path_of
from wasman_host.store.protocol import Key, Status
from wasman_sdk import (
    BlockedError,
    Client,
    InvalidArgumentError,
    Limits,
    ModuleError,
    RunEndedError,
    Session,
    WasmanError,
    Worker,
    Workflow,
    WorkflowAlreadyExistsError,
    WorkflowNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from wasman_sdk import HistoryEvent, WorkflowDescription, WorkflowHandle

__all__ = ["main"]

T = TypeVar("T")

_DEFAULT_STORE = "sqlite:///wasman.db"
_ENDED, _USAGE, _BLOCKED, _IMPOSSIBLE = 1, 2, 3, 4
_LOOK = 0.5  # seconds between two looks at an instance where no hint comes
_SHOWN = 20  # log entries that `show` prints if not told otherwise


# Errors: one line on stderr, and an exit code


class _Refused(click.ClickException):
    """One line on stderr, and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance

    @override
    def show(self, file: Any = None) -> None:
        click.echo(f"wasman: {_one_line(self.message)}", file=file, err=True)


class _Commands(click.Group):
    """Turns what wasman raises into one line and an exit code."""

    @override
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BaseExceptionGroup as group:
            raise _refused(group) from None
        except WasmanError as error:
            raise _refused(error) from None


def _leaves(error: BaseException) -> list[BaseException]:
    """Task groups wrap what happened in them; this is what happened."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _refused(error: BaseException) -> BaseException:
    """What to raise for an error: a line and a code, or the error itself where it is none of wasman's."""
    leaves = _leaves(error)
    for leaf in leaves:
        if isinstance(leaf, click.ClickException | click.exceptions.Exit):
            return leaf
        if isinstance(leaf, InvalidArgumentError | ModuleError):
            return _Refused(str(leaf), _USAGE)
        if isinstance(leaf, WasmanError):
            return _Refused(str(leaf), _ENDED if isinstance(leaf, RunEndedError) else _IMPOSSIBLE)
    return leaves[0] if len(leaves) == 1 else error


_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_PASSWORD = re.compile(r"(://[^/\s:@'\"]*:)[^/\s@'\"]+@")


def _plain(text: str) -> str:
    """Text that others chose, safe to print: no control characters, and no password of a URL."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), _PASSWORD.sub(r"\1***@", text))


def _one_line(text: str) -> str:
    """The first line of a message; a backtrace may follow it, which `show` prints."""
    return _plain(text.partition("\n")[0])


# Names of Python objects


def _imported(name: str) -> Any:
    """The object that `module:attribute` names; the working directory is importable."""
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise _Refused(f"{name!r} names nothing: write module:attribute, such as app:worker", _USAGE)
    found: Any = _module(module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise _Refused(f"{name!r} names nothing: {module_name!r} has no attribute {path!r}", _USAGE) from None
    return found


def _module(name: str) -> Any:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  whatever the application raises, it is told in one line
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise _Refused(
                f"there is no module {error.name!r} in the working directory or on the path", _USAGE
            ) from None
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""
        raise _Refused(f"{name!r} cannot be imported: {what}{where}", _USAGE) from None


def _named(name: str, kind: type[T]) -> T:
    found = _imported(name)
    if not isinstance(found, kind):
        raise _Refused(f"{name!r} is a {type(found).__name__}, not a {kind.__name__}", _USAGE)
    return found


def _worker(name: str, store: str | None) -> Worker:
    """The worker that `name` gives: itself, or made by a function that takes nothing, or the store's URL.

    `store` is the URL that was asked for, None where none was: then a worker keeps its own.
    """
    found = _imported(name)
    if callable(found) and not isinstance(found, Worker):
        try:
            wanted = [p for p in inspect.signature(found).parameters.values() if p.default is p.empty]
        except (TypeError, ValueError):
            wanted = []
        if len(wanted) > 1:
            message = f"{name!r} takes {len(wanted)} arguments; what makes a worker takes the store's URL, or nothing"
            raise _Refused(message, _USAGE)
        found = found(store or _DEFAULT_STORE) if wanted else found()
        if inspect.iscoroutine(found):
            found.close()
            raise _Refused(f"{name!r} is async; what makes a worker is a plain function", _USAGE)
    if not isinstance(found, Worker):
        raise _Refused(f"{name!r} gives a {type(found).__name__}, not a Worker", _USAGE)
    if store is not None and not _same(found.client.store, open_store(store)):
        message = (
            f"{name!r} uses the store {_place(found.client.store)}, and --store or WASMAN_STORE says {store}; "
            f"make it a function that takes the URL, or say none"
        )
        raise _Refused(message, _USAGE)
    return found


def _place(store: object) -> str:
    path = path_of(store)
    return type(store).__name__ if path is None else str(path)


def _same(one: object, other: object) -> bool:
    if (path := path_of(one)) is not None:
        return type(one) is type(other) and path == path_of(other)
    return isinstance(one, MemoryStore) and isinstance(other, MemoryStore)


def _session_type(name: str) -> type[Session]:
    found = _imported(name)
    if not (inspect.isclass(found) and issubclass(found, Session)):
        raise _Refused(f"{name!r} is no Session class", _USAGE)
    return found


def _validated(what: str, adapter: TypeAdapter[T], given: str) -> T:
    """JSON from the command line, or from the file behind an @."""
    if given.startswith("@"):
        try:
            given = Path(given[1:]).read_text("utf-8")
        except OSError as error:
            raise _Refused(f"the {what} cannot be read from {given[1:]}: {error.strerror}", _USAGE) from None
        except UnicodeError:
            raise _Refused(f"the {what} cannot be read from {given[1:]}: it is not UTF-8", _USAGE) from None
    try:
        return adapter.validate_json(given)
    except ValidationError as error:
        # Without the value itself: a session may hold what is not for everybody's eyes.
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise _Refused(f"the {what} does not fit: {where}{': ' if where else ''}{first['msg']}{more}", _USAGE) from None


# Logs, on stderr


class _Stderr(logging.Handler):
    """Looks stderr up at each line: a progress display may stand in for it."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(_plain(self.format(record)), err=True)


def _log(level: int) -> None:
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


# Options that several commands have


def _store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--store",
        envvar="WASMAN_STORE",
        metavar="URL",
        help=f"The store; also by WASMAN_STORE. Default: {_DEFAULT_STORE}, or what the worker says.",
    )(command)


def _tenant_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--tenant", default="default", show_default=True, help="Whose instances.")(command)


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="JSON, for programs.")(command)


def _existing(store: str | None, tenant: str) -> Client:
    """A client of a store that is there: looking at one must not make it."""
    client = Client.connect(store or _DEFAULT_STORE, tenant=tenant)
    if isinstance(client.store, MemoryStore):
        message = "memory:// lives and ends with one process, so there is nothing to look at from another"
        raise _Refused(message, _USAGE)
    path = path_of(client.store)
    if path is not None and not path.exists():
        message = f"there is no store {path}; name another by --store or WASMAN_STORE"
        raise _Refused(message, _IMPOSSIBLE)
    return client


def _with(client: Client, work: Callable[[Client], Awaitable[T]]) -> T:
    async def opened() -> T:
        async with client:
            return await work(client)

    return anyio.run(opened)


# The commands


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="wasman", prog_name="wasman", message="%(prog)s %(version)s")
def _wasman() -> None:
    """Durable WebAssembly workflows: run them, look at them, mend them.

    Exit codes: 0 done, 1 the workflow ended otherwise, 2 what was given cannot be used, 3 the workflow is blocked,
    4 not found, taken, ended already, or the store cannot be used, 130 and 143 left by a signal.
    """


@_wasman.command()
@click.argument("name", metavar="MODULE:ATTRIBUTE")
@_store_option
@click.option("-q", "--quiet", is_flag=True, help="Warnings only; by default guests' output is shown as well.")
def worker(name: str, store: str | None, *, quiet: bool) -> None:
    """Run a worker until SIGINT or SIGTERM.

    MODULE:ATTRIBUTE is a Worker, or a function that makes one: it takes the store's URL, or nothing.
    """
    _log(logging.WARNING if quiet else logging.INFO)
    found = _worker(name, store)
    _run_to_its_end(found.run)


def _run_to_its_end(work: Callable[[], Awaitable[T]]) -> T:
    try:
        return anyio.run(work)
    except KeyboardInterrupt:  # before the signals were taken over
        raise click.exceptions.Exit(128 + signal.SIGINT) from None


@_wasman.command()
@click.argument("name", metavar="MODULE:ATTRIBUTE")
@click.option("--id", "id_", required=True, help="The workflow id.")
@click.option("--input", "given", metavar="JSON|@FILE", help="What it is started with. Default: null.")
@click.option("--session", metavar="JSON|@FILE", help="How it is bound to the outside world.")
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
@_store_option
@_tenant_option
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
    _log(logging.INFO if verbose else logging.WARNING)
    workflow: Workflow[Any, Any] = _named(name, Workflow)
    if (session is None) != (session_type is None):
        raise _Refused("--session and --session-type MODULE:CLASS come together", _USAGE)
    start = _Start(
        workflow=workflow,
        id=id_,
        given=None if given is None else _validated("input", TypeAdapter(workflow.input_type), given),
        is_given=given is not None,
        session=None
        if session is None or session_type is None
        else _validated("session", TypeAdapter(_session_type(session_type)), session),
        attach=attach,
    )
    if worker_name is None:
        module_name = name.partition(":")[0]
        worker_name = f"{module_name}:worker" if hasattr(_module(module_name), "worker") else None
    found = None if worker_name is None else _worker(worker_name, store)
    if found is None:
        client = Client.connect(store or _DEFAULT_STORE, tenant=tenant)
        if isinstance(client.store, MemoryStore):
            raise _Refused("memory:// needs a worker in this process: name one by --worker", _USAGE)
        click.echo("wasman: no worker runs here; waiting for one elsewhere (--worker names one)", err=True)
    else:
        client = found.client
    _run_to_its_end(lambda: _run(start, client, found, tenant))


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
        given = start.given if start.is_given else _validated("input", TypeAdapter(start.workflow.input_type), "null")
        try:
            handle = await client.start_workflow(start.workflow, given, id=start.id, session=start.session)
        except WorkflowAlreadyExistsError as error:
            handle = await _found(start, client) if start.attach else None  # somebody else has started it just now
            if handle is None:
                raise _Refused(f"{error} (--attach goes on with the one that is there)", _IMPOSSIBLE) from None
    if sys.stderr.isatty():
        await _watched_by_people(client, handle)
    else:
        await _closed(client, handle, lambda _: None)
    result = await handle.result()
    output: TypeAdapter[Any] = TypeAdapter(start.workflow.output_type)
    click.echo(output.dump_json(result).decode())


async def _found(start: _Start, client: Client) -> WorkflowHandle[Any] | None:
    handle = client.get_handle(start.id, workflow=start.workflow)
    try:
        there = (await handle.describe()).workflow
    except WorkflowNotFoundError:
        return None
    if there != start.workflow.name:
        raise _Refused(f"{start.id!r} is an instance of workflow {there!r}, not of {start.workflow.name!r}", _USAGE)
    return handle


async def _watched_by_people(client: Client, handle: WorkflowHandle[Any]) -> None:
    from rich.console import Console

    with Console(stderr=True).status(f"{handle.id}: starting") as status:

        def tell(description: WorkflowDescription) -> None:
            words = [f"{description.id}: {description.status}", f"{description.log_entries:,} log entries"]
            words += [f"{pending.name}, attempt {pending.attempts}" for pending in description.pending[:1]]
            status.update(_escaped(", ".join(words)))

        await _closed(client, handle, tell)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(_one_line(text))


async def _closed(
    client: Client, handle: WorkflowHandle[Any], tell: Callable[[WorkflowDescription], None]
) -> WorkflowDescription:
    """Wait until the run has ended. A run that is blocked is not waited for."""
    told = ""
    while True:
        description = await handle.describe()
        if description.status == Status.BLOCKED:
            message = f"{handle.id} is blocked: {description.reason}"
            raise _Refused(message, _BLOCKED)
        if description.closed is not None:
            return description
        if description.reason and description.reason != told:
            told = description.reason
            click.echo(f"wasman: {handle.id} is {description.status}: {_one_line(told)}", err=True)
        tell(description)
        await client.store.watch(Key(client.tenant, handle.id), _LOOK)


@_wasman.command(name="list")
@click.option(
    "--status", multiple=True, type=click.Choice([one.value for one in Status]), help="Repeat it for several."
)
@click.option("--workflow", help="The workflow's name.")
@click.option("--prefix", help="How the id begins.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="The newest so many.")
@_json_option
@_store_option
@_tenant_option
def list_(
    status: Sequence[str],
    workflow: str | None,
    prefix: str | None,
    limit: int,
    store: str | None,
    tenant: str,
    *,
    as_json: bool,
) -> None:
    """List instances, newest first."""

    async def found(client: Client) -> list[WorkflowDescription]:
        rows = []
        wanted = frozenset(status) or None
        async for description in client.list(status=wanted, workflow=workflow, id_prefix=prefix):
            rows.append(description)
            if len(rows) > limit:
                break
        return rows

    rows = _with(_existing(store, tenant), found)
    if as_json:
        _print_json([asdict(row) for row in rows[:limit]])
    else:
        _print_table(
            ("ID", "WORKFLOW", "STATUS", "STARTED", "ENDED", "LOG", "REASON"),
            [
                (
                    row.id,
                    row.workflow,
                    row.status,
                    _time(row.created),
                    _time(row.closed),
                    f"{row.log_entries}",
                    _one_line(row.reason),
                )
                for row in rows[:limit]
            ],
        )
    if len(rows) > limit:
        click.echo(f"wasman: there are more than these {limit}; --limit shows more", err=True)


@_wasman.command()
@click.argument("id_", metavar="ID")
@click.option("--all", "whole_log", is_flag=True, help=f"The whole log, not only its last {_SHOWN} entries.")
@_json_option
@_store_option
@_tenant_option
def show(id_: str, store: str | None, tenant: str, *, whole_log: bool, as_json: bool) -> None:
    """Show an instance: how it stands, why, what it waits for, and its log. Payloads and sessions are not shown."""

    async def found(client: Client) -> tuple[WorkflowDescription, list[HistoryEvent], BlockedError | None]:
        handle = client.get_handle(id_)
        description = await handle.describe()
        try:
            return description, await handle.history(), None
        except BlockedError as error:
            return description, [], error

    description, events, damage = _with(_existing(store, tenant), found)
    if as_json:
        log = None if damage else [asdict(event) for event in events]
        _print_json({**asdict(description), "log": log})
    else:
        _print_description(description)
        first = 0 if whole_log else max(0, description.log_entries - _SHOWN)
        _print_log([event for event in events if event.entry >= first])
        if first and events:
            click.echo(f"\n{first} earlier entries are not shown; --all shows them")
    if damage:
        raise _Refused(f"the log cannot be read: {damage}", _IMPOSSIBLE)


@_wasman.command()
@click.argument("id_", metavar="ID")
@click.option("--reason", required=True, help="Kept with the run.")
@_store_option
@_tenant_option
def terminate(id_: str, reason: str, store: str | None, tenant: str) -> None:
    """End a run without asking its guest. It is durable when this returns; the next worker that sees it does it."""
    _with(_existing(store, tenant), lambda client: client.get_handle(id_).terminate(reason))
    click.echo(f"{id_} is to be terminated, by the worker that has it or the next one that runs")


@_wasman.command()
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
@_store_option
@_tenant_option
def unblock(id_: str, store: str | None, tenant: str, **limits: float | None) -> None:
    """Let a blocked run go on from where it stands, perhaps with other limits."""

    async def go_on(client: Client) -> None:
        handle = client.get_handle(id_)
        stated = {name: limit for name, limit in limits.items() if limit is not None}
        now = (await handle.describe()).limits or Limits()
        await handle.unblock(limits=Limits(**{**asdict(now), **stated}) if stated else None)

    _with(_existing(store, tenant), go_on)
    click.echo(f"{id_} goes on from where it stands, as soon as a worker claims it")


# Output


def _time(time: datetime | None) -> str:
    return "" if time is None else time.strftime("%Y-%m-%d %H:%M:%S")


def _print_json(value: Any) -> None:
    def other(one: Any) -> str:
        assert isinstance(one, datetime), f"no JSON for {one!r}"
        return one.isoformat()

    click.echo(_PASSWORD.sub(r"\1***@", json.dumps(value, default=other, indent=2, ensure_ascii=False)))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Into a pipe nothing is cut off.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=100_000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in head:
        table.add_column(title, justify="right" if title in {"LOG", "BYTES", "OPERATION", "ENTRY"} else "left")
    for row in rows:
        table.add_row(*(Text(_plain(cell)) for cell in row))
    with console.capture() as captured:
        console.print(table)
    click.echo("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()), nl=False)


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
            f"response {given.response:,} bytes"
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
        "started": f"{_time(description.created)} UTC",
        "ended": f"{_time(description.closed)} UTC" if description.closed else "",
        "limits": limits,
        "snapshots": snapshots,
        "memo": json.dumps(description.memo, ensure_ascii=False) if description.memo else "",
        "undelivered": ", ".join(f"{kind} {message}" for message, kind in description.undelivered),
    }
    for name, value in fields.items():
        if value:
            first, *more = value.splitlines()
            click.echo("\n".join([f"{name:12}{_plain(first)}", *(f"{'':12}{_plain(line)}" for line in more)]))
    for pending in description.pending:
        when = f", next at {_time(pending.next_attempt)} UTC" if pending.next_attempt else ""
        failure = f", last failure: {_one_line(pending.last_failure)}" if pending.last_failure else ""
        click.echo(f"{'pending':12}{_plain(pending.name)}, {pending.attempts} attempts begun{when}{failure}")


def _print_log(events: Sequence[HistoryEvent]) -> None:
    if not events:
        return
    click.echo()
    _print_table(
        ("ENTRY", "TIME", "EVENT", "OPERATION", "NAME", "BYTES", "FAILURE"),
        [
            (
                f"{event.entry}",
                event.time.strftime("%H:%M:%S.%f")[:-3],
                event.kind,
                "" if event.operation is None else f"{event.operation}",
                f"{int(event.name) / 1e9:g} s" if event.kind == "fired" and event.name.isdecimal() else event.name,
                f"{event.size:,}",
                _one_line(event.failure),
            )
            for event in events
        ],
    )


def main() -> None:
    """The command `wasman`."""
    try:
        _wasman(prog_name="wasman")
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
