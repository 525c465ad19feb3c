"""Measuring on machines that are shared and noisy: medians of rounds, and ratios to something run in between."""

from __future__ import annotations

import os
import platform
import statistics
import time
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Figure", "installed", "load", "machine", "median_and_spread"]


@frozen
class Figure:
    """One line of the report.

    Attributes:
        name: What was measured.
        value: The median, with its unit.
        spread: The middle half of the rounds.
        ratio: The median against what it is compared to, "" where there is nothing.
        bound: What the issue asks for.
        holds: Whether the bound holds.
        note: How it was measured.
    """

    name: str
    value: str
    spread: str
    ratio: str
    bound: str
    holds: bool
    note: str


def median_and_spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and third quartile."""
    if len(values) < 2:  # noqa: PLR2004  one value has no quartiles
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high


def installed(bytecode: str) -> dict[str, str]:
    """An environment of processes as after an installation, which compiles: their bytecode is kept in that folder.

    The machine may be told not to write any.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def load() -> str:
    """The machine's load averages over 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def machine() -> str:
    """What this is measured on."""
    moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return (
        f"{moment} UTC, Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}, load {load()}"
    )
