"""WASI preview 1, virtual: the guest owns no clock, randomness, file or network.

Time is that of the last delivery, random bytes are seeded per run, `poll_oneoff` is a durable timer, stdout and stderr
become log lines, stdin is empty. Everything else is ENOSYS, or EBADF where a file is named.

Source: WASI snapshot_preview1 (witx), layouts of `subscription`, `event`, `fdstat`, `iovec`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from wasman_host.guest.imports import HostFunction, Request, StopGuest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wasman_host.guest.live import Guest

__all__ = ["FUNCTIONS", "MODULE", "Sleep"]

MODULE = "wasi_snapshot_preview1"
_SUCCESS, _BADF, _FAULT, _INVAL, _NOSYS, _SPIPE = 0, 8, 21, 28, 52, 70
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_CLOCK, _FD_READ = 0, 1  # tags of a subscription; 2 is fd_write
_ABSOLUTE = 1  # flag of a clock subscription
_SUBSCRIPTION, _EVENT = 48, 32  # bytes
_MAX_SUBSCRIPTIONS = 4096
_IDLE = 1000  # the descriptor that can be read when its guest's scheduler has nothing left to run; see docs/abi.md
_SOCKET_STREAM, _NONBLOCK = 6, 4
_RIGHTS_ALL = (1 << 64) - 1
_LAST = (1 << 63) - 1  # ns since 1970, in the year 2262: no store keeps a later time


class Sleep(Request):
    """The guest sleeps in `poll_oneoff`: a durable timer.

    Attributes:
        duration: Nanoseconds from the guest's present time.
    """

    __slots__ = ("_count_at", "_events", "_out", "duration")

    def __init__(self, duration: int, events: bytes, out: int, count_at: int) -> None:
        self.duration = duration
        self._events, self._out, self._count_at = events, out, count_at

    def fired(self, guest: Guest) -> int:
        """Write the events; the errno that `poll_oneoff` returns."""
        return _events(guest, self._events, self._out, self._count_at)


def _store(guest: Guest, pointer: int, layout: str, *values: int) -> int:
    return _SUCCESS if guest.write(pointer, struct.pack(layout, *values)) else _FAULT


def _empty_list_sizes(guest: Guest, count_at: int, size_at: int) -> int:
    return _store(guest, count_at, "<I", 0) or _store(guest, size_at, "<I", 0)


def _success(_guest: Guest, *_args: int) -> int:
    return _SUCCESS


def _bad_file(_guest: Guest, *_args: int) -> int:
    return _BADF


def _clock_res_get(guest: Guest, _clock: int, out: int) -> int:
    return _store(guest, out, "<Q", 1)


def _clock_time_get(guest: Guest, _clock: int, _precision: int, out: int) -> int:
    return _store(guest, out, "<Q", guest.world.time)


def _random_get(guest: Guest, pointer: int, length: int) -> int:
    view = guest.view(pointer, length)
    if view is None:
        return _FAULT
    view[:] = guest.world.draw(length)
    return _SUCCESS


def _fd_write(guest: Guest, fd: int, vectors: int, count: int, written_at: int) -> int:
    if fd not in {_STDOUT, _STDERR}:
        return _BADF
    listed = guest.view(vectors, 8 * count)
    if listed is None:
        return _FAULT
    parts = []
    for pointer, length in struct.iter_unpack("<II", listed):
        part = guest.view(pointer, length)
        if part is None:
            return _FAULT
        parts.append(part)
    total = sum(len(part) for part in parts)
    failed = _store(guest, written_at, "<I", total & 0xFFFFFFFF)
    if failed:
        return failed
    for part in parts:
        guest.world.write(fd, bytes(part))
    return _SUCCESS


def _fd_read(guest: Guest, fd: int, _vectors: int, _count: int, read_at: int) -> int:
    return _store(guest, read_at, "<I", 0) if fd == _STDIN else _BADF


def _fd_fdstat_get(guest: Guest, fd: int, out: int) -> int:
    if fd == _IDLE:
        return _store(guest, out, "<BxHxxxxQQ", _SOCKET_STREAM, _NONBLOCK, _RIGHTS_ALL, _RIGHTS_ALL)
    if fd > _STDERR:
        return _BADF
    character_device = 2
    return _store(guest, out, "<BxHxxxxQQ", character_device, 0, _RIGHTS_ALL, _RIGHTS_ALL)


def _fd_filestat_get(guest: Guest, fd: int, out: int) -> int:
    if fd > _STDERR:
        return _BADF
    return _store(guest, out, "<QQBxxxxxxxQQQQQ", 0, 0, 2, 1, 0, 0, 0, 0)


def _fd_seek(_guest: Guest, fd: int, *_args: int) -> int:
    return _SPIPE if fd <= _STDERR else _BADF


def _proc_exit(_guest: Guest, code: int) -> None:
    raise StopGuest(code)


def _poll_oneoff(guest: Guest, subscriptions: int, out: int, count: int, count_at: int) -> int | Request:
    """Descriptors are ready at once or bad; a clock that lies ahead is a timer, and the guest waits for it."""
    if not 0 < count <= _MAX_SUBSCRIPTIONS:
        return _INVAL
    listed = guest.view(subscriptions, _SUBSCRIPTION * count)
    if listed is None or guest.view(out, _EVENT * count) is None or guest.view(count_at, 4) is None:
        return _FAULT
    now = guest.world.time
    idle = b""
    ready: list[bytes] = []
    clocks: list[tuple[int, bytes]] = []
    for at in range(0, len(listed), _SUBSCRIPTION):
        userdata, tag = struct.unpack_from("<QB", listed, at)
        if tag == _CLOCK:
            timeout, flags = struct.unpack_from("<Q8xH", listed, at + 24)
            due = min(timeout if flags & _ABSOLUTE else now + timeout, _LAST)
            clocks.append((due, struct.pack("<QHBxxxxxQHxxxxxx", userdata, _SUCCESS, _CLOCK, 0, 0)))
            continue
        (fd,) = struct.unpack_from("<I", listed, at + 16)
        if fd == _IDLE:
            idle = struct.pack("<QHBxxxxxQHxxxxxx", userdata, _SUCCESS, tag, 1, 0)
            continue
        known = fd == _STDIN if tag == _FD_READ else fd in {_STDOUT, _STDERR}
        end_of_file = 1 if tag == _FD_READ else 0
        ready.append(struct.pack("<QHBxxxxxQHxxxxxx", userdata, _SUCCESS if known else _BADF, tag, 0, end_of_file))
    if idle:
        # The scheduler asks whether something can be read: with a timeout of 0 in passing, else because nothing is left
        # to run, and its timeout is its next timer.
        due = min((due for due, _ in clocks), default=-1)
        if not ready and due != -1 and due <= now:
            return _events(guest, b"".join(event for at, event in clocks if at <= now), out, count_at)
        guest.world.idle_deadline = due
        return _events(guest, b"".join((*ready, idle)), out, count_at)
    due = min((due for due, _ in clocks), default=now)
    if guest.world.turns:
        due = now
        clocks = [(now, event) for _, event in clocks]
    if ready or due <= now or guest.world.initialising:
        ready += [event for at, event in clocks if at <= now or guest.world.initialising]
        return _events(guest, b"".join(ready), out, count_at)
    return Sleep(due - now, b"".join(event for at, event in clocks if at <= due), out, count_at)


def _events(guest: Guest, events: bytes, out: int, count_at: int) -> int:
    if not guest.write(out, events):
        return _FAULT
    return _store(guest, count_at, "<I", len(events) // _EVENT)


def _not_supported(_guest: Guest, *_args: int) -> int:
    return _NOSYS


# name -> (parameters, one letter each: w for i32, q for i64; body). Every function but proc_exit returns an errno.
_TABLE: dict[str, tuple[str, Callable[..., int | Request | None]]] = {
    "args_get": ("ww", _success),
    "args_sizes_get": ("ww", _empty_list_sizes),
    "clock_res_get": ("ww", _clock_res_get),
    "clock_time_get": ("wqw", _clock_time_get),
    "environ_get": ("ww", _success),
    "environ_sizes_get": ("ww", _empty_list_sizes),
    "fd_advise": ("wqqw", _bad_file),
    "fd_allocate": ("wqq", _bad_file),
    "fd_close": ("w", _bad_file),
    "fd_datasync": ("w", _bad_file),
    "fd_fdstat_get": ("ww", _fd_fdstat_get),
    "fd_fdstat_set_flags": ("ww", _success),
    "fd_fdstat_set_rights": ("wqq", _bad_file),
    "fd_filestat_get": ("ww", _fd_filestat_get),
    "fd_filestat_set_size": ("wq", _bad_file),
    "fd_filestat_set_times": ("wqqw", _bad_file),
    "fd_pread": ("wwwqw", _bad_file),
    "fd_prestat_dir_name": ("www", _bad_file),
    "fd_prestat_get": ("ww", _bad_file),
    "fd_pwrite": ("wwwqw", _bad_file),
    "fd_read": ("wwww", _fd_read),
    "fd_readdir": ("wwwqw", _bad_file),
    "fd_renumber": ("ww", _bad_file),
    "fd_seek": ("wqww", _fd_seek),
    "fd_sync": ("w", _bad_file),
    "fd_tell": ("ww", _fd_seek),
    "fd_write": ("wwww", _fd_write),
    "path_create_directory": ("www", _not_supported),
    "path_filestat_get": ("wwwww", _not_supported),
    "path_filestat_set_times": ("wwwwqqw", _not_supported),
    "path_link": ("wwwwwww", _not_supported),
    "path_open": ("wwwwwqqww", _not_supported),
    "path_readlink": ("wwwwww", _not_supported),
    "path_remove_directory": ("www", _not_supported),
    "path_rename": ("wwwwww", _not_supported),
    "path_symlink": ("wwwww", _not_supported),
    "path_unlink_file": ("www", _not_supported),
    "poll_oneoff": ("wwww", _poll_oneoff),
    "proc_exit": ("w", _proc_exit),
    "proc_raise": ("w", _not_supported),
    "random_get": ("ww", _random_get),
    "sched_yield": ("", _success),
    "sock_accept": ("www", _not_supported),
    "sock_recv": ("wwwwww", _not_supported),
    "sock_send": ("wwwww", _not_supported),
    "sock_shutdown": ("ww", _not_supported),
}

FUNCTIONS: Sequence[HostFunction] = [
    HostFunction(
        MODULE,
        name,
        ["i32" if letter == "w" else "i64" for letter in params],
        "" if name == "proc_exit" else "i32",
        body,
        waits=name == "poll_oneoff",
    )
    for name, (params, body) in _TABLE.items()
]
