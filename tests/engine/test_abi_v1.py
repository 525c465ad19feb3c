"""ABI v1, as a guest that is written by hand sees it, and what becomes of one that does not follow it."""

import struct
from collections.abc import Callable, Sequence

import anyio
import pytest

from tests import wat
from tests.lab import Ledger, MemoryLab, answers, moved_by_hand
from tests.turning import NONE, Turn, call, cancel, complete, fail, frame, receive, turning
from wasman_host.activity import ActivityCall
from wasman_host.errors import BlockedError, GuestDeadlockError, GuestLimitError, GuestProtocolError, InvalidModuleError
from wasman_host.guest.module import compile_module, entry_of, initial_state
from wasman_host.instance import Instance
from wasman_host.oplog import Delivery
from wasman_host.record import Limits
from wasman_host.snapshot import SnapshotPolicy
from wasman_host.store import Status
from wasman_host.turns import Turns

BAD_POINTER, UNKNOWN, TAKEN, NOT_READY, NOT_ALLOWED, TOO_LARGE = -1, -2, -3, -4, -6, -7


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the guest was answered, turn by turn."""
    found: list[int] = []
    end = Turns._end

    async def noting(self: Turns) -> None:
        guest = self._instance.guest
        assert guest is not None
        data = guest.read(32768, 400)
        assert data is not None
        found.extend(struct.unpack("<100i", data))
        await end(self)

    monkeypatch.setattr(Turns, "_end", noting)
    return found


async def test_a_call_is_answered_and_the_run_ends_with_what_the_guest_gives(lab: MemoryLab) -> None:
    ledger = Ledger()
    await lab.start(turning(Turn(call(0, "note", b'{"a":1}')), Turn(complete(b'"done"'))))
    assert await lab.complete(ledger.activity()) == "done"
    assert ledger.requests == [b'{"a":1}']


async def test_nothing_given_is_null(lab: MemoryLab) -> None:
    await lab.start(turning(Turn(complete(b""))))
    assert await lab.complete() is None


@pytest.mark.parametrize(
    ("failure", "type_", "message"),
    [
        (b'{"type":"Mine","message":"no"}', "Mine", "no"),
        (b'{"message":"no"}', "Error", "no"),
        (b"just words", "Error", "just words"),
        (b'{"type":"Mine","message":"\\ud800"}', "Error", '{"type":"Mine","message":"\\ud800"}'),
        (b"[]", "Error", "[]"),
    ],
)
async def test_a_run_fails_by_what_its_guest_says(lab: MemoryLab, failure: bytes, type_: str, message: str) -> None:
    await lab.start(turning(Turn(fail(failure))))
    async with lab.worker():
        found = await lab.ended()
    assert found.record is not None
    assert found.record.failure is not None
    assert (found.status, found.record.failure.type, found.record.failure.message) == (Status.FAILED, type_, message)


@pytest.mark.parametrize("depth", [150, 240, 700, 940, 5000])
async def test_a_failure_may_be_nested_as_deep_as_its_guest_likes(lab: MemoryLab, depth: int) -> None:
    await lab.start(turning(Turn(fail(b'{"type":"Deep","message":"m","details":%s}' % (b"[" * depth + b"]" * depth)))))
    async with lab.worker():
        found = await lab.ended()
    assert found.status is Status.FAILED
    assert found.record is not None
    assert found.record.failure is not None
    if depth == 150:
        assert (found.record.failure.type, found.record.failure.message) == ("Deep", "m")
    else:
        assert found.record.failure.type == "Error"
        assert found.record.failure.message.startswith('{"type":"Deep"')


async def test_what_is_behind_the_end_is_not_read(lab: MemoryLab) -> None:
    await lab.start(turning(Turn(complete(b"1") + complete(b"2") + call(7, "note"))))
    assert await lab.complete() == 1


async def test_a_deadline_in_the_past_fires_at_once_and_one_in_300_years_is_waited_for(lab: MemoryLab) -> None:
    await lab.start(turning(Turn(deadline=0), Turn(complete(b"1"))), id="now")
    years = 291 * 365 * 86_400 * 10**9
    later = turning(Turn(receive(0, "go"), deadline=years), Turn(complete(b"2")))
    await lab.start(later, id="later")
    async with lab.worker():
        assert await lab.result("now") == 1
        await lab.until(Status.RUNNING, Status.WAITING, id="later")
        await lab.signal("go", id="later")
        assert await lab.result("later") == 2


async def test_results_are_taken_once(lab: MemoryLab, asked: list[int]) -> None:
    large = 5000
    read = f"(call $result_read (i32.const 0) (i32.const 0) (i32.const 40000) (i32.const {large}))"
    asks = [
        "(call $result_len (i32.const 0))",
        "(call $result_read (i32.const 0) (i32.const 0) (i32.const 40000) (i32.const 10))",
        "(call $result_read (i32.const 0) (i32.const 9999) (i32.const 40000) (i32.const 10))",
        "(call $result_read (i32.const 0) (i32.const 0) (i32.const 200000) (i32.const 10))",
        read,
        read,
        "(call $result_len (i32.const 0))",
        "(call $result_len (i32.const 1))",
        "(call $result_len (i32.const 5))",
        "(call $result_len (i32.const -1))",
        "(call $result_len (i32.const -2))",
        "(call $result_read (i32.const -1) (i32.const 0) (i32.const 40000) (i32.const 10))",
        "(call $result_read (i32.const -1) (i32.const 0) (i32.const 40000) (i32.const 10))",
    ]
    module = turning(Turn(call(0, "big") + receive(1, "never")), Turn(complete(), asks=asks))
    await lab.start(module, "input")
    await lab.complete(answers("big", lambda _: b"x" * large))
    of_result = [large, 10, TOO_LARGE, BAD_POINTER, large, TAKEN, TAKEN]
    assert asked[: len(asks)] == [*of_result, NOT_READY, UNKNOWN, 7, 4, 7, 7]


async def test_pointers_outside_of_memory_are_refused(lab: MemoryLab, asked: list[int]) -> None:
    asks = [
        "(call $random (i32.const 131071) (i32.const 2))",
        "(call $random (i32.const -1) (i32.const 1))",
        "(call $log (i32.const 0) (i32.const 131071) (i32.const 2) (i32.const 0) (i32.const 0))",
        "(call $flush (i32.const 131072) (i32.const 8))",
        "(call $stream_read (i32.const 0) (i32.const 0) (i32.const 131071) (i32.const 2))",
        "(call $stream_read (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 2))",
        "(call $stream_write (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 2))",
    ]
    await lab.start(turning(Turn(complete(), asks=asks)))
    await lab.complete()
    assert asked[: len(asks)] == [BAD_POINTER] * 5 + [UNKNOWN] * 2


async def test_commands_may_be_flushed_before_the_turn_ends(lab: MemoryLab) -> None:
    first, second = call(0, "note", b"1"), call(1, "note", b"2")
    place = 16384 + len(second)
    flushes = Turn(second, asks=[f"(call $flush (i32.const {place}) (i32.const {len(first)}))"])
    # What is flushed stands in the outbox of the turn after it, which nobody looks at then.
    module = turning(flushes, Turn(first, length=0, deadline=0), Turn(complete(b"3")))
    ledger = Ledger()
    await lab.start(module)
    assert await lab.complete(ledger.activity()) == 3
    assert sorted(ledger.requests) == [b"1", b"2"]


async def test_a_withdrawn_receive_takes_nothing_and_a_cancelled_call_is_answered(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = anyio.Event()
    move = moved_by_hand(lab.store, monkeypatch)  # 20 ms of the machine's were over before the call had begun

    async def slow(call: ActivityCall) -> bytes:
        del call
        started.set()
        await anyio.sleep_forever()
        return b""

    module = turning(
        Turn(receive(0, "mail") + call(1, "slow"), deadline=50_000_000_000),
        Turn(cancel(0) + cancel(1) + cancel(1)),
        Turn(receive(2, "mail")),
        Turn(complete(b"1")),
    )
    await lab.start(module)
    async with lab.worker(answers("slow", slow)):
        await started.wait()
        move(50_000_000_000)
        while (await lab.look()).entries < 3:  # the deadline, and the cancelled call
            await anyio.sleep(0.01)
        await lab.signal("mail", "x", message_id="m")
        assert await lab.result() == 1
    assert (await lab.record()).undelivered == ()


async def test_a_worker_that_leaves_in_the_middle_of_a_turn_lets_it_come_to_its_end(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned: list[int] = []
    turn = Turns._turn

    async def counted(self: Turns, deliveries: Sequence[Delivery]) -> None:
        turned.append(len(deliveries))
        await turn(self, deliveries)

    monkeypatch.setattr(Turns, "_turn", counted)
    monkeypatch.setattr("wasman_host.instance._TO_REST", 60.0)  # however slow this machine is
    count = "(local.set $n (i32.add (local.get $n) (i32.const 1)))"
    computes = f"(loop $on {count} (br_if $on (i32.ne (local.get $n) (i32.const 500000000))))"
    busy = Turn(call(1, "note", b"2"), asks=[f"(block (result i32) {computes} (i32.const 0))"])
    await lab.start(turning(Turn(call(0, "note", b"1")), busy, Turn(complete(b"3"))))
    ledger = Ledger()
    async with lab.worker(ledger.activity()) as engine:
        while len(turned) < 2:
            await anyio.sleep(0.001)
        await engine.leave()
    assert (turned, ledger.requests) == ([1, 1], [b"1"])
    assert await lab.complete(ledger.activity()) == 3
    assert turned == [1, 1, 1], "no turn is repeated"


PROTOCOL: list[tuple[Callable[[], bytes], str]] = [
    (lambda: turning(Turn(call(1, "note"))), "asks for operation 1, and its next one is 0"),
    (lambda: turning(Turn(call(0, "note") + call(0, "note"))), "asks for operation 0, and its next one is 1"),
    (lambda: turning(Turn(cancel(3))), "cancels operation 3, for which it has not asked"),
    (lambda: turning(Turn(frame(99, NONE))), "gives a command of kind 99, which this wasman does not know"),
    (lambda: turning(Turn(b"\1\0\0\0")), "leaves 4 bytes behind its last command"),
    (lambda: turning(Turn(struct.pack("<IIHHI", 400, 0, 1, 0, 0))), "says that a command has 400 bytes, where 16"),
    (lambda: turning(Turn(struct.pack("<IIHHI", 3, 0, 1, 0, 0))), "says that a command has 3 bytes"),
    (lambda: turning(Turn(frame(1, 0, b"abc"))), "says of call 0 neither name nor options"),
    (lambda: turning(Turn(frame(1, 0, struct.pack("<II", 9, 9)))), "name and options of call 0 are longer than it is"),
    (lambda: turning(Turn(frame(1, 0, struct.pack("<II", 2, 0) + b"\xff\xfe"))), "which is not UTF-8"),
    (lambda: turning(Turn(frame(2, 0, b"\xff"))), "which is not UTF-8"),
    (lambda: turning(Turn(at=131_000, length=500)), "has its outbox at 0x1ffb8, which is not inside its memory"),
    (lambda: turning(Turn(complete(), gives=3)), "gives 3 for a turn, and 0 means that all is well"),
    (lambda: turning(Turn(call(0, "note", options=b"{"))), "which make no sense"),
    (lambda: turning(Turn(call(0, "note", options=b'{"speed":1}'))), "which make no sense"),
    (lambda: turning(Turn(call(0, "note", options=b'{"heartbeat":-1}'))), "which make no sense"),
    (lambda: turning(Turn(call(0, "note", options=b'{"backoff":NaN}'))), "which make no sense (backoff is nan)"),
    (lambda: turning(Turn(call(0, "note", options=b'{"backoff":1e999}'))), "which make no sense (backoff is inf)"),
    (lambda: turning(Turn(call(0, "note", options=b"[]"))), "which make no sense (they are no object)"),
]


@pytest.mark.parametrize(("module", "why"), PROTOCOL, ids=[why for _, why in PROTOCOL])
async def test_a_guest_that_does_not_follow_the_abi_is_blocked_and_loses_nothing(
    lab: MemoryLab, module: Callable[[], bytes], why: str
) -> None:
    await lab.start(module(), {"kept": True})
    async with lab.worker(Ledger().activity()):
        found = await lab.blocked(GuestProtocolError)
    assert "the guest" in found.reason
    assert why in found.reason
    assert found.entries == 1


async def test_a_wait_for_nothing_is_a_deadlock(lab: MemoryLab) -> None:
    await lab.start(turning(Turn()))
    async with lab.worker():
        found = await lab.blocked(GuestDeadlockError)
    assert "it waits for no activity, no signal and no timer" in found.reason


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (lambda: turning(Turn(complete()), abi=2), "is written for ABI 2, and this wasman knows 1; use a newer wasman"),
        (
            lambda: turning(Turn(complete()), init="(drop (call $flush (i32.const 0) (i32.const 0)))"),
            "its initialisation calls wasman.flush, and there is no run yet to answer",
        ),
        (lambda: turning(Turn(complete()), block=131_060), "its block at 0x1fff4 is not inside its memory"),
        (lambda: turning(Turn(complete()), capacity=100), "is not at least 4096 bytes inside its memory"),
    ],
)
def test_a_module_that_is_not_what_it_should_be_is_refused_at_its_image(module: Callable[[], bytes], why: str) -> None:
    compiled = compile_module(module(), "it")
    with pytest.raises(InvalidModuleError) as refused:
        initial_state(compiled, "wasman_turn", Limits().guest)
    assert why in str(refused.value)


def exports(abi: str) -> str:
    turn = '(func (export "wasman_turn") (param i32) (result i32) (i32.const 0))'
    return f'(func (export "wasman_abi") {abi}) (func (export "wasman_block") (result i32) (i32.const 0)) {turn}'


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ('(func (export "wasman_turn") (param i32) (result i32) (i32.const 0))', "and not 'wasman_abi'"),
        (
            '(import "wasman" "now" (func (result i64))) (func (export "run"))',
            "imports wasman.now and does not export 'wasman_abi', which says for which ABI it is written",
        ),
        (
            exports("(result i64) (i64.const 1)"),
            "exports 'wasman_abi' as () -> (i64), and it is () -> (i32)",
        ),
    ],
)
def test_what_a_guest_of_turns_exports_is_looked_at(fields: str, why: str) -> None:
    data = wat.module(f'{fields} (memory (export "memory") 1)')
    module = compile_module(data, "it")
    with pytest.raises(InvalidModuleError) as refused:
        entry_of(module.binary, "", "it")
    assert why in str(refused.value)


async def test_a_module_of_a_newer_abi_blocks_its_runs_which_lose_nothing(lab: MemoryLab) -> None:
    await lab.start(turning(Turn(complete()), abi=2))
    async with lab.worker():
        found = await lab.blocked(BlockedError)
    assert "is written for ABI 2" in found.reason


async def test_a_request_over_its_limit_is_refused_before_it_is_made(lab: MemoryLab) -> None:
    ledger = Ledger()
    await lab.start(turning(Turn(call(0, "note", b"x" * 200)), Turn(complete())), limits=Limits(request=100))
    async with lab.worker(ledger.activity()):
        found = await lab.blocked(GuestLimitError)
        assert "sends activity 'note' a request of 200 bytes and may send 100" in found.reason
        await lab.unblock(limits=Limits())
        assert await lab.result() is None
    assert ledger.attempts == [1]


async def test_a_replay_that_asks_for_something_else_is_noticed(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, go_on = anyio.Event(), anyio.Event()

    async def slow(call: ActivityCall) -> bytes:
        called.set()
        await go_on.wait()
        return call.request

    module = turning(Turn(call(0, "note", b"1")), Turn(call(1, "slow", b"2")), Turn(complete()))
    await lab.start(module)
    monkeypatch.setattr(Instance, "keep", _no_snapshot)
    async with lab.worker(Ledger().activity(), answers("slow", slow)):
        await called.wait()
    take = Turns._turn

    async def differing(self: Turns, deliveries: object) -> None:
        await take(self, deliveries)  # type: ignore[arg-type]
        self._machine._digest = b"x" * 32

    monkeypatch.setattr(Turns, "_turn", differing)
    async with lab.worker(Ledger().activity(), answers("slow", slow)):
        found = await lab.until(Status.BLOCKED)
    assert found.record is not None
    assert found.record.error == "NondeterminismError"


async def _no_snapshot(*_: object) -> None:
    return


async def test_logged_lines_are_not_repeated_when_turns_are(
    lab: MemoryLab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '(data (i32.const 60000) "the first the last")'
    line = "(call $log (i32.const 0) (i32.const {}) (i32.const {}) (i32.const 0) (i32.const 0))"
    called = anyio.Event()

    async def slow(call: ActivityCall) -> bytes:
        if not called.is_set():
            called.set()
            await anyio.sleep_forever()
        return call.request

    module = turning(
        Turn(call(0, "note", b"1"), asks=[line.format(60000, 9)]),
        Turn(call(1, "slow", b"2"), asks=[line.format(60010, 8)]),
        Turn(complete()),
        more=text,
    )
    monkeypatch.setattr(Instance, "keep", _no_snapshot)
    await lab.start(module)
    with caplog.at_level("INFO"):
        async with lab.worker(Ledger().activity(), answers("slow", slow), snapshots=SnapshotPolicy(turns=1000)):
            await called.wait()
        await lab.complete(Ledger().activity(), answers("slow", slow))
    assert caplog.text.count("the first") == 1
    assert caplog.text.count("the last") == 2  # nobody knows whether the turn behind the last entry was begun


@pytest.mark.parametrize("attributes", ["[1]", "1", "null", '"x"', "{", "\\ff", "[" * 5000])
async def test_attributes_that_are_no_object_are_shown_as_they_are(
    lab: MemoryLab, caplog: pytest.LogCaptureFixture, attributes: str
) -> None:
    text = f'(data (i32.const 60000) "line{attributes.replace(chr(34), chr(92) + chr(34))}")'
    length = 1 if attributes == "\\ff" else len(attributes)
    line = f"(call $log (i32.const 0) (i32.const 60000) (i32.const 4) (i32.const 60004) (i32.const {length}))"
    await lab.start(turning(Turn(complete(b"1"), asks=[line]), more=text))
    with caplog.at_level("INFO"):
        assert await lab.complete() == 1
    assert "line attributes=" in caplog.text


# The blocking form

BLOCKING = """
 (import "wasman" "flush" (func $flush (param i32 i32) (result i32)))
 (import "wasman" "wait" (func $wait (param i32 i32 i64) (result i32)))
 (import "wasman" "now" (func $now (result i64)))
 (import "wasman" "result_len" (func $result_len (param i32) (result i32)))
 (import "wasman" "result_read" (func $result_read (param i32 i32 i32 i32) (result i32)))
 (memory (export "memory") 2)
 (func (export "wasman_abi") (result i32) (i32.const 1))
 (func $say (param $what i32) (i32.store (i32.load (i32.const 0)) (local.get $what))
  (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 4))))"""


def shown(data: bytes) -> str:
    return "".join(f"\\{byte:02x}" for byte in data)


def blocking(body: str, *commands: bytes) -> bytes:
    """A guest whose `run` is `body`; command n stands at 1024 * (n + 1), and (call $say) notes a number at 32768."""
    data = "".join(f'(data (i32.const {1024 * (n + 1)}) "{shown(one)}")' for n, one in enumerate(commands))
    begin = "(i32.store (i32.const 0) (i32.const 32768))"
    return wat.module(f'{BLOCKING} {data} (func (export "run") (local $i i32) {begin} {body})')


def flushed(n: int, command: bytes) -> str:
    return f"(drop (call $flush (i32.const {1024 * (n + 1)}) (i32.const {len(command)})))"


async def test_a_guest_waits_for_one_of_several_with_its_stack_standing(lab: MemoryLab, asked: list[int]) -> None:
    go_on = anyio.Event()

    async def slow(call: ActivityCall) -> bytes:
        await go_on.wait()
        return call.request

    def quick(_: ActivityCall) -> bytes:
        raise LookupError("no")

    commands = [call(0, "slow", b"12"), call(1, "quick"), receive(2, "mail")]
    body = "".join(flushed(n, one) for n, one in enumerate(commands))
    body += "(i32.store (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 1))"
    body += "(i32.store (i32.const 520) (i32.const 2))"
    soon = "(i64.add (call $now) (i64.const 20000000))"
    body += "(call $say (call $wait (i32.const 512) (i32.const 2) (i64.const -1)))"
    body += "(call $say (i32.and (call $result_len (i32.const 1)) (i32.const 0x40000000)))"
    body += "(drop (call $result_read (i32.const 1) (i32.const 0) (i32.const 60000) (i32.const 1000)))"
    body += "(call $say (call $result_len (i32.const 1)))"
    body += f"(call $say (call $wait (i32.const 512) (i32.const 1) {soon}))"
    body += "(call $say (call $wait (i32.const 520) (i32.const 1) (i64.const -1)))"
    body += "(call $say (call $wait (i32.const 512) (i32.const 1) (i64.const -1)))"
    body += "(call $say (call $result_read (i32.const 0) (i32.const 0) (i32.const 60000) (i32.const 10)))"
    body += "(i32.store (i32.const 524) (i32.const 9))"
    body += "(call $say (call $wait (i32.const 524) (i32.const 1) (i64.const -1)))"
    await lab.start(blocking(body, *commands))
    async with lab.worker(answers("slow", slow), answers("quick", quick)):
        while (await lab.look()).entries < 3:  # the failure, and the deadline
            await anyio.sleep(0.01)
        await lab.signal("mail", "x")
        while (await lab.look()).entries < 4:
            await anyio.sleep(0.01)
    async with lab.worker(answers("slow", slow), answers("quick", quick)):  # from the start, by the log
        await anyio.sleep(0.05)
        go_on.set()
        assert await lab.result() is None
    assert asked[:8] == [1, 0x40000000, TAKEN, 1, 0, 0, 2, UNKNOWN]


async def test_a_wait_for_what_was_taken_or_withdrawn_is_told_so(lab: MemoryLab, asked: list[int]) -> None:
    """With a receive open it would be said to wait for that signal, which could never end the wait."""
    body = flushed(0, call(0, "note", b"12")) + flushed(1, receive(1, "mail")) + flushed(2, receive(2, "post"))
    body += "(i32.store (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 2))"
    body += "(drop (call $wait (i32.const 512) (i32.const 1) (i64.const -1)))"
    body += "(drop (call $result_read (i32.const 0) (i32.const 0) (i32.const 60000) (i32.const 10)))"
    body += "(call $say (call $wait (i32.const 512) (i32.const 1) (i64.const -1)))"
    body += flushed(3, cancel(2)) + "(call $say (call $wait (i32.const 512) (i32.const 2) (i64.const -1)))"
    body += "(call $say (call $wait (i32.const 512) (i32.const 2) (call $now)))"  # a deadline ends it
    await lab.start(blocking(body, call(0, "note", b"12"), receive(1, "mail"), receive(2, "post"), cancel(2)))
    assert await lab.complete(Ledger().activity()) is None
    assert asked[:3] == [TAKEN, TAKEN, 2]


async def test_a_wait_for_no_operation_and_no_deadline_is_a_deadlock(lab: MemoryLab) -> None:
    body = flushed(0, receive(0, "mail")) + "(drop (call $wait (i32.const 512) (i32.const 0) (i64.const -1)))"
    await lab.start(blocking(body, receive(0, "mail")))
    async with lab.worker():
        found = await lab.blocked(GuestDeadlockError)
    assert "it waits for no activity, no signal and no timer; its wait names no operation" in found.reason


async def test_a_loop_of_calls_is_replayed_without_being_called_again(lab: MemoryLab) -> None:
    ledger = Ledger()
    one = call(0, "note", b"1")
    number = "(i32.store (i32.const 1028) (local.get $i)) (i32.store (i32.const 512) (local.get $i))"
    body = (
        f"(loop $again {number} {flushed(0, one)} (drop (call $wait (i32.const 512) (i32.const 1) (i64.const -1)))"
        "(local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if $again (i32.lt_u (local.get $i) (i32.const 9))))"
    )
    await lab.start(blocking(body, one))
    for at in (3, 4, 5):
        await lab.dies(ledger.activity(), at=at)
    assert await lab.complete(ledger.activity()) is None
    assert sorted(int(key.rpartition("/")[2]) for key in dict.fromkeys(ledger.keys)) == list(range(9))


async def test_a_blocking_guest_ends_at_its_complete_and_hears_of_a_cancel_once(lab: MemoryLab) -> None:
    mail, done = receive(0, "mail"), complete(b'"ended"')
    body = (
        f"{flushed(0, mail)} (i32.store (i32.const 512) (i32.const 0))"
        "(if (i32.eq (call $wait (i32.const 512) (i32.const 1) (i64.const -1)) (i32.const -5)) (then "
        f"{flushed(1, done)} (unreachable))) (unreachable)"
    )
    await lab.start(blocking(body, mail, done))
    async with lab.worker():
        await lab.until(Status.RUNNING, Status.WAITING)
        await lab.cancel()
        assert await lab.result() == "ended"


async def test_a_run_that_ends_while_its_only_call_goes_on_does_not_wait_for_it(lab: MemoryLab) -> None:
    started, cut = anyio.Event(), anyio.Event()

    async def slow(_: ActivityCall) -> bytes:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cut.set()
        return b""

    await lab.start(turning(Turn(call(0, "slow")), Turn(complete(b"1"))))
    async with lab.worker(answers("slow", slow)):
        await started.wait()
        await lab.cancel()
        assert await lab.result() == 1
    assert cut.is_set()


async def test_a_call_that_was_cancelled_before_it_began_is_answered(lab: MemoryLab) -> None:
    async def slow(_: ActivityCall) -> bytes:
        await anyio.sleep_forever()
        return b""

    await lab.start(turning(Turn(call(0, "slow") + cancel(0)), Turn(complete(b"1"))))
    assert await lab.complete(answers("slow", slow)) == 1


async def test_a_cancelled_call_that_no_worker_can_make_is_answered(lab: MemoryLab) -> None:
    await lab.start(turning(Turn(call(0, "unknown") + cancel(0)), Turn(complete(b"1"))))
    assert await lab.complete(Ledger().activity()) == 1


def test_what_an_initialisation_panics_with_is_said() -> None:
    said = "panic: wasman: two workflows are registered as 'a'\\0a"
    data = wat.module(
        f"""(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1) (data (i32.const 100) "{said}") (func (export "run"))
        (func (export "_initialize") (i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 51))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))) (unreachable))"""
    )
    with pytest.raises(InvalidModuleError, match="trapped: wasman: two workflows are registered as 'a'"):
        initial_state(compile_module(data, "it"), "run", Limits().guest)
