"""Measuring on machines that are shared and noisy: medians of rounds, and ratios to something run in between."""

from __future__ import annotations

import os
import platform
import statistics
import time
from typing import TYPE_CHECKING

from attrs import evolve, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Figure", "installed", "load", "machine", "measured", "median_and_spread"]


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
        missed: What it was when it was measured before and missed its bound, "" where it was measured once.
    """

    name: str
    value: str
    spread: str
    ratio: str
    bound: str
    holds: bool
    note: str
    missed: str = ""

    @property
    def verdict(self) -> str:
        """Whether the bound holds, and at which attempt."""
        said = "holds" if self.holds else "MISSED"
        return f"{said}, {self.missed} at first" if self.missed else said


def measured(*measures: Callable[[], Figure | Sequence[Figure]]) -> list[Figure]:
    """What these measure; what misses its bound is measured once more when all others are, and says so.

    Those who share the machine come and go within minutes, and slow an absolute figure by half; the median of rounds of
    the same minute does not see it.
    """
    groups = [_group(measure()) for measure in measures]
    for measure, group in zip(measures, groups, strict=True):
        if not all(figure.holds for figure in group):
            group[:] = [
                first if first.holds else evolve(second, missed=f"{first.value} ({first.spread or first.ratio})")
                for first, second in zip(group, _group(measure()), strict=True)
            ]
    return [figure for group in groups for figure in group]


def _group(figures: Figure | Sequence[Figure]) -> list[Figure]:
    return [figures] if isinstance(figures, Figure) else list(figures)


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
