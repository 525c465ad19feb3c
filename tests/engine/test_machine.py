"""The state machine of a run, with neither wasm nor disk."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import evolve

from wasman_host.errors import BlockedError, CorruptSnapshotError, Failure, NondeterminismError
from wasman_host.machine import Machine, Proposal, Terminating, create
from wasman_host.oplog import EMPTY_CHAIN, Delivery, Entry, open_entries
from wasman_host.payload import INLINE_LIMIT, Payload
from wasman_host.record import KeptSignal, Pinned, Publishing, Record
from wasman_host.seal import Address, digest_of, seal
from wasman_host.store import Status

ONE, TWO, THREE = (hashlib.sha256(number).hexdigest() for number in (b"1", b"2", b"3"))


class Run:
    """A run and its log, as a store would keep them."""

    def __init__(self, given: object = None) -> None:
        proposal = create("default", "w", "r", Pinned("flow", "m"), Payload.of_value(given), None, 1000)
        self.record = _record(proposal)
        self.tail = proposal.tail
        self.log = list(proposal.entries)
        self.takeovers = 0

    def machine(self, start: int = 0, state: dict[str, Any] | None = None) -> Machine:
        """A machine that has just taken the run up, at a snapshot before entry `start`."""
        machine = Machine("default", "w", self.record, self.tail, self.takeovers)
        machine.remember(self.entry(0), state, [self.entry(n) for n in range(max(start, 1), len(self.log))])
        return machine

    def entry(self, n: int) -> Entry:
        return open_entries("default", "w", "r", self.log[: n + 1], EMPTY_CHAIN)[n]

    def commit(self, machine: Machine, proposal: Proposal) -> None:
        self.record = proposal.record or self.record
        self.tail = proposal.tail
        self.log += proposal.entries
        if proposal.settles:
            self.takeovers = 0
        machine.accept(proposal)

    def call(self, machine: Machine, name: str, request: str, answer: bytes, now: int = 0) -> int:
        number = machine.issue("call", name, request)
        assert machine.replayed(number) is None
        self.commit(machine, machine.answered([Delivery("result", number, Payload.of(answer))], now))
        return number


def _record(proposal: Proposal) -> Record:
    assert proposal.record is not None
    return proposal.record


def replay(machine: Machine, calls: Sequence[tuple[str, str]]) -> list[bytes | None]:
    answers: list[bytes | None] = []
    for name, request in calls:
        delivery = machine.replayed(machine.issue("call", name, request))
        answers.append(delivery.payload.content if delivery is not None and delivery.payload is not None else None)
    return answers


def test_a_replay_gives_each_operation_its_own_answer_and_time() -> None:
    run = Run()
    machine = run.machine()
    times = []
    for request, answer in ((ONE, b"a"), (TWO, b"b"), (ONE, b"c")):
        run.call(machine, "x", request, answer, now=5000)
        times.append(machine.time)
    assert times == [5000, 5001, 5002]  # each later than the one before, whatever the clock says
    again = run.machine()
    assert again.time == 1000
    assert again.replaying
    assert replay(again, [("x", ONE), ("x", TWO)]) == [b"a", b"b"]
    assert again.time == 5001
    assert replay(again, [("x", ONE)]) == [b"c"]
    assert again.finished_early() is None
    assert again.state() == machine.state()


def test_a_clock_that_goes_back_does_not_take_the_guests_time_with_it() -> None:
    run = Run()
    machine = run.machine()
    run.call(machine, "x", ONE, b"a", now=9000)
    run.call(machine, "x", ONE, b"a", now=10)
    assert machine.time == 9001


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("call", "x", TWO), f"the replay asks for call 'x' with request {TWO[:12]}"),
        (("call", "y", ONE), "the replay asks for call 'y'"),
        (("timer", "x", ONE), "the replay asks for timer 'x'"),
    ],
)
def test_the_first_difference_is_named_both_ways(asked: tuple[str, str, str], told: str) -> None:
    run = Run()
    run.call(run.machine(), "x", ONE, b"a")
    before = run.record
    again = run.machine()
    with pytest.raises(NondeterminismError) as raised:
        again.issue(*asked)
    message = str(raised.value)
    assert message.startswith(f"operation 0 of run r of 'w' was call 'x' with request {ONE[:12]}")
    assert told in message
    assert message.endswith("Its data is untouched; mend the cause and unblock, or terminate")
    assert run.record == before == again.record


@pytest.mark.parametrize("field", ["read", "written", "crc"])
def test_streams_that_differ_are_seen_at_the_next_operation(field: str) -> None:
    run = Run()
    machine = run.machine()
    machine.read, machine.written, machine.crc = 10, 20, 30
    run.call(machine, "x", ONE, b"a")
    again = run.machine()
    again.read, again.written, again.crc = 10, 20, 30
    setattr(again, field, 99)
    with pytest.raises(NondeterminismError, match="after reading 10 and writing 20 bytes"):
        again.issue("call", "x", ONE)


def test_an_end_that_comes_too_early_names_what_the_log_goes_on_with() -> None:
    run = Run()
    machine = run.machine()
    run.call(machine, "x", ONE, b"a")
    run.call(machine, "y", TWO, b"b")
    again = run.machine()
    replay(again, [("x", ONE)])
    early = again.finished_early()
    assert early is not None
    assert "ended after 1 operations, and the log goes on with call 'y'" in str(early)
    replay(again, [("y", TWO)])
    assert again.finished_early() is None


def test_an_operation_more_than_the_log_holds_before_a_delivery_is_a_difference() -> None:
    run = Run()
    machine = run.machine()
    machine.issue("call", "quiet", ONE)  # an operation without an answer of its own
    number = machine.issue("call", "x", TWO)
    run.commit(machine, machine.answered([Delivery("result", number, Payload.of(b"a"))], 0))
    again = run.machine()
    again.issue("call", "quiet", ONE)
    again.issue("call", "x", TWO)
    with pytest.raises(NondeterminismError, match="a delivery before operation 2 was asked for"):
        again.issue("call", "more", THREE)
    short = run.machine()
    with pytest.raises(NondeterminismError, match="entry 1 of run r of 'w' was delivered after 2 operations"):
        short.replayed(short.issue("call", "quiet", ONE))


def test_an_entry_that_answers_something_else_is_damage() -> None:
    run = Run()
    machine = run.machine()
    machine.issue("call", "x", ONE)
    run.commit(machine, machine.answered([Delivery("result", 5, Payload.of(b"a"))], 0))
    again = run.machine()
    with pytest.raises(CorruptSnapshotError, match="entry 1 of run r of 'w' answers other operations than 0"):
        again.replayed(again.issue("call", "x", ONE))


def test_a_snapshot_goes_on_with_its_number_and_its_digest() -> None:
    run = Run()
    machine = run.machine()
    run.call(machine, "x", ONE, b"a")
    machine.keep(0, "x", ONE, Payload.of(b"kept"))
    machine.read, machine.random, machine.upload_closed = 7, 32, True
    machine.result = Payload.of(b'"r"')
    state = machine.state()
    run.commit(machine, machine.checkpoint("snapshot-1", _sealed(), ()))
    run.call(machine, "y", TWO, b"b")
    assert run.record.snapshot is not None
    assert run.record.snapshot.entry == 2
    again = run.machine(2, state)
    assert (again.read, again.random, again.upload_closed) == (7, 32, True)
    assert again.result == machine.result
    assert again.kept is not None
    assert (again.kept.entry, again.kept.request, again.kept.payload) == (1, ONE, None)
    assert again.issue("call", "y", TWO) == 1
    delivery = again.replayed(1)
    assert delivery is not None
    assert again.state()["digest"] == machine.state()["digest"]
    with pytest.raises(CorruptSnapshotError, match="holds state of version 99"):
        run.machine(2, {**state, "v": 99})


def _sealed() -> bytes:
    return seal(Address("default", "w", "r", "snapshot", "snapshot-1"), b"pages")


def test_the_chain_of_a_log_names_every_entry() -> None:
    run = Run()
    machine = run.machine()
    run.call(machine, "x", ONE, b"a")
    run.call(machine, "x", TWO, b"b")
    first, second, third = run.log
    assert run.tail.chain == digest_of(third[1])
    assert run.tail.entries == 3
    assert len(open_entries("default", "w", "r", [second, third], digest_of(first[1]))) == 2
    other = Run("another input")
    other.call(other.machine(), "x", ONE, b"a")
    for wrong, after in (
        ([second, third], EMPTY_CHAIN),
        ([first, third], EMPTY_CHAIN),
        ([first, (1, third[1]), (2, second[1])], EMPTY_CHAIN),
        ([first, other.log[1], third], EMPTY_CHAIN),
        ([other.log[0], second], EMPTY_CHAIN),
    ):
        with pytest.raises(CorruptSnapshotError, match="fails its digest, or belongs to another place"):
            open_entries("default", "w", "r", wrong, after)


def test_a_step_leaves_the_record_as_it_is() -> None:
    run = Run()
    machine = run.machine()
    number = machine.issue("call", "x", ONE)
    proposal = machine.answered([Delivery("result", number, Payload.of(b"a"))], 50)
    assert proposal.record is None
    run.commit(machine, proposal)
    machine.pin_image("d" * 64)  # it has to be written with whatever is committed next
    number = machine.issue("call", "x", ONE)
    proposal = machine.answered([Delivery("result", number, Payload.of(b"a"))], 50)
    assert _record(proposal).image == "d" * 64
    run.commit(machine, proposal)
    number = machine.issue("call", "x", ONE)
    assert machine.answered([Delivery("result", number, Payload.of(b"a"))], 50).record is None
    run.commit(machine, machine.backoff(number, "x", Failure("E", "m", None, "x", 1), 99))
    answered = machine.answered([Delivery("result", number, Payload.of(b"a"))], 50)
    assert _record(answered).open == ()


# A proposal changes nothing until it is accepted


def test_a_proposal_changes_nothing_until_it_is_accepted() -> None:
    run = Run()
    machine = run.machine()
    number = machine.issue("call", "x", ONE)
    failure = Failure("E", "m", None, "x", 1)
    state, record = machine.state(), machine.record
    proposals = [
        machine.answered([Delivery("failed", number, failure=failure)], 50),
        machine.backoff(number, "x", failure, 99),
        machine.waits(number, "x", "nobody", 99),
        machine.released(50),
        machine.checkpoint("snapshot-1", _sealed(), ()),
        machine.blocked(BlockedError("why")),
        machine.completed(Payload.of(b"1"), None, 50),
        machine.completed(Payload.of(b"1"), Publishing({}), 50),
        machine.failed(failure, 50),
        machine.ended(Terminating(Status.TERMINATED, "terminate", "enough", ("m1",)), 50),
    ]
    assert (machine.state(), machine.record) == (state, record)
    accepted, *_ = proposals
    machine.accept(accepted)
    assert machine.last_failure == failure
    assert machine.tail.entries == 2


def test_the_ends_of_a_run() -> None:
    machine = Run().machine()
    completed = machine.completed(Payload.of(b"1"), None, 50)
    record = _record(completed)
    assert (record.status, record.closed, completed.keeps_owner) == (Status.COMPLETED, 50, False)
    publishing = machine.completed(Payload.of(b"1"), Publishing({"out": (3, "d", {})}), 50)
    record = _record(publishing)
    assert (record.status, record.closed, publishing.keeps_owner) == (Status.PUBLISHING, None, True)
    ended = machine.ended(Terminating(Status.TERMINATED, "terminate", "enough", ("m1", "m2")), 50)
    assert (_record(ended).status, ended.consumes, len(ended.entries)) == (Status.TERMINATED, ("m1", "m2"), 1)
    late = machine.closed_with_mail(ended, [("m3", "signal")])
    assert (_record(late).undelivered, tuple(late.consumes)) == ((("m3", "signal"),), ("m1", "m2", "m3"))


def test_large_payloads_are_blobs_whose_names_are_never_used_twice() -> None:
    large = b'"' + b"x" * INLINE_LIMIT + b'"'
    first = create("default", "w", "r", Pinned("f", "m"), Payload.of(large), Payload.of(large), 0)
    run = Run()
    machine = run.machine()
    blobs = list(first.blobs)
    for _ in range(2):
        number = machine.issue("call", "x", ONE)
        proposal = machine.answered([Delivery("result", number, Payload.of(large))], 0)
        blobs += proposal.blobs
        run.commit(machine, proposal)
    blobs += machine.completed(Payload.of(large), None, 0).blobs
    assert len({blob.name for blob in blobs}) == len(blobs) == 5
    for n in (1, 2):
        [delivery] = run.entry(n).deliveries
        assert delivery.payload is not None
        assert (delivery.payload.data, delivery.payload.blob) == (None, f"payload-{n}-0")


# A result that was too large


def test_a_kept_result_is_for_the_same_call_only() -> None:
    machine = Run().machine()
    machine.keep(3, "x", ONE, Payload.of(b"kept"))
    assert machine.kept_for("x", TWO) is None
    assert machine.kept_for("y", ONE) is None
    kept = machine.kept_for("x", ONE)
    assert kept is not None
    assert kept.content == b"kept"
    machine.took()
    assert machine.kept_for("x", ONE) is None


# Attempts


@pytest.mark.parametrize(
    ("attempts", "retry_at", "takeovers", "begun"),
    [
        (2, 99, 0, 2),  # in a backoff: as many as were recorded
        (2, 99, 3, 2),  # whoever died then, no attempt died with them
        (2, None, 0, 1),  # an attempt was cut by a worker that left in order: it begins again
        (2, None, 1, 2),  # its worker died in it: it has begun, and failed
        (2, None, 3, 4),
    ],
)
def test_attempts_of_an_operation_that_was_committed(
    attempts: int, retry_at: int | None, takeovers: int, begun: int
) -> None:
    run = Run()
    machine = run.machine()
    number = machine.issue("call", "x", ONE)
    run.commit(machine, machine.backoff(number, "x", Failure("E", "m", None, "x", attempts), 99))
    if retry_at is None:
        run.commit(machine, machine.begun(number, attempts))
    again = Machine("default", "w", run.record, run.tail, takeovers)
    assert again.attempts(number) == begun


def test_the_first_attempt_is_not_committed_so_takeovers_stand_for_it() -> None:
    run = Run()
    for takeovers in (0, 1, 4):
        run.takeovers = takeovers
        machine = run.machine()
        assert machine.attempts(machine.issue("call", "x", ONE)) == takeovers
        # What says nothing of the attempts leaves them as they are.
        run.commit(machine, machine.checkpoint("snapshot-1", _sealed(), ()))
        run.commit(machine, machine.released(5))
        assert machine.attempts(0) == run.machine().attempts(0) == takeovers
    run.takeovers = 2
    machine = run.machine()
    run.call(machine, "x", ONE, b"a")
    assert run.takeovers == 0
    assert machine.attempts(machine.issue("call", "y", ONE)) == 0


def test_waiting_for_a_worker_keeps_the_attempts() -> None:
    run = Run()
    run.takeovers = 2
    machine = run.machine()
    run.commit(machine, machine.waits(machine.issue("call", "x", ONE), "x", "nobody has it", 99))
    assert (run.record.status, run.record.reason, run.takeovers) == (Status.WAITING, "nobody has it", 0)
    assert run.machine().attempts(0) == 2
    run.takeovers = 1
    assert run.machine().attempts(0) == 2


def test_a_record_is_a_value() -> None:
    record = Record("r", Pinned("f", "m"))
    assert evolve(record, status=Status.FAILED) != record
    assert record.pinned.encoded is record.pinned.encoded


def test_a_large_signal_counts_as_stored_until_it_is_received_and_then_once() -> None:
    run = Run()
    machine = run.machine()
    before = machine.tail.stored
    value = Payload.of(b'"' + b"\x80" * INLINE_LIMIT + b'"')
    for turn in range(3):
        signal = KeptSignal(f"m{turn}", "go", value, 1)
        run.commit(machine, machine.signalled([signal]))
        [kept] = machine.record.signals
        assert kept.payload.sealed > 0
        number = machine.issue("receive", "go", ONE)
        given = Delivery("result", number, value, message=signal.message)
        proposal = machine.delivered([given], 0, None, ())
        assert list(proposal.drops) == [kept.payload.blob]
        run.commit(machine, proposal)
        [entry] = open_entries("default", "w", "r", run.log[-1:], digest_of(run.log[-2][1]))
        [delivery] = entry.deliveries
        assert delivery.payload is not None
        before += len(run.log[-1][1]) + delivery.payload.sealed
        assert delivery.payload.sealed == kept.payload.sealed == len(proposal.blobs[0].data)
        assert machine.tail.stored == before
