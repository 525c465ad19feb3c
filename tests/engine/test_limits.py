"""Every limit of an instance: at it the instance is blocked with the reason, and nobody else feels it.

Each goes on from where it stood under a higher limit, given by the command that its reason names; the worker lives on,
and a neighbour that is there all the time does all its steps.
"""

import shlex
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from attrs import field, frozen
from click.testing import CliRunner

from tests import wat
from tests.lab import Ledger, MemoryLab, SqliteLab, answers, source
from wasman_host.activity import ActivityCall
from wasman_host.errors import GuestLimitError, GuestTimeoutError
from wasman_host.guest.live import Guest
from wasman_host.payload import Payload
from wasman_host.record import Limits
from wasman_host.store import Status
from wasman_sdk.cli import wasman

LARGE = b'"' + b"x" * 998 + b'"'
FILL = (
    "(local $n i32) (loop $more {} (br_if $more (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) {})))"
)


def _deep(calls: int) -> str:
    """A function that calls itself `calls` times and does not do so as a loop."""
    return (
        "(func $deep (param $n i32) (result i32) (if (result i32) (i32.eqz (local.get $n)) (then (i32.const 0))"
        "(else (i32.add (i32.const 1) (call $deep (i32.sub (local.get $n) (i32.const 1)))))))"
        f"(func $dive (result i32) (call $deep (i32.const {calls})))"
    )


def _grows(program: wat.Program) -> str:
    """Grow the memory by 1 MiB and write into it."""
    grow = "(if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (unreachable)))"
    return grow + wat.value("(i32.load8_u (i32.const 1000000))")(program)


_TABLE = "(table $table 1 funcref) (func $nobody) (elem declare func $nobody)"
_SPIN = """(func $spin (local $n i64)
  (loop $more (br_if $more (i64.ne (local.tee $n (i64.add (local.get $n) (i64.const 1))) (i64.const 400000000)))))"""


@frozen
class Case:
    """A guest that notes 1, is over a limit, and notes 2.

    Attributes:
        steps: What is over it.
        below: The limit.
        enough: What the command is given.
        reason: What the instance says; "{}" is the limit's value.
        result: What these steps append.
        fields: More fields of the module.
        again: Whether an activity is called once more because its answer was too large.
    """

    steps: tuple[wat.Step, ...]
    below: dict[str, Any]
    enough: str
    reason: str
    result: list[Any]
    fields: str = ""
    given: bytes = b"null"
    reentrant: bool = False
    error: type[Exception] = field(default=GuestLimitError)


CASES = {
    "memory": Case(
        (_grows,),
        {"memory": 1024 * 1024},
        "2097152",
        "the guest of w wants 1,310,720 bytes of memory and may use 1,048,576",
        [0],
    ),
    "table_elements": Case(
        (
            wat.value("(table.grow $table (ref.null func) (i32.const 4999))"),
            wat.value("(table.size $table)"),
        ),
        {"table_elements": 1000},
        "5000",
        "the guest of w has a table of 5,000 elements and may have 1,000",
        [1, 5000],
        _TABLE,
    ),
    "stack": Case(
        (wat.value("(call $dive)"),),
        {"stack": 65536},
        "8388608",
        "the guest of w ran into the end of its stack, 65,536 bytes",
        [20_000],
        _deep(20_000),
    ),
    "turn_seconds": Case(
        (wat.raw("(call $spin)"),),
        {"turn_seconds": 0.02},
        "60",
        "s without a host call and may for 0.02 s",
        [],
        _SPIN,
        error=GuestTimeoutError,
    ),
    "stored": Case(
        (wat.call("large"), wat.call("large")),
        {"stored": 2000},
        "100000",
        "bytes stored and may have 2,000",
        ["x" * 998, "x" * 998],
    ),
    "stored, by sleeping": Case(
        tuple(wat.sleep(1) for _ in range(30)),
        {"stored": 2000},
        "100000",
        "bytes stored and may have 2,000",
        [0] * 30,
    ),
    "request": Case(
        (wat.call("note", LARGE),),
        {"request": 999},
        "2000",
        "the guest of w sends activity 'note' a request of 1,000 bytes and may send 999",
        ["x" * 998],
    ),
    "response": Case(
        (wat.call("large"),),
        {"response": 999},
        "1000",
        "activity 'large' returned 1,000 bytes and the guest of w may be given 999",
        ["x" * 998],
    ),
}


async def _command(reason: str, enough: str, path: Path) -> str:
    """Run the command that a reason names, with the number filled in; what it prints."""
    _, _, rest = reason.partition("(wasman ")
    *words, unit = shlex.split(rest.partition(")")[0])
    assert unit in {"BYTES", "COUNT", "SECONDS"}
    arguments = [*words, enough, "--store", f"sqlite:///{path}"]
    outcome = await anyio.to_thread.run_sync(partial(CliRunner().invoke, wasman, arguments))
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


