"""The cases: what each kind of them makes of a seed. The same seed is the same case, on every machine."""

import functools
import random
import struct
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import frozen
from wasmtime import wat2wasm

from tests import wat
from wasman_host.guest import abi_v0, wasi
from wasman_host.guest.imports import HostFunction

__all__ = ["CORPUS", "KINDS", "Case", "case", "corpus"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CORPUS = HERE / "corpus.tar.xz"


@frozen
class Case:
    """A module and what it is run with.

    Attributes:
        module: The module's bytes.
        given: The run's input where its entry takes no integers.
        integers: What to give an entry that does.
        resume: "replay" or "checkpoint".
        streams: Whether the session has a source and a sink.
    """

    module: bytes
    given: bytes = b"null"
    integers: Sequence[int] = ()
    resume: str = "replay"
    streams: bool = False


@functools.cache
def corpus() -> Sequence[bytes]:
    """The modules that tools/wasm_smith generated, number 0 first."""
    with tarfile.open(CORPUS) as archive:
        names = sorted(archive.getnames(), key=lambda name: int(Path(name).stem))
        files = [archive.extractfile(name) for name in names]
        return [file.read() for file in files if file is not None]


# Generated


def _generated(seed: int, folder: Path | None) -> Case:
    chance = random.Random(seed)
    kept = corpus()
    module = kept[seed] if seed < len(kept) else ((folder or ROOT) / f"{seed}.wasm").read_bytes()
    return _case(chance, module, b"null")


def _case(chance: random.Random, module: bytes, given: bytes) -> Case:
    """What a module is run with."""
    integers = [_hostile(chance) for _ in range(4)]
    return Case(module, given, integers, chance.choice(["replay", "checkpoint"]), chance.random() < 0.2)


# Flipped


@functools.cache
def _scripts() -> Sequence[bytes]:
    """Small guests that do everything there is, of our own."""
    call = wat.call("work", b'{"n": 1}')
    return [
        wat.script(call, wat.call("work", b"2", 3), wat.time(), wat.call("wasman.error")),
        wat.script(call, wat.checkpoint(), wat.call("other"), wat.checkpoint(), call, reentrant=True),
        wat.script(wat.sleep(1000), wat.copy(700), wat.checkpoint(), wat.call("wasman.session")),
        wat.script(wat.copy(), call, init="(i32.store (i32.const 512) (i32.const 7))", reentrant=True),
        wat.script(wat.call("wasman.input"), wat.raw("(drop (memory.grow (i32.const 1)))"), wat.checkpoint(), call),
        interpreter(reentrant=True),
    ]


@functools.cache
def _guests() -> Sequence[bytes]:
    """The large guests: a mutant of them that is still valid takes a moment to compile."""
    return [path.read_bytes() for path in sorted((ROOT / "tests" / "guests").glob("*.wasm"))]


def _flipped(seed: int, _folder: Path | None) -> Case:
    chance = random.Random(seed)
    kind = chance.random()
    bases = _guests() if kind < 0.004 else _scripts() if kind < 0.7 else corpus()
    data = bytearray(chance.choice(bases))
    # Behind its types and imports more of what is changed stays a module.
    begin = 0 if chance.random() < 0.2 else max(0, data.rfind(b"\x06memory\x02"))
    for _ in range(chance.choice([1, 1, 1, 1, 1, 2, 3, 8])):
        at = chance.randrange(min(begin, len(data) - 1), len(data))
        match chance.randrange(20):
            case 0:
                del data[at : at + chance.randrange(1, 5)]
            case 1:
                data[at:at] = chance.randbytes(chance.randrange(1, 5))
            case 2:
                del data[max(8, at) :]
            case 3 | 4:
                data[at] = chance.choice([0, 1, 0x0B, 0x40, 0x7F, 0x80, 0xFF])
            case _:
                data[at] ^= 1 << chance.randrange(8)
    return _case(chance, bytes(data), records(chance))


# Arguments

FUNCTIONS: Sequence[HostFunction] = [*abi_v0.FUNCTIONS, *wasi.FUNCTIONS]
_NUMBERS = {function.name: number for number, function in enumerate(FUNCTIONS)}
_GROW, _FILL = len(FUNCTIONS), len(FUNCTIONS) + 1  # what the guest does to its own memory
_RECORD = struct.Struct("<HHI9Q112s")  # function, bytes to place, where to place them, arguments, the bytes
_RECORDS = 4096  # where the guest has its input
_NAME = 256  # and the name by which it asks for it
_PLACE = 16384  # where most of what the arguments point at is placed
_PAGES = 3
_END = _PAGES * 65536


@functools.cache
def interpreter(*, reentrant: bool) -> bytes:
    """A guest that makes the calls that the records in its input describe.

    It asks for its input before each of them, because a call may have written over everything.
    """
    imports, cases = [], []
    for number, function in enumerate(FUNCTIONS):
        params, result = " ".join(function.params), f"(result {function.result})" if function.result else ""
        imports.append(f'(import "{function.module}" "{function.name}" (func $f{number} (param {params}) {result}))')
        args = " ".join(
            f"(local.get $a{place})" if kind == "i64" else f"(i32.wrap_i64 (local.get $a{place}))"
            for place, kind in enumerate(function.params)
        )
        cases.append(f"(drop (call $f{number} {args}))" if result else f"(call $f{number} {args})")
    cases.append("(drop (memory.grow (i32.const 1)))")
    cases.append("(memory.fill (i32.const 65536) (i32.wrap_i64 (local.get $a0)) (i32.const 65536))")
    body = f"(block $b0 (br_table {' '.join(f'$b{n}' for n in range(len(cases)))} 0 (local.get $which)))"
    for number, wanted in enumerate(cases):
        body = (
            f"{body} {wanted} (return)"
            if number == len(cases) - 1
            else f"(block $b{number + 1} {body} {wanted} (return))"
        )
    arguments = " ".join(f"(param $a{place} i64)" for place in range(9))
    loads = " ".join(f"(i64.load (i32.add (local.get $at) (i32.const {8 + 8 * place})))" for place in range(9))
    name, rest = struct.unpack("<qi", b"wasman.input")
    mark = '(func (export "wasman_reentrant"))' if reentrant else ""
    return bytes(
        wat2wasm(f"""(module {" ".join(imports)}
  (memory (export "memory") {_PAGES} 8)
  (global $done (mut i32) (i32.const 0))
  {mark}
  (func $do (param $which i32) {arguments} {body})
  (func (export "run") (local $at i32)
    (if (i32.eqz (global.get $done))
      (then (memory.fill (i32.const 0) (i32.const 165) (i32.const {_END})))) (; so that zeros are seen ;)
    (loop $again
      (i64.store (i32.const {_NAME}) (i64.const {name}))
      (i32.store (i32.const {_NAME + 8}) (i32.const {rest}))
      (local.set $at (i32.mul (global.get $done) (i32.const {_RECORD.size})))
      (if (i32.lt_s (local.get $at) (call $f{_NUMBERS["host_call_api"]} (i32.const {_NAME}) (i32.const 12)
          (i32.const 0) (i32.const 0) (i32.const {_RECORDS}) (i32.const {_PLACE - _RECORDS})))
        (then
          (global.set $done (i32.add (global.get $done) (i32.const 1)))
          (local.set $at (i32.add (local.get $at) (i32.const {_RECORDS})))
          (i32.load16_u (local.get $at)) {loads}
          (memory.copy (i32.load offset=4 (local.get $at)) (i32.add (local.get $at) (i32.const 80))
            (i32.load16_u offset=2 (local.get $at)))
          (call $do)
          (br $again))))))""")
    )


def _hostile(chance: random.Random) -> int:
    return chance.choice(
        [
            *(0, 1, 2, 4, 8, 255, _PLACE, _RECORDS, 65535, 65536),
            *(_END - 8, _END - 4, _END - 1, _END, _END + 1, 8 * 65536 - 1, 8 * 65536),
            *(2**31 - 1, 2**31, 2**32 - 8, 2**32 - 4, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1),
            *(chance.randrange(_END), chance.getrandbits(32), chance.getrandbits(64)),
        ]
    )


_NAMES = (
    *(b"work", b"other", b"", b"\xff\xfe", b"wasman.input", b"wasman.session", b"wasman.error", b"wasman.result"),
    *(b"wasman.future", b"wasman.", b"\0", b"n" * 100),
)


def _call(chance: random.Random) -> tuple[bytes, Sequence[int]]:
    name = b"wasman.fail" if chance.random() < 0.02 else chance.choice(_NAMES)
    request = chance.choice([b"", b"null", b'{"a": [1, 2]}', b"\xff\0", b'"' + b"x" * 30, b"[" * 60])[: 112 - len(name)]
    response = chance.choice([_PLACE + 512, _PLACE, 0, 4000, _END - 8, _END - 300, chance.randrange(_END)])
    capacity = chance.choice([0, 1, 4, 8, 300, 4096, _END - response])
    return name + request, (_PLACE, len(name), _PLACE + len(name), len(request), response, capacity)


def _stream(chance: random.Random) -> tuple[bytes, Sequence[int]]:
    pointer = chance.choice([0, _PLACE, _END - 1, _END, chance.randrange(_END)])
    length = chance.choice([0, 1, 100, 4096, max(0, _END - pointer)])
    return b"", (chance.choice([0, 0, 1, 1, 2, 2**32 - 1]), pointer, length)


def _write(chance: random.Random) -> tuple[bytes, Sequence[int]]:
    vectors = []
    for _ in range(chance.randrange(6)):
        pointer = _hostile(chance) if chance.random() < 0.2 else _PLACE
        vectors.append((pointer, chance.choice([0, 1, 60, 5000, _hostile(chance)])))
    placed = b"".join(struct.pack("<II", pointer & 0xFFFFFFFF, length & 0xFFFFFFFF) for pointer, length in vectors)
    return placed, (chance.choice([0, 1, 1, 2, 3]), _PLACE, len(vectors), _PLACE + 200)


def _poll(chance: random.Random) -> tuple[bytes, Sequence[int]]:
    count = chance.choice([0, 1, 1, 2])
    placed = b""
    for _ in range(count):
        tag = chance.choice([0, 0, 1, 2, 3, 255])
        flags = chance.choice([0, 1])
        timeout = chance.choice([0, 1, 1000, 100_000, chance.getrandbits(64), 2**63, 2**64 - 1])
        placed += struct.pack(
            "<QBxxxxxxxIxxxxQQHxxxxxx", chance.getrandbits(64), tag, chance.randrange(4), timeout, 0, flags
        )
    return placed, (_PLACE, chance.choice([_PLACE, _PLACE + 96, _END - 64]), count, _PLACE + 200)


def _random(chance: random.Random) -> tuple[bytes, Sequence[int]]:
    pointer = chance.randrange(_END)
    return b"", (pointer, chance.choice([0, 1, 100, 5000, _END - pointer, _END - pointer + 1]))


_SENSIBLE: Mapping[str, Callable[[random.Random], tuple[bytes, Sequence[int]]]] = {
    "host_call_api": _call,
    "stream_data": _stream,
    "fd_write": _write,
    "poll_oneoff": _poll,
    "random_get": _random,
}


def records(chance: random.Random) -> bytes:
    """Calls of the interpreter: some make sense, and most have something that does not."""
    packed = []
    for _ in range(chance.randrange(1, 17)):
        kind = chance.random()
        place, placed, args = _PLACE, chance.randbytes(chance.randrange(113)), [_hostile(chance) for _ in range(9)]
        if kind < 0.05:
            which = chance.choice([_GROW, _FILL])
        elif kind < 0.15:
            which = _NUMBERS["checkpoint"]
        elif kind < 0.6:
            name = chance.choice(list(_SENSIBLE))
            which = _NUMBERS[name]
            placed, sensible = _SENSIBLE[name](chance)
            args[: len(sensible)] = [_hostile(chance) if chance.random() < 0.12 else one for one in sensible]
        else:
            which = chance.randrange(len(FUNCTIONS))
            if chance.random() < 0.5:
                args[0] = chance.randrange(4)  # most often a file
            place = chance.choice([_PLACE, _PLACE, _END - len(placed), chance.randrange(_END - 112)])
            if which == _NUMBERS["proc_exit"] and chance.random() < 0.9:
                which = _NUMBERS["sched_yield"]
        packed.append(_RECORD.pack(which, len(placed), place, *args, placed))
    return b"".join(packed)


def _arguments(seed: int, _folder: Path | None) -> Case:
    chance = random.Random(seed)
    module = interpreter(reentrant=chance.random() < 0.5)
    return _case(chance, module, records(chance))


KINDS: Mapping[str, Callable[[int, Path | None], Case]] = {
    "generated": _generated,
    "flipped": _flipped,
    "arguments": _arguments,
}


def case(kind: str, seed: int, folder: Path | None = None) -> Case:
    """Case number `seed` of a kind; `folder` has generated modules that are not in the corpus."""
    return KINDS[kind](seed, folder)
