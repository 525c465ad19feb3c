"""An export that waits where nothing may: whoever reads the failure is told that, whichever compiler made the guest."""

import subprocess
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from tests.lab import Ledger, MemoryLab
from wasman_host.errors import Failure, InvalidModuleError
from wasman_host.guest.module import check, compile_module, entry_of, initial_state
from wasman_host.record import Limits
from wasman_host.store import Status
from wasman_sdk._build.compilers import find_compiler
from wasman_sdk._build.compiling import build
from wasman_sdk._build.errors import NoCompilerError

GO_SAYS = "fatal error: all goroutines are asleep - deadlock!"
TINYGO_SAYS = "panic: runtime error: //go:wasmexport function did not finish"
WHAT = "an exported function of the guest has blocked; only workflows may wait"
DIES = """
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 200) "{said}\\0a\\0agoroutine 1 [chan receive]:\\0a")
  (func $die (i32.store (i32.const 0) (i32.const 200)) (i32.store (i32.const 4) (i32.const {length}))
    (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 16))) (unreachable))
"""
TURNS = """
  (func (export "wasman_abi") (result i32) (i32.const 1))
  (func (export "wasman_block") (result i32) (i32.const 64))
  (func (export "_initialize") (i32.store (i32.const 64) (i32.const 4096)) (i32.store (i32.const 68) (i32.const 4096)))
  (func (export "wasman_turn") (param i32) (result i32) {turn} (i32.const 0))
"""
WAITS = """
package main

var ready = make(chan int)

//go:wasmexport {export}
func {export}() {{ {body} }}

func init() {{ {init} }}

func main() {{}}
"""


CALLS = """
package main

import (
	"context"

	"wasman.dev/guest"
)

var (
	greet    = wasman.NewActivity[string, string]("greet")
	hello, _ = greet.Do(context.Background(), "hello")
	_        = wasman.Workflow("hello", func(context.Context, wasman.None) (string, error) { return hello, nil })
)

func main() {}
"""


def dying(said: str, fields: str) -> bytes:
    """A guest that has a function $die, which writes what a runtime says of a deadlock, and traps."""
    return bytes(wat2wasm(f"(module {DIES.format(said=said, length=len(said) + 30)} {fields})"))


async def failure_of(lab: MemoryLab, module: bytes) -> Failure:
    await lab.start(module)
    async with lab.worker(Ledger().activity()):
        found = await lab.ended()
    assert found.status is Status.FAILED, found.reason
    assert found.record is not None
    assert found.record.failure is not None
    return found.record.failure


@pytest.mark.parametrize("said", [GO_SAYS, TINYGO_SAYS], ids=["go", "tinygo"])
@pytest.mark.parametrize(
    "fields", [TURNS.format(turn="(call $die)"), '(func (export "run") (call $die))'], ids=["v1", "v0"]
)
async def test_an_export_that_blocks_fails_its_run_and_says_so(lab: MemoryLab, said: str, fields: str) -> None:
    failure = await failure_of(lab, dying(said, fields))
    assert failure.type == "Panic"
    assert failure.message.startswith(said.removeprefix("panic: "))
    assert WHAT in failure.message
    assert "unknown" in failure.backtrace or "func" in failure.backtrace


async def test_one_that_dies_of_something_else_is_not_said_to_have_blocked(lab: MemoryLab) -> None:
    failure = await failure_of(lab, dying("panic: the bottom fell out", '(func (export "run") (call $die))'))
    assert (failure.type, failure.message) == ("Panic", "the bottom fell out")


@pytest.mark.parametrize("said", [GO_SAYS, TINYGO_SAYS], ids=["go", "tinygo"])
def test_an_initialisation_that_blocks_is_refused_and_says_so(said: str) -> None:
    module = dying(said, '(func (export "_initialize") (call $die)) (func (export "run"))')
    with pytest.raises(
        InvalidModuleError, match=r"_initialize trapped: .*an exported function of the guest has blocked"
    ):
        initial_state(compile_module(module, "it"), "run", Limits().guest)


def test_what_a_guest_dies_of_as_it_is_asked_for_its_block_is_said() -> None:
    fields = TURNS.format(turn="").replace("(i32.const 64))", "(call $die) (i32.const 64))", 1)
    module = compile_module(dying("panic: no memory is left", fields), "it")
    with pytest.raises(InvalidModuleError, match="wasman_block failed: no memory is left"):
        initial_state(module, "wasman_turn", Limits().guest)


@pytest.mark.parametrize(
    "waits",
    [
        '(import "wasman" "wait" (func (param i32 i32 i64) (result i32)))',
        '(import "env" "host_call_api" (func (param i32 i32 i32 i32 i32 i32) (result i32)))',
        '(import "env" "checkpoint" (func))',
        '(import "env" "stream_data" (func (param i32 i32 i32) (result i32)))',
    ],
)
def test_a_guest_of_turns_that_imports_what_waits_is_refused(waits: str) -> None:
    memory = '(memory (export "memory") 1)'
    binary = check(bytes(wat2wasm(f"(module {waits} {memory} {TURNS.format(turn='')})")), "it")
    name = ".".join(waits.split('"')[1:4:2])
    with pytest.raises(InvalidModuleError, match=f"imports {name}, which waits; a guest of turns waits by returning"):
        entry_of(binary, "", "it")


def built(kind: str, folder: Path, **words: str) -> bytes:
    """What a compiler makes of a guest that has no SDK."""
    try:
        compiler = find_compiler(kind)
    except NoCompilerError as error:
        pytest.skip(f"this machine lacks it: {error}")
    (folder / "go.mod").write_text("module wasman.dev/test\n\ngo 1.25\n")
    (folder / "main.go").write_text(WAITS.format(**words))
    command = [compiler.program, "build", *compiler.flags["v1"], "-o", "guest.wasm", "."]
    subprocess.run(command, cwd=folder, env={**compiler.environment, "GOWORK": "off"}, check=True)
    return (folder / "guest.wasm").read_bytes()


@pytest.mark.once
@pytest.mark.parametrize("kind", ["go", "tinygo"])
async def test_so_say_the_compilers_of_this_machine(lab: MemoryLab, kind: str, tmp_path: Path) -> None:
    failure = await failure_of(lab, built(kind, tmp_path, export="run", body="<-ready", init=""))
    assert failure.type == "Panic"
    assert WHAT in failure.message


@pytest.mark.once
def test_so_does_go_of_an_initialisation(tmp_path: Path) -> None:
    module = compile_module(built("go", tmp_path, export="run", body="", init="<-ready"), "it")
    with pytest.raises(InvalidModuleError, match=rf"_initialize trapped: .*{WHAT}"):
        initial_state(module, "run", Limits().guest)


@pytest.mark.once
@pytest.mark.parametrize("kind", ["go", "tinygo"])
def test_an_initialisation_that_calls_an_activity_is_refused_and_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module wasman.dev/test\n\ngo 1.25\n")
    (tmp_path / "main.go").write_text(CALLS)
    try:
        module = build(tmp_path, find_compiler(kind)).module
    except NoCompilerError as error:
        pytest.skip(f"this machine lacks it: {error}")
    with pytest.raises(InvalidModuleError, match="_initialize trapped: wasman: an initialisation asks for 'greet'"):
        initial_state(compile_module(module, "it"), "wasman_turn", Limits().guest)
