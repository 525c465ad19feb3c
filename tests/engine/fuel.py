"""A worker whose guests count what they execute: it prints the fuel that their turns have used.

    python -m tests.engine.fuel STORE [TURNS]

It lives until the run has ended, or leaves after so many turns. Fuel is wasmtime's count of executed instructions; what
the initialisation of a module executes is not counted, since that happens once a module.
"""

import ctypes
import sys
from typing import Any, cast

import anyio

from wasman_host.guest import capi, engine
from wasman_host.guest.live import Guest

PLENTY = 1 << 60

_set = capi._bind(capi._pylib, "wasmtime_context_set_fuel", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
_get = capi._bind(capi._pylib, "wasmtime_context_get_fuel", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_context_of, _switches, _close = capi.context_of, engine._switches, Guest.close
used = 0


def context_of(store: int) -> Any:
    context = _context_of(store)
    assert not _set(context, PLENTY)
    return context


def close(self: Guest) -> None:
    global used  # noqa: PLW0603  one process, one count
    if self._store is not None and not self.world.initialising:
        left = ctypes.c_uint64()
        assert not _get(self._context, ctypes.byref(left))
        used += PLENTY - left.value
    _close(self)


capi.context_of = cast("Any", context_of)
engine._switches = lambda features_off: {**_switches(features_off), "consume_fuel": True}
Guest.close = close  # type: ignore[method-assign]


async def main(path: str, most: int) -> None:
    from tests.lab import SqliteLab, answers  # noqa: PLC0415  what is patched above comes first
    from wasman_host.store import CLOSED  # noqa: PLC0415
    from wasman_host.turns import Turns  # noqa: PLC0415

    lab = SqliteLab(cast("Any", path))
    await lab.open()
    turned, enough = 0, anyio.Event()
    turn = Turns._turn

    async def counted(self: Turns, deliveries: Any) -> None:
        nonlocal turned
        await turn(self, deliveries)
        turned += 1
        if turned == most:
            enough.set()
            await anyio.sleep_forever()  # until the worker leaves: no other turn

    if most:
        Turns._turn = counted  # type: ignore[method-assign]
    async with lab.worker(answers("echo", lambda call: call.request)):
        while not enough.is_set() and (found := await lab.look()).status not in CLOSED:
            with anyio.move_on_after(0.01):
                await enough.wait()
    found = await lab.look()
    await lab.close()
    print(used, turned, found.status.value)  # noqa: T201


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int((sys.argv[2:] or ["0"])[0]))
