"""Guests small enough that what is measured is wasman."""

from __future__ import annotations

from wasmtime import wat2wasm

__all__ = ["calling", "large"]

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
