"""ABI v0 whole, as a guest sees it."""

import json
import time
from pathlib import Path

import anyio
import pytest

from tests import wat
from tests.lab import Ledger, MemoryLab, answers, sink, source
from wasman_host.activity import ActivityCall
from wasman_host.errors import BlockedError, GuestLimitError, GuestTimeoutError, InvalidArgumentError
from wasman_host.guest import capi
from wasman_host.guest.engine import engine, ticker
from wasman_host.guest.live import Ended, Exceeded, Guest, Parked, Trapped, Yielded
from wasman_host.guest.module import compile_module
from wasman_host.record import Limits, StreamSpec
from wasman_host.store import Status
from wasman_host.stored import open_tail

MEMORY = '(memory (export "memory") 1)'
EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'


# host_call_api


async def test_a_call_is_answered_by_its_activity(lab: MemoryLab) -> None:
    calls: list[ActivityCall] = []

    def answer(call: ActivityCall) -> bytes:
        calls.append(call)
        return b'{"fine": true}'

    key = await lab.start(wat.script(wat.call("ask me", b"\x00\xff"), wat.call("ask me", b"")))
    assert await lab.complete(answers("ask me", answer)) == [{"fine": True}, {"fine": True}]
    run = (await lab.look()).stored.run
    assert [(one.key, one.request, one.attempt, one.idempotency_key) for one in calls] == [
        (key, b"\x00\xff", 1, f"{run}/0"),
        (key, b"", 1, f"{run}/1"),
    ]


async def test_a_failed_call_is_minus_one_and_the_guest_may_ask_why(lab: MemoryLab) -> None:
    def fail(_: ActivityCall) -> bytes:
        raise LookupError("nobody there")

    failing = answers("fail", fail)
    module = wat.script(wat.call("wasman.error"), wat.call("fail"), wat.call("wasman.error"), wat.call("note", b"1"))
    await lab.start(module)
    none, code, error, after = await lab.complete(failing, Ledger().activity())
    assert (none, code, after) == (None, -1, 1)
    assert (error["type"], error["message"], error["activity"]) == ("LookupError", "nobody there", "fail")


async def test_a_result_that_does_not_fit_stays_for_the_next_identical_call(lab: MemoryLab) -> None:
    ledger = Ledger()
    module = wat.script(
        wat.call("note", b'"abc"', 4),
        wat.call("note", b'"abc"', 4),
        wat.call("note", b"1"),
        wat.call("note", b'"abc"', 5),
        wat.call("note", b'"abc"', 5),
    )
    await lab.start(module)
    assert await lab.complete(ledger.activity()) == [-2, -2, 1, "abc", "abc"]
    assert ledger.requests == [b'"abc"', b"1", b'"abc"']  # the last one is a new call


async def test_a_name_that_is_not_utf8_is_refused(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.call(b"\xff\xfe"), wat.call("wasman.error")))
    code, error = await lab.complete()
    assert code == -1
    assert error == {"type": "BadName", "message": "host_call_api: the name b'\\xff\\xfe' is not UTF-8"}


async def test_a_request_over_the_limit_blocks_before_it_is_made(lab: MemoryLab) -> None:
    place = "(i32.const 0) (i32.const 1001)"
    ask = wat.value(f"(call $host_call_api (i32.const 0) (i32.const 1) {place} {place})")
    await lab.start(wat.script(ask), limits=Limits(request=1000))
    ledger = Ledger()
    async with lab.worker(ledger.activity("\0")):
        await lab.blocked(GuestLimitError, reason="a request of 1,001 bytes and may send 1,000; raise the limit")
        assert not ledger.rows
        await lab.unblock(limits=Limits(request=1001))
        assert await lab.result() == [1001]
    assert len(ledger.rows) == 1


async def test_a_response_over_the_limit_blocks(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.call("huge"), wat.call("wasman.error")), limits=Limits(response=1000))
    keys = []

    def huge(call: ActivityCall) -> bytes:
        keys.append(call.idempotency_key)
        return b'"' + bytes([120] * 999) + b'"'

    async with lab.worker(answers("huge", huge)):
        await lab.blocked(GuestLimitError, reason="'huge' returned 1,001 bytes and the guest of w may be given")
        await lab.unblock(limits=Limits(response=1001))
        assert (await lab.result())[0] == "x" * 999
    assert len(keys) == 2
    assert len(set(keys)) == 1, "the second call is known by its key"


# The host's own names


