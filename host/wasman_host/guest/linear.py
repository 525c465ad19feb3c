"""Linear memories of our own, so that a guest never has more than its instance may.

Wasmtime asks for a memory when it instantiates a module, and again at every growth. A growth beyond the limit is
refused before a page of it exists. The guest is told so as by any engine that has no more, but nothing that it does
from then on is seen by anybody: its next host call stops it, and however it goes on, its driver hears `Exceeded`.

A memory is a range of reserved addresses, with as many more behind it as compiled code may reach without checking.
Ranges are used again: giving one back costs one system call, which drops its pages.

Source: wasmtime's `wasmtime/config.h` (`wasmtime_memory_creator_t`); mmap(2), mprotect(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections import deque
from ctypes import CFUNCTYPE, c_int, c_long, c_size_t, c_void_p
from typing import TYPE_CHECKING, Any

from wasman_host.guest import capi
from wasman_host.guest.imports import current
from wasman_host.guest.memory import no_huge_pages

if TYPE_CHECKING:
    from wasmtime import Config

    from wasman_host.guest.memory import Image

__all__ = ["CAPACITY", "LinearMemory", "provide"]

CAPACITY = 4 * 1024**3  # bytes that a module can address
_GUARD = 32 * 1024**2  # bytes behind them that compiled code may touch, to be trapped
_KEPT = 256  # ranges kept for the next guests

_libc = ctypes.PyDLL(None, use_errno=True)  # none of these waits
_mmap, _mprotect, _munmap = _libc.mmap, _libc.mprotect, _libc.munmap
_mmap.restype = c_void_p
_mmap.argtypes = [c_void_p, c_size_t, c_int, c_int, c_int, c_long]
_mprotect.argtypes = [c_void_p, c_size_t, c_int]
_munmap.argtypes = [c_void_p, c_size_t]
_NONE, _READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
_RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANON | (0x4000 if sys.platform == "linux" else 0)  # MAP_NORESERVE
_FIXED = 0x10

_Bytes = ctypes.c_ubyte * CAPACITY


class _Range:
    """Reserved addresses.

    Attributes:
        base: The first of them.
        bytes: All of them, of which only those that are protected so can be read.
    """

    __slots__ = ("base", "bytes")

    def __init__(self) -> None:
        """Raises `OSError` where there are none left."""
        base = _mmap(None, CAPACITY + _GUARD, _NONE, _RESERVED, -1, 0)
        if base is None or base == c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.base: int = base
        self.bytes = _Bytes.from_address(base)
        no_huge_pages(base, CAPACITY)

    def clear(self, size: int) -> None:
        """Drop the pages of the first `size` bytes, and let nobody touch them."""
        if _mmap(self.base, size, _NONE, _RESERVED | _FIXED, -1, 0) != self.base:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        no_huge_pages(self.base, size)

    @property
    def is_looked_at(self) -> bool:
        """Whether somebody still has a view of its bytes."""
        return sys.getrefcount(self.bytes) > _NOBODY


class _Ranges:
    """Those that no guest has."""

    def __init__(self) -> None:
        self._free: list[_Range] = []
        self._looked_at: deque[_Range] = deque()

    def take(self) -> _Range:
        """One whose first bytes nobody can touch. Raises `OSError` where there is none left."""
        for _ in range(min(2, len(self._looked_at))):
            old = self._looked_at.popleft()
            if not old.is_looked_at:
                return old
            self._looked_at.append(old)
        try:
            return self._free.pop()
        except IndexError:
            return _Range()

    def give(self, used: _Range, size: int) -> None:
        """A guest with `size` bytes of memory no longer has it."""
        used.clear(size)
        if used.is_looked_at:
            # Whoever kept a view of a guest that is gone meets a fault, and not the memory of the next one.
            self._looked_at.append(used)
        elif len(self._free) < _KEPT:
            self._free.append(used)
        else:
            _munmap(used.base, CAPACITY + _GUARD)


_ranges = _Ranges()


def _references() -> int:
    range_ = _Range()
    count = sys.getrefcount(range_.bytes)
    _munmap(range_.base, CAPACITY + _GUARD)
    return count


_NOBODY = _references()


class LinearMemory:
    """The memory of one guest.

    Args:
        limit: Bytes that it may have.
        image: What lies in it from the beginning, where it is no larger than the memory; else all is zero.

    Attributes:
        base: Where it begins, an address of this process; 0 until it was made.
        size: Its bytes.
        view: They themselves. Valid until the guest runs again or is closed.
        image: The image that lies under it, or None.
        wanted: Bytes that the guest wanted beyond the limit, 0 while it did not.
        refused: Why the system gave no more, "" while it did.
    """

    __slots__ = ("_all", "_below", "_limit", "_range", "base", "image", "refused", "size", "view", "wanted")

    def __init__(self, limit: int, image: Image | None) -> None:
        self.base = self.size = self.wanted = 0
        self.view = memoryview(b"")
        self.image = image
        self.refused = ""
        self._limit = limit
        self._below: list[Image] = []
        self._range: _Range | None = None

    def make(self, size: int) -> None:
        """Make it, or say in `wanted` and `refused` why not."""
        if size > self._limit:
            self.wanted = size
            return
        try:
            range_ = _ranges.take()
        except OSError as error:
            self.wanted, self.refused = size, f"no addresses are left: {error.strerror}"
            return
        self._range, self.base = range_, range_.base
        self._all = memoryview(range_.bytes).cast("B")
        laid, self.image = self.image, None
        try:
            if laid is None or laid.size > size:
                self._open(0, size)
            else:
                self._lay(laid, size)
        except OSError as error:
            self.size = size
            self.close()
            self.wanted, self.refused = size, error.strerror or str(error)
            return
        self.size = size
        self.view = self._all[:size]

    def _open(self, begin: int, end: int) -> None:
        if end > begin and _mprotect(self.base + begin, end - begin, _READ_WRITE) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _lay(self, image: Image, size: int) -> None:
        if image.mapped:
            image.lay(self.base)
            self._open(image.size, size)
        else:
            self._open(0, size)
            image.lay(self.base, fresh=True)
        self.image = image

    def grow(self, size: int) -> bool:
        """Grow to `size` bytes; where it may not, say so in `wanted` and `refused`."""
        if self.wanted:
            return False
        if size > self._limit:
            self.wanted = size
            return False
        try:
            self._open(self.size, size)
        except OSError as error:
            self.wanted, self.refused = size, error.strerror or str(error)
            return False
        self.size = size
        self.view = self._all[:size]
        return True

    def lay(self, image: Image) -> None:
        """Lay an image under it, which is no larger."""
        below = self.image
        if below is image:
            return
        if below is not None and image.size < below.size:
            self._below.append(below)  # its end is still seen
        image.lay(self.base)
        self.image = image

    def close(self) -> None:
        """Give it back. Its views become invalid."""
        used, self._range = self._range, None
        if used is None:
            return
        _given.pop(self.base, None)
        for view in (self.view, self._all):
            try:
                view.release()
            except BufferError:  # it is being used; the range sees that as well
                continue
        size, self.size, self.view = self.size, 0, memoryview(b"")
        del self._all
        _ranges.give(used, size)
        self.image = None  # only now: an image's pages are used again when it lies under nothing any more
        self._below.clear()


# How wasmtime asks. Nothing may be raised through it, and it ends the process where it gets no address.

_REFUSED = b"refused by the host"
_given: dict[int, LinearMemory] = {}
_GET = CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_void_p)
_GROW = CFUNCTYPE(c_size_t, c_void_p, c_size_t)
_NEW = CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_size_t, c_size_t, c_size_t, c_size_t, c_void_p)
_GONE = CFUNCTYPE(None, c_void_p)


@_GET  # type: ignore[untyped-decorator]  # ctypes types its prototypes as objects
def _get(base: int, size: int, capacity: int) -> int:
    try:
        c_size_t.from_address(size).value = _given[base].size
        c_size_t.from_address(capacity).value = CAPACITY
    except BaseException as error:  # noqa: BLE001  a KeyboardInterrupt, which comes wherever it likes
        current.guest.stopping = error
        c_size_t.from_address(size).value = _given[base].size
        c_size_t.from_address(capacity).value = CAPACITY
    return base


@_GROW  # type: ignore[untyped-decorator]  # ctypes types its prototypes as objects
def _grow(base: int, size: int) -> int:
    try:
        if _given[base].grow(size):
            return 0
        current.guest.exceeded = True
    except BaseException as error:  # noqa: BLE001  nothing may pass through wasm, KeyboardInterrupt included
        current.guest.stopping = error
        current.guest.exceeded = True
    return capi.error_new(_REFUSED) or 0


@_GONE  # type: ignore[untyped-decorator]  # ctypes types its prototypes as objects
def _gone(base: int) -> None:
    memory = _given.get(base)
    if memory is not None:
        memory.close()


@_NEW  # type: ignore[untyped-decorator]  # ctypes types its prototypes as objects
def _new(_env: int, _type: int, minimum: int, _maximum: int, _reserved: int, _guard: int, out: int) -> int:
    try:
        memory = current.guest.linear
        memory.make(minimum)
        if memory.base and memory.size == minimum:
            _given[memory.base] = memory
            cell = (c_void_p * 4).from_address(out)
            cell[0], cell[1], cell[2], cell[3] = memory.base, _GET_AT, _GROW_AT, _GONE_AT
            return 0
        current.guest.exceeded = True
    except BaseException as error:  # noqa: BLE001  as above
        current.guest.stopping = error
    return capi.error_new(_REFUSED) or 0


def _at(callback: Any) -> int | None:
    return ctypes.cast(callback, c_void_p).value


_GET_AT, _GROW_AT, _GONE_AT, _NEW_AT = _at(_get), _at(_grow), _at(_gone), _at(_new)


class _Creator(ctypes.Structure):
    _fields_ = (("env", c_void_p), ("new", c_void_p), ("gone", c_void_p))


_CREATOR = _Creator(None, _NEW_AT, None)


def provide(config: Config) -> None:
    """Let guests of this configuration have memories of ours."""
    pointer = capi.address(config)
    capi.memory_reservation(pointer, CAPACITY)
    capi.memory_guard(pointer, _GUARD)
    capi.memory_creator(pointer, ctypes.addressof(_CREATOR))
