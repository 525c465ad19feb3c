"""Guests small enough that what is measured is wasman."""

from __future__ import annotations

from wasmtime import wat2wasm

__all__ = ["calling", "streaming"]

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

_STREAMING = """(module
 (import "env" "stream_data" (func $stream (param i32 i32 i32) (result i32)))
 (memory (export "memory") 4)
 (func (export "down") (param $chunk i32) (result i64) (local $n i32) (local $total i64)
  (loop $again
   (local.set $n (call $stream (i32.const 0) (i32.const 65536) (local.get $chunk)))
   (local.set $total (i64.add (local.get $total) (i64.extend_i32_s (local.get $n))))
   (br_if $again (i32.gt_s (local.get $n) (i32.const 0))))
  (local.get $total))
 (func (export "up") (param $chunk i32) (param $count i32) (result i64) (local $total i64)
  (loop $again
   (i32.store (i32.const 65536) (local.get $count))
   (local.set $total (i64.add (local.get $total) (i64.extend_i32_s
    (call $stream (i32.const 1) (i32.const 65536) (local.get $chunk)))))
   (local.set $count (i32.sub (local.get $count) (i32.const 1)))
   (br_if $again (local.get $count)))
  (drop (call $stream (i32.const 1) (i32.const 0) (i32.const 0)))
  (local.get $total))
 (func (export "copy") (param $chunk i32) (result i64) (local $n i32) (local $total i64)
  (loop $again
   (local.set $n (call $stream (i32.const 0) (i32.const 65536) (local.get $chunk)))
   (if (i32.gt_s (local.get $n) (i32.const 0)) (then
    (local.set $total (i64.add (local.get $total) (i64.extend_i32_s
     (call $stream (i32.const 1) (i32.const 65536) (local.get $n)))))
    (br $again))))
  (drop (call $stream (i32.const 1) (i32.const 0) (i32.const 0)))
  (local.get $total)))"""


def calling() -> bytes:
    """`run(n)` calls the activity "step" n times with the JSON 12345 and returns n."""
    return bytes(wat2wasm(_CALLING))


def streaming() -> bytes:
    """`down(chunk)` reads to the end, `up(chunk, count)` writes, `copy(chunk)` does both; all count their bytes."""
    return bytes(wat2wasm(_STREAMING))