async def test_input_session_and_result(lab: MemoryLab) -> None:
    module = wat.script(wat.call("wasman.input"), wat.call("wasman.session"), wat.call("wasman.input", capacity=3))
    await lab.start(module, {"a": [1, "ü"]}, session=b'{"pool": "main"}')
    await lab.start(module, id="bare")
    async with lab.worker():
        assert await lab.result() == [{"a": [1, "ü"]}, {"pool": "main"}, -2]
        assert await lab.result("bare") == [None, None, -2]


async def test_a_result_must_be_json_and_the_last_one_counts(lab: MemoryLab) -> None:
    await lab.start(wat.script(wat.call("wasman.result", b"\xff"), wat.call("wasman.error")))
    code, error = await lab.complete()
    assert (code, error["type"]) == (-1, "BadJSON")
    # What a script gives itself in the end is no JSON here: two calls have appended nothing.
    await lab.start(wat.script(wat.call("wasman.result", b"1"), wat.call("wasman.result", b"2")), id="twice")
    assert await lab.complete(id="twice") == 2


async def test_a_host_name_that_is_unknown_is_refused_and_no_activity(lab: MemoryLab) -> None:
    ledger = Ledger()
    await lab.start(wat.script(wat.call("wasman.future"), wat.call("wasman.error")))
    code, error = await lab.complete(ledger.activity("wasman.future"))
    assert (code, error["type"], ledger.rows) == (-1, "UnknownName", [])


async def test_fail_ends_the_run_with_what_the_guest_says(lab: MemoryLab) -> None:
    said = {"type": "CardDeclined", "message": "no money", "details": {"cents": 5}}
    ledger = Ledger()
    await lab.start(wat.script(wat.call("wasman.fail", json.dumps(said).encode()), wat.call("note", b"1")))
    async with lab.worker(ledger.activity()):
        found = await lab.until(Status.FAILED)
    assert found.record is not None
    assert found.record.failure is not None
    assert found.record.failure.as_json() == said
    assert not ledger.rows


# Time


async def test_time_stands_still_between_deliveries_and_is_repeated(lab: MemoryLab) -> None:
    times = (wat.time(), wat.time(), wat.call("note", b"0"), wat.time(), wat.call("tell"), wat.time())
    await lab.start(wat.script(*times))
    reached = anyio.Event()

    async def stop(_: ActivityCall) -> bytes:
        reached.set()
        await anyio.sleep_forever()
        return b""

    await lab.dies(Ledger().activity(), answers("tell", stop), when=reached)
    logged = open_tail((await lab.look()).stored).time
    first, again, _, second, _, third = await lab.complete(Ledger().activity(), answers("tell", lambda _: b"0"))
    assert first == again < second == logged < third


# Streams


async def test_streams_move_in_both_directions_and_end(lab: MemoryLab, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"0123456789")

    def stream(direction: int, length: int) -> wat.Step:
        return wat.value(f"(call $stream_data (i32.const {direction}) (i32.const {wat.BUFFER}) (i32.const {length}))")

    module = wat.script(
        *(stream(0, 4), stream(1, 4), stream(0, 4), stream(1, 4), stream(0, 4), stream(1, 2), stream(0, 4)),
        *(stream(1, 0), stream(1, 0), stream(1, 1), wat.call("wasman.error"), stream(2, 1), wat.call("wasman.error")),
    )
    await lab.start(module, sources=source(tmp_path / "in"), sinks=sink(tmp_path / "out"))
    told = await lab.complete()
    assert told[:10] == [4, 4, 4, 4, 2, 2, 0, 0, 0, -1]
    assert told[10]["type"] == "SinkClosed"
    assert (told[11], told[12]["type"]) == (-1, "BadDirection")
    assert (tmp_path / "out").read_bytes() == b"0123456789"


async def test_a_guest_without_streams_is_told_so(lab: MemoryLab) -> None:
    read, write = (wat.value(f"(call $stream_data (i32.const {way}) (i32.const 0) (i32.const 1))") for way in (0, 1))
    await lab.start(wat.script(read, wat.call("wasman.error"), write, wat.call("wasman.error")))
    first, no_source, second, no_sink = await lab.complete()
    assert (first, no_source["type"], second, no_sink["type"]) == (-1, "NoSource", -1, "NoSink")


async def test_of_several_sources_the_one_called_download_is_read(lab: MemoryLab, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"1")
    (tmp_path / "other").write_bytes(b"22")
    sources = {"download": source(tmp_path / "in")["source"], "other": source(tmp_path / "other")["source"]}
    length = wat.value(f"(call $stream_data (i32.const 0) (i32.const {wat.BUFFER}) (i32.const 9))")
    await lab.start(wat.script(length), sources=sources)
    assert await lab.complete() == [1]


