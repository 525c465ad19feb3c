"""`make bench-peers`: DBOS on SQLite and Restate beside wasman, the same workflow of 10 steps, rounds in turn.

All sides are up during all rounds, and one works at a time. Syncs are counted afterwards, in processes of their own
under strace, for it slows what it looks at. Writes benchmarks/results/peers.json, docs/peers.svg and the table of
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from attrs import define, field

from benchmarks import pages
from benchmarks.measure import machine
from benchmarks.peers import environment
from benchmarks.peers.lanes import STEPS
from benchmarks.peers.plot import Bar, Panel, svg

if TYPE_CHECKING:
    from types import TracebackType

_MANY = 50
_REST = 3.0  # seconds before each round: what another has left to be done in the background is done then
_BOUND = 6.0  # ours against Restate's, 50 at once
_CALLS = re.compile(r"\b(fsync|fdatasync|sync_file_range|msync|io_uring_setup|openat)\(")


@define
class _Side:
    """One engine, as a child that runs rounds on order."""

    name: str
    command: Sequence[str]
    trace: Path | None = None
    about: dict[str, Any] = field(factory=dict)
    _process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = list(self.command)
        if self.trace is not None:
            calls = "trace=fsync,fdatasync,sync_file_range,msync,io_uring_setup,openat"
            command = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", str(self.trace), "-e", calls, *command]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=environment.ROOT
        )
        try:
            self.about = self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()  # it ends at the end of its orders, and with it all that it has started
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None, "entered"
        assert self._process.stdout is not None, "piped"
        line = self._process.stdout.readline()
        if not line:
            message = f"{self.name} has ended: {' '.join(self.command)}"
            raise RuntimeError(message)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def round(self, width: int, seconds: float) -> dict[str, Any]:
        """`width` lanes for about so many seconds."""
        assert self._process is not None, "entered"
        assert self._process.stdin is not None, "piped"
        self._process.stdin.write(json.dumps({"width": width, "seconds": seconds, "least": 1}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def memory(self) -> dict[str, float]:
        """Resident MB of each process that counts; {} where there is no /proc."""
        found = {}
        for name, process in self.about["processes"].items():
            status = Path(f"/proc/{process}/status")
            if status.exists():
                match = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
                if match:
                    found[name] = int(match[1]) / 1000
        return found

    def computed(self) -> float:
        """Processor seconds that its processes have taken; 0 where there is no /proc."""
        ticks = 0
        for process in self.about["processes"].values():
            stat = Path(f"/proc/{process}/stat")
            if stat.exists():
                ticks += sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def traced(self) -> dict[str, int]:
        """Calls so far, by name; files opened so that every write is a sync are counted as `O_SYNC`."""
        assert self.trace is not None, "started so"
        counts: dict[str, int] = {}
        for line in self.trace.read_text(errors="replace").splitlines():
            match = _CALLS.search(line)
            if match and match[1] == "openat":
                if "O_SYNC" in line or "O_DSYNC" in line:
                    counts["O_SYNC"] = counts.get("O_SYNC", 0) + 1
            elif match:
                counts[match[1]] = counts.get(match[1], 0) + 1
        return counts


def _sides(folder: Path) -> tuple[list[_Side], list[str]]:
    """Those that this machine can run, ours first, and what it lacks for the others."""
    wanting: list[str] = []
    sides = [_Side("wasman", [sys.executable, "-m", "benchmarks.peers.wasman_side", str(folder)])]
    try:
        python = str(environment.python())
        sides.append(_Side("DBOS on SQLite", [python, "-m", "benchmarks.peers.dbos_side", str(folder)]))
        server = str(environment.restate_server())
        sides.append(_Side("Restate", [python, "-m", "benchmarks.peers.restate_side", server, str(folder)]))
    except environment.UnavailableError as error:
        wanting.append(str(error))
    return sides, wanting


def _computed(sides: Sequence[_Side]) -> dict[str, float]:
    return {side.name: side.computed() for side in sides}


def _rounds(sides: Sequence[_Side], count: int, seconds: float, rest: float) -> dict[str, dict[str, Any]]:
    """Alternating rounds: A B C A B C, one by one and then many at once."""
    kinds = [f"{kind}{more}" for kind in ("one", "many") for more in ("", ": cores of the others")]
    results: dict[str, dict[str, Any]] = {side.name: {kind: [] for kind in kinds} for side in sides}
    for side in sides:
        side.round(1, 1.0)
        side.round(_MANY, 1.0)
    for number in range(count):
        for kind, width in (("one", 1), ("many", _MANY)):
            for side in sides:
                time.sleep(rest)
                before, begin = _computed(sides), time.perf_counter()
                answer = side.round(width, seconds if width > 1 else seconds / 2)
                took = time.perf_counter() - begin
                shares = {name: (after - before[name]) / took for name, after in _computed(sides).items()}
                others = sum(share for name, share in shares.items() if name != side.name)
                figure = (
                    statistics.median(answer["times"]) * 1e3
                    if width == 1
                    else answer["done"] * STEPS / answer["elapsed"]
                )
                results[side.name][kind].append(figure)
                results[side.name][f"{kind}: cores of the others"].append(others)
                unit = "ms a workflow" if width == 1 else "steps/s"
                cores = f"{shares[side.name]:.2f} cores, and {others:.2f} of the others"
                print(f"round {number + 1}: {side.name}, {width} at once: {figure:,.1f} {unit}; {cores}", flush=True)
    for side in sides:
        results[side.name].update(memory=side.memory(), version=side.about["version"], settings=side.about["settings"])
    return results


def _syncs(sides: Sequence[_Side], folder: Path) -> dict[str, dict[str, Any]]:
    """For each side: what was counted a workflow, one by one and many at once."""
    counted = {}
    for side in sides:
        trace = folder / f"trace-{side.name.split()[0]}"
        with _Side(side.name, side.command, trace) as traced:
            traced.round(1, 1.0)
            found: dict[str, Any] = {}
            for kind, width in (("one", 1), ("many", _MANY)):
                before = traced.traced()
                answer = traced.round(width, 4.0)
                after = traced.traced()
                found[kind] = {
                    name: (after[name] - before.get(name, 0)) / answer["done"]
                    for name in sorted(after)
                    if after[name] > before.get(name, 0)
                }
            found["all"] = traced.traced()
        counted[side.name] = found
        print(f"{side.name}, syncs a workflow: {found}", flush=True)
    return counted


def _waits(counts: dict[str, float]) -> float:
    """Calls that wait for the disk; sync_file_range only starts or hints at writing."""
    return sum(counts.get(name, 0.0) for name in ("fsync", "fdatasync", "msync"))


def _summary(results: dict[str, dict[str, Any]], header: Sequence[str], wanting: Sequence[str]) -> dict[str, Any]:
    summary: dict[str, Any] = {"machine": list(header), "not run": list(wanting), "sides": results}
    if "Restate" in results:
        pairs = zip(results["wasman"]["many"], results["Restate"]["many"], strict=True)
        summary["ratio to Restate, 50 at once"] = [ours / theirs for ours, theirs in pairs]
    return summary


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def _table(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, result in results.items():
        counts = result.get("syncs")
        syncs = f"{_waits(counts['one']):.1f} / {_waits(counts['many']):.1f}" if counts else "not counted"
        memory = " + ".join(f"{size:.0f} {what}" for what, size in result["memory"].items()) or "not known"
        one, many = _spread(result["one"], 1), _spread(result["many"], 0)
        rows.append([f"{name} {result['version']}", one, many, syncs, memory, result["settings"]])
    heads = [
        "engine",
        "one by one, ms a workflow",
        f"{_MANY} at once, steps/s",
        f"syncs a workflow, one by one / {_MANY} at once",
        "resident MB",
        "sync settings read back",
    ]
    return pages.table(heads, rows)


def _plot(results: dict[str, dict[str, Any]], caption: str) -> str:
    panels = []
    for kind, title, unit, digits in (
        ("many", f"{_MANY} workflows of {STEPS} steps at once: durable steps a second (more is better)", "steps/s", 0),
        ("one", f"One workflow of {STEPS} steps after the other: milliseconds each (less is better)", "ms", 1),
    ):
        bars = [
            Bar(
                name,
                statistics.median(result[kind]),
                min(result[kind]),
                max(result[kind]),
                f"{statistics.median(result[kind]):,.{digits}f} {unit}",
            )
            for name, result in results.items()
        ]
        panels.append(Panel(title, bars))
    return svg(panels, caption)


def main() -> int:
    """Run everything; exit code 1 where the bound does not hold."""
    parser = argparse.ArgumentParser(description="DBOS on SQLite and Restate beside wasman.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rest", type=float, default=_REST, help="seconds before each round")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a round of 50 at once; half of it one by one")
    options = parser.parse_args()
    header = [machine()]
    print(header[0])
    (environment.ROOT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=environment.ROOT / ".cache") as place:
        folder = Path(place)
        sides, wanting = _sides(folder)
        for reason in wanting:
            print(f"not everything is run: {reason}")
        with ExitStack() as stack:
            for side in sides:
                stack.enter_context(side)
                print(f"{side.name} {side.about['version']}: {side.about['settings']}", flush=True)
            results = _rounds(sides, options.rounds, options.seconds, options.rest)
        header.append(machine())
        if shutil.which("strace") is None:
            wanting.append("there is no strace on this machine, so syncs were not counted")
            print(wanting[-1])
        else:
            fresh = folder / "traced"
            fresh.mkdir()
            again, _ = _sides(fresh)
            for name, counts in _syncs(again, fresh).items():
                results[name]["syncs"] = counts
    summary = _summary(results, header, wanting)
    pages.keep("peers", summary)
    caption = f"Medians of {options.rounds} rounds, lowest and highest; {header[0]}"
    (pages.ROOT / "docs" / "peers.svg").write_text(_plot(results, caption), "utf-8")
    text = [f"{header[0]}; at the end load {header[1].rsplit('load ', 1)[1]}.", "", _table(results)]
    text += [f"\nNot run: {reason}." for reason in wanting]
    ratios = summary.get("ratio to Restate, 50 at once")
    if ratios:
        text.append(
            f"\nwasman / Restate, {_MANY} at once, round by round: {_spread(ratios, 2)}; the bound is {_BOUND:g}."
        )
    pages.show("peers", "\n".join(text))
    print("\n".join(text))
    return 0 if not ratios or statistics.median(ratios) >= _BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
