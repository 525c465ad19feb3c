"""Guests for tests, in WebAssembly text: small programs put together from steps.

A `script` runs its steps one after the other and gives a JSON list of what they appended as the run's result. One that
is re-entrant counts the steps that it has done in its memory, and skips them when it is entered anew.
"""

import struct
from collections.abc import Callable, Sequence

from wasmtime import wat2wasm

__all__ = [
    "ENV",
    "Program",
    "Step",
    "call",
    "checkpoint",
    "copy",
    "module",
    "raw",
    "script",
    "sleep",
    "stated",
    "time",
    "value",
]

ENV = """
  (import "env" "checkpoint" (func $checkpoint))
  (import "env" "host_get_time" (func $host_get_time (result i64)))
  (import "env" "host_call_api" (func $host_call_api (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "stream_data" (func $stream_data (param i32 i32 i32) (result i32)))
"""

DONE = 16  # where a re-entrant script counts its steps
SCRATCH = 32  # 480 bytes for whoever needs some
BUFFER = 2 * 65536  # one page for streams
_TEXTS = 1024
_RESULT = 65536
_SUBSCRIPTION = struct.Struct("<QBxxxxxxxIxxxxQQHxxxxxx")

_PRELUDE = f"""
  (global $__stack_pointer (mut i32) (i32.const 1024))
  (global $at (mut i32) (i32.const {_RESULT}))
  (global $got (mut i32) (i32.const 0))
  (func $byte (param $byte i32)
    (i32.store8 (global.get $at) (local.get $byte))
    (global.set $at (i32.add (global.get $at) (i32.const 1))))
  (func $comma (call $byte (i32.const 44)))
  (func $digits (param $n i64)
    (if (i64.ge_u (local.get $n) (i64.const 10)) (then (call $digits (i64.div_u (local.get $n) (i64.const 10)))))
    (call $byte (i32.add (i32.const 48) (i32.wrap_i64 (i64.rem_u (local.get $n) (i64.const 10))))))
  (func $number (param $n i64)
    (if (i64.lt_s (local.get $n) (i64.const 0))
      (then (call $byte (i32.const 45)) (local.set $n (i64.sub (i64.const 0) (local.get $n)))))
    (call $digits (local.get $n)))
  (func $ask (param $name i32) (param $length i32) (param $request i32) (param $size i32) (param $max i32)
    (local $n i32)
    (local.set $n (call $host_call_api (local.get $name) (local.get $length) (local.get $request) (local.get $size)
      (global.get $at) (local.get $max)))
    (if (i32.lt_s (local.get $n) (i32.const 0))
      (then (call $number (i64.extend_i32_s (local.get $n))))
      (else (global.set $at (i32.add (global.get $at) (local.get $n)))))
    (call $comma))
  (func $copy (param $chunk i32) (local $total i32)
    (block $end (loop $more
      (global.set $got (call $stream_data (i32.const 0) (i32.const {BUFFER}) (local.get $chunk)))
      (br_if $end (i32.le_s (global.get $got) (i32.const 0)))
      (br_if $end (i32.ne (call $stream_data (i32.const 1) (i32.const {BUFFER}) (global.get $got)) (global.get $got)))
      (local.set $total (i32.add (local.get $total) (global.get $got)))
      (br $more)))
    (call $number (i64.extend_i32_s (local.get $total)))
    (call $comma))
"""


class Program:
    """A script in the making: its constants and its imports."""

    def __init__(self) -> None:
        self.texts = b""
        self.wasi: dict[str, str] = {}

    def text(self, data: bytes) -> str:
        """Place `data`; the instructions that push its address and its length."""
        at = _TEXTS + len(self.texts)
        self.texts += data
        return f"(i32.const {at}) (i32.const {len(data)})"

    def import_wasi(self, name: str, params: str) -> str:
        """The name by which a WASI function is called; `params` has one letter each, w for i32 and q for i64."""
        types = " ".join("i32" if letter == "w" else "i64" for letter in params)
        result = "" if name == "proc_exit" else "(result i32)"
        self.wasi[name] = f'(import "wasi_snapshot_preview1" "{name}" (func $wasi_{name} (param {types}) {result}))'
        return f"$wasi_{name}"


