"""The code cache: what is in its way costs a warning and a compilation, and nothing wrong is handed to wasmtime."""

import gzip
import hashlib
import json
import logging
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmtime import Config, Engine, Module, wat2wasm

from tests import wat
from tests.lab import MemoryLab
from wasman_host.errors import InvalidModuleError
from wasman_host.guest import cache as cache_module
from wasman_host.guest import module as module_module
from wasman_host.guest.binary import REWRITER, parse
from wasman_host.guest.cache import CodeCache, Entry, code_cache, surroundings
from wasman_host.guest.engine import settings
from wasman_host.guest.module import GuestModule, check, compile_module, digest

GUEST = wat.script(wat.call("wasman.input"))
SHA256 = digest(GUEST)
GUESTS = Path(__file__).resolve().parent.parent / "guests"
HEAD = 84  # bytes of an entry before its facts


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One item for each module that was compiled, as opposed to taken from the cache."""
    counted: list[str] = []
    checked = module_module._checked

    def counting(data: bytes, name: str) -> object:
        counted.append(name)
        return checked(data, name)

    monkeypatch.setattr(module_module, "_checked", counting)
    return counted


@pytest.fixture
def refuses_to_deserialize(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it was handed to wasmtime")

    monkeypatch.setattr(Module, "deserialize", refuse)


def filled(folder: Path, guest: bytes = GUEST) -> Path:
    """A cache with one entry; the entry's file."""
    compile_module(guest, "it", CodeCache(folder))
    [entry] = folder.glob(f"{digest(guest)}-*.code")
    return entry


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "wasman.cache"]


def known(module: GuestModule) -> tuple[object, ...]:
    """All that a module says, its code aside."""
    return (module.digest, module.binary, module.snapshots, module.reentrant, module.exports)


# What it is for


@pytest.mark.parametrize("name", ["script", "mixed_tinygo.wasm", "mixed_go.wasm.gz"])
def test_a_second_load_gives_the_same_module_without_compiling_it(
    name: str, tmp_path: Path, compiles: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    guest = GUEST if name == "script" else (GUESTS / name).read_bytes()
    guest = gzip.decompress(guest) if name.endswith(".gz") else guest
    first = compile_module(guest, "it", CodeCache(tmp_path / "code"))
    second = compile_module(guest, "it", CodeCache(tmp_path / "code"))
    assert compiles == ["it"]
    assert known(first) == known(second)
    assert bytes(first._compiled.serialize()) == bytes(second._compiled.serialize())
    assert check(guest, "it", CodeCache(tmp_path / "code")) == first.binary
    assert compiles == ["it"]
    assert not warnings(caplog)


def test_why_a_module_has_no_snapshots_is_kept_as_well(tmp_path: Path) -> None:
    guest = wat.module(
        '(memory (export "memory") 1) (table 1 funcref)'
        '(func (export "run") (drop (table.grow (ref.null func) (i32.const 1))))'
    )
    first = compile_module(guest, "it", CodeCache(tmp_path / "code"))
    second = compile_module(guest, "it", CodeCache(tmp_path / "code"))
    assert "tables may change" in second.snapshots
    assert first.snapshots == second.snapshots


async def test_a_run_is_the_same_with_cached_code(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module_module, "code_cache", lambda: CodeCache(tmp_path / "code"))
    for name in ("compiled", "cached"):
        await lab.start(GUEST, {"a": 1}, id=name)
        assert await lab.complete(id=name, cold=True) == [{"a": 1}]
    assert len(list((tmp_path / "code").iterdir())) == 1


def test_what_cannot_be_run_is_not_kept(tmp_path: Path) -> None:
    wrong = wat2wasm('(module (import "env" "unknown" (func)) (memory (export "memory") 1))')
    for _ in range(2):
        with pytest.raises(InvalidModuleError, match=r"env\.unknown, which wasman does not provide"):
            compile_module(bytes(wrong), "it", CodeCache(tmp_path / "code"))
    assert not list((tmp_path / "code").iterdir())


def test_an_entry_made_when_the_host_offered_more_is_judged_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "code")
    offered = {**module_module.PROVIDED}
    del offered["env", "host_call_api"]
    monkeypatch.setattr(module_module, "PROVIDED", offered)
    for load in (compile_module, check):
        with pytest.raises(InvalidModuleError, match=r"env\.host_call_api, which wasman does not provide"):
            load(GUEST, "it", CodeCache(tmp_path / "code"))


def test_folder_and_files_are_for_this_user_only(tmp_path: Path) -> None:
    entry = filled(tmp_path / "above" / "code")
    assert entry.parent.stat().st_mode & 0o777 == 0o700
    assert entry.stat().st_mode & 0o777 == 0o600


