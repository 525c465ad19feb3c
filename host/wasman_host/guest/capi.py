"""The wasmtime C API, as far as wasman uses it.

The Python wrapper of the wheel costs 16 to 30 us a call across the boundary and has no asynchronous half; the C API
that ships in the same wheel costs 0.5 to 4 us and has one. Signatures follow wasmtime's `wasmtime/async.h`, `func.h`,
`store.h`, `memory.h`, `global.h` and `trap.h` (Apache-2.0 WITH LLVM-exception), version 50.

Two loaders: `_lib` gives up the GIL around a call (entering a guest, so that the epoch ticker runs meanwhile), `_pylib`
keeps it (tiny calls, which may come back into Python: every callback from under the other would have to wait for it).

What the API does not forgive, it answers by aborting the process: a store deleted before its future, a poll after
"ready", a callback that leaves its continuation unfilled, an address of an object that Python has freed.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, c_bool, c_char_p, c_int64, c_size_t, c_uint64, c_void_p

from wasmtime import _ffi

__all__ = [
    "ASYNC_CALLBACK",
    "IS_ANSWERED",
    "UNCHECKED_CALLBACK",
    "Extern",
    "Instance",
    "Value",
    "address",
    "call_async",
    "context_of",
    "define_async",
    "define_unchecked",
    "error_new",
    "error_text",
    "export_get",
    "future_delete",
    "global_get",
    "global_set",
    "instantiate_async",
    "limit",
    "memory_creator",
    "memory_grow",
    "memory_guard",
    "memory_reservation",
    "poll",
    "poll_at_once",
    "set_epoch_deadline",
    "store_delete",
    "store_new",
    "table_size",
    "trap_code",
    "trap_new",
    "trap_text",
    "yield_at_epoch",
]

_P = c_void_p
_lib = ctypes.CDLL(_ffi.dll._name)  # noqa: SLF001  the wheel names its library nowhere else
_pylib = ctypes.PyDLL(_ffi.dll._name)  # noqa: SLF001

Value = _ffi.wasmtime_val_t
Extern = _ffi.wasmtime_extern_t
Instance = _ffi.wasmtime_instance_t

ASYNC_CALLBACK = CFUNCTYPE(None, _P, _P, _P, c_size_t, _P, c_size_t, _P, _P)
UNCHECKED_CALLBACK = CFUNCTYPE(c_size_t, _P, _P, _P, c_size_t)

# What wasmtime asks, at every poll of a guest that is parked, whether its host call has an answer by now: a function of
# an address that gives a bool. That Python's answer is there is one byte of memory, and reading a byte is what strlen
# does: 0 for an empty text, and 1 for one of one byte. A callback into Python would take 1.5 us, twice a host call.
IS_ANSWERED: int = ctypes.cast(ctypes.CDLL(None).strlen, c_void_p).value or 0


class _Bytes(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("data", _P))


def _bind(library: ctypes.CDLL, name: str, result: object, *arguments: object) -> ctypes._NamedFuncPointer:
    # A function object of its own: the attribute of the library would be shared with the wrapper, which sets other
    # types.
    function = library[name]
    function.restype, function.argtypes = result, arguments  # type: ignore[assignment]
    return function


define_async = _bind(
    _lib, "wasmtime_linker_define_async_func", _P,
    _P, c_char_p, c_size_t, c_char_p, c_size_t, _P, ASYNC_CALLBACK, _P, _P,
)  # fmt: skip
define_unchecked = _bind(
    _lib, "wasmtime_linker_define_func_unchecked", _P,
    _P, c_char_p, c_size_t, c_char_p, c_size_t, _P, UNCHECKED_CALLBACK, _P, _P,
)  # fmt: skip
instantiate_async = _bind(_lib, "wasmtime_instance_pre_instantiate_async", _P, _P, _P, _P, _P, _P)
call_async = _bind(_lib, "wasmtime_func_call_async", _P, _P, _P, _P, c_size_t, _P, c_size_t, _P, _P)
poll = _bind(_lib, "wasmtime_call_future_poll", c_bool, _P)
poll_at_once = _bind(_pylib, "wasmtime_call_future_poll", c_bool, _P)  # where no code of a guest runs
future_delete = _bind(_lib, "wasmtime_call_future_delete", None, _P)
store_new = _bind(_pylib, "wasmtime_store_new", _P, _P, _P, _P)
context_of = _bind(_pylib, "wasmtime_store_context", _P, _P)
store_delete = _bind(_pylib, "wasmtime_store_delete", None, _P)
limit = _bind(_pylib, "wasmtime_store_limiter", None, _P, c_int64, c_int64, c_int64, c_int64, c_int64)
export_get = _bind(_pylib, "wasmtime_instance_export_get", c_bool, _P, _P, c_char_p, c_size_t, _P)
set_epoch_deadline = _bind(_pylib, "wasmtime_context_set_epoch_deadline", None, _P, c_uint64)
# What this returns is garbage in wasmtime 50, although its header says it is an error.
yield_at_epoch = _bind(_pylib, "wasmtime_context_epoch_deadline_async_yield_and_update", None, _P, c_uint64)
table_size = _bind(_pylib, "wasmtime_table_size", c_uint64, _P, _P)
memory_creator = _bind(_pylib, "wasmtime_config_host_memory_creator_set", None, _P, _P)
memory_reservation = _bind(_pylib, "wasmtime_config_memory_reservation_set", None, _P, c_uint64)
memory_guard = _bind(_pylib, "wasmtime_config_memory_guard_size_set", None, _P, c_uint64)
memory_grow = _bind(_pylib, "wasmtime_memory_grow", _P, _P, _P, c_uint64, _P)
global_get = _bind(_pylib, "wasmtime_global_get", None, _P, _P, _P)
global_set = _bind(_pylib, "wasmtime_global_set", _P, _P, _P, _P)
trap_new = _bind(_pylib, "wasmtime_trap_new", _P, c_char_p, c_size_t)
_trap_code = _bind(_pylib, "wasmtime_trap_code", c_bool, _P, _P)
_trap_message = _bind(_pylib, "wasm_trap_message", None, _P, _P)
_trap_delete = _bind(_pylib, "wasm_trap_delete", None, _P)
error_new = _bind(_pylib, "wasmtime_error_new", _P, c_char_p)
_error_message = _bind(_pylib, "wasmtime_error_message", None, _P, _P)
_error_delete = _bind(_pylib, "wasmtime_error_delete", None, _P)
_bytes_delete = _bind(_pylib, "wasm_byte_vec_delete", None, _P)


def address(wrapped: object) -> c_void_p:
    """The C pointer inside an object of the Python wrapper."""
    return ctypes.cast(wrapped.ptr(), c_void_p)  # type: ignore[attr-defined]


def _take_text(data: _Bytes) -> str:
    text = ctypes.string_at(data.data, data.size).decode(errors="replace").rstrip("\0") if data.size else ""
    _bytes_delete(ctypes.byref(data))
    return text


def error_text(error: int) -> str:
    """An error's message; the error is deleted."""
    data = _Bytes()
    _error_message(error, ctypes.byref(data))
    _error_delete(error)
    return _take_text(data)


def trap_code(trap: int) -> int | None:
    """Which trap of the WebAssembly specification it is, or None for one that the host made."""
    code = ctypes.c_uint8()
    return code.value if _trap_code(trap, ctypes.byref(code)) else None


def trap_text(trap: int) -> str:
    """A trap's message and backtrace; the trap is deleted."""
    data = _Bytes()
    _trap_message(trap, ctypes.byref(data))
    _trap_delete(trap)
    return _take_text(data)
