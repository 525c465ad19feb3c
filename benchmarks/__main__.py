"""`make bench`: every figure with its bound; exit code 1 where one does not hold."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import code_cache, direct, durable_call, flights, many_at_once, process_start, streams
from benchmarks.measure import machine

_FLIGHTS = Path(".cache/flights.csv")


def main() -> int:
    """Measure everything, print it."""
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=160 if not sys.stdout.isatty() else None)
    console.print(machine())
    figures = [
        durable_call.measure(),
        direct.measure(),
        *many_at_once.measure(),
        code_cache.measure(),
        process_start.measure(),
        *streams.measure(),
    ]
    if _FLIGHTS.exists():
        figures.append(flights.measure(_FLIGHTS.absolute()))
    table = Table("figure", "median", "middle half", "ratio", "bound", "", show_lines=True)
    for figure in figures:
        holds = "holds" if figure.holds else "MISSED"
        table.add_row(figure.name, figure.value, figure.spread, figure.ratio, figure.bound, holds)
    console.print(table)
    for figure in figures:
        console.print(f"{figure.name}: {figure.note}")
    console.print(machine())
    return 0 if all(figure.holds for figure in figures) else 1


sys.exit(main())