Step = Callable[[Program], str]


def call(name: str | bytes, request: bytes = b"null", capacity: int = 60_000) -> Step:
    """Append the answer of an activity or of the host, or the code of its failure."""

    def step(program: Program) -> str:
        named = name.encode() if isinstance(name, str) else name
        return f"(call $ask {program.text(named)} {program.text(request)} (i32.const {capacity}))"

    return step


def value(wat: str) -> Step:
    """Append the i32 that these instructions give."""
    return raw(f"(call $number (i64.extend_i32_s {wat})) (call $comma)")


def raw(wat: str) -> Step:
    """Instructions as they are."""
    return lambda _: wat


def time() -> Step:
    """Append the guest's time."""
    return raw("(call $number (call $host_get_time)) (call $comma)")


def checkpoint() -> Step:
    """Ask for a checkpoint."""
    return raw("(call $checkpoint)")


def sleep(nanoseconds: int) -> Step:
    """Sleep by poll_oneoff; append its errno."""

    def step(program: Program) -> str:
        wanted, _, _ = program.text(_SUBSCRIPTION.pack(7, 0, 1, nanoseconds, 0, 0)).partition(") ")
        poll = program.import_wasi("poll_oneoff", "wwww")
        ask = f"(call {poll} {wanted}) (i32.const {SCRATCH}) (i32.const 1) (i32.const {SCRATCH + 32}))"
        return value(ask)(program)

    return step


def copy(chunk: int = 1000) -> Step:
    """Copy the download to the upload in chunks, and append how many bytes there were."""
    return raw(f"(call $copy (i32.const {chunk}))")


def module(wat: str) -> bytes:
    """A module of these fields, with the imports of ABI v0 before them."""
    return bytes(wat2wasm(f"(module {ENV} {wat})"))


def _guarded(place: int, wat: str) -> str:
    # Counted before it is done where it is a checkpoint, so that the snapshot counts it.
    count = f"(i32.store (i32.const {DONE}) (i32.const {place + 1}))"
    body = f"{count} {wat}" if wat == "(call $checkpoint)" else f"{wat} {count}"
    return f"(if (i32.le_u (i32.load (i32.const {DONE})) (i32.const {place})) (then {body}))"


def script(*steps: Step, reentrant: bool = False, pages: int = 4, fields: str = "", init: str = "") -> bytes:
    """A guest that does `steps` in order.

    Args:
        steps: What it does.
        reentrant: Whether it skips what is done when it is entered anew, and says so.
        pages: 64 KiB pages of memory.
        fields: More fields of the module.
        init: Instructions of `_initialize`, if it has one.
    """
    program = Program()
    body: Sequence[str] = ["(call $byte (i32.const 91))", *(step(program) for step in steps)]
    if reentrant:
        body = [_guarded(place, wat) for place, wat in enumerate(body)]
        fields += ' (func (export "wasman_reentrant"))'
    if init:
        fields += f' (func (export "_initialize") {init})'
    result, nothing = program.text(b"wasman.result"), program.text(b"]")
    assert _TEXTS + len(program.texts) <= _RESULT
    texts = "".join(f"\\{byte:02x}" for byte in program.texts)
    lines = "\n    ".join(body)
    return module(f"""
  {" ".join(program.wasi.values())}
  (memory (export "memory") {pages})
  {_PRELUDE}
  (data (i32.const {_TEXTS}) "{texts}")
  {fields}
  (func (export "run")
    {lines}
    (if (i32.eq (global.get $at) (i32.const {_RESULT + 1})) (then (call $comma)))
    (i32.store8 (i32.sub (global.get $at) (i32.const 1)) (i32.const 93))
    (drop (call $host_call_api {result} (i32.const {_RESULT}) (i32.sub (global.get $at) (i32.const {_RESULT}))
      {nothing.partition(") ")[0]}) (i32.const 0))))
""")


def stated(data: bytes, key: str) -> bytes:
    """The same module with a custom section, so that its digest is another one."""
    content = bytes([len(key)]) + key.encode()
    return data + b"\0" + bytes([len(content)]) + content
