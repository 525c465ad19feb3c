"""Runs cases in child processes and watches them: one that dies or hangs is named, and the rest goes on behind it."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.fuzz.cases import ROOT

__all__ = ["Report", "campaign"]

SILENCE = 60.0  # seconds without a word of the child: longer than a case may be silent there
ENOUGH = 10  # failures after which a campaign ends


@define
class Report:
    """How the cases of one kind ended, and what failed."""

    kind: str
    ends: Counter[str] = field(factory=Counter)
    failures: list[str] = field(factory=list)

    def fails(self, seed: int, what: str) -> None:
        self.failures.append(f"{self.kind} {seed}: {what}\nAgain: python -m tests.fuzz {self.kind} {seed}")

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common())
        return f"{self.ends.total()} {self.kind}: {ends}; {len(self.failures)} failures"


def campaign(kind: str, first: int, count: int, folder: Path | None = None) -> Report:
    """Run cases `first` to `first + count - 1` of a kind.

    Args:
        kind: One of `KINDS`.
        first: The first seed.
        count: How many.
        folder: Where generated modules are that the corpus does not have.
    """
    report, at = Report(kind), first
    while at < first + count and len(report.failures) < ENOUGH:
        at = _child(report, at, first + count - at, folder)
    return report


def _child(report: Report, first: int, count: int, folder: Path | None) -> int:
    """Run one child until it ends, by itself or not; the first seed that it has not tried."""
    command = [sys.executable, "-m", "tests.fuzz.child", report.kind, str(first), str(count), str(folder or "")]
    at = first
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors)
        try:
            for said in _lines(child):
                if "begins" in said:
                    at = said["begins"]
                if "verdict" not in said:
                    continue
                at += 1
                report.ends[said["verdict"]] += 1
                if said["problems"]:
                    report.fails(said["ended"], "\n".join(said["problems"]))
            silent = child.poll() is None
            if silent:
                child.send_signal(signal.SIGABRT)  # it writes where it is
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
        errors.seek(0)
        told = errors.read().decode(errors="replace")
    if code or at < first + count:
        report.ends["died"] += 1
        how = f"says nothing for {SILENCE:g} s" if silent else f"the process ended with {code}"
        report.fails(at, f"{how}\n{told[-8000:]}")
        at += 1
    return at


def _lines(child: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """What the child says, until it ends or says nothing for too long."""
    assert child.stdout is not None
    partial = b""
    while select.select([child.stdout], [], [], SILENCE)[0]:
        data = os.read(child.stdout.fileno(), 65536)
        if not data:
            child.wait()
            return
        *lines, partial = (partial + data).split(b"\n")
        for line in lines:
            yield json.loads(line)
