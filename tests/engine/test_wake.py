"""Whether others wait for the event loop: what is not seen here waits for as long as a run goes on alone."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from wasman_host import wake
from wasman_host.wake import others_wait, turn


@pytest.fixture
def anyio_backend() -> str:
    """Of trio's loop nobody knows who waits; see the last test."""
    return "asyncio"


@pytest.fixture
async def loop() -> asyncio.AbstractEventLoop:
    for _ in range(3):  # what the test's own beginning has left to be done
        await anyio.lowlevel.checkpoint()
    return asyncio.get_running_loop()


async def test_nobody_waits_where_nothing_is_to_be_done(loop: asyncio.AbstractEventLoop) -> None:
    later = loop.call_later(3600, int)
    assert not others_wait()
    later.cancel()


async def test_a_callback_waits_until_it_was_called(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(int)
    assert others_wait()
    await turn()
    assert not others_wait()


async def test_another_task_that_can_go_on_waits(loop: asyncio.AbstractEventLoop) -> None:
    goes_on = loop.create_future()

    async def other() -> None:
        await goes_on

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await turn()
        await turn()
        assert not others_wait()
        goes_on.set_result(None)
        assert others_wait()


async def test_a_timer_waits_when_it_is_due(loop: asyncio.AbstractEventLoop) -> None:
    fired: list[str] = []
    loop.call_later(3600, int)
    loop.call_later(0.01, fired.append, "now")
    assert not others_wait()
    time.sleep(0.02)  # noqa: ASYNC251  the loop has no turn meanwhile
    assert others_wait()
    assert not fired
    await turn()
    await turn()
    assert fired
    assert not others_wait()


async def test_a_file_that_is_ready_waits_and_is_not_forgotten(loop: asyncio.AbstractEventLoop) -> None:
    near, far = socket.socketpair()
    heard: list[bytes] = []
    with near, far:
        loop.add_reader(near, lambda: heard.append(near.recv(9)))
        assert not others_wait()
        far.send(b"hello")
        assert others_wait()
        assert others_wait(), "to look takes nothing away"
        assert not heard
        await turn()
        await turn()
        assert heard == [b"hello"]
        assert not others_wait()
        loop.remove_reader(near)


async def test_what_another_thread_wants_done_waits(loop: asyncio.AbstractEventLoop) -> None:
    called = threading.Event()
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(called.set,))
    thread.start()
    thread.join()
    assert others_wait()
    await turn()
    await turn()
    assert called.is_set()


async def test_a_signal_waits(loop: asyncio.AbstractEventLoop) -> None:
    heard: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, heard.append, "it")
    try:
        signal.raise_signal(signal.SIGUSR1)
        while not heard:  # it comes through a socket of the loop's own: as long as it has not come, somebody waits
            assert others_wait()
            await turn()
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


async def test_in_debug_mode_tasks_have_all_their_turns(loop: asyncio.AbstractEventLoop) -> None:
    loop.set_debug(True)
    try:
        assert others_wait()
    finally:
        loop.set_debug(False)


def said(kind: Callable[[], asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop) -> bool:
    """What is said on a loop of that kind on which nothing waits."""

    async def asked() -> bool:
        await asyncio.sleep(0)
        return others_wait()

    with asyncio.Runner(loop_factory=kind) as runner:
        return runner.run(asked())


def test_of_another_loop_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(asyncio.SelectorEventLoop):
        """May well have something of its own to be done."""

    assert not said()
    assert said(Other)
    assert not said()
    monkeypatch.setattr(wake, "_PARTS", (*wake._PARTS, "_of_another_python"))
    assert said()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_with_trio_it_is_not_known() -> None:
    assert others_wait()
