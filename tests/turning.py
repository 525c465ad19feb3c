"""Guests of ABI v1 written by hand: what they say at each turn is said here, well formed or not."""

import struct
from collections.abc import Sequence

from attrs import define
from wasmtime import wat2wasm

__all__ = ["NONE", "Turn", "call", "cancel", "complete", "fail", "frame", "receive", "turning"]

NONE = 0xFFFFFFFF
_BLOCK, _TURNS, _INBOX, _OUTBOX, _ANSWERS = 64, 512, 4096, 16384, 32768
_IMPORTS = """
 (import "wasman" "now" (func $now (result i64)))
 (import "wasman" "random" (func $random (param i32 i32) (result i32)))
 (import "wasman" "log" (func $log (param i32 i32 i32 i32 i32) (result i32)))
 (import "wasman" "flush" (func $flush (param i32 i32) (result i32)))
 (import "wasman" "result_len" (func $result_len (param i32) (result i32)))
 (import "wasman" "result_read" (func $result_read (param i32 i32 i32 i32) (result i32)))
 (import "wasman" "stream_read" (func $stream_read (param i32 i32 i32 i32) (result i32)))
 (import "wasman" "stream_write" (func $stream_write (param i32 i32 i32 i32) (result i32)))"""


def frame(kind: int, operation: int, body: bytes = b"") -> bytes:
    length = 16 + len(body)
    return struct.pack("<IIHHI", length, operation, kind, 0, 0) + body + bytes(-length & 7)


def call(operation: int, name: str, request: bytes = b"null", options: bytes = b"") -> bytes:
    named = name.encode()
    return frame(1, operation, struct.pack("<II", len(named), len(options)) + named + options + request)


def receive(operation: int, name: str) -> bytes:
    return frame(2, operation, name.encode())


def cancel(operation: int) -> bytes:
    return frame(3, operation)


def complete(result: bytes = b"null") -> bytes:
    return frame(4, NONE, result)


def fail(failure: bytes) -> bytes:
    return frame(5, NONE, failure)


@define
class Turn:
    """What the guest says at one turn.

    Attributes:
        out: Its outbox.
        deadline: When it wants the next one, as ns from its own time; -1 for never.
        asks: Instructions, each of which leaves an i32: they are noted, and the last turn's result is their list.
        at: Where it says that its outbox is, if not where it is.
        length: How long it says that it is.
        gives: What the turn returns.
    """

    out: bytes = b""
    deadline: int = -1
    asks: Sequence[str] = ()
    at: int = -1
    length: int = -1
    gives: int = 0


def turning(
    *turns: Turn,
    abi: int = 1,
    init: str = "",
    block: int = _BLOCK,
    capacity: int = 4096,
    more: str = "",
) -> bytes:
    """A guest that says `turns`, one after the other. What it asks is kept, as i32 numbers, from 32768 on."""
    data, code, at, noted = [], [], _OUTBOX, 0
    for number, turn in enumerate(turns):
        shown = "".join(f"\\{byte:02x}" for byte in turn.out)
        data.append(f'(data (i32.const {at}) "{shown}")' if turn.out else "")
        body = [f"(i32.store (i32.const 8) (i32.const {turn.gives}))"]
        for asked in turn.asks:
            body.append(f"(i32.store (i32.const {_ANSWERS + 4 * noted}) {asked})")
            noted += 1
        place = at if turn.at < 0 else turn.at
        length = len(turn.out) if turn.length < 0 else turn.length
        due = "(i64.const -1)" if turn.deadline < 0 else f"(i64.add (call $now) (i64.const {turn.deadline}))"
        body += [
            f"(i32.store (i32.const {_BLOCK + 8}) (i32.const {place}))",
            f"(i32.store (i32.const {_BLOCK + 12}) (i32.const {length}))",
            f"(i64.store (i32.const {_BLOCK + 24}) {due})",
        ]
        code.append(f"(if (i32.eq (local.get $turn) (i32.const {number})) (then {' '.join(body)}))")
        at += len(turn.out)
    assert at <= _ANSWERS
    return bytes(
        wat2wasm(f"""(module {_IMPORTS}
 (memory (export "memory") 2)
 {" ".join(data)}
 (func (export "_initialize") {init}
  (i32.store (i32.const {_BLOCK}) (i32.const {_INBOX}))
  (i32.store (i32.const {_BLOCK + 4}) (i32.const {capacity})))
 (func (export "wasman_abi") (result i32) (i32.const {abi}))
 (func (export "wasman_block") (result i32) (i32.const {block}))
 (func (export "wasman_turn") (param $n i32) (result i32) (local $turn i32)
  (local.set $turn (i32.load (i32.const 0)))
  (i32.store (i32.const 0) (i32.add (local.get $turn) (i32.const 1)))
  {" ".join(code)}
  (i32.load (i32.const 8)))
 {more})""")
    )
