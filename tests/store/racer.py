"""One interpreter of a race: started once, then released again and again together with its rivals.

racer.py STORE NAME COMMAND

STORE is a database or a folder, COMMAND is `race`, `commit` (until it is killed) or `hold` (a claim, for ever).
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import anyio

from tests.store.settings import at, blob, change, columns, message
from wasman_host.store import Status, Store, Won


def say(line: str) -> None:
    """Tell the test."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def race(store: Store, name: str) -> None:
    """Answer each line (what to do, which round, when on the monotonic clock) by what came of it."""
    assert await store.beat(name, 600, {}) is not None
    say("ready")
    for line in sys.stdin:
        what, number, at = json.loads(line)
        fields: dict[str, Any] = {
            "record": name.encode(),
            "columns": columns(attributes={"winner": name}),
            "blobs": [blob(name)],
            "sends": [message("mailbox", f"{what}-{number}-{name}")],
            "creates": [change(f"child-{what}-{number}-{name}", None)],
        }
        run = f"{what}-{number}"
        won = False
        if what == "commit":
            one = change(run, (run, 1), entries=[(0, name.encode())], **fields)
        else:
            one = change(run, None, f"{run}-{name}", entries=[(0, name.encode())], **fields)
        while time.monotonic() < at:
            pass
        if what == "claim":
            won = bool(await store.claim(name, [run], 10))
        else:
            [result] = await store.commit([one])
            won = isinstance(result, Won)
        say(json.dumps(won))


async def commit(store: Store, name: str) -> None:
    """Commit groups of three instances as fast as it goes; tell each version that is durable."""
    names = [f"{name}-{n}" for n in range(3)]
    await store.commit([change("peer", None)])
    await store.commit([change(one, None, one) for one in names])
    version = 1
    while True:
        number = str(version).encode()
        filler = random.Random(version).randbytes(random.Random(version).choice([10, 10, 10_000]))
        group = [
            change(
                one,
                (one, version),
                record=number,
                columns=columns(status=random.Random(version).choice([Status.RUNNING, Status.WAITING]), wake=version),
                entries=[(version, number)],
                blobs=[blob(number.decode(), filler)],
                sends=[message("peer", f"{one}-{version}")],
            )
            for one in names
        ]
        results = await store.commit(group)
        version += 1
        assert all(isinstance(result, Won) and result.version == version for result in results)
        say(str(version))


async def hold(store: Store, name: str) -> None:
    """Claim what there is, and then do nothing."""
    assert await store.beat(name, 600, {}) is not None
    say(json.dumps([claim.stored.key.id for claim in await store.claim(name, ["default"], 10)]))
    await anyio.sleep_forever()


async def main() -> None:
    store = at(Path(sys.argv[1]))
    await store.open()
    await {"race": race, "commit": commit, "hold": hold}[sys.argv[3]](store, sys.argv[2])
    await store.close()


if __name__ == "__main__":
    anyio.run(main)