# Entries that are not what they were


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def huge(data: bytes) -> bytes:
    """A header that promises more than there is memory for."""
    return data[:76] + struct.pack("<Q", 1 << 60) + data[84:]


def with_facts(said: bytes) -> Callable[[bytes], bytes]:
    """Other facts, with digests that are right."""

    def changed(data: bytes) -> bytes:
        [length] = struct.unpack_from("<I", data, 72)
        rest = data[40:72] + struct.pack("<I", len(said)) + data[76:84]
        return data[:8] + hashlib.sha256(rest + said).digest() + rest + said + data[84 + length :]

    return changed


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half a header": lambda data: data[:40],
    "truncated": truncated,
    "a byte less": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "magic flipped": lambda data: flipped(data, 0),
    "version flipped": lambda data: flipped(data, 7),
    "digest flipped": lambda data: flipped(data, 20),
    "code's digest flipped": lambda data: flipped(data, 50),
    "length flipped": lambda data: flipped(data, 72),
    "facts flipped": lambda data: flipped(data, HEAD + 30),
    "first byte of the code flipped": lambda data: flipped(data, HEAD + struct.unpack_from("<I", data, 72)[0]),
    "last byte flipped": lambda data: flipped(data, -1),
    "torn by a power cut": lambda data: data[:4096] + bytes(len(data) - 4096),
    "huge by its header": huge,
    "facts that are no JSON": with_facts(b"{"),
    "facts of another kind": with_facts(b"[]"),
    "facts without a module": with_facts(b"{}"),
    "facts without sections": with_facts(
        json.dumps({"module": SHA256, "around": surroundings(), "facts": {"binary": {}, "snapshots": ""}}).encode()
    ),
    "foreign": lambda _: b"#!/bin/sh\necho I am no code cache\n" * 100,
    "bare machine code": lambda data: data[HEAD:],
}


