"""`make bench`: every figure with its bound; exit code 1 where one does not hold, measured twice.

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
    table = Table("figure", "median", "middle half", "ratio", "bound", "", show_lines=True)
    for figure in figures:
        table.add_row(figure.name, figure.value, figure.spread, figure.ratio, figure.bound, figure.verdict)
    console.print(table)
    for figure in figures:
        console.print(f"{figure.name}: {figure.note}")
    end = machine()
    console.print(end)
    pages.keep("bench", {"machine": [begin, end], "figures": [attrs.asdict(figure) for figure in figures]})
    rows = [[f.name, f.value, f.spread, f.ratio, f.bound, f.verdict.replace("MISSED", "**missed**")] for f in figures]
    shown = pages.table(["figure", "median", "middle half", "ratio", "bound", ""], rows)
    notes = "\n".join(f"- {figure.name}: {figure.note}." for figure in figures)
    pages.show("bench", f"{begin}; at the end load {end.rsplit('load ', 1)[1]}.\n\n{shown}\n\n{notes}")
    return 0 if all(figure.holds for figure in figures) else 1


sys.exit(main())