async def test_an_unknown_type_of_stream_blocks(lab: MemoryLab) -> None:
    length = wat.value(f"(call $stream_data (i32.const 0) (i32.const {wat.BUFFER}) (i32.const 9))")
    await lab.start(wat.script(length), sources={"tape": StreamSpec("tape", {})})
    async with lab.worker():
        found = await lab.until(Status.BLOCKED)
    assert "no source type 'tape' is registered with this worker; register it, then unblock" in found.reason


# Entries


async def test_integers_go_in_and_come_out(lab: MemoryLab) -> None:
    module = wat.module(f"""{MEMORY} (func (export "run") (param i32 i64) (result i64 i32)
      (i64.add (i64.extend_i32_s (local.get 0)) (local.get 1)) (local.get 0))""")
    await lab.start(module, [-2, 2**62])
    assert await lab.complete() == [2**62 - 2, -2]
    one = wat.module(f'{MEMORY} (func (export "run") (param i32) (result i32) (i32.mul (local.get 0) (i32.const 2)))')
    await lab.start(one, 21, id="one")
    assert await lab.complete(id="one") == 42
    with pytest.raises(InvalidArgumentError, match=r"takes 1 integers \(i32\); the input of 'two' is \[1, 2\]"):
        await lab.start(one, [1, 2], id="two")
    with pytest.raises(InvalidArgumentError, match="the input of 'two' is true"):
        await lab.start(one, given=True, id="two")
    none = wat.module(f'{MEMORY} (func (export "run"))')
    await lab.start(none, id="none")
    assert await lab.complete(id="none") is None


async def test_an_entrys_integer_is_a_result_and_never_a_status(lab: MemoryLab) -> None:
    await lab.start(wat.module(f'{MEMORY} (func (export "run") (result i32) (i32.const -1))'))
    assert await lab.complete() == -1


async def test_a_start_that_exits_with_0_precedes_run(lab: MemoryLab) -> None:
    module = wat.module(f"""{EXIT} {MEMORY}
      (func (export "_start") (i32.store (i32.const 0) (i32.const 7)) (call $exit (i32.const 0)))
      (func (export "run") (result i32) (i32.load (i32.const 0)))""")
    await lab.start(module)
    assert await lab.complete() == 7


async def test_without_run_start_is_the_entry(lab: MemoryLab) -> None:
    module = wat.module(f"""{EXIT} {MEMORY} (data (i32.const 0) "wasman.result7")
      (func (export "_start")
        (drop (call $host_call_api (i32.const 0) (i32.const 13) (i32.const 13)
          (i32.const 1) (i32.const 0) (i32.const 0)))
        (call $exit (i32.const 0)))""")
    await lab.start(module)
    assert await lab.complete() == 7


async def test_an_initialisation_that_calls_the_host_belongs_to_the_run(lab: MemoryLab) -> None:
    ask = "(call $host_call_api (i32.const 0) (i32.const 4) (i32.const 4) (i32.const 1) (i32.const 8) (i32.const 1))"
    module = wat.module(f"""{MEMORY} (data (i32.const 0) "note7") (func (export "wasman_reentrant"))
      (func (export "_initialize") (if (i32.ne {ask} (i32.const 1)) (then (unreachable))))
      (func (export "run") (result i32) (call $checkpoint) (drop {ask}) (i32.load8_u (i32.const 8)))""")
    ledger = Ledger()
    await lab.start(module)
    await lab.dies(ledger.activity(), at=2)
    assert await lab.complete(ledger.activity()) == ord("7")
    assert ledger.attempts == [1, 1, 2]


async def test_an_initialisation_that_traps_says_so(lab: MemoryLab) -> None:
    module = wat.module(f"""{MEMORY} (func (export "_initialize") (unreachable)) (func (export "run"))""")
    await lab.start(module)
    async with lab.worker():
        found = await lab.blocked(BlockedError, reason="_initialize trapped")
    assert "terminate w, or mend the cause and unblock" in found.reason
    assert "internal error" not in found.reason


