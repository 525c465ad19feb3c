"""Commands, called in this process: start, result, deploy, inspect, doctor, show; what they print, and exit codes."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import frozen
from click.testing import CliRunner
from wasmtime import wat2wasm

from tests import wat
from tests.go_guests import guest as go_guest
from wasman_sdk import Client, PayloadCodec, Worker, Workflow, activity
from wasman_sdk.cli import wasman
from wasman_sdk.cli.doctor import Finding

pytestmark = pytest.mark.once  # a command each, and not much in it that a version of Python could change

ROOT = Path(__file__).resolve().parents[2]
TOUR = ROOT / "tests/guests/sdk_tour.wasm"
CSV = ROOT / "samples/process_csv/process_csv.wasm"

APP = f"""
from pathlib import Path
from pydantic import BaseModel
from wasman_sdk import Session, Workflow

class Given(BaseModel):
    names: list[str] = []

class Token(Session):
    word: str

class Backwards:
    name = "backwards"
    def encode(self, data: bytes) -> bytes:
        return data[::-1]
    decode = encode

backwards = Backwards()
tour = Workflow("tour", Given, dict, module=Path({str(TOUR)!r}))
empty = Workflow("empty", Given, dict)
again = Workflow("again", Given, dict, module=Path("plain.wasm"), resume="checkpoint")
"""


@activity
async def note(text: str) -> str:
    return text


@frozen
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WASMAN_STORE", raising=False)
    monkeypatch.delenv("WASMAN_TRACEBACK", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("shop.py").write_text(APP)

    def run(*words: str, given: str | bytes | None = None) -> Outcome:
        monkeypatch.delitem(sys.modules, "shop", raising=False)
        done = CliRunner().invoke(wasman, words, input=given)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Outcome(done.exit_code, done.stdout, done.stderr)

    return run


def guest(name: str, *steps: wat.Step, reentrant: bool = False, **options: Any) -> None:
    """A module beside the application."""
    Path(name).write_bytes(wat.script(*steps, reentrant=reentrant, **options))


def worked(
    name: str = "flow",
    *,
    until: Sequence[str] = ("completed", "failed", "blocked"),
    codec: PayloadCodec | None = None,
) -> None:
    """A worker works until every instance has one of these statuses."""

    async def work() -> None:
        client = Client.connect("sqlite:///wasman.db", codec=codec)
        async with client, Worker(client, workflows=[Workflow(name, Any, Any)], activities=[note]):
            with anyio.fail_after(20):
                while [one.status async for one in client.list_workflows() if one.status not in until]:
                    await anyio.sleep(0.01)

    anyio.run(work)


# start and result


def test_start_deploys_what_is_new_and_prints_the_run(command: Command) -> None:
    started = command("start", "shop:tour", "--id", "t", "--input", '{"names": []}', "--json")
    assert (started.code, started.err) == (0, "")
    assert command("show", "t", "--json").json["run_id"] == started.json["run_id"]
    worked("tour")
    result = command("result", "t")
    assert (result.code, result.json["greetings"], result.out.count("\n"), result.err) == (0, [], 1, "")


def test_input_comes_from_stdin_or_a_file_and_is_validated(command: Command) -> None:
    Path("given.json").write_text('{"names": []}')
    assert command("start", "shop:tour", "--id", "file", "--input", "@given.json").code == 0
    assert command("start", "shop:tour", "--id", "pipe", "--input", "-", given='{"names": []}').out.startswith(
        "pipe is started as run "
    )
    for given, problem in [
        ('{"names": 3}', "wasman: the input does not fit: names: Input should be a valid array\n"),
        ("{", "wasman: the input does not fit: Invalid JSON"),
        (b"\xff", "wasman: the input cannot be read from stdin: it is not UTF-8\n"),
    ]:
        refused = command("start", "shop:tour", "--id", "bad", "--input", "-", given=given)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err.startswith(problem)
        assert refused.err.count("\n") == 1
    assert [one["id"] for one in command("list", "--json").json] == ["pipe", "file"]


def test_start_has_the_options_of_the_client(command: Command) -> None:
    guest("flow.wasm", wat.time())
    assert command("deploy", "flow", "--module", "flow.wasm").code == 0
    words = [
        "--memo",
        '{"for": "ada"}',
        "--attribute",
        "region=north",
        "--attribute",
        "size=1=2",
        "--start-delay",
        "1h30m",
    ]
    words += ["--run-timeout", "2d", "--queue", "slow"]
    assert command("start", "flow", "--id", "w", *words).code == 0
    shown = command("show", "w", "--json").json
    assert shown["memo"] == {"for": "ada"}
    assert shown["search_attributes"] == {"region": "north", "size": "1=2"}
    assert (shown["status"], shown["expires"] > shown["created"]) == ("waiting", True)
    lines = command("show", "w").out.splitlines()
    assert "attributes  region=north, size=1=2" in lines
    assert [line for line in lines if line.startswith("timeout")]


def test_payloads_that_a_codec_has_stored(command: Command) -> None:
    guest("flow.wasm", wat.call("note", b'"x"'))
    command("deploy", "flow", "--module", "flow.wasm")
    assert command("start", "flow", "--id", "w", "--codec", "shop:backwards").code == 0

    class Backwards:
        name = "backwards"

        def encode(self, data: bytes) -> bytes:
            return data[::-1]

        decode = encode

    worked(codec=Backwards())
    assert command("result", "w", "--codec", "shop:backwards") == Outcome(0, '["x"]\n', "")
    refused = command("result", "w")
    assert (refused.code, refused.out, refused.err.count("\n")) == (4, "", 1)
    assert "backwards" in refused.err
    wrong = command("result", "w", "--codec", "shop:tour")
    assert wrong.code == 2


def test_an_id_is_used_once_unless_a_policy_says_otherwise(command: Command) -> None:
    guest("flow.wasm", wat.time())
    command("deploy", "flow", "--module", "flow.wasm")
    first = command("start", "flow", "--id", "w", "--json").json["run_id"]
    taken = command("start", "flow", "--id", "w")
    assert (taken.code, taken.out) == (4, "")
    assert "'w'" in taken.err
    same = command("start", "flow", "--id", "w", "--id-conflict-policy", "use_existing", "--json")
    assert same.json["run_id"] == first
    worked()
    assert command("start", "flow", "--id", "w").code == 4
    again = command("start", "flow", "--id", "w", "--id-reuse-policy", "allow_duplicate", "--json").json["run_id"]
    assert again != first
    assert command("show", "w", "--run", first, "--json").json["status"] == "completed"


def test_a_result_that_is_no_json_is_printed_as_it_is(command: Command) -> None:
    Path("programs.wasm").write_bytes(go_guest("programs", "tinygo"))
    command("deploy", "bytes", "--module", "programs.wasm")

    async def start() -> None:
        async with Client.connect("sqlite:///wasman.db") as client:
            for name, given in (("words", b"two words"), ("none", b""), ("json", b" [1 ]")):
                await client.start_workflow("bytes", given, id=name)

    anyio.run(start)
    worked("bytes")
    for name, said in (("words", "two words"), ("none", "null\n"), ("json", "[1]\n")):
        assert command("result", name) == Outcome(0, said, "")


def test_result_tells_by_its_code_how_a_run_ended(command: Command) -> None:
    guest("good.wasm", wat.call("note", b'"x"'))
    guest("trap.wasm", wat.raw("unreachable"))
    guest("wide.wasm", wat.raw("(drop (memory.grow (i32.const 60000)))"))
    for name in ("good", "trap", "wide"):
        command("deploy", name, "--module", f"{name}.wasm")
        command("start", name, "--id", name)
    late = command("result", "good", "--timeout", "0")
    assert late == Outcome(5, "", "wasman: good is running, and has not ended within 0 s\n")
    worked("good")
    assert command("result", "good", "--timeout", "100ms") == Outcome(0, '["x"]\n', "")
    failed = command("result", "trap")
    assert (failed.code, failed.out) == (1, "")
    assert "GuestTrap" in failed.err
    assert failed.err.count("\n") == 1
    blocked = command("result", "wide")
    assert (blocked.code, blocked.out) == (3, "")
    assert blocked.err.startswith("wasman: wide is blocked: ")
    assert command("result", "nobody").code == 4
    command("start", "good", "--id", "ended")
    command("terminate", "ended", "--reason", "enough")
    worked("good", until=("completed", "failed", "blocked", "terminated"))
    assert command("result", "ended").code == 1


def test_cancel_asks_the_guest(command: Command) -> None:
    guest(
        "flow.wasm", wat.call("note", b'"x"'), wat.call("wasman.fail", b'{"type": "Cancelled", "message": "as told"}')
    )
    command("deploy", "flow", "--module", "flow.wasm")
    run = command("start", "flow", "--id", "w", "--json").json["run_id"]
    assert command("cancel", "w", "--run", "f" * 32).code == 4
    asked = command("cancel", "w", "--run", run, "--reason", "not needed")
    assert asked == Outcome(0, "w is asked to end, by the worker that has it or the next one that runs\n", "")
    worked(until=("cancelled",))
    ended = command("result", "w")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"wasman: run {run} of 'w' was cancelled")
    assert command("cancel", "w").code == 4


def test_list_has_the_filters_of_the_client(command: Command) -> None:
    guest("flow.wasm", wat.time())
    command("deploy", "flow", "--module", "flow.wasm")
    for name, region in [("a", "north"), ("b", "south")]:
        command("start", "flow", "--id", name, "--attribute", f"region={region}")
    worked()
    command("start", "flow", "--id", "c", "--attribute", "region=north")

    def ids(*words: str) -> list[str]:
        return [one["id"] for one in command("list", "--json", *words).json]

    assert ids("--attribute", "region=north") == ["c", "a"]
    assert ids("--closed-after", "1h") == ["b", "a"]
    assert ids("--closed-before", "1h") == ids("--started-before", "2026-01-01") == []
    assert ids("--started-after", "2026-01-01T00:00+02:00", "--started-before", "9999-01-01") == ["c", "b", "a"]
    assert command("list", "--count").out == "3\n"
    assert command("list", "--count", "--status", "completed", "--attribute", "region=north").out == "1\n"


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["start", "flow", "--id", "w"], 4, "wasman: no workflow is deployed under the name 'flow'"),
        (["start", "shop:tour", "--id", "a/b"], 2, "wasman: "),
        (["start", "shop:nothing", "--id", "w"], 2, "wasman: 'shop:nothing' names nothing"),
        (
            ["start", "flow", "--id", "w", "--store", "memory://"],
            2,
            "wasman: memory:// lives and ends with one process",
        ),
        (["start", "flow", "--id", "w", "--attribute", "x"], 2, "wasman: --attribute 'x': write NAME=VALUE"),
        (["start", "flow", "--id", "w", "--memo", "[]"], 2, "wasman: the memo does not fit"),
        (["start", "flow", "--id", "w", "--session", "{}"], 2, "wasman: --session and --session-type"),
        (["start", "flow", "--id", "w", "--input", "-", "--memo", "-"], 2, "wasman: only one of"),
        (["start", "flow", "--id", "w", "--start-delay", "1x"], 2, "'1x' is no duration"),
        (["start", "flow", "--id", "w", "--start-delay", "9999999999d"], 2, "longer than any time"),
        (["list", "--started-after", "soon"], 2, "'soon' is no time: write 2026-01-31"),
        (["list", "--attribute", "x"], 2, "wasman: --attribute 'x': write NAME=VALUE"),
        (["result", "w"], 4, "wasman: there is no store "),
        (["result", "w", "--timeout", ""], 2, "'' is no duration"),
        (
            ["deploy", "flow", "--module", "nothing.wasm"],
            2,
            "wasman: the module nothing.wasm of workflow 'flow' cannot be",
        ),
        (["deploy", "flow", "--module", "shop.py"], 2, "wasman: the module of workflow 'flow' is not wasm"),
        (["deploy", "shop:empty"], 2, "wasman: workflow 'empty' has no module to deploy"),
        (["deploy", "shop:tour", "--entry", "x"], 2, "wasman: --entry goes with --module"),
        (["inspect", "nothing.wasm"], 2, "wasman: the module nothing.wasm cannot be read: No such file"),
        (["inspect", "shop:empty"], 2, "wasman: workflow 'empty' has no module of its own"),
        (["inspect", "shop:Given"], 2, "wasman: 'shop:Given' is a ModelMetaclass, not a Workflow"),
        (["list", "--store", "sqlite:////proc/none.db"], 4, "wasman: there is no store"),
    ],
)
def test_bad_input_is_one_readable_message(command: Command, words: Sequence[str], code: int, problem: str) -> None:
    refused = command(*words)
    assert (refused.code, refused.out) == (code, "")
    assert problem in refused.err
    assert "Traceback" not in refused.err
    assert not Path("wasman.db").exists() or words[0] in {"start", "deploy"}


def test_a_defect_is_one_line_as_well(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **_options: object) -> None:
        raise RuntimeError("a defect\nof two lines")

    monkeypatch.setattr(Client, "list_workflows", broken)
    command("deploy", "shop:tour")
    refused = command("list")
    assert (refused.code, refused.out) == (70, "")
    assert refused.err.startswith("wasman: RuntimeError: a defect (test_cli_commands.py, line ")
    assert refused.err.count("\n") == 1
    monkeypatch.setenv("WASMAN_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        command("list")


# deploy


def test_deploy_moves_a_name(command: Command) -> None:
    guest("one.wasm", wat.time())
    guest("two.wasm", wat.time(), wat.time())
    one = command("deploy", "flow", "--module", "one.wasm", "--json").json
    assert (one["workflow"], one["before"], len(one["module"])) == ("flow", None, 64)
    assert command("deploy", "flow", "--module", "one.wasm").out == f"flow points at module {one['module']} already\n"
    moved = command("deploy", "flow", "--module", "two.wasm").out
    assert moved.endswith(f", no longer at {one['module']}\n")
    assert command("deploy", "shop:tour").code == 0


# inspect


def test_inspect_tells_what_a_module_is_and_how_it_comes_back(command: Command) -> None:
    found = command("inspect", str(CSV), "--json").json
    assert (found["abi"], found["entry"], found["problem"], found["unknown"]) == ("v0", "run", "", [])
    assert found["comeback"]["how"] == "checkpoint"
    assert "wasman_reentrant" in found["comeback"]["why"]
    assert ("env", "host_call_api") in [(one["module"], one["name"]) for one in found["binary"]["imports"]]
    assert "name" in [name for name, _ in found["sections"]]
    text = command("inspect", str(CSV)).out
    for line in (
        "abi         v0",
        "entry       run () -> ",
        "comes back  checkpoint",
        "IMPORT ",
        "EXPORT ",
        "SECTION ",
    ):
        assert line in text


def test_inspect_tells_that_a_guest_of_turns_goes_on_in_its_memory(command: Command) -> None:
    found = command("inspect", str(ROOT / "samples/order_saga/order.wasm"), "--json").json
    assert (found["abi"], found["entry"], found["problem"], found["unknown"]) == ("v1", "wasman_turn", "", [])
    assert found["comeback"]["how"] == "memory"
    assert found["image"] > 0


def test_inspect_says_that_a_guest_of_turns_cannot_be_kept(command: Command) -> None:
    change = "(table.set (i32.const 0) (ref.null func))"
    Path("turns.wasm").write_bytes(
        wat2wasm(f"""(module (memory (export "memory") 1) (table 1 funcref)
        (func (export "wasman_abi") (result i32) (i32.const 1))
        (func (export "wasman_block") (result i32) (i32.const 64))
        (func (export "wasman_turn") (param i32) (result i32) {change} (i32.const 0)))""")
    )
    refused = command("inspect", "turns.wasm")
    assert refused.code == 2
    assert "abi         v1\n" in refused.out
    assert "module 'turns.wasm' cannot be kept between its turns: its tables may change while it runs" in refused.err


def test_inspect_reads_what_is_deployed(command: Command) -> None:
    guest("flow.wasm", wat.call("note"))
    command("deploy", "flow", "--module", "flow.wasm", "--resume", "checkpoint")
    found = command("inspect", "flow", "--deployed", "--json").json
    assert found["digest"] == command("inspect", "flow.wasm", "--json").json["digest"]
    assert found["comeback"]["how"] == "checkpoint"
    refused = command("inspect", "none", "--deployed")
    assert refused == Outcome(4, "", "wasman: no workflow is deployed under the name 'none'\n")
    assert command("inspect", "flow", "--deployed", "--store", "sqlite:///none.db").code == 4


def test_inspect_says_why_a_module_is_replayed(command: Command) -> None:
    guest("plain.wasm", wat.call("note"))
    guest("starts.wasm", wat.time(), init="(call $checkpoint)")
    table = '(table 1 funcref) (func (export "grow") (drop (table.grow 0 (ref.null func) (i32.const 1))))'
    guest("tables.wasm", wat.time(), fields=table)
    for name, how, why in [
        ("shop:tour", "replay", "does not say that it skips what it has done"),
        ("plain.wasm", "replay", "the log is replayed from the start"),
        ("shop:again", "checkpoint", 'its workflow says resume="checkpoint"'),
        ("starts.wasm", "replay with initialisation", "its initialisation calls checkpoint"),
        ("tables.wasm", "replay with initialisation", "its tables may change while it runs"),
    ]:
        found = command("inspect", name, "--json").json["comeback"]
        assert found["how"] == how
        assert why in found["why"]


def test_inspect_shows_what_it_can_of_a_module_that_cannot_be_run(command: Command) -> None:
    imports = '(import "env" "checkpoint" (func (param i32))) (import "js" "alert" (func))'
    wrong = f'(module {imports} (import "js" "t" (table 1 funcref)) (memory (export "memory") 1))'
    Path("wrong.wasm").write_bytes(wat2wasm(wrong))
    refused = command("inspect", "wrong.wasm")
    assert refused.code == 2
    assert "env.checkpoint  (i32) -> ()  not provided so" in refused.out
    assert "js.alert        () -> ()     not provided so" in refused.out
    assert "js.t            table        not provided so" in refused.out
    assert refused.err.startswith("wasman: module 'wrong.wasm' imports env.checkpoint as (i32) -> ()")
    Path("none.wasm").write_bytes(b"\0asm\1\0\0\0")
    assert command("inspect", "none.wasm").err == (
        "wasman: module 'none.wasm' has no memory; a guest needs one, exported as 'memory'\n"
    )
    entry = command("inspect", str(TOUR), "--entry", "go")
    assert entry.code == 2
    assert "lacks its entry 'go'" in entry.err
    Path("cut.wasm").write_bytes(TOUR.read_bytes()[:1000])
    assert command("inspect", "cut.wasm", "--json").code == 2


# show


def test_the_timeline_shows_the_newest_snapshot_in_its_place(command: Command) -> None:
    guest(
        "flow.wasm",
        wat.call("note", b'"1"'),
        wat.sleep(1000),
        wat.checkpoint(),
        wat.call("note", b'"2"'),
        reentrant=True,
    )
    command("deploy", "flow", "--module", "flow.wasm")
    command("start", "flow", "--id", "w")
    worked()
    lines = command("show", "w").out.splitlines()
    [head] = [place for place, line in enumerate(lines) if line.startswith("ENTRY")]
    events = [line.split()[2] if line.lstrip()[0].isdigit() else line.split()[0] for line in lines[head + 1 :]]
    assert events == ["start", "result", "fired", "snapshot", "result"]


# doctor


def test_doctor_finds_nothing_amiss_and_makes_no_store(command: Command) -> None:
    outcome = command("doctor")
    assert outcome.code == 0
    assert "note store           there is none at " in outcome.out
    assert not Path("wasman.db").exists()
    command("deploy", "shop:tour")
    found = {one["what"]: one for one in command("doctor", "--json").json}
    assert {
        "python",
        "wasmtime",
        "memory",
        "mappings",
        "open files",
        "Go",
        "TinyGo",
        "disk",
        "journal",
        "store",
    } <= set(found)
    assert found["journal"]["found"].endswith("write-ahead log, writable")
    assert found["store"]["found"].endswith("wasman.db, 0 instances, 0 of them blocked")
    assert all(one["advice"] for one in found.values() if one["state"] == "note")


def test_doctor_says_what_to_do(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("other.db").write_text("no database")
    broken = command("doctor", "--store", "sqlite:///other.db")
    assert broken.code == 1
    assert "bad  journal " in broken.out
    assert "is the file of another program" in broken.out
    guest("wide.wasm", wat.raw("(drop (memory.grow (i32.const 60000)))"))
    command("deploy", "wide", "--module", "wide.wasm")
    command("start", "wide", "--id", "w")
    worked("wide")
    assert "-> `wasman list --status blocked` says why" in command("doctor").out
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("WASMAN_TINYGO", raising=False)
    doctor = sys.modules["wasman_sdk.cli.doctor"]  # the attribute of that name is the command
    monkeypatch.setattr(doctor, "maps", lambda: False)
    monkeypatch.setattr(doctor, "most_guests", lambda: 100)
    monkeypatch.setattr(doctor, "_file_system", lambda _: "nfs4")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    found = {one["what"]: Finding(**one) for one in command("doctor", "--json").json}
    assert {what: found[what].state for what in ("memory", "mappings", "open files", "addresses", "Go", "TinyGo")} == {
        "memory": "note", "mappings": "note", "open files": "note", "addresses": "bad", "Go": "note", "TinyGo": "note",
    }  # fmt: skip
    assert found["file system"].state == "bad"
    assert all(one.advice for one in found.values() if one.state != "ok")


def test_doctor_names_a_folder_that_cannot_be_written(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # whoever runs the tests may be root
    outcome = command("doctor", "--store", "sqlite:///wasman.db")
    assert outcome.code == 1
    assert "is not writable" in outcome.out


# Signals


def test_result_is_left_by_a_signal(command: Command) -> None:
    guest("flow.wasm", wat.time())
    command("deploy", "flow", "--module", "flow.wasm")
    command("start", "flow", "--id", "w", "--start-delay", "1d")
    words = [sys.executable, "-m", "wasman_sdk", "result", "w"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert child.stderr.readline().startswith("wasman: w is waiting: begins at ")
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=30) == ("", "")
    assert child.returncode == 130
