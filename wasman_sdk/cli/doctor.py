"""`wasman doctor`: what this machine and the store have that wasman uses, and what to do where something is amiss."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click
from attrs import asdict, frozen

from wasman_host.guest.cache import code_cache
from wasman_host.guest.engine import engine
from wasman_host.guest.memory import maps
from wasman_host.residents import most_guests
from wasman_host.store import Filter, SqliteStore, Status, path_of
from wasman_sdk import WasmanError
from wasman_sdk._build.compilers import find_go, find_tinygo
from wasman_sdk._build.errors import NoCompilerError
from wasman_sdk.cli.errors import ENDED
from wasman_sdk.cli.options import DEFAULT_STORE, connected, json_option, store_option
from wasman_sdk.cli.output import plain, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wasman_sdk import Client

__all__ = ["doctor"]

_FEW_GUESTS = 5_000  # fewer than this at once deserves a word
_FEW_FILES = 1_024
_RESERVED = 4 * 1024**3  # bytes of addresses that each guest reserves
_LITTLE_DISK = 1024**3  # bytes
_PYTHONS = ((3, 11), (3, 14))
_NETWORKS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs"}


@frozen
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What it is.
        state: "ok", "note" where wasman works all the same, or "bad" where it does not.
        found: What it is like.
        advice: What to do, "" where there is nothing to do.
    """

    what: str
    state: str
    found: str
    advice: str = ""


@click.command()
@json_option
@store_option
def doctor(store: str | None, *, as_json: bool) -> None:
    """Look at this machine and at the store, and say what to do where something is amiss.

    Exit code 1 where something keeps wasman from working.
    """
    findings = [*_machine(), *_tools(), *_store(store)]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for one in findings:
            click.echo(f"{one.state:5}{one.what:16}{plain(one.found)}")
            if one.advice:
                click.echo(f"{'':21}-> {plain(one.advice)}")
    if any(one.state == "bad" for one in findings):
        raise click.exceptions.Exit(ENDED)


# This machine


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    if _PYTHONS[0] <= sys.version_info[:2] < _PYTHONS[1]:
        yield Finding("python", "ok", f"{version} ({sys.executable})")
    else:
        yield Finding("python", "bad", version, "use Python 3.11, 3.12 or 3.13")
    yield _wasmtime()
    loops = "asyncio and trio" if importlib.util.find_spec("trio") else "asyncio"
    yield Finding(
        "event loops", "ok", loops, "" if "trio" in loops else "install wasman with its extra `trio`, if you use trio"
    )
    yield _memory()
    yield _mappings()
    yield from _limits()
    yield _cache()


def _wasmtime() -> Finding:
    version = importlib.metadata.version("wasmtime")
    try:
        engine()
    except Exception as error:  # noqa: BLE001  whatever keeps it from loading is what is told
        return Finding(
            "wasmtime", "bad", f"{version}: {error}", "install wasman anew, with the wasmtime that it asks for"
        )
    return Finding("wasmtime", "ok", f"{version}, on {platform.machine()}")


def _memory() -> Finding:
    kernel = f"{platform.system()} {platform.release()}"
    if maps():
        return Finding("memory", "ok", f"{kernel} lists written pages (PAGEMAP_SCAN): restoring maps an image")
    if os.environ.get("WASMAN_MEMORY") == "compare":
        return Finding(
            "memory", "note", "WASMAN_MEMORY=compare: pages are compared", "unset it where restoring must be fast"
        )
    advice = "nothing must be done; Linux 6.7 or later is faster, where no sandbox forbids ioctl on /proc/self/pagemap"
    return Finding("memory", "note", f"{kernel} does not list written pages: images are copied, pages compared", advice)


def _mappings() -> Finding:
    guests = most_guests()
    words = f"room for {guests:,} guests in memory at once"
    if guests >= _FEW_GUESTS:
        return Finding("mappings", "ok", words)
    advice = "more are evicted and restored; raise it by `sysctl vm.max_map_count=262144`"
    return Finding("mappings", "note", words, advice)


def _limits() -> Iterator[Finding]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY or files > _FEW_FILES:
        yield Finding("open files", "ok", "no limit" if files == resource.RLIM_INFINITY else f"{files:,}")
    else:
        advice = "images use a quarter of them, and are copied beyond that; raise it by `ulimit -n 65536`"
        yield Finding("open files", "note", f"{files:,}", advice)
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
    if addresses == resource.RLIM_INFINITY:
        yield Finding("addresses", "ok", "no limit")
    else:
        advice = "each guest reserves 4 GiB of addresses (not of memory); take the limit away by `ulimit -v unlimited`"
        state = "note" if addresses > 16 * _RESERVED else "bad"
        yield Finding("addresses", state, f"{addresses:,} bytes, {addresses // _RESERVED:,} guests at most", advice)
    commit = Path("/proc/sys/vm/overcommit_memory")
    if commit.exists() and commit.read_text().strip() == "2":
        yield Finding(
            "overcommit", "note", "the kernel refuses what it could not back (2)", "guests may be refused memory"
        )


