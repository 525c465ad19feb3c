"""Linear memories: images that are laid under guests, and the pages that differ from them.

Where the kernel can (Linux 6.7 and later), an image is a sealed memory file. Restoring maps it privately over a guest's
memory: no byte is copied, any number of guests share it, and the pages that a guest has written since are exactly those
that are present and no longer the file's, which one system call lists (PAGEMAP_SCAN). Elsewhere an image is bytes that
are copied in, and pages are compared. Both give the same pages; the environment variable WASMAN_MEMORY=compare takes
the second way everywhere.

What the kernel says is "written", not "different": `Baseline` compares the pages it names with what the last snapshot
held, so that a snapshot holds what has changed since the one before it.

Source: memfd_create(2), mmap(2), Documentation/admin-guide/mm/pagemap.rst of Linux 6.7.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import logging
import mmap
import os
import resource
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from ctypes import addressof, c_int, c_long, c_size_t, c_uint64, c_ulong, c_void_p
from pathlib import Path
from typing import TypeAlias, cast

__all__ = ["PAGE", "Baseline", "Image", "Runs", "image_of", "maps", "no_huge_pages"]

logger = logging.getLogger("wasman.memory")

PAGE = 4096
Runs: TypeAlias = Sequence[tuple[int, int]]  # (first page, number of pages), rising, without overlap

_ZEROS = bytes(PAGE)
_BLOCK = 16 * PAGE  # compared whole first: most of a memory has not changed
_REBASE = 512  # pages that may differ from the image before a new one is taken: each is compared at every snapshot

_PROT_READ, _PROT_READ_WRITE, _MAP_SHARED, _MAP_PRIVATE_FIXED = 1, 3, 1, 2 | 16
_MADV_DONTNEED, _MADV_NOHUGEPAGE = 4, 15
_SEALS = 0x0007  # F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW: a page that goes would be a fault in every guest
_SPARE_PAGES = 16 * 1024  # 64 MiB
# Descriptors of images: whatever else a process opens needs some as well.
_DESCRIPTORS = max(16, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
_F_ADD_SEALS = 1033
_PAGEMAP_SCAN = 0xC0606610
_FILE, _PRESENT, _SWAPPED, _ZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5
_REGIONS = 1024  # that one call of the kernel lists


class _Scan(ctypes.Structure):
    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages",
            "inverted", "mask", "anyof", "returned",
        )
    )  # fmt: skip


class _Kernel:
    """The system calls, with one buffer for what they list: a thread scans one memory at a time."""

    def __init__(self) -> None:
        libc = ctypes.PyDLL(None, use_errno=True)  # these never wait
        self._mmap, self._munmap, self._ioctl, self._madvise = libc.mmap, libc.munmap, libc.ioctl, libc.madvise
        self._munmap.argtypes = [c_void_p, c_size_t]
        self._mmap.restype = c_void_p
        self._mmap.argtypes = [c_void_p, c_size_t, c_int, c_int, c_int, c_long]
        self._ioctl.argtypes = [c_int, c_ulong, c_void_p]
        self._madvise.argtypes = [c_void_p, c_size_t, c_int]
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._regions = (c_uint64 * (3 * _REGIONS))()
        # Written: there, and neither the file's nor the page of zeros that the kernel gives to whoever only reads.
        self._scan = _Scan(
            96, 0, 0, 0, 0, addressof(self._regions), _REGIONS, 0,
            _FILE | _ZERO, _FILE | _ZERO, _PRESENT | _SWAPPED, _PRESENT,
        )  # fmt: skip
        self._scan_address = addressof(self._scan)
        # A huge page would make 512 pages of one write.
        huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
        self._huge = "[always]" in huge.read_text() if huge.exists() else False

    def __del__(self) -> None:
        os.close(self._pagemap)

    def lay(self, address: int, size: int, descriptor: int) -> None:
        """Map a file over the memory at `address`."""
        if self._mmap(address, size, _PROT_READ_WRITE, _MAP_PRIVATE_FIXED, descriptor, 0) != address:
            raise OSError(ctypes.get_errno(), f"mapping {size:,} bytes: {os.strerror(ctypes.get_errno())}")
        self.no_huge_pages(address, size)

    def view(self, descriptor: int, size: int) -> memoryview:
        """A file's bytes, mapped for as long as anybody has a view of them. `mmap.mmap` would keep a descriptor."""
        address = self._mmap(None, size, _PROT_READ, _MAP_SHARED, descriptor, 0)
        if address in {None, c_void_p(-1).value}:
            raise OSError(ctypes.get_errno(), f"mapping {size:,} bytes: {os.strerror(ctypes.get_errno())}")
        array = (ctypes.c_ubyte * size).from_address(address)
        weakref.finalize(array, self._munmap, address, size).atexit = False
        return memoryview(array).cast("B").toreadonly()

    def unseen(self, view: memoryview) -> None:
        """Pages of a file that were read by its view no longer count for this process."""
        array = view.obj
        self._madvise(addressof(cast("ctypes.Array[ctypes.c_ubyte]", array)), len(view), _MADV_DONTNEED)

    def no_huge_pages(self, address: int, size: int) -> None:
        """What is written there shall count by small pages."""
        if self._huge:
            self._madvise(address, size, _MADV_NOHUGEPAGE)

    def written(self, address: int, size: int) -> list[tuple[int, int]]:
        """Runs of pages that were written since a file was mapped there."""
        scan, regions = self._scan, self._regions
        scan.start, scan.end = address, address + size
        runs: list[tuple[int, int]] = []
        while True:
            count = self._ioctl(self._pagemap, _PAGEMAP_SCAN, self._scan_address)
            if count < 0:
                raise OSError(ctypes.get_errno(), f"PAGEMAP_SCAN: {os.strerror(ctypes.get_errno())}")
            for place in range(0, 3 * count, 3):
                first = (regions[place] - address) // PAGE
                pages = (regions[place + 1] - regions[place]) // PAGE
                if runs and sum(runs[-1]) == first:
                    first, pages = runs[-1][0], runs[-1][1] + pages
                    runs.pop()
                runs.append((first, pages))
            if count < _REGIONS or scan.walk_end >= scan.end:
                return runs
            scan.start = scan.walk_end