@pytest.mark.parametrize("name", CASES)
async def test_at_a_limit_one_instance_is_blocked_and_the_command_it_names_takes_it_on(
    name: str, disk: SqliteLab
) -> None:
    case, ledger, large = CASES[name], Ledger(), Ledger()

    def enlarges(call: ActivityCall) -> bytes:
        large.note(call)
        return LARGE

    module = wat.script(wat.call("note", b"1"), *case.steps, wat.call("note", b"2"), fields=case.fields)
    neighbour = wat.script(*(wat.call("step", b"%d" % n) for n in range(40)))
    steps = Ledger()
    activities = ledger.activity(), answers("large", enlarges), steps.activity("step")
    async with disk.worker(*activities) as engine:
        await disk.start(neighbour, id="neighbour")
        await disk.start(module, limits=Limits(**case.below))
        found = await disk.blocked(case.error, reason=case.reason)
        limit = name.partition(",")[0]
        option = limit.replace("_", "-")
        assert f"(wasman unblock w --{option} " in found.reason.splitlines()[0]
        assert ledger.requests == [b"1"], "what came before is done, and what comes after is not"
        assert await disk.result("neighbour") == list(range(40))
        assert steps.attempts == [1] * 40
        output = await _command(found.reason, case.enough, disk.path)
        assert output == "w goes on from where it stands, as soon as a worker claims it\n"
        assert await disk.result() == [1, *case.result, 2]
        assert engine.lease_is_valid, "the worker lives"
    assert len(engine.residents) == 0
    assert [request for request in ledger.requests if request != LARGE] == [b"1", b"2"], "nothing was done twice"
    assert len(set(large.keys)) == case.steps.count(CASES["response"].steps[0]) or name != "response"
    pinned = (await disk.record()).pinned.limits
    assert pinned == Limits(**{**case.below, limit: type(getattr(pinned, limit))(case.enough)})


@pytest.mark.parametrize("what", ["input", "session"])
async def test_an_input_or_a_session_over_a_lowered_response_limit_blocks(lab: MemoryLab, what: str) -> None:
    given, session = (Payload.of(LARGE), None) if what == "input" else (None, LARGE)
    module = wat.script(wat.raw("(call $spin)"), wat.call(f"wasman.{what}"), fields=_SPIN)
    await lab.start(module, given, session=session, limits=Limits(turn_seconds=0.02))
    async with lab.worker():
        await lab.blocked(GuestTimeoutError)
        await lab.unblock(limits=Limits(response=999, turn_seconds=60.0))
        found = await lab.blocked(GuestLimitError)
        assert found.reason.startswith(f"the {what} of w has 1,000 bytes and its guest may be given 999; raise the")
        await lab.unblock(limits=Limits(response=1000, turn_seconds=60.0))
        assert await lab.result() == ["x" * 998]


async def test_a_result_over_the_request_limit_blocks(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.call("wasman.result", LARGE, 0)), limits=Limits(request=999))
    async with lab.worker():
        found = await lab.blocked(GuestLimitError)
        assert "gives a result of 1,000 bytes and may give 999; raise the limit and unblock" in found.reason
        assert found.reason.endswith("(wasman unblock w --request BYTES)")


async def test_a_snapshot_over_the_stored_limit_blocks(lab: MemoryLab) -> None:
    module = wat.script(
        wat.call("note", b"1"),
        wat.raw("(memory.init $noise (i32.const 196608) (i32.const 0) (i32.const 20000))"),
        wat.checkpoint(),
        wat.call("note", b"2"),
        reentrant=True,
        fields='(data $noise "' + "".join(f"\\{(n * n * 31 + n // 7) % 256:02x}" for n in range(20_000)) + '")',
    )
    ledger = Ledger()
    await lab.start(module, limits=Limits(stored=4000))
    async with lab.worker(ledger.activity()):
        found = await lab.blocked(GuestLimitError)
        assert "with this snapshot w would have " in found.reason
        assert "bytes stored and may have 4,000" in found.reason
        await lab.unblock(limits=Limits(stored=400_000))
        assert await lab.result() == [1, 2]
    assert ledger.attempts == [1, 1]


async def test_a_guest_that_checkpoints_for_ever_meets_the_limit_of_its_turn(lab: MemoryLab) -> None:
    spin = "(func $spin (loop $more (call $checkpoint) (br $more)))"
    module = wat.script(wat.raw("(call $spin)"), reentrant=True, fields=spin)
    await lab.start(module, limits=Limits(turn_seconds=0.05))
    async with lab.worker():
        found = await lab.blocked(GuestTimeoutError)
    assert "host calls that wait for nothing, and may for 0.05 s" in found.reason
    assert found.reason.endswith("(wasman unblock w --turn-seconds SECONDS)")
    assert found.stored.version < 10, "checkpoints were written although nothing had changed"


async def test_a_table_that_begins_too_large_blocks(lab: MemoryLab) -> None:
    await lab.start(wat.script(fields="(table 2000 funcref)"), limits=Limits(table_elements=1999))
    async with lab.worker():
        found = await lab.blocked(GuestLimitError)
        assert "larger tables to begin with than the 1,999 elements" in found.reason
        assert found.reason.endswith("(wasman unblock w --table-elements COUNT)")
        await lab.unblock(limits=Limits(table_elements=2000))
        assert await lab.result() == []


