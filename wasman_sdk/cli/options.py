"""Options that several commands have, and the store that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import click

from wasman_host.store import MemoryStore, path_of
from wasman_sdk import Client
from wasman_sdk.cli.errors import IMPOSSIBLE, USAGE, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from wasman_sdk import PayloadCodec

__all__ = [
    "DEFAULT_STORE",
    "codec_option",
    "connected",
    "existing",
    "json_option",
    "lasting",
    "over",
    "pairs",
    "store_option",
    "tenant_option",
]

T = TypeVar("T")

DEFAULT_STORE = "sqlite:///wasman.db"


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--store."""
    return click.option(
        "--store",
        envvar="WASMAN_STORE",
        metavar="URL",
        help=f"The store; also by WASMAN_STORE. Default: {DEFAULT_STORE}, or what the worker says.",
    )(command)


def tenant_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--tenant."""
    return click.option("--tenant", default="default", show_default=True, help="Whose instances.")(command)


def codec_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--codec."""
    return click.option(
        "--codec", "codec_name", metavar="MODULE:ATTRIBUTE", help="The codec that payloads are stored by, if they are."
    )(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="JSON, for programs.")(command)


def existing(store: str | None, tenant: str, codec: PayloadCodec | None = None) -> Client:
    """A client of a store that is there: looking at one must not make it."""
    client = connected(store, tenant, codec)
    if isinstance(client.store, MemoryStore):
        message = "memory:// lives and ends with one process, so there is nothing to look at from another"
        raise Refused(message, USAGE)
    path = path_of(client.store)
    if path is not None and not path.exists():
        message = f"there is no store {path}; name another by --store or WASMAN_STORE"
        raise Refused(message, IMPOSSIBLE)
    return client


def connected(store: str | None, tenant: str = "default", codec: PayloadCodec | None = None) -> Client:
    """A client of the store that was named, or of the default one."""
    return Client.connect(store or DEFAULT_STORE, tenant=tenant, codec=codec)


def lasting(store: str | None, tenant: str, codec: PayloadCodec | None = None) -> Client:
    """A client of a store that outlives this process; it is made if there is none."""
    client = connected(store, tenant, codec)
    if isinstance(client.store, MemoryStore):
        raise Refused("memory:// lives and ends with one process, so nothing would be left of this", USAGE)
    return client


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, as often as it was given."""
    found = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not sign or not name:
            raise Refused(f"--{option} {one!r}: write NAME=VALUE", USAGE)
        found[name] = value
    return found


def over(client: Client, work: Callable[[Client], Awaitable[T]]) -> T:
    """What `work` gives, done while the client is open."""

    async def opened() -> T:
        async with client:
            return await work(client)

    return anyio.run(opened)