@functools.cache
def _probed() -> bool:
    """Whether this kernel maps, and lists what was written, as it should."""
    if sys.platform != "linux" or os.environ.get("WASMAN_MEMORY") == "compare":
        return False
    try:
        image = _Mapped(4 * PAGE, [(PAGE, b"x" * PAGE)])
        with mmap.mmap(-1, 4 * PAGE) as place:
            address = addressof(ctypes.c_char.from_buffer(place))
            image.lay(address)
            same = place[PAGE : 2 * PAGE] == b"x" * PAGE
            place[2 * PAGE] = 1
            right = _kernel().written(address, 4 * PAGE) == [(2, 1)]
    except (OSError, AttributeError, BufferError) as error:
        logger.info("memories are compared, not mapped: %s", error)
        return False
    return same and right


def maps() -> bool:
    """Whether images are mapped here where they can be, or all copied and compared."""
    return _probed()


def no_huge_pages(address: int, size: int) -> None:
    """A write to the memory at `address` shall make no more than one page: pages are what is listed and counted."""
    if _probed():
        _kernel().no_huge_pages(address, size)


class _Kernels(threading.local):
    kernel: _Kernel | None = None


_kernels = _Kernels()
os.register_at_fork(after_in_child=lambda: setattr(_kernels, "kernel", None))  # it has a memory of its own


def _kernel() -> _Kernel:
    """This thread's."""
    kernel = _kernels.kernel
    if kernel is None:
        kernel = _kernels.kernel = _Kernel()
    return kernel


class Image(ABC):
    """A memory as it once was, to be laid under guests. It never changes.

    Attributes:
        size: Bytes of the memory.
        view: Its bytes, for as long as this image is kept.
        mapped: Whether it is mapped, not copied.
    """

    size: int
    view: memoryview
    mapped: bool

    def page(self, number: int) -> bytes:
        """One of its pages; beyond its end all are zero."""
        at = number * PAGE
        return bytes(self.view[at : at + PAGE]) if at < self.size else _ZEROS

    @abstractmethod
    def lay(self, address: int, *, fresh: bool = False) -> None:
        """Make the memory at `address`, which has at least `size` bytes, what this image holds.

        The image must be kept for as long as it lies there. `fresh` says that the memory holds nothing but zeros.
        """

    @abstractmethod
    def written(self, address: int, size: int) -> Runs:
        """Pages of the memory at `address` that may differ from this image, since it was laid there.

        Pages beyond the image that hold nothing but zeros may be among them.
        """


Parts: TypeAlias = Sequence[tuple[int, bytes | memoryview]]


