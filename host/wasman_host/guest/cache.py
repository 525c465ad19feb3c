"""Compiled code on the local disk, so that a second start of a module takes milliseconds.

Compiled code is machine code: whoever writes it decides what this process does, and wasmtime does not check it. So it
is taken only from a folder that belongs to this user and that nobody else may enter, it never comes from a store, and
it is handed to wasmtime only after all of its bytes were compared with their digest. The digest finds accidents
(truncated, damaged and foreign files); it is no protection from somebody who can write as this user.

An entry is a file of its own, written under another name and renamed: readers see all of it or nothing, and writers at
the same moment replace each other's equal work. Nothing is synced, because what a power cut tears is found by its
digest. A cache that cannot be used costs one warning and the time to compile, never a run.

An entry's bytes: magic, sha256 of what follows up to the code, sha256 of the code, lengths of facts and code (4 and 8
bytes, little-endian), the facts (JSON), the code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import re
import secrets
import stat
import struct
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from wasman_host.guest.binary import REWRITER
from wasman_host.guest.engine import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CodeCache", "Entry", "code_cache", "surroundings"]

logger = logging.getLogger("wasman.cache")

_MAX_BYTES = 512 * 1024 * 1024
_MAGIC = b"wasman\0\1"
_HEAD = struct.Struct("<8s32s32sIQ")
_DIGESTED = 40  # where in the head begins what its own digest covers
_ENTRY = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}\.code")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_ABANDONED = 3600.0  # seconds after which a file under a temporary name has lost its writer


@frozen
class Entry:
    """What is cached of one module.

    Attributes:
        facts: What was found out about it, as JSON.
        code: Its compiled code.
    """

    facts: Mapping[str, Any]
    code: bytes


class _DamagedError(Exception):
    """An entry is not what was once written under its name."""


class _UnsafeError(Exception):
    """Others may have written into the folder."""


@functools.cache
def surroundings() -> str:
    """All that compiled code depends on besides its module, in one line."""
    options = json.dumps(settings(), sort_keys=True)
    return f"wasmtime {version('wasmtime')}, {sys.platform} {platform.machine()}, rewriter {REWRITER}, {options}"


class CodeCache:
    """A folder of compiled modules.

    Args:
        folder: Where; made when it is first needed. None for no cache.
        max_bytes: How large it may get; those whose last use is the longest ago go first.
        around: What else compiled code depends on; `surroundings` if not said.
    """

    def __init__(self, folder: Path | None, max_bytes: int = _MAX_BYTES, around: str | None = None) -> None:
        self.folder = folder
        self._max = max_bytes
        self._around = around
        self._reads = self._writes = folder is not None

    @property
    def around(self) -> str:
        """What else compiled code depends on."""
        return surroundings() if self._around is None else self._around

    def _name(self, module: str) -> str:
        return f"{module}-{hashlib.sha256(self.around.encode()).hexdigest()[:16]}.code"

    def facts(self, module: str) -> Mapping[str, Any] | None:
        """What was found out about the module with this sha256, without its code; None if it is not cached."""
        entry = self._load(module, with_code=False)
        return None if entry is None else entry.facts

    def load(self, module: str) -> Entry | None:
        """What is cached of the module with this sha256, every byte checked; None if it is not cached."""
        return self._load(module, with_code=True)

    def _load(self, module: str, *, with_code: bool) -> Entry | None:
        if not self._reads:
            return None
        try:
            with self._opened() as folder:
                try:
                    # Not blocking, so that a pipe in the place of an entry is an error and not a wait.
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    file = os.open(self._name(module), flags, dir_fd=folder)
                    try:
                        entry = self._read(file, module, with_code=with_code)
                        os.utime(file)  # its last use
                        return entry
                    finally:
                        os.close(file)
                except FileNotFoundError:
                    return None
                except OSError as error:
                    self.discard(module, error.strerror or str(error))
                except _DamagedError as error:
                    self.discard(module, str(error))
                except (ValueError, KeyError, TypeError) as error:
                    self.discard(module, f"its facts make no sense ({error!r})")
        except (OSError, _UnsafeError) as error:
            self._give_up(error)
        return None

    def _read(self, file: int, module: str, *, with_code: bool) -> Entry:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            message = "it is no file"
            raise _DamagedError(message)
        with open(file, "rb", closefd=False) as opened:
            head = opened.read(_HEAD.size)
            if len(head) < _HEAD.size:
                message = "it is truncated"
                raise _DamagedError(message)
            magic, digest, code_digest, facts_length, code_length = _HEAD.unpack(head)
            if magic != _MAGIC:
                message = "it is no entry of this cache"
                raise _DamagedError(message)
            says = _HEAD.size + facts_length + code_length
            if status.st_size != says:  # seen before anything is allocated for it
                message = f"it has {status.st_size:,} bytes, and {says:,} by its own account"
                raise _DamagedError(message)
            facts = opened.read(facts_length)
            if hashlib.sha256(head[_DIGESTED:] + facts).digest() != digest:
                message = "its facts do not match their digest"
                raise _DamagedError(message)
            said = json.loads(facts)
            if (said["module"], said["around"]) != (module, self.around):
                message = f"it is for module {said['module']}, {said['around']}"
                raise _DamagedError(message)
            code = opened.read(code_length) if with_code else b""
            if with_code and hashlib.sha256(code).digest() != code_digest:
                message = "its code does not match its digest"
                raise _DamagedError(message)
            return Entry(said["facts"], code)

    def store(self, module: str, entry: Entry) -> None:
        """Keep what is known of the module with this sha256."""
        if not self._writes:
            return
        facts = json.dumps({"module": module, "around": self.around, "facts": entry.facts}).encode()
        rest = hashlib.sha256(entry.code).digest() + struct.pack("<IQ", len(facts), len(entry.code))
        data = b"".join((_MAGIC, hashlib.sha256(rest + facts).digest(), rest, facts, entry.code))
        if len(data) > self._max:
            return
        temporary = f".{secrets.token_hex(8)}.tmp"
        try:
            with self._opened() as folder:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                try:
                    with open(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as opened:  # noqa: PTH123  it is in `folder`
                        opened.write(data)
                    os.rename(temporary, self._name(module), src_dir_fd=folder, dst_dir_fd=folder)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary, dir_fd=folder)
                    raise
                self._bound(folder)
        except OSError as error:  # it is full, or read-only: what is there can still be read
            self._writes = False
            logger.warning(
                "compiled code is not added to the cache %s by this process: %s; modules that are not there are "
                "compiled anew at each start",
                self.folder,
                error.strerror or error,
            )
        except _UnsafeError as error:
            self._give_up(error)

    def discard(self, module: str, why: str) -> None:
        """Delete an entry that cannot be used."""
        name = self._name(module)
        logger.warning("%s in the code cache %s is not used: %s; the module is compiled anew", name, self.folder, why)
        with contextlib.suppress(OSError, _UnsafeError), self._opened() as folder:
            os.unlink(name, dir_fd=folder)

    def _bound(self, folder: int) -> None:
        """Delete what was used the longest ago until the rest fits, and what dead writers have left."""
        found, total, now = [], 0, time.time()
        with os.scandir(folder) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # another process does the same
                    status = file.stat(follow_symlinks=False)
                    if _ENTRY.fullmatch(file.name):
                        found.append((status.st_mtime_ns, status.st_size, file.name))
                        total += status.st_size
                    elif _TEMPORARY.fullmatch(file.name) and now - status.st_mtime > _ABANDONED:
                        os.unlink(file.name, dir_fd=folder)
        for _, size, name in sorted(found):
            if total <= self._max:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            total -= size

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder's descriptor, after it was made sure that it is this user's alone."""
        assert self.folder is not None, "a cache that is off opens nothing"
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o700, parents=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid():
                message = f"it belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}"
                raise _UnsafeError(message)
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                message = f"its mode is {stat.S_IMODE(status.st_mode):o}, so others may write code there; chmod 700 it"
                raise _UnsafeError(message)
            yield descriptor
        finally:
            os.close(descriptor)

    def _give_up(self, error: Exception) -> None:
        """What cannot be used once is not tried again: the reason is said once, and work goes on without."""
        self._reads = self._writes = False
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        logger.warning(
            "the code cache %s is not used by this process: %s; modules are compiled anew, as with WASMAN_CACHE=off",
            self.folder,
            reason,
        )


@functools.cache
def code_cache() -> CodeCache:
    """This process's cache: the folder WASMAN_CACHE ("off" for none), else `wasman` in the user's cache folder."""
    said = os.environ.get("WASMAN_CACHE", "")
    if said == "off":
        return CodeCache(None)
    if said:
        return CodeCache(Path(said).absolute(), _max_bytes())
    general = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG specification has relative paths ignored.
        above = Path(general) if Path(general).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        logger.warning(
            "compiled code is not kept: this user has no home folder; set WASMAN_CACHE to a folder, or to off"
        )
        return CodeCache(None)
    return CodeCache(above / "wasman", _max_bytes())


def _max_bytes() -> int:
    said = os.environ.get("WASMAN_CACHE_BYTES", "")
    if not said:
        return _MAX_BYTES
    if not re.fullmatch("[0-9]+", said):
        logger.warning("WASMAN_CACHE_BYTES=%s is no number of bytes; the code cache may hold %d", said, _MAX_BYTES)
        return _MAX_BYTES
    return int(said)
