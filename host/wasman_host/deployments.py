"""Names of workflows, and the modules that they point at: reserved records, whose ids no instance can have."""

from __future__ import annotations

import functools
import json
import secrets
from typing import TYPE_CHECKING

from attrs import frozen

from wasman_host.guest.module import TURN, check, digest, entry_of
from wasman_host.ids import validated_id
from wasman_host.seal import Address, seal, unseal
from wasman_host.store.protocol import Change, Columns, Key, Status, Won

if TYPE_CHECKING:
    from wasman_host.store.protocol import Store, Stored

__all__ = ["Deployment", "deploy", "deployed", "module_of"]


@frozen
class Deployment:
    """What a workflow's name points at.

    Attributes:
        module: sha256 of the module, in hex.
        entry: The export to call, "" for `run`, else `_start`.
        params: Types of the entry's integers; none for a guest that gets its input as JSON.
        resume: How runs come back that say nothing else: "replay", or "checkpoint" for a re-entrant guest.
    """

    module: str
    entry: str
    params: tuple[str, ...] = ()
    resume: str = "replay"


def _name_key(tenant: str, workflow: str) -> Key:
    return Key(tenant, f"workflow/{validated_id(workflow)}")


async def deployed(store: Store, tenant: str, workflow: str) -> Deployment | None:
    """What the name points at, or None."""
    stored = await store.load_in_turn(_name_key(tenant, workflow))
    return None if stored is None else _open_name(stored)


def _open_name(stored: Stored) -> Deployment:
    return _read_name(stored.key, stored.run, stored.record)


@functools.lru_cache(1000)  # every start asks for one of few
def _read_name(key: Key, run: str, record: bytes) -> Deployment:
    fields = json.loads(unseal(Address(key.tenant, key.id, run, "name"), record))
    return Deployment(fields["module"], fields["entry"], tuple(fields["params"]), fields["resume"])


async def module_of(store: Store, digest: str) -> bytes:
    """The bytes of a module that a name, or a run, points at. Raises `CorruptSnapshotError` where it is not there."""
    return unseal(Address("", "", "", "module", digest), await store.module(digest))


async def deploy(
    store: Store,
    tenant: str,
    workflow: str,
    data: bytes,
    entry: str = "",
    *,
    resume: str = "replay",
    move: bool = True,
) -> Deployment:
    """Point the name at a module. Runs that have started keep the module they started with.

    Args:
        store: Where.
        tenant: Whose.
        workflow: The name.
        data: The module's bytes.
        entry: The export to call, "" for `run`, else `_start`.
        resume: How runs come back that say nothing else.
        move: False to leave a name alone that is there already.

    Returns:
        What the name points at afterwards.

    Raises:
        InvalidModuleError: The bytes cannot be run.
    """
    binary = check(data, f"the module of workflow {workflow!r}")
    found = entry_of(binary, entry, f"the module of workflow {workflow!r}")
    # A turn's integer is not the run's input, which a guest of ABI v1 is given as it is.
    params = () if found == TURN else tuple(binary.functions[found].params)
    wanted = Deployment(digest(data), entry, params, resume)
    key = _name_key(tenant, workflow)
    while True:
        stored = await store.load(key)
        if stored is not None:
            present = _open_name(stored)
            if present == wanted or not move:
                return present
        await store.put_module(wanted.module, seal(Address("", "", "", "module", wanted.module), data))
        run = secrets.token_hex(16) if stored is None else stored.run
        fields = {"module": wanted.module, "entry": entry, "params": list(wanted.params), "resume": resume}
        change = Change(
            key=key,
            expected=None if stored is None else (stored.run, stored.version),
            run=run,
            nonce=secrets.token_hex(8),
            record=seal(Address(tenant, key.id, run, "name"), json.dumps(fields).encode()),
            columns=Columns(status=Status.COMPLETED, workflow="", module=wanted.module, created=store.now()),
        )
        [outcome] = await store.commit([change])
        if isinstance(outcome, Won):
            return wanted
