"""Runs the tests on the other Pythons, at the same time: `make test` gives it the interpreters of all environments.

The one that runs this has been tested already. Each of the others runs what is not marked `once`; what it prints is
shown when it has ended, one after the other. Exit code 1 where one of them fails.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = ["-m", "pytest", "-q", "-m", "not once", "-p", "no:cacheprovider"]


def main() -> int:
    """Start them, wait for them, show what they have printed."""
    pythons = [Path(given) for given in sys.argv[1:]]
    others = [python for python in pythons if python.absolute() != Path(sys.executable).absolute()]
    running = []
    for python in others:
        print(f"{python} {' '.join(COMMAND)}", flush=True)
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as its process
        process = subprocess.Popen([python, *COMMAND], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        running.append((python, process, output))
    failed = []
    for python, process, output in running:
        code = process.wait()
        output.seek(0)
        print(f"\n{python}:\n{output.read()}", flush=True)
        if code:
            failed.append(f"{python} ({code})")
    versions = [
        subprocess.run(
            [python, "-c", "import platform; print(platform.python_version())"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()
        for python in pythons
    ]  # fmt: skip
    print(f"Failed on {', '.join(failed)}" if failed else f"Tested on Python {' '.join(versions)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
