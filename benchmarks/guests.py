"""Guests small enough that what is measured is wasman."""

from __future__ import annotations

from wasmtime import wat2wasm

__all__ = ["asking", "calling"]

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

_ASKING = """(module
 (import "env" "host_call_api" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))
 (memory (export "memory") 4)
 (data (i32.const 1024) "step")
 (func (export "run") (param $n i32) (result i32) (local $i i32) (local $length i32) (local $value i32)
  (local.set $i (i32.const 6))
  (loop $digit
   (local.set $i (i32.sub (local.get $i) (i32.const 1)))
   (i32.store8 (i32.add (i32.const 2048) (local.get $i))
    (i32.add (i32.const 48) (i32.rem_u (local.get $n) (i32.const 10))))
   (local.set $n (i32.div_u (local.get $n) (i32.const 10)))
   (br_if $digit (local.get $i)))
  (local.set $length
   (call $call (i32.const 1024) (i32.const 4) (i32.const 2048) (i32.const 6) (i32.const 8192) (i32.const 4096)))
  (if (i32.lt_s (local.get $length) (i32.const 1)) (then (return (local.get $length))))
  (loop $again
   (local.set $value (i32.add (i32.mul (local.get $value) (i32.const 10))
    (i32.sub (i32.load8_u (i32.add (i32.const 8192) (local.get $i))) (i32.const 48))))
   (local.set $i (i32.add (local.get $i) (i32.const 1)))
   (br_if $again (i32.lt_u (local.get $i) (local.get $length))))
  (local.get $value)))"""


def calling() -> bytes:
    """`run(n)` calls the activity "step" n times with the JSON 12345 and returns n."""
    return bytes(wat2wasm(_CALLING))


def asking() -> bytes:
    """`run(n)`, n from 100,000 to 999,999, calls the activity "step" with n and returns the number that it gives."""
    return bytes(wat2wasm(_ASKING))
