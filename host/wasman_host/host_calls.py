"""What a guest that is parked in a host call is answered, where that is no activity.

Streams are moved by `wasman_host.session_streams`; the names of the host's own, which ABI v0 calls as it calls
activities, and durable timers are answered here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wasman_host.blocking import Blocking
from wasman_host.calls import GivenUp, respond
from wasman_host.errors import Failure, GuestLimitError
from wasman_host.guest import abi_v0, abi_v1
from wasman_host.guest.wasi import Sleep
from wasman_host.oplog import Delivery
from wasman_host.payload import Payload
from wasman_host.reasons import failed_by_guest

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from wasman_host.calls import Calls
    from wasman_host.guest.imports import Request
    from wasman_host.guest.live import Guest
    from wasman_host.instance import Instance
    from wasman_host.session_streams import SessionStreams

__all__ = ["HOST", "HostCalls"]

HOST = "wasman."  # begins the host's own names
_REFUSED = 10  # host calls whose refusal is logged: a guest may repeat them as fast as it can


class HostCalls:
    """Answers one guest's host calls.

    Args:
        instance: Whose guest it is.
        calls: What answers calls of activities.
        streams: What moves its streams.
    """

    __slots__ = ("_calls", "_instance", "_refused", "_streams")

    def __init__(self, instance: Instance, calls: Calls, streams: SessionStreams) -> None:
        self._instance, self._calls, self._streams = instance, calls, streams
        self._refused = 0

    def answer(self, guest: Guest, request: Request) -> Awaitable[int]:
        """What the host call that the guest is parked in returns."""
        # Without a frame of its own for activities: thousands of instances may wait here.
        if type(request) is abi_v0.Call and not request.name.startswith(HOST):
            return self._calls.answer(guest, request)
        return self._else(guest, request)

    async def _else(self, guest: Guest, request: Request) -> int:  # noqa: PLR0911  one for each kind of call
        match request:
            case abi_v0.Call() as call:
                return await self._host_call(guest, call)
            case abi_v0.Download(view=view):
                moved = await self._streams.download(self._instance.machine, view)
                if moved is None:
                    return self._refuse(
                        "NoSource", "the session has no source, or several and none of them is called 'download'"
                    )
                return moved
            case abi_v0.Upload(view=view):
                if view and self._instance.machine.upload_closed:
                    return self._refuse("SinkClosed", "the guest has closed its upload and writes to it")
                moved = await self._streams.upload(self._instance.machine, view)
                if moved is None:
                    return self._refuse(
                        "NoSink", "the session has no sink, or several and none of them is called 'upload'"
                    )
                return moved
            case abi_v0.Checkpoint():
                await self._instance.checkpoint(guest)
                return 0
            case abi_v1.StreamRead(name=name, view=view):
                moved = await self._streams.read(self._instance.machine, view, name)
                return abi_v1.UNKNOWN if moved is None else moved
            case abi_v1.StreamWrite(name=name, view=view):
                moved = await self._streams.write(self._instance.machine, view, name)
                if moved is None:
                    return abi_v1.UNKNOWN
                return abi_v1.NOT_ALLOWED if moved < 0 else moved
            case abi_v1.Wait() as wait:
                turns = self._instance.turns
                assert isinstance(turns, Blocking), "only such guests are parked in it"
                return await turns.wait(wait)
            case Sleep() as sleep:
                return await self._sleep(guest, sleep)
            case abi_v0.Refused(type=kind, message=message):
                return self._refuse(kind, message)
            case other:
                raise AssertionError(f"a host call parked with {other!r}")

    def transfer(self, view: memoryview, upload: bool) -> int | None:  # noqa: FBT001  a callback's arguments
        """Move a stream's bytes while the guest runs, if they are ready."""
        return self._streams.now(self._instance.machine, view, upload=upload)

    def _refuse(self, kind: str, message: str) -> int:
        self._instance.machine.last_failure = Failure(kind, message)
        if not self._instance.machine.replaying and self._refused < _REFUSED:
            self._refused += 1
            more = " (what is refused from here on is not logged)" if self._refused == _REFUSED else ""
            self._instance.log.warning("the guest of %s: %s%s", self._instance.key, message, more)
        return abi_v0.FAILED

    async def _host_call(self, guest: Guest, call: abi_v0.Call) -> int:
        """Names of the host's own: no operations, so they are neither numbered nor logged."""
        machine = self._instance.machine
        match call.name.removeprefix(HOST):
            case "input":
                assert machine.input is not None, "every run has an input"
                return respond(guest, call, machine.input.content)
            case "session":
                return respond(guest, call, machine.session.content if machine.session else b"null")
            case "error":
                failure = machine.last_failure
                return respond(guest, call, json.dumps(failure.as_json() if failure else None).encode())
            case "result":
                limit = machine.pinned.limits.request
                if len(call.request) > limit:
                    message = (
                        f"the guest of {self._instance.key} gives a result of {len(call.request):,} bytes and may give "
                        f"{limit:,}; raise the limit and unblock, or terminate it"
                    )
                    raise GuestLimitError(message, "request")
                if not _is_json(call.request):
                    return self._refuse("BadJSON", "wasman.result was given bytes that are not JSON")
                machine.result = Payload.of(call.request)
                return 0
            case "fail":
                early = machine.finished_early()
                if early is not None:
                    raise early
                await self._instance.fail(failed_by_guest(call.request, "GuestFailure"))
                raise GivenUp
        return self._refuse("UnknownName", f"{call.name!r} is none of the host's own names")

    async def _sleep(self, guest: Guest, sleep: Sleep) -> int:
        """A durable timer: it is due at the guest's own time, which a replay repeats, so nothing more is stored."""
        machine = self._instance.machine
        due = machine.time + sleep.duration
        number = machine.issue("timer", str(sleep.duration), "")
        if await self._calls.replayed(number) is None:
            self._calls.check_room()
            while self._instance.now() < due:
                self._instance.waiting(until=due)
                await self._instance.sleep_until(due)
            await self._instance.commit(machine.answered((Delivery("fired", number),), max(due, self._instance.now())))
            self._instance.resumed()
        guest.world.time = machine.time
        return sleep.fired(guest)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
