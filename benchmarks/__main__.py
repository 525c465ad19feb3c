"""`make bench`: every figure with its bound; exit code 1 where one does not hold, even measured again.

Writes benchmarks/results/bench.json and the table of docs/benchmarks.md.
"""

from __future__ import annotations

import functools
import logging
import sys
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from benchmarks import (
    ages,
    checkpoint,
    code_cache,
    direct,
    durable_call,
    flights,
    growth,
    importing,
    listing,
    many_at_once,
    pages,
    parked,
    process_start,
    restore,
    sdk_overhead,
    streams,
    takeover,
    turns,
    waking,
)
from benchmarks.measure import machine, measured

_FLIGHTS = Path(".cache/flights.csv")


def main() -> int:
    """Measure everything, print it."""
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=160 if not sys.stdout.isatty() else None)
    begin = machine()
    console.print(begin)
    figures = measured(
        restore.measure,
        checkpoint.measure,
        durable_call.measure,
        direct.measure,
        many_at_once.measure,
        growth.measure,
        ages.measure,
        listing.measure,
        parked.measure,
        takeover.measure,
        turns.measure,
        waking.measure,
        code_cache.measure,
        process_start.measure,
        importing.measure,
        sdk_overhead.measure,
        streams.measure,
        *([functools.partial(flights.measure, _FLIGHTS.absolute())] if _FLIGHTS.exists() else []),
    )
    heads = ["figure", "median", "middle half", "ratio", "bound", ""]
    rows = [[each.name, each.value, each.spread, each.ratio, each.bound, each.verdict] for each in figures]
    table = Table(*heads, show_lines=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for figure in figures:
        console.print(f"{figure.name}: {figure.note}")
    end = machine()
    console.print(end)
    pages.keep("bench", {"machine": [begin, end], "figures": [attrs.asdict(figure) for figure in figures]})
    shown = pages.table(heads, rows)
    notes = "\n".join(f"- {figure.name}: {figure.note}." for figure in figures)
    pages.show("bench", f"{begin}; at the end load {end.rsplit('load ', 1)[1]}.\n\n{shown}\n\n{notes}")
    return 0 if all(figure.holds for figure in figures) else 1


sys.exit(main())