@pytest.mark.usefixtures("refuses_to_deserialize")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_never_reaches_wasmtime_and_is_replaced(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = filled(tmp_path / "code")
    good = entry.read_bytes()
    entry.write_bytes(DAMAGE[damage](good))
    compile_module(GUEST, "it", CodeCache(tmp_path / "code"))
    [warning] = warnings(caplog)
    assert warning.startswith(f"{entry.name} in the code cache {tmp_path / 'code'} is not used: ")
    assert warning.endswith("; the module is compiled anew")
    monkeypatch.undo()
    assert entry.read_bytes() == good
    compile_module(GUEST, "it", CodeCache(tmp_path / "code"))
    assert len(warnings(caplog)) == 1


def test_every_flipped_byte_of_an_entry_is_seen(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path / "code")
    entry = filled(tmp_path / "code")
    good = entry.read_bytes()
    [facts] = struct.unpack_from("<I", good, 72)
    places = [*range(HEAD + facts), *range(HEAD + facts, len(good), 997), len(good) - 1]
    logging.getLogger("wasman.cache").disabled = True
    try:
        for place in places:
            entry.write_bytes(flipped(good, place))
            assert cache.load(SHA256) is None, f"byte {place}"
    finally:
        logging.getLogger("wasman.cache").disabled = False
    entry.write_bytes(good)
    assert cache.load(SHA256) is not None


@pytest.mark.usefixtures("refuses_to_deserialize")
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_is_not_read(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = filled(tmp_path / "code")
    moved = entry.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(entry)
    elif kind == "folder":
        entry.mkdir()
    else:
        entry.symlink_to(moved)
    compile_module(GUEST, "it", CodeCache(tmp_path / "code"))
    assert f"{entry.name} in the code cache" in warnings(caplog)[0]


@pytest.mark.usefixtures("refuses_to_deserialize")
def test_an_entry_under_the_name_of_another_module_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = wat.script(wat.call("wasman.session"))
    entry = filled(tmp_path / "code")
    filled(tmp_path / "code", other).replace(entry)
    compile_module(GUEST, "it", CodeCache(tmp_path / "code"))
    assert f"it is for module {digest(other)}" in warnings(caplog)[0]


@pytest.mark.parametrize("what", ["wasmtime", "rewriter", "settings", "machine"])
def test_code_of_other_surroundings_is_another_entry(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiles: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path / "code")
    surroundings.cache_clear()
    if what == "wasmtime":
        monkeypatch.setattr(cache_module, "version", lambda _: "50.0.99")
    elif what == "rewriter":
        monkeypatch.setattr(cache_module, "REWRITER", "another")
    elif what == "settings":
        changed = {**settings(), "cranelift_nan_canonicalization": False}
        monkeypatch.setattr(cache_module, "settings", lambda: changed)
    else:
        monkeypatch.setattr(platform, "machine", lambda: "another")
    try:
        filled(tmp_path / "code2")
        compile_module(GUEST, "it", CodeCache(tmp_path / "code"))
        assert len(compiles) == 3
        assert len(list((tmp_path / "code").iterdir())) == 2
        assert not warnings(caplog)
    finally:
        surroundings.cache_clear()


@pytest.mark.usefixtures("refuses_to_deserialize")
def test_code_of_other_surroundings_under_this_ones_name_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = filled(tmp_path / "code")
    compile_module(GUEST, "it", CodeCache(tmp_path / "code", around="wasmtime 0"))
    [other] = {*(tmp_path / "code").iterdir()} - {entry}
    other.replace(entry)
    compile_module(GUEST, "it", CodeCache(tmp_path / "code"))
    assert f"it is for module {SHA256}, wasmtime 0" in warnings(caplog)[0]


def test_what_wasmtime_refuses_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, compiles: list[str]
) -> None:
    cache = CodeCache(tmp_path / "code")
    module = compile_module(GUEST, "it", cache)
    config = Config()
    config.consume_fuel = True
    other = Module(Engine(config), parse(GUEST)[0]).serialize()
    facts = {"binary": module.binary.to_json(), "snapshots": "", "asyncified": None}
    cache.store(SHA256, Entry(facts, bytes(other)))
    for _ in range(2):
        assert known(compile_module(GUEST, "it", CodeCache(tmp_path / "code"))) == known(module)
    assert len(compiles) == 2
    assert "wasmtime refuses it (" in warnings(caplog)[0]


def test_the_rewriters_version_stands_for_what_it_does() -> None:
    """Where this fails, cached code no longer fits what `parse` gives: raise REWRITER, and then change the digest.

    Where only the guests have been built anew, the digest alone changes.
    """
    seen = hashlib.sha256()
    for guest in (GUEST, (GUESTS / "mixed_tinygo.wasm").read_bytes(), (GUESTS / "sdk_tour.wasm").read_bytes()):
        rewritten, binary = parse(guest)
        seen.update(rewritten + json.dumps(binary.to_json(), sort_keys=True).encode())
    assert (REWRITER, seen.hexdigest()[:16]) == ("3", "cbec10cebcef884c")


# Folders that cannot be used


def two_loads(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """The one warning that there is when two modules are loaded over this folder."""
    cache = CodeCache(folder)
    compile_module(GUEST, "it", cache)
    compile_module(wat.script(wat.call("wasman.session")), "another", cache)
    check(GUEST, "it", cache)
    [warning] = warnings(caplog)
    return warning


def test_a_file_in_the_place_of_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "code").write_text("mine")
    warning = two_loads(tmp_path / "code", caplog)
    assert warning == (
        f"the code cache {tmp_path / 'code'} is not used by this process: Not a directory; modules are compiled anew, "
        f"as with WASMAN_CACHE=off"
    )
    assert (tmp_path / "code").read_text() == "mine"


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in two_loads(tmp_path / "file" / "code", caplog)


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="a file system that even root cannot write to: Linux's /proc"
)
def test_a_file_system_that_takes_no_files(caplog: pytest.LogCaptureFixture) -> None:
    assert "is not used by this process" in two_loads(Path("/proc/wasman"), caplog)


@pytest.mark.usefixtures("refuses_to_deserialize")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o755])
def test_a_folder_that_others_may_enter_is_not_used(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path / "code")
    (tmp_path / "code").chmod(mode)
    before = sorted(path.name for path in (tmp_path / "code").iterdir())
    assert f"its mode is {mode:o}, so others may write code there; chmod 700 it" in two_loads(tmp_path / "code", caplog)
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == before


@pytest.mark.usefixtures("refuses_to_deserialize")
def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "code")
    user = os.geteuid()
    if user == 0:
        os.chown(tmp_path / "code", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert "it belongs to user " in two_loads(tmp_path / "code", caplog)


def test_a_full_disk_leaves_no_half_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = filled(tmp_path / "code")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        cache = CodeCache(tmp_path / "code")
        for name in ("session", "error"):
            compile_module(wat.script(wat.call(f"wasman.{name}")), "it", cache)
        assert cache.load(SHA256) is not None  # what is there is still used
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    [warning] = warnings(caplog)
    assert warning.startswith(
        f"compiled code is not added to the cache {tmp_path / 'code'} by this process: File too large"
    )
    assert list((tmp_path / "code").iterdir()) == [entry]


def test_a_folder_that_goes_away_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = CodeCache(tmp_path / "code")
    for _ in range(2):
        compile_module(GUEST, "it", cache)
        [entry] = (tmp_path / "code").iterdir()
        entry.unlink()
        entry.parent.rmdir()
    assert not warnings(caplog)


# Its bound


def entry_of(size: int) -> Entry:
    return Entry({}, bytes(size))


def modules(folder: Path) -> list[str]:
    return sorted(path.name[:2] for path in folder.glob("*.code"))


def test_what_was_used_the_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path, max_bytes=35_000)
    tmp_path.chmod(0o700)
    for number in range(3):
        cache.store(f"{number:02}" * 32, entry_of(10_000))
    for age, name in enumerate(["01", "00", "02"]):
        [path] = tmp_path.glob(f"{name}*.code")
        os.utime(path, ns=(0, (time.time_ns() - 10**12) + age * 10**9))
    assert cache.facts("01" * 32) is not None  # used now
    cache.store("03" * 32, entry_of(10_000))
    assert modules(tmp_path) == ["01", "02", "03"]
    cache.store("04" * 32, entry_of(25_000))
    assert modules(tmp_path) == ["04"]
    cache.store("05" * 32, entry_of(35_000))  # larger than all may be together
    assert modules(tmp_path) == ["04"]


