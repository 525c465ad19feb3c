"""Guests small enough that what is measured is wasman."""

from __future__ import annotations

from wasmtime import wat2wasm

__all__ = ["calling"]

_CALLING = """(module
 (import "env" "host_call_api" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))
 (memory (export "memory") 4)
 (data (i32.const 1024) "step") (data (i32.const 2048) "12345")
 (func (export "run") (param $n i32) (result i32) (local $i i32)
  (loop $again
   (drop (call $call (i32.const 1024) (i32.const 4) (i32.const 2048) (i32.const 5) (i32.const 8192) (i32.const 4096)))
   (local.set $i (i32.add (local.get $i) (i32.const 1)))
   (br_if $again (i32.lt_u (local.get $i) (local.get $n))))
  (local.get $i)))"""


def calling() -> bytes:
    """`run(n)` calls the activity "step" n times with the JSON 12345 and returns n."""
    return bytes(wat2wasm(_CALLING))