class _File:
    """A memory file with a mapping through which it is read. Its pages are there to be used again.

    Attributes:
        descriptor: To map it by; -1 where it was given up.
        size: Its bytes.
        bytes: They themselves.
        pages: One bit for each page that holds something, or has held it.
        forks: How many forks lie before it: the files of a parent are not a child's to write.
    """

    __slots__ = ("bytes", "descriptor", "forks", "pages", "size")

    def __init__(self, size: int, parts: Parts) -> None:
        self.size = size
        self.forks = _Files.forks
        self.descriptor = os.memfd_create("wasman image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size)
            self.bytes = _kernel().view(self.descriptor, size)
            self._write(parts)
            fcntl.fcntl(self.descriptor, _F_ADD_SEALS, _SEALS)
        except BaseException:
            self.close()
            raise
        self.pages = _pages_of(parts)

    def close(self) -> None:
        """Give the descriptor up: what is mapped stays, but can be mapped nowhere else."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def again(self) -> _File:
        """The same in another file, which has a descriptor."""
        parts: list[tuple[int, memoryview]] = []
        left = self.pages
        while left:
            page = left.bit_length() - 1
            parts.append((page * PAGE, self.bytes[page * PAGE : page * PAGE + PAGE]))
            left ^= 1 << page
        return _files.take(self.size, parts)

    def fill(self, parts: Parts) -> None:
        """Hold `parts`, which are whole pages, and nothing else."""
        pages = _pages_of(parts)
        left = self.pages & ~pages
        while left:
            page = left.bit_length() - 1
            os.pwrite(self.descriptor, _ZEROS, page * PAGE)
            left ^= 1 << page
        self._write(parts)
        self.pages |= pages

    def _write(self, parts: Parts) -> None:
        # Not through a mapping: pages that are seen there would count twice for this process.
        for offset, data in parts:
            done = 0
            while done < len(data):
                done += os.pwrite(self.descriptor, data[done:] if done else data, offset + done)


def _pages_of(parts: Parts) -> int:
    """One bit for each page that `parts` touch."""
    pages = 0
    for offset, data in parts:
        first, end = offset // PAGE, -(-(offset + len(data)) // PAGE)
        pages |= ((1 << end - first) - 1) << first
    return pages


class _Files:
    """Files of images that nobody uses any more: their pages are allocated, which is most of the cost of an image."""

    forks = 0

    def __init__(self) -> None:
        self._free: dict[int, list[_File]] = {}
        self._described: OrderedDict[_File, None] = OrderedDict()
        self._pages = 0
        # A descriptor must not be given up between looking at it and mapping it. Images go when they are collected,
        # which may be in the midst of anything, so the same thread may come again.
        self.lock = threading.RLock()

    def take(self, size: int, parts: Parts) -> _File:
        """A file of `size` bytes that holds `parts`."""
        with self.lock:
            free = self._free.get(size)
            if not free or any(offset % PAGE or len(data) % PAGE for offset, data in parts):
                file = _File(size, parts)
            else:
                file = free.pop()
                self._pages -= file.pages.bit_count()
                try:
                    file.fill(parts)
                except BaseException:
                    self._described.pop(file, None)
                    file.close()
                    raise
            self.describe(file)
            return file

    def give(self, file: _File) -> None:
        """Nobody looks at this one any more."""
        pages = file.pages.bit_count()
        with self.lock:
            self._described.pop(file, None)
            if file.forks == _Files.forks and file.descriptor >= 0 and 0 < pages <= _SPARE_PAGES - self._pages:
                _kernel().unseen(file.bytes)
                self._pages += pages
                self._free.setdefault(file.size, []).append(file)
                self.describe(file)
            else:
                file.close()

    def describe(self, file: _File) -> None:
        """This one was needed last. Those that were not for the longest time are left without a descriptor."""
        described = self._described
        described.pop(file, None)
        described[file] = None
        while len(described) > _DESCRIPTORS:
            old, _ = described.popitem(last=False)
            free = self._free.get(old.size)
            if free and old in free:
                free.remove(old)
                self._pages -= old.pages.bit_count()
            old.close()

    def forget(self) -> None:
        """In a forked child: what is here is the parent's, and so may be whoever has the lock."""
        _Files.forks += 1
        self.lock = threading.RLock()
        for free in self._free.values():
            for file in free:
                file.close()
        self._free.clear()
        self._described.clear()
        self._pages = 0


_files = _Files()
os.register_at_fork(after_in_child=_files.forget)


class _Mapped(Image):
    """An image in a memory file."""

    mapped = True

    def __init__(self, size: int, parts: Parts) -> None:
        self._file = _files.take(size, parts)
        self.size = size
        self.view = self._file.bytes

    def lay(self, address: int, *, fresh: bool = False) -> None:  # noqa: ARG002  a mapping replaces whatever is there
        with _files.lock:
            file = self._file
            if file.descriptor < 0:
                self._file = file = file.again()
                self.view = file.bytes
            else:
                _files.describe(file)
            _kernel().lay(address, self.size, file.descriptor)

    def written(self, address: int, size: int) -> Runs:
        return _kernel().written(address, size)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            _files.give(self._file)


class _Copied(Image):
    """An image in memory of this process; what it does not hold costs nothing."""

    mapped = False

    def __init__(self, size: int, parts: Parts) -> None:
        self.size = size
        self._bytes = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANON))
        self._runs = [(offset, len(data)) for offset, data in parts]
        for offset, data in parts:
            self._bytes[offset : offset + len(data)] = data
        self.view = self._bytes.toreadonly()

    def lay(self, address: int, *, fresh: bool = False) -> None:
        source = addressof(ctypes.c_ubyte.from_buffer(self._bytes))
        for offset, length in self._runs if fresh else [(0, self.size)]:
            ctypes.memmove(address + offset, source + offset, length)

    def written(self, address: int, size: int) -> Runs:
        return changed(self.view, memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B"))


def image_of(size: int, parts: Parts) -> Image:
    """An image of `size` bytes: `parts` at their offsets, later ones over earlier ones, zeros elsewhere."""
    if _probed():
        try:
            return _Mapped(size, parts)
        except OSError as error:  # no descriptor left, or a limit of the size of files
            logger.warning("an image of %s bytes is copied, not mapped: %s", f"{size:,}", error)
    return _Copied(size, parts)


def changed(old: bytes | memoryview, new: bytes | memoryview) -> list[tuple[int, int]]:
    """Runs of pages in which `new` differs from `old`; what `old` lacks counts as zeros."""
    # Bytes are compared at once and memoryviews item by item, which costs more than to copy them.
    before, after = memoryview(old), memoryview(new)
    zeros = bytes(_BLOCK)
    runs: list[tuple[int, int]] = []
    for block in range(0, len(new), _BLOCK):
        now = bytes(after[block : block + _BLOCK])
        known = bytes(before[block : block + _BLOCK]) if block < len(old) else zeros
        if now == known:
            continue
        for at in range(0, len(now), PAGE):
            page = known[at : at + PAGE] or _ZEROS
            if now[at : at + PAGE] != page:
                number = (block + at) // PAGE
                if runs and sum(runs[-1]) == number:
                    runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                else:
                    runs.append((number, 1))
    return runs


class Baseline:
    """What the last snapshot of one guest holds, and so what the next one need not hold.

    It is the image under the guest, with the pages over it that snapshots since then have held.

    Args:
        image: What was laid under the guest.
        touched: Pages of it in which it differs from the module's own image.
    """

    __slots__ = ("_over", "_touched", "image")

    def __init__(self, image: Image, touched: Iterable[int] = ()) -> None:
        self.image = image
        self._over: dict[int, bytes] = {}
        self._touched = set(touched)

    def _before(self, page: int) -> bytes:
        held = self._over.get(page)
        return self.image.page(page) if held is None else held

    def difference(self, address: int, view: memoryview) -> dict[int, bytes]:
        """Pages of the guest's memory, in order, that differ from the last snapshot."""
        pages = [
            page
            for first, count in self.image.written(address, len(view))
            for page in range(first, first + count)
        ]  # fmt: skip
        if self._over:
            pages = sorted({*pages, *self._over})  # one that is the image's again differs from the last snapshot
        found = {}
        for page in pages:
            now = bytes(view[page * PAGE : page * PAGE + PAGE])
            if now != self._before(page):
                found[page] = now
        return found

    def fold(self, address: int, view: memoryview, origin: Image) -> dict[int, bytes]:
        """Pages of the guest's memory, in order, that differ from the module's own image `origin`."""
        pages = {
            page
            for first, count in self.image.written(address, len(view))
            for page in range(first, first + count)
        } | self._touched | self._over.keys()  # fmt: skip
        found = {}
        for page in sorted(pages):
            now = bytes(view[page * PAGE : page * PAGE + PAGE])
            if now != origin.page(page):
                found[page] = now
        return found

    def kept(self, pages: dict[int, bytes]) -> None:
        """A snapshot that holds `pages` beyond the last one is durable."""
        self._over.update(pages)
        self._touched.update(pages)

    @property
    def touched(self) -> frozenset[int]:
        """Pages in which the memory may differ from the module's own image."""
        return frozenset(self._touched)

    def rebased(self, view: memoryview) -> Baseline | None:
        """The same over an image of the memory as it is, to be laid under the guest; None while few pages differ.

        To be called when the memory is what the last snapshot holds.
        """
        if len(self._over) < _REBASE:
            return None
        return Baseline(image_of(len(view), [(0, view)]), self._touched)
