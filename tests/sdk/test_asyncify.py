"""`wasman build --asyncify`: what it does to a module, and which ones it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests import wat
from wasman_host.guest.asyncify import SECTION, asyncified
from wasman_host.guest.binary import without_section
from wasman_sdk.cli import wasman

GUESTS = Path(__file__).parent.parent / "guests"
needs_wasm_opt = pytest.mark.skipif(shutil.which("wasm-opt") is None, reason="wasm-opt is not on this machine")


def build(*words: object) -> Result:
    return CliRunner().invoke(wasman, ["build", "--asyncify", *map(str, words)])


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "loop.wasm"
    path.write_bytes(wat.script(wat.call("note", b"1"), wat.sleep(1), wat.checkpoint()))
    return path


@needs_wasm_opt
def test_a_module_is_instrumented_where_it_waits_and_marked(source: Path) -> None:
    done = build(source, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["imports"] == ["env.host_call_api", "env.checkpoint", "wasi_snapshot_preview1.poll_oneoff"]
    assert told["comes_back"] == "continuation"
    marks = asyncified(Path("loop-asyncified.wasm").read_bytes())
    assert marks is not None
    assert list(marks.imports) == told["imports"]
    shown = build(source, "-o", "other.wasm")
    assert "comes back  continuation" in shown.output
    assert Path("other.wasm").read_bytes() == Path("loop-asyncified.wasm").read_bytes()


@needs_wasm_opt
def test_what_wasm_opt_says_is_shown(source: Path) -> None:
    source.write_bytes(wat.script(wat.call("note"))[:-3])
    done = build(source)
    assert done.exit_code == 2
    assert not Path("loop-asyncified.wasm").exists()


def refused() -> dict[str, tuple[bytes, str]]:
    loop = (GUESTS / "asyncified" / "loop_c.wasm").read_bytes()
    return {
        "twice": (loop, "was asyncified already"),
        "by another hand": (without_section(loop, SECTION), "for a scheduler of its own"),
        "TinyGo": ((GUESTS / "gcchurn.wasm").read_bytes(), "was compiled by TinyGo"),
        "never waits": (wat.stated(b"\0asm\1\0\0\0", "x"), "it never waits"),
        "no module": (b"text", "is not wasm"),
    }


@pytest.mark.parametrize("case", refused())
def test_modules_that_are_refused(source: Path, case: str) -> None:
    data, words = refused()[case]
    source.write_bytes(data)
    done = build(source)
    assert done.exit_code == 2
    assert words in done.output
    assert not Path("loop-asyncified.wasm").exists()


def test_without_wasm_opt_it_says_how_to_get_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(source.parent))
    done = build(source)
    assert done.exit_code == 2
    assert "apt install binaryen" in done.output


def test_options_of_compilers_do_not_go_with_it(source: Path) -> None:
    assert build(source, "--compiler", "go").exit_code == 2
