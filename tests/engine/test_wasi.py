"""WASI preview 1, virtual."""

import logging

import pytest

from tests import wat
from tests.lab import Ledger, MemoryLab
from wasman_host.guest import wasi
from wasman_host.store import Status

END = 4 * 65536  # of the memory of a script
FAULT = 21
BAD = [-1, END, END - 1, -4096, 0x7FFFFFFF]


def ask(name: str, *values: int) -> wat.Step:
    params = wasi._TABLE[name][0]

    def step(program: wat.Program) -> str:
        function = program.import_wasi(name, params)
        given = " ".join(
            f"({'i32' if letter == 'w' else 'i64'}.const {number})"
            for letter, number in zip(params, values, strict=True)
        )
        return f"(call {function} {given})" if name == "proc_exit" else wat.value(f"(call {function} {given})")(program)

    return step


@pytest.mark.parametrize("pointer", BAD)
async def test_a_bad_pointer_is_efault(lab: MemoryLab, pointer: int) -> None:
    steps = [
        ask("args_sizes_get", pointer, 0),
        ask("args_sizes_get", 0, pointer),
        ask("environ_sizes_get", pointer, 0),
        ask("environ_sizes_get", 0, pointer),
        ask("clock_res_get", 0, pointer),
        ask("clock_time_get", 0, 0, pointer),
        ask("random_get", pointer, 2),
        ask("random_get", 0, -1),
        ask("fd_write", 1, pointer, 1, 0),
        ask("fd_write", 1, 64, 1, pointer),
        ask("fd_write", 1, 0, -1, 64),
        ask("fd_write", 1, 0, END // 8 + 1, 64),
        ask("fd_read", 0, 0, 0, pointer),
        ask("fd_fdstat_get", 1, pointer),
        ask("fd_filestat_get", 1, pointer),
        ask("poll_oneoff", pointer, 0, 1, 64),
        ask("poll_oneoff", 0, pointer, 1, 64),
        ask("poll_oneoff", 0, 64, 1, pointer),
    ]
    await lab.start(wat.script(*steps))
    assert await lab.complete() == [FAULT] * len(steps)


async def test_an_iovec_that_points_outside_is_efault(lab: MemoryLab) -> None:
    vector = wat.raw(
        f"(i32.store (i32.const {wat.SCRATCH}) (i32.const {END - 1}))"
        f"(i32.store (i32.const {wat.SCRATCH + 4}) (i32.const 2))"
    )
    await lab.start(wat.script(vector, ask("fd_write", 1, wat.SCRATCH, 1, 0)))
    assert await lab.complete() == [FAULT]


@pytest.mark.parametrize("number", [-1, 0, 3, 2**31 - 1])
async def test_every_function_answers_whatever_it_is_given(lab: MemoryLab, number: int) -> None:
    names = [name for name in wasi._TABLE if name != "proc_exit"]
    await lab.start(wat.script(*(ask(name, *[number] * len(wasi._TABLE[name][0])) for name in names)))
    errnos = dict(zip(names, await lab.complete(), strict=True))
    assert set(errnos.values()) <= {0, 8, 21, 28, 52, 70}
    assert errnos["path_open"] == errnos["sock_accept"] == 52


async def test_an_exit_code_is_the_guests_failure(lab: MemoryLab) -> None:
    await lab.start(wat.script(ask("proc_exit", 3)))
    await lab.start(wat.script(ask("proc_exit", 0)), id="fine")
    async with lab.worker():
        found = await lab.until(Status.FAILED)
        assert await lab.result("fine") is None
    assert found.record is not None
    assert str(found.record.failure) == "GuestExit: the guest exited with code 3"


async def test_a_timer_survives_a_crash_and_does_not_sleep_twice(lab: MemoryLab) -> None:
    steps = (wat.time(), wat.sleep(400_000_000), wat.time(), wat.call("note", b"1"), wat.time())
    await lab.start(wat.script(*steps))
    began = lab.store.now()
    await lab.dies(Ledger().activity(), at=1)  # at the commit that would have told the guest that it fired
    died = lab.store.now()
    first, errno, second, _, third = await lab.complete(Ledger().activity())
    assert errno == 0
    assert second >= first + 400_000_000
    assert third > second
    assert died - began >= 390_000_000
    assert lab.store.now() - died < 300_000_000, "the time that had passed was not slept again"


async def test_random_bytes_differ_between_runs_and_repeat_within_one(lab: MemoryLab) -> None:
    def draw(program: wat.Program) -> str:
        function = program.import_wasi("random_get", "ww")
        tell = f"(call $number (i64.load32_u (i32.const {wat.SCRATCH}))) (call $comma)"
        return f"(drop (call {function} (i32.const {wat.SCRATCH}) (i32.const 3))) {tell}"

    for reentrant in (False, True):
        seen = []
        for name in ("calm", "killed"):
            told = Ledger()
            module = wat.script(draw, draw, wat.checkpoint(), draw, wat.call("note", b"0"), draw, reentrant=reentrant)
            await lab.start(module, id=f"{name}{reentrant}")
            if name == "killed":
                await lab.dies(told.activity(), at=2 if reentrant else 1)
                await lab.dies(told.activity(), at=1)
            numbers = await lab.complete(told.activity(), id=f"{name}{reentrant}")
            assert len(set(numbers)) == 5
            seen.append(numbers)
        assert seen[0] != seen[1]


async def test_output_becomes_log_lines_once(lab: MemoryLab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wasman.instance")

    def say(text: bytes, stream: int) -> wat.Step:
        def step(program: wat.Program) -> str:
            at = program.text(text).split(") (")[0].removeprefix("(i32.const ")
            vector = f"(i32.store (i32.const {wat.SCRATCH}) (i32.const {at}))"
            length = f"(i32.store (i32.const {wat.SCRATCH + 4}) (i32.const {len(text)}))"
            write = ask("fd_write", stream, wat.SCRATCH, 1, wat.SCRATCH + 8)(program)
            return f"{vector} {length} {write}"

        return step

    await lab.start(wat.script(say(b"hello\nwor", 1), wat.call("note", b"1"), say(b"ld\n", 1), say(b"no\xff\n", 2)))
    await lab.dies(Ledger().activity(), at=1, after=True)
    await lab.complete(Ledger().activity())
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("std")]
    assert lines == ["stdout: hello", "stdout: world", "stderr: no\ufffd"]