async def test_a_tick_while_a_module_is_instantiated_means_nothing(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    instantiate = capi.instantiate_async

    def later(*args: object) -> object:
        for _ in range(3):
            engine().increment_epoch()
        return instantiate(*args)

    monkeypatch.setattr(capi, "instantiate_async", later)
    # wasmtime compiles this sum to a function, and runs that.
    module = wat.module(f"""{MEMORY} (global $g i32 (i32.add (i32.const 3) (i32.const 4)))
      (func (export "run") (result i32) (global.get $g))""")
    await lab.start(module)
    assert await lab.complete() == 7


async def test_ticks_while_a_guest_waits_are_not_its_own(lab: MemoryLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest may run for two ticks from where it is answered. It would yield at once where those before it counted."""
    outcomes: list[object] = []
    resume = Guest.resume

    def noted(guest: Guest) -> Parked | Yielded | Ended | Trapped | Exceeded:
        outcomes.append(resume(guest))
        return outcomes[-1]  # type: ignore[return-value]

    def slow(call: ActivityCall) -> bytes:
        until = ticker().ticks + 3
        while ticker().ticks < until:  # it ticks on for a second after the last guest has run
            time.sleep(0.002)
        return call.request

    monkeypatch.setattr(Guest, "resume", noted)
    await lab.start(wat.script(*(wat.call("slow", b"%d" % n) for n in range(5))))
    assert await lab.complete(answers("slow", slow)) == list(range(5))
    assert [type(outcome) for outcome in outcomes] == [Parked] * 6 + [Ended], "the last call gives the result"


@pytest.mark.parametrize("direction", [0, 9], ids=["no source", "no direction"])
async def test_a_guest_that_is_refused_for_ever_keeps_neither_its_worker_nor_its_turn(
    lab: MemoryLab, direction: int
) -> None:
    ask = f"(drop (call $stream_data (i32.const {direction}) (i32.const 0) (i32.const 1)))"
    busy = wat.module(f'{MEMORY} (func (export "run") (loop $more {ask} (br $more)))')
    await lab.start(busy, id="busy", limits=Limits(turn_seconds=0.3))
    await lab.start(wat.script(wat.call("note", b"1")), id="neighbour")
    async with lab.worker(Ledger().activity()):
        assert await lab.result("neighbour") == [1]
        await lab.blocked(GuestTimeoutError, "busy", reason="host calls that wait for nothing")


async def test_a_guest_that_is_refused_for_ever_does_not_fill_the_log(
    lab: MemoryLab, caplog: pytest.LogCaptureFixture
) -> None:
    await lab.start(wat.script(*(wat.call("wasman.nothing") for _ in range(100))))
    assert len(await lab.complete()) == 100
    said = [record.getMessage() for record in caplog.records if "wasman.nothing" in record.getMessage()]
    assert len(said) == 10
    assert said[-1].endswith("is none of the host's own names (what is refused from here on is not logged)")


# Coming back


def _counting(resume: str, *, named: bool) -> bytes:
    """Two calls and a checkpoint between them. Not re-entrant by itself: it begins anew whenever it is entered."""
    name = "__stack_pointer" if named else "anything"
    mark = '(func (export "wasman_reentrant"))' if resume == "declared" else ""
    ask = "(call $host_call_api (i32.const 0) (i32.const 4) (i32.const 4) (i32.const 1) (i32.const 8) (i32.const 1))"
    return wat.module(f"""{MEMORY} (data (i32.const 0) "note7") {mark}
      (global $counter (mut i32) (i32.const 0))
      (global ${name} (mut i32) (i32.const 1024))
      (func (export "run") (result i32 i32)
        (global.set ${name} (i32.sub (global.get ${name}) (i32.const 16)))
        (global.set $counter (i32.add (global.get $counter) (i32.const 1)))
        (drop {ask}) (call $checkpoint) (drop {ask})
        (global.get $counter) (global.get ${name}))""")


@pytest.mark.parametrize("named", [True, False], ids=["named", "by its value"])
async def test_a_checkpoint_is_entered_anew_with_its_globals_but_for_the_stack_pointer(
    lab: MemoryLab, *, named: bool
) -> None:
    ledger = Ledger()
    for name, resume in (("declared", "replay"), ("option", "checkpoint"), ("replay", "replay")):
        await lab.start(_counting(name, named=named), id=name, resume=resume)
        await lab.dies(ledger.activity(), at=3)
        counter, stack = await lab.complete(ledger.activity(), id=name)
        # Entered twice it counts twice, and its stack begins where it began; replayed, it was only ever entered once.
        assert (counter, stack) == ((1, 1008) if name == "replay" else (2, 1008))


async def test_a_module_whose_tables_change_is_replayed(lab: MemoryLab) -> None:
    module = wat.module(f"""{MEMORY} (data (i32.const 0) "note7") (func (export "wasman_reentrant"))
      (table $table 1 funcref) (func $f) (elem declare func $f)
      (func (export "run") (result i32)
        (table.set $table (i32.const 0) (ref.func $f))
        (call $checkpoint)
        (drop (call $host_call_api (i32.const 0) (i32.const 4) (i32.const 4) (i32.const 1) (i32.const 8) (i32.const 1)))
        (call_indirect $table (i32.const 0))
        (ref.is_null (table.get $table (i32.const 0))))""")
    ledger = Ledger()
    assert "tables may change" in compile_module(module, "it").snapshots
    await lab.start(module)
    await lab.dies(ledger.activity(), at=1, after=True)
    assert await lab.complete(ledger.activity()) == 0
    assert (await lab.record()).snapshot is None
    assert ledger.attempts == [1]


# Limits


async def test_a_guest_that_grows_without_bound_is_blocked_and_resumed_with_more(lab: MemoryLab) -> None:
    grow = """(loop $more (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then (unreachable)))
      (br_if $more (i32.lt_u (memory.size) (i32.const 100))))"""
    await lab.start(wat.script(wat.call("note", b"1"), wat.raw(grow)), limits=Limits(memory=4 * 1024 * 1024))
    ledger = Ledger()
    async with lab.worker(ledger.activity()):
        found = await lab.blocked(GuestLimitError, reason="bytes of memory and may use 4,194,304")
        assert "mend the guest or raise the limit, then unblock" in found.reason
        await lab.unblock(limits=Limits(memory=16 * 1024 * 1024))
        assert await lab.result() == [1]
    assert len(ledger.rows) == 1


async def test_a_module_that_wants_more_memory_than_it_may_have_is_blocked(lab: MemoryLab) -> None:
    await lab.start(wat.script(pages=100), limits=Limits(memory=65536))
    async with lab.worker():
        found = await lab.blocked(GuestLimitError)
        assert (
            "the module wants 6,553,600 bytes of memory to begin with and the instance may have 65,536" in found.reason
        )
        await lab.unblock(limits=Limits())
        assert await lab.result() == []


async def test_a_snapshot_larger_than_the_limit_is_blocked(lab: MemoryLab) -> None:
    module = wat.script(
        wat.raw("(drop (memory.grow (i32.const 100)))"),
        wat.checkpoint(),
        wat.raw("(loop $ever (br_if $ever (i32.eq (memory.size) (i32.const 104))))"),
        reentrant=True,
    )
    await lab.start(module, limits=Limits(turn_seconds=0.05))
    async with lab.worker():
        await lab.blocked(GuestTimeoutError)
        await lab.unblock(limits=Limits(memory=65536 * 103))
        found = await lab.blocked(GuestLimitError)
    assert "the snapshot of w holds 6,815,744 bytes of memory and the instance may have 6,750,208" in found.reason


async def test_a_guest_that_recurses_is_blocked(lab: MemoryLab) -> None:
    await lab.start(wat.module(f'{MEMORY} (func $run (export "run") (call $run))'))
    async with lab.worker():
        found = await lab.blocked(GuestLimitError)
    assert "the guest of w ran into the end of its stack, 524,288 bytes: its calls nest too deep" in found.reason


async def test_a_trap_keeps_its_backtrace(lab: MemoryLab) -> None:
    await lab.start(
        wat.module(f"""{MEMORY}
      (func $inner (result i32) (i32.div_s (i32.const 1) (i32.const 0))) (func (export "run") (drop (call $inner)))""")
    )
    async with lab.worker():
        found = await lab.until(Status.FAILED)
    assert found.record is not None
    failure = found.record.failure
    assert failure is not None
    assert (failure.type, failure.message) == ("GuestTrap", "wasm trap: integer divide by zero")
    assert "inner" in failure.backtrace


async def test_two_guests_take_turns(lab: MemoryLab) -> None:
    order: list[str] = []

    async def note(call: ActivityCall) -> bytes:
        order.append(call.key.id)
        return call.request

    spin = wat.raw(
        "(global.set $got (i32.const 0)) (loop $l (global.set $got (i32.add (global.get $got) (i32.const 1)))"
        "(br_if $l (i32.lt_u (global.get $got) (i32.const 300000000))))"
    )
    for name in ("a", "b"):
        await lab.start(wat.script(wat.call("note", b"0"), spin, wat.call("note", b"1")), id=name)
    await lab.start(wat.script(*(wat.call("note", b"1") for _ in range(4))), id="quick")
    async with lab.worker(answers("note", note)):
        for name in ("a", "b", "quick"):
            await lab.result(name)
    assert set(order[-2:]) == {"a", "b"}, "neither spinning guest kept the quick one from its calls"
