"""Guests small enough that what is measured is wasman."""

from __future__ import annotations

from pathlib import Path

from wasmtime import wat2wasm

__all__ = ["asking", "calling", "large", "programs", "streaming"]

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


def streaming() -> bytes:
    """`down(chunk)` reads to the end, `up(chunk, count)` writes, `copy(chunk)` does both; all count their bytes."""
    return bytes(wat2wasm(_STREAMING))


def large(functions: int = 2500) -> bytes:
    """A guest of about 2 MB: `run(n)` goes through `functions` different functions and returns a number."""
    bodies = []
    for number in range(functions):
        mixed = "".join(
            f"(local.set $x (i32.add (i32.mul (local.get $x) (i32.const {number * 7919 + place * 104_729 + 1}))"
            f" (i32.load offset={(number * 64 + place * 4) % 60_000} (i32.and (local.get $x) (i32.const 4092)))))"
            f"(if (i32.lt_u (local.get $x) (i32.const {place * 1_000_003 + number}))"
            f" (then (i32.store offset={place * 256} (i32.and (local.get $n) (i32.const 4092)) (local.get $x))))"
            for place in range(20)
        )
        bodies.append(
            f"(func $f{number} (param $n i32) (result i32) (local $x i32) (local.set $x (local.get $n)) "
            f"(loop $again {mixed} (local.set $n (i32.sub (local.get $n) (i32.const 1)))"
            f" (br_if $again (i32.gt_s (local.get $n) (i32.const 0)))) (local.get $x))"
        )
    calls = "".join(f"(local.set $n (call $f{number} (i32.const 1)))" for number in range(functions))
    text = (
        f'(module (memory (export "memory") 2) {"".join(bodies)}'
        f'(func (export "run") (param $n i32) (result i32) {calls} (local.get $n)))'
    )
    return bytes(wat2wasm(text))


def asking() -> bytes:
    """`run(n)`, n from 100,000 to 999,999, calls the activity "step" with n and returns the number that it gives."""
    return bytes(wat2wasm(_ASKING))


def programs() -> Path:
    """Guests of ABI v1 by TinyGo, from the tests."""
    return Path(__file__).resolve().parent.parent / "tests" / "guests" / "programs_tinygo.wasm"
