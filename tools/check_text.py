"""Checks that no file of the repository names a package index or a path of the machine it was written on.

Both would work for its author only. Exits with 1 and prints file, line and finding if there are any.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A letter in brackets keeps the patterns from finding themselves.
FINDINGS = {
    "the host of a package registry": re.compile(
        r"py[p]i\.(org|python)|python[h]osted\.|registry\.[n]pmjs|registry\.[y]arnpkg|(proxy|sum)\.[g]olang\.org"
        r"|deb\.[d]ebian\.org|(archive|ports)\.[u]buntu\.com|repo1?\.[m]aven|central\.[s]onatype|(index|static)\.[c]rates\.io",
        re.IGNORECASE,
    ),
    "the address of a package index": re.compile(r"[i]ndex-url[ =]+\S*:|-{2}[f]ind-links|[G]OPROXY=\S*:"),
    "a path of one machine": re.compile(r"(?<![\w.)}])/(w[o]rk/|r[o]ot/|t[m]p/\w|h[o]me/\w)"),
}


def committed_files() -> list[Path]:
    """The files that git tracks, or would with `git add .`."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, check=True, capture_output=True, cwd=ROOT).stdout.decode().split("\0")
    return sorted({ROOT / name for name in names if name})


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, kind and wording of all that does not belong into `text`."""
    for number, line in enumerate(text.splitlines(), start=1):
        for kind, pattern in FINDINGS.items():
            for match in pattern.finditer(line):
                yield number, kind, match[0]


def main() -> None:
    """Looks through every text file; files with NUL bytes are binary."""
    count = 0
    for file in committed_files():
        if not file.is_file() or b"\0" in (data := file.read_bytes()):
            continue
        for number, kind, found in findings(data.decode(errors="replace")):
            count += 1
            print(f"{file.relative_to(ROOT)}:{number}: {kind}: {found}")
    if count:
        sys.exit(f"check_text: {count} to remove")


if __name__ == "__main__":
    main()
