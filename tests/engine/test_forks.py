"""What a process keeps in mind for speed is not what a forked child of it has."""

import asyncio
import os
import select
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.lab import PATIENCE
from wasman_host.ids import drawn
from wasman_host.wake import Answer


def _forked(what: Callable[[], str]) -> str:
    """What a forked child gives, or the error that it met."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads, and the child starts none
        child = os.fork()
    if child == 0:
        try:
            said = what()
        except BaseException as error:  # noqa: BLE001  it must not go on as pytest
            said = repr(error)
        os.write(theirs, said.encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        waiting = select.poll()  # `select` takes no descriptor beyond 1,024, and images of other tests have many
        waiting.register(answer)
        answers = waiting.poll(1000 * PATIENCE)
        if not answers:
            os.kill(child, signal.SIGKILL)
        said = answer.read()
    os.waitpid(child, 0)
    assert answers, f"the child said nothing for {PATIENCE:.0f} s"
    return said


def test_an_id_is_drawn_once_by_all_threads_and_by_forked_children() -> None:
    wanted = 1000
    every = {drawn(32)}  # from here on there are others in mind
    barrier = threading.Barrier(4)

    def draw(_: int) -> list[str]:
        barrier.wait()
        return [drawn(32) for _ in range(wanted)]

    with ThreadPoolExecutor(4) as threads:
        for ids in threads.map(draw, range(4)):
            every.update(ids)
    for _ in range(2):
        drawn(32)
        every.update(_forked(lambda: " ".join(drawn(32) for _ in range(10))).split())
        every.update(drawn(32) for _ in range(200))
    assert len(every) == 1 + 4 * wanted + 2 * (10 + 200)
    assert {len(one) for one in every} == {32}
    assert all(int(one, 16) >= 0 for one in every)
    assert len(drawn(16)) == 16


async def _answered() -> str:
    answer: Answer[str] = Answer()
    asyncio.get_running_loop().call_later(0.01, answer.set, "answered")  # as soon as it is waited for
    return await asyncio.wait_for(answer.wait(), 5)


def test_a_child_forked_inside_of_an_event_loop_runs_one_of_its_own() -> None:
    async def fork() -> str:
        assert await _answered() == "answered"
        return _forked(lambda: asyncio.run(_answered()))

    assert asyncio.run(fork()) == "answered"
    assert asyncio.run(_answered()) == "answered"  # one loop after the other
