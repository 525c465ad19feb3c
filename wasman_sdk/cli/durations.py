"""Durations on the command line: 90, 90s, 1h30m, 30d; and times: 2026-01-31, or a duration ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from typing_extensions import override

__all__ = ["DURATION", "TIME"]

if TYPE_CHECKING:
    _DurationType = click.ParamType[timedelta]
    _TimeType = click.ParamType[datetime]
else:  # click before 8.4 cannot be told what a type gives
    _DurationType = _TimeType = click.ParamType

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class _Duration(_DurationType):
    """A number of seconds, or numbers with units."""

    name = "duration"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        text = str(value).strip()
        if re.fullmatch(r"\d+(?:\.\d+)?", text):
            text += "s"
        if not text or _PART.sub("", text):
            self.fail(f"{value!r} is no duration: write seconds, or 500ms, 30s, 5m, 1h30m, 30d", param, ctx)
        try:
            return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)))
        except OverflowError:
            self.fail(f"{value!r} is longer than any time that can be told", param, ctx)


DURATION = _Duration()


class _Time(_TimeType):
    """A date or a time, of UTC where no time zone is said; or a duration ago."""

    name = "time"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            try:
                return datetime.now(UTC) - DURATION.convert(text, None, None)
            except (click.BadParameter, OverflowError):
                words = "write 2026-01-31, 2026-01-31T12:00, or how long ago it was, such as 2h"
                self.fail(f"{value!r} is no time: {words}", param, ctx)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


TIME = _Time()