async def test_a_table_grows_to_ten_million_elements_whatever_the_limit(lab: MemoryLab) -> None:
    grow = wat.value("(table.grow $table (ref.null func) (i32.const 10000000))")
    await lab.start(wat.script(grow, wat.value("(table.size $table)"), fields=_TABLE))
    assert await lab.complete() == [-1, 1]


async def test_limits_that_are_lowered_between_two_lives_block_and_lose_nothing(lab: MemoryLab, tmp_path: Path) -> None:
    """The guest has 18 MiB of touched memory, a snapshot and a source when it may have no more than 1 MiB."""
    (tmp_path / "in").write_bytes(b"q" * 100)
    fill = "(memory.fill (i32.const 262144) (i32.const 7) (i32.const 18612224))"
    read = f"(call $stream_data (i32.const 0) (i32.const {wat.SCRATCH}) (i32.const 60))"
    module = wat.script(
        wat.call("note", b"1"),
        wat.raw(f"(drop (memory.grow (i32.const 300))) {fill}"),
        wat.value(read),
        wat.checkpoint(),
        wat.raw("(call $spin)"),
        wat.value("(i32.load8_u (i32.const 18874000))"),
        wat.value(read),
        reentrant=True,
        fields=_SPIN,
    )
    ledger = Ledger()
    await lab.start(module, sources=source(tmp_path / "in"), limits=Limits(turn_seconds=0.02))
    async with lab.worker(ledger.activity()):
        await lab.blocked(GuestTimeoutError)
    for lowered in (Limits(memory=1024 * 1024), Limits(memory=18 * 1024 * 1024)):
        await lab.unblock(limits=lowered)
        async with lab.worker(ledger.activity(), cold=True):
            found = await lab.blocked(GuestLimitError)
            assert f"{lowered.memory:,}; raise the limit and unblock" in found.reason
            assert "(wasman unblock w --memory BYTES)" in found.reason
    await lab.unblock(limits=Limits(turn_seconds=60.0))
    assert await lab.complete(ledger.activity()) == [1, 60, 7, 40]
    assert ledger.attempts == [1]


async def test_limits_that_are_lowered_count_what_is_stored_and_asked_already(lab: MemoryLab) -> None:
    """A replay is held to what the guest did before only where it would do it again."""
    steps = wat.call("note", LARGE), wat.raw("(call $spin)"), wat.call("note", b"2")
    ledger = Ledger()
    await lab.start(wat.script(*steps, fields=_SPIN), limits=Limits(turn_seconds=0.02))
    async with lab.worker(ledger.activity()):
        await lab.blocked(GuestTimeoutError)
        await lab.unblock(limits=Limits(stored=100, request=10, turn_seconds=60.0))
        found = await lab.blocked(GuestLimitError)
        assert "bytes stored and may have 100" in found.reason
        await lab.unblock(limits=Limits(request=10, turn_seconds=60.0))
        await lab.blocked(GuestLimitError, reason="gives a result of 1,004 bytes and may give 10")
        await lab.unblock(limits=Limits())
        assert await lab.result() == ["x" * 998, 2]
    assert ledger.requests == [LARGE, b"2"], "what is logged is not asked for again"


@pytest.mark.parametrize("busy", [1, 3])
async def test_a_guest_that_computes_leaves_its_neighbour_its_turns(
    lab: MemoryLab, busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is timed: between two turns of the guests that spin, each of at most two ticks, the neighbour gets one.

    So the neighbour, which makes one step a turn, makes at least half as many steps as the spinning guest yields.
    """
    yields, resume, guests = 0, Guest.resume, list[Guest]()

    def counted(guest: Guest) -> Any:
        nonlocal yields
        yields += guest in guests
        return resume(guest)

    monkeypatch.setattr(Guest, "resume", counted)
    spin = wat.script(wat.raw("(loop $ever (br $ever))"))
    ledger = Ledger()
    neighbour = wat.script(*(wat.call("note", b"%d" % n) for n in range(200)))
    async with lab.worker(ledger.activity()) as engine:
        for n in range(busy):
            await lab.start(spin, id=f"spins-{n}", limits=Limits(turn_seconds=0.5))
        with anyio.fail_after(10):
            while not all(f"spins-{n}" in {key.id for key in engine._live} for n in range(busy)):
                await anyio.sleep(0.001)
        spinning = [instance for key, instance in engine._live.items() if key.id.startswith("spins")]
        for instance in spinning:
            with anyio.fail_after(10):
                while instance.guest is None:
                    await anyio.sleep(0.001)
            guests.append(instance.guest)
        before = yields
        await lab.start(neighbour, id="neighbour")
        assert await lab.result("neighbour") == list(range(200))
        turns = (yields - before) / busy
        for n in range(busy):
            await lab.until(Status.BLOCKED, id=f"spins-{n}")
    assert ledger.attempts == [1] * 200
    assert turns <= 400, f"{turns} turns of each guest that spins went by while the neighbour made 200 steps"
