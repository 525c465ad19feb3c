"""Judges a run of the demo: computes from flights.csv alone what must have come out, and compares.

Standard library only. It imports nothing of wasman or of the sample, and is run with `python -I`, which finds neither.

    python -I verify.py flights.csv flights.ndjson ledger.db report.json

Prints a line for each thing compared; exits with 1 if one of them is not as it must be.
"""

import argparse
import contextlib
import csv
import hashlib
import itertools
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

TEXTS = ("carrier", "tailnum", "origin", "dest", "time_hour")  # all other columns are integers
NULL = "NA"
SUMS = ("air_time", "distance")

Values = dict[str, int | str | None]


def rows_of(flights: Path) -> Iterator[Values]:
    """The lines that must be in the output."""
    with flights.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        header = [(name, name in TEXTS) for name in next(lines)]
        for number, fields in enumerate(lines, 1):
            values: Values = {"row": number}
            for (name, is_text), text in zip(header, fields, strict=True):
                values[name] = None if text == NULL else text if is_text else int(text)
            yield values


def sums_of(rows: list[Values]) -> dict[str, int]:
    """The sums over some rows."""
    return {name: sum(value for row in rows if isinstance(value := row[name], int)) for name in SUMS}


class Judge:
    """Compares, says so, and remembers whether all was well."""

    def __init__(self) -> None:
        self.satisfied = True

    def say(self, what: str, problem: str, right: str) -> None:
        """Print `right`, or the problem if there is one."""
        self.satisfied = self.satisfied and not problem
        print(f"  {'FAILED' if problem else 'ok'}  {what}: {problem or right}")


def main() -> int:
    """Compare; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("flights", "output", "ledger", "report"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--batch-rows", type=int, default=5000)
    given = parser.parse_args()

    judge = Judge()
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    expected, found = hashlib.sha256(), hashlib.sha256()
    batches: list[tuple[int, int, int, int, dict[str, int]]] = []
    totals = dict.fromkeys(SUMS, 0)
    rows = size = 0
    different = ""
    with given.output.open("rb") as output:
        source = rows_of(given.flights)
        while batch := list(itertools.islice(source, given.batch_rows)):
            for values in batch:
                line = encode(values).encode() + b"\n"
                written = output.readline()
                expected.update(line)
                found.update(written)
                rows, size = rows + 1, size + len(line)
                if written != line and not different:
                    different = f"line {rows:,} is {written!r} and must be {line!r}"
            sums = sums_of(batch)
            batches.append((len(batches) + 1, rows - len(batch) + 1, len(batch), 0, sums))
            totals = {name: totals[name] + sums[name] for name in SUMS}
        if rest := output.read():
            found.update(rest)
            different = different or f"{len(rest):,} bytes follow where it must end"
    if found.digest() != expected.digest():
        different = f"sha256 {found.hexdigest()} must be {expected.hexdigest()}; {different}"
    judge.say("output", different, f"{rows:,} lines, {size / 1e6:.1f} MB, sha256 {expected.hexdigest()}")

    report = json.loads(given.report.read_text("utf-8"))
    right = {"rows": rows, "invalid": 0, "batches": len(batches), "sums": {name: str(totals[name]) for name in SUMS}}
    problem = "" if report == right else f"the report is {report} and must be {right}"
    judge.say("totals", problem, ", ".join(f"{name} {totals[name]:,}" for name in SUMS))

    with contextlib.closing(sqlite3.connect(given.ledger)) as ledger:
        entered = ledger.execute("select batch, first_row, rows, invalid, sums from batch order by batch").fetchall()
        attempts = ledger.execute("select key, count(*) from attempt group by key").fetchall()
        keys = {key for (key,) in ledger.execute("select key from batch")}
    kept = [(*row, {name: int(value) for name, value in json.loads(sums).items()}) for *row, sums in entered]
    numbers = [row[0] for row in kept]
    problem = ""
    if kept != batches:
        wrong = [row for row in kept if row not in batches or numbers.count(row[0]) > 1]
        missing = [row for row in batches if row not in kept]
        problem = f"{len(kept)} batches, must be {len(batches)}; wrong or twice: {wrong[:3]}; missing: {missing[:3]}"
    elif {key for key, _ in attempts} != keys:
        problem = "attempts and batches have different idempotency keys"
    tried = sum(count for _, count in attempts)
    judge.say("ledger", problem, f"{len(batches)} batches, each exactly once, in {tried} attempts")
    return 0 if judge.satisfied else 1


if __name__ == "__main__":
    sys.exit(main())