def test_only_its_own_files_are_deleted(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    old = time.time() - 7200
    abandoned, fresh, foreign = (tmp_path / name for name in (f".{'0' * 16}.tmp", f".{'1' * 16}.tmp", "notes.code"))
    for path in (abandoned, fresh, foreign):
        path.write_bytes(bytes(50_000))
    for path in (abandoned, foreign):
        os.utime(path, (old, old))
    cache = CodeCache(tmp_path, max_bytes=20_000)
    cache.store("00" * 32, entry_of(10_000))
    assert modules(tmp_path) == ["00", "no"]
    assert not abandoned.exists()
    assert fresh.exists()


# Several at once

WRITER = """
import sys
from pathlib import Path
from wasman_host.guest.cache import CodeCache, Entry
folder, number = Path(sys.argv[1]), int(sys.argv[2])
for turn in range(150):
    cache = CodeCache(folder, max_bytes=300_000)
    module = f"{turn % 7:02}" * 32
    cache.store(module, Entry({"turn": turn % 7}, bytes([turn % 7]) * (20_000 + 7000 * (turn % 7))))
    for other in range(7):
        found = cache.load(f"{other:02}" * 32)
        assert found is None or (found.facts["turn"], set(found.code), len(found.code)) == (
            other, {other}, 20_000 + 7000 * other), other
"""


def test_processes_that_write_and_evict_at_once_see_whole_entries(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(number)], stderr=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=300)
        assert (writer.returncode, said) == (0, "")  # no warning either
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 300_000 + 4 * 70_000
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_writer_that_is_killed_leaves_nothing_that_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o700)
    writer = subprocess.Popen([sys.executable, "-c", WRITER.replace("range(150)", "range(10**9)"), tmp_path, "0"])
    while not modules(tmp_path):
        assert writer.poll() is None, "it has ended by itself"
        time.sleep(0.01)
    for _ in range(20):
        time.sleep(0.002)
        writer.send_signal(signal.SIGSTOP)
        for number in range(7):
            CodeCache(tmp_path).load(f"{number:02}" * 32)
        writer.send_signal(signal.SIGCONT)
    writer.kill()
    writer.wait()
    assert not warnings(caplog)


# Where it is

PRINT = "from wasman_host.guest.cache import code_cache as c; print(c().folder, c()._max)"


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"HOME": "/nowhere"}, "/nowhere/.cache/wasman 536870912"),
        ({"HOME": "/nowhere", "XDG_CACHE_HOME": "/caches"}, "/caches/wasman 536870912"),
        ({"HOME": "/nowhere", "XDG_CACHE_HOME": "relative"}, "/nowhere/.cache/wasman 536870912"),
        ({"WASMAN_CACHE": "/my/own"}, "/my/own 536870912"),
        ({"WASMAN_CACHE": "/my/own", "WASMAN_CACHE_BYTES": "1000"}, "/my/own 1000"),
        ({"WASMAN_CACHE": "off"}, "None 536870912"),
    ],
)
def test_the_environment_says_where(environment: dict[str, str], shown: str) -> None:
    done = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == (shown, "")


def test_a_bound_that_is_no_number_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code_cache.cache_clear()
    monkeypatch.setenv("WASMAN_CACHE", str(tmp_path))
    monkeypatch.setenv("WASMAN_CACHE_BYTES", "1G")
    try:
        assert code_cache()._max == 512 * 1024 * 1024
    finally:
        code_cache.cache_clear()
    assert warnings(caplog) == ["WASMAN_CACHE_BYTES=1G is no number of bytes; the code cache may hold 536870912"]


def test_off_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiles: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    cache = CodeCache(None)
    for _ in range(2):
        compile_module(GUEST, "it", cache)
    assert len(compiles) == 2
    assert not list(tmp_path.iterdir())
