"""A test that hangs is named, with what each of its tasks waits for, and the run ends.

Of a test that waits on an event loop, the stack of the thread shows nothing but the loop. What it waits for is in its
tasks, and they are found as the objects that they are: the loop is asked for nothing, for it may be what hangs.
"""

import asyncio
import gc
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CoroutineType, FrameType, GeneratorType
from typing import Any

import pytest
import trio

# A test may last so long. pyproject.toml's faulthandler_timeout is longer: it ends what never yields the interpreter.
SECONDS = float(os.environ.get("WASMAN_TEST_SECONDS", "540"))
_ROOT = str(Path(__file__).resolve().parent.parent) + os.sep
_OTHERS = (sysconfig.get_path("stdlib") + os.sep, "<")
_stderr = [2]


def pytest_configure() -> None:
    """Keep where standard error leads: pytest captures it while a test runs."""
    _stderr[0] = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Watch one test, its fixtures included."""
    watch = threading.Timer(SECONDS, _give_up, [item.nodeid])
    watch.daemon = True
    watch.start()
    try:
        return (yield)
    finally:
        watch.cancel()
        watch.join()  # tests count threads


def _give_up(test: str) -> None:
    os.write(_stderr[0], f"\n{report()}\nHANGS: {test} has not ended after {SECONDS:.0f} s\n".encode())
    os._exit(1)


def report() -> str:
    """Every task of every event loop in this process, and every other thread, each with its stack."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    threads = [
        (f"Thread {names.get(ident, ident)}", [one for one, _ in traceback.walk_stack(frame)][::-1], None)
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    ]
    return "\n".join(_shown_as(*one) for one in [*threads, *_tasks()])


def _shown_as(name: str, frames: Sequence[FrameType], awaited: object) -> str:
    """One stack: all that is no library's of it, and the last two frames whosever they are."""
    lines = [f"{name}:"]
    for place, frame in enumerate(frames, start=1):
        path = frame.f_code.co_filename
        ours = not path.startswith(_OTHERS) and f"{os.sep}site-packages{os.sep}" not in path
        if ours or place > len(frames) - 2:
            shown = path.removeprefix(_ROOT) if ours else "/".join(Path(path).parts[-2:])
            lines.append(f"  {shown}:{frame.f_lineno} {frame.f_code.co_name}")
    if awaited is not None:
        lines.append(f"  waits for {awaited!r}")
    return "\n".join(lines)


def _tasks() -> Iterator[tuple[str, Sequence[FrameType], object]]:
    for one in gc.get_objects():
        if isinstance(one, trio.lowlevel.Task) and one.coro.cr_frame is not None:
            yield (f"Task {one.name}", *_stack(one.coro))
        elif isinstance(one, asyncio.Task) and not one.done():
            yield (f"Task {one.get_name()}", *_stack(one.get_coro()))


def _stack(awaited: object) -> tuple[Sequence[FrameType], object]:
    """The frames from what a task runs down to what it waits for, and that, where it has no frame."""
    frames: list[FrameType | None] = []
    while awaited is not None:
        if isinstance(awaited, CoroutineType):
            frames.append(awaited.cr_frame)
            awaited = awaited.cr_await
        elif isinstance(awaited, GeneratorType):
            frames.append(awaited.gi_frame)
            awaited = awaited.gi_yieldfrom
        else:
            break
    return [frame for frame in frames if frame is not None], awaited
