"""`wasman new`: a project whose commands run as its README prints them."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.doc_pages import ROOT
from wasman_sdk._build.scaffold import write_project
from wasman_sdk._build.sdk import sdk_folder
from wasman_sdk.cli import wasman

pytestmark = pytest.mark.once  # it compiles

needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="Go is not on this machine")
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
PRINTED = "charging 450 cents for tea\nreceipt r-1 for tea\n"


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which `wasman` and `python` are those of the tests, and nothing is downloaded."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in (("python", ""), ("wasman", " -m wasman_sdk")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "host"))),
        "GOPROXY": "off",
    }


def run(command: str, folder: Path, shell: dict[str, str]) -> str:
    done = subprocess.run(["sh", "-c", command], cwd=folder, env=shell, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    return done.stdout


@needs_go
def test_the_readme_is_followed_in_an_empty_folder(tmp_path: Path, shell: dict[str, str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    told = run("wasman new shop", home, shell)
    assert told.startswith("shop/.gitignore\nshop/README.md\nshop/app.py\n")
    project = home / "shop"
    readme = (project / "README.md").read_text()
    blocks = CONSOLE.findall(readme)
    commands = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    assert len(commands) == 5, "each line of a block is a command"
    stubs = (project / "guest" / "stubs.go").read_bytes()
    out = [run(command, project, shell) for command in commands]
    assert out[0].startswith("file        guest.wasm\n")
    assert re.match(r"PASS\nok\s+shop/guest\s", out[1]) or out[1].startswith("ok"), out[1]
    assert out[2] == PRINTED
    assert (project / "guest" / "stubs.go").read_bytes() == stubs
    assert run("python app.py", project, shell) == PRINTED, "it runs again"
    # The last line that `wasman new` prints is a short way to the same.
    again = tmp_path / "again"
    again.mkdir()
    assert run(run("wasman new shop", again, shell).splitlines()[-1], again, shell).endswith(PRINTED)


@needs_go
@pytest.mark.parametrize(
    ("old", "new", "fails"),
    [
        ("72*time.Hour", "71*time.Hour", "TestNobodyApprovesForThreeDays"),
        ("!answer.OK", "answer.By == ``", "TestAnOrderThatIsNotApprovedIsNotCharged"),
        ("return Charge.Do(ctx, o)", "return receipt, nil", "TestAnOrderIsChargedWhenItIsApproved"),
    ],
)
def test_its_tests_notice_a_defect(tmp_path: Path, shell: dict[str, str], old: str, new: str, fails: str) -> None:
    project = tmp_path / "shop"
    write_project(project)
    source = project / "guest" / "main.go"
    assert old in source.read_text()
    source.write_text(source.read_text().replace(old, new))
    done = subprocess.run(["go", "test"], cwd=project / "guest", env=shell, capture_output=True, text=True, check=False)
    assert f"--- FAIL: {fails} " in done.stdout
    assert done.stdout.count("--- FAIL") == 1


@needs_go
@pytest.mark.parametrize("name", ["image", "internal"])
def test_a_project_may_be_called_as_a_package_of_go_is(tmp_path: Path, shell: dict[str, str], name: str) -> None:
    write_project(tmp_path / name)
    run("wasman build guest --compiler go && go -C guest test", tmp_path / name, shell)


def proxy(folder: Path) -> dict[str, str]:
    """A module proxy that has example.org/tea and nothing else, and what makes `go` ask it."""
    versions = folder / "example.org" / "tea" / "@v"
    versions.mkdir(parents=True)
    (versions / "list").write_text("v1.0.0\n")
    (versions / "v1.0.0.info").write_text('{"Version": "v1.0.0", "Time": "2026-01-02T03:04:05Z"}')
    (versions / "v1.0.0.mod").write_text("module example.org/tea\n\ngo 1.25\n")
    with zipfile.ZipFile(versions / "v1.0.0.zip", "w") as packed:
        packed.writestr("example.org/tea@v1.0.0/go.mod", "module example.org/tea\n\ngo 1.25\n")
        packed.writestr("example.org/tea@v1.0.0/tea.go", 'package tea\n\nconst Kind = "green"\n')
    return {"GOPROXY": folder.as_uri(), "GONOSUMDB": "*", "GOFLAGS": "-modcacherw", "GOMODCACHE": str(folder / "cache")}


@needs_go
def test_a_guest_uses_modules_of_others(tmp_path: Path, shell: dict[str, str]) -> None:
    project = tmp_path / "shop"
    write_project(project)
    source = project / "guest" / "main.go"
    text = source.read_text().replace('"wasman.dev/guest"\n', '"example.org/tea"\n\t"wasman.dev/guest"\n')
    source.write_text(text.replace('"not approved by "', '"not approved, "+tea.Kind+" or not, by "'))
    shell = {**shell, **proxy(tmp_path / "proxy")}
    run("go -C guest get example.org/tea", project, shell)
    assert "example.org/tea v1.0.0" in (project / "guest" / "go.mod").read_text()
    run("wasman build guest --compiler go && go -C guest vet", project, shell)


@needs_go
def test_a_guest_that_requires_the_sdk_beside_others_is_told_not_to(tmp_path: Path, shell: dict[str, str]) -> None:
    """Go looks for what one module requires among all that the others do, wherever those come from."""
    project = tmp_path / "shop"
    write_project(project)
    with (project / "guest" / "go.mod").open("a") as file:
        file.write("\nrequire (\n\texample.org/tea v1.0.0\n\twasman.dev/guest v0.0.0\n)\n")
    (project / "guest" / "tea.go").write_text('package main\n\nimport _ "example.org/tea"\n')
    shell = {**shell, **proxy(tmp_path / "proxy")}
    command = ["wasman", "build", "guest", "--compiler", "go"]
    done = subprocess.run(command, cwd=project, env=shell, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "take `require wasman.dev/guest` out of go.mod: wasman build supplies it, and Go looks for it elsewhere"
    )


@needs_go
def test_its_go_is_as_gofmt_leaves_it(tmp_path: Path) -> None:
    write_project(tmp_path / "shop")
    done = subprocess.run(["gofmt", "-l", "."], cwd=tmp_path / "shop", capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_git_leaves_out_what_is_of_this_machine(tmp_path: Path) -> None:
    project = tmp_path / "shop"
    files = write_project(project)
    assert str(sdk_folder()) in (project / "guest" / "go.work").read_text()
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    (project / "guest.wasm").write_bytes(b"")
    (project / "wasman.db-wal").write_bytes(b"")
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=project, capture_output=True, text=True, check=True
    )
    assert sorted(map(str, files)) == sorted(listed.stdout.split())
    assert not [file for file in files if str(ROOT) in (project / file).read_text()]


@pytest.mark.parametrize("there", ["folder", "file"])
def test_what_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    monkeypatch.chdir(tmp_path)
    (Path("shop").mkdir if there == "folder" else Path("shop").touch)()
    refused = CliRunner().invoke(wasman, ["new", "shop"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "wasman: shop is there already: name a folder that is not\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["shop"]


@pytest.mark.parametrize("name", ["2shop", "my shop", "shöp", "-x/..", "a.b"])
def test_a_name_that_go_would_not_take_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(wasman, ["new", "--", name])
    assert refused.exit_code == 2
    assert "is no name for a project: letters, digits, - and _, a letter first" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    refused = CliRunner().invoke(wasman, ["new", "file/shop"])
    assert (refused.exit_code, refused.stderr) == (2, "wasman: file/shop cannot be written: Not a directory\n")