def _cache() -> Finding:
    folder = code_cache().folder
    if folder is None:
        return Finding("code cache", "note", "off: each process compiles anew", "set WASMAN_CACHE to a folder of yours")
    near = folder
    while not near.exists():
        near = near.parent
    if not os.access(near, os.W_OK):
        return Finding(
            "code cache", "note", f"{folder} cannot be written", "set WASMAN_CACHE to a folder of yours, or to off"
        )
    return Finding("code cache", "ok", f"{folder}")


# Programs


def _tools() -> Iterator[Finding]:
    """The compilers that `wasman build` would take."""
    for what, find in (("Go", find_go), ("TinyGo", find_tinygo)):
        try:
            found = find()
        except NoCompilerError as error:
            yield Finding(what, "note", "is not here, as guests need it", f"only guests compiled here need it: {error}")
        else:
            yield Finding(what, "ok", f"{found.version} ({found.program})")


# The store


def _store(url: str | None) -> Iterator[Finding]:
    client = connected(url)
    path = path_of(client.store)
    if path is None:
        yield Finding("store", "ok", url or DEFAULT_STORE)
        return
    if not path.exists():
        yield _absent(path)
        return
    yield from _disk(path)
    if isinstance(client.store, SqliteStore):
        yield from _sqlite(path)
    yield _opened(client, path)


def _absent(path: Path) -> Finding:
    near = path.parent
    while not near.exists():
        near = near.parent
    if os.access(near, os.W_OK):
        return Finding("store", "note", f"there is none at {path} yet", "the first start, worker or deploy makes it")
    return Finding(
        "store", "bad", f"{path} cannot be made: {near} is not writable", "name another by --store or WASMAN_STORE"
    )


def _disk(path: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    words = f"{free / 1024**3:.1f} GiB free"
    if free < _LITTLE_DISK:
        yield Finding("disk", "note", words, "on a full disk runs wait, and go on by themselves; make room")
    else:
        yield Finding("disk", "ok", words)
    kind = _file_system(path)
    if kind in _NETWORKS:
        yield Finding(
            "file system", "bad", kind, "a network file system loses locks and syncs: move the store to a local disk"
        )
    elif not os.access(path, os.W_OK) or not os.access(path if path.is_dir() else path.parent, os.W_OK):
        yield Finding("file system", "bad", f"{path} and its folder must be writable by this user", "mend their rights")


def _file_system(path: Path) -> str:
    """The type of the file system that `path` is on, "" where the system does not say."""
    mounts, best = Path("/proc/self/mounts"), ("", "")
    if not mounts.exists():
        return ""
    for line in mounts.read_text().splitlines():
        _, place, kind, *_ = line.split(" ")
        if path.resolve().is_relative_to(place) and len(place) >= len(best[0]):
            best = (place, kind)
    return best[1]


def _sqlite(path: Path) -> Iterator[Finding]:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=1, isolation_level=None)) as db:
            mode = db.execute("pragma journal_mode").fetchone()[0]
            db.execute("begin immediate")
            db.execute("rollback")
    except sqlite3.DatabaseError as error:
        advice = (
            "another program may hold its lock"
            if "locked" in str(error)
            else "see what it says below, and docs/operations.md"
        )
        yield Finding("journal", "bad", f"{path}: {error}", advice)
        return
    if mode == "wal":
        yield Finding("journal", "ok", f"SQLite {sqlite3.sqlite_version}, write-ahead log, writable")
    else:
        yield Finding(
            "journal", "note", f"SQLite {sqlite3.sqlite_version}, journal mode {mode}", "a worker sets it to wal"
        )


def _opened(client: Client, path: Path) -> Finding:
    async def counted() -> tuple[int, int]:
        async with client:
            blocked = Filter(client.tenant, frozenset({Status.BLOCKED}))
            return await client.store.count(Filter(client.tenant)), await client.store.count(blocked)

    try:
        instances, blocked = anyio.run(counted)
    except WasmanError as error:
        return Finding(
            "store", "bad", f"{path}: {error}".partition("\n")[0], "docs/operations.md says what to do about each"
        )
    words = f"{path}, {instances:,} instances, {blocked:,} of them blocked"
    return Finding("store", "ok", words, "`wasman list --status blocked` says why" if blocked else "")
