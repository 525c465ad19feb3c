"""Bad input: a clear error each, that says what happened, to which instance, and what to do; and nothing is lost."""

import contextlib
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from wasmtime import wat2wasm

from tests import wat
from wasman_sdk import (
    ApplicationError,
    Client,
    FileSink,
    FileSource,
    InvalidArgumentError,
    InvalidModuleError,
    Limits,
    RetryPolicy,
    Session,
    Sink,
    Source,
    StoreSchemaError,
    StoreUnavailableError,
    Worker,
    Workflow,
    WorkflowAlreadyExistsError,
    WorkflowFailedError,
    WorkflowHandle,
    activity,
)

MEMORY = '(memory (export "memory") 1)'
RUN = '(func (export "run"))'


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend  # the loop that the client belongs to
    async with Client.connect("memory://") as client:
        yield client


def flow(module: bytes, **options: Any) -> Workflow[Any, Any]:
    return Workflow("flow", Any, Any, module=module, **options)


async def blocked(handle: WorkflowHandle[Any]) -> str:
    """Why the run is blocked; it must be."""
    with anyio.fail_after(15):
        while (found := await handle.describe()).status not in {"blocked", "completed", "failed"}:
            await anyio.sleep(0.01)
    assert found.status == "blocked", found.reason
    return found.reason


# Modules


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (b"", "is not wasm: it does not begin with the bytes \\0asm; compile the guest to a core module"),
        (b"#!/bin/sh\n", "is not wasm: it does not begin with the bytes \\0asm"),
        (b"\0asm\x0d\0\1\0", "is a wasm component or of an unknown version; wasman runs core modules of version 1"),
        (b"\0asm\1\0\0\0\1", "ends in the middle of a section"),
        (b"\0asm\1\0\0\0\1\x05\1\x60\0\0", "ends in the middle of a section"),
        (f'{MEMORY} (func (export "go"))', "lacks its entry 'run' or '_start'; it exports go"),
        (f"{MEMORY}", "lacks its entry 'run' or '_start'; it exports no function"),
        (f'{MEMORY} (func (export "run") (param f64))', "its entry 'run' is (f64) -> (); an entry takes and"),
        (
            f'{MEMORY} {RUN} (func (export "_initialize") (param i32))',
            "its initialiser '_initialize' is (i32) -> (); it takes and returns nothing",
        ),
        (
            f'{MEMORY} {RUN} (func (export "_start") (result f32) (f32.const 0))',
            "its initialiser '_start' is () -> (f32); it takes and returns nothing",
        ),
        (f'(import "env" "open" (func)) {MEMORY} {RUN}', "imports env.open, which wasman does not provide"),
        (f'(import "wasi_snapshot_preview1" "random_get" (func)) {MEMORY} {RUN}', "imports wasi_snapshot_preview1."),
        (f'(import "env" "m" (memory 1)) {RUN}', "imports its memory (env.m); build it so that it has, and ex"),
        (f'(import "env" "g" (global (mut i32))) {MEMORY} {RUN}', "imports the mutable global env.g, which no"),
        (f'(import "env" "g" (global i32)) {MEMORY} {RUN}', "imports the global env.g; wasman provides functions only"),
        (f'(import "env" "t" (table 1 funcref)) {MEMORY} {RUN}', "imports the table env.t; wasman provides functions"),
        (RUN, "has no memory; a guest needs one, exported as 'memory'"),
        (f"(memory 1) {RUN}", "does not export its memory as 'memory'"),
        (f'(memory (export "memory") 1 1 shared) {RUN}', "wants shared memory; threads would make it"),
        (f"{MEMORY} (global (mut externref) (ref.null extern)) {RUN}", "has a mutable global of type externref"),
        (
            b"\0asm\1\0\0\0\1\4\1\x60\0\0\3\2\1\0\5\3\1\0\1\7\x10\2\6memory\2\0\3run\0\0\x0a\5\1\3\0\x6a\x0b",
            "is not a valid module",
        ),
    ],
)  # fmt: skip
async def test_a_module_that_cannot_be_run(client: Client, module: bytes | str, message: str) -> None:
    data = module if isinstance(module, bytes) else bytes(wat2wasm(f"(module {module})"))
    with pytest.raises(InvalidModuleError) as raised:
        await client.start_workflow(flow(data), None, id="w")
    assert str(raised.value).startswith("the module of workflow 'flow'")
    assert message in str(raised.value)
    assert [one async for one in client.list_workflows()] == []
    await client.deploy(flow(wat.script()))  # the name is still free


async def test_a_module_that_is_not_there(client: Client, tmp_path: Path) -> None:
    lost: Workflow[None, None] = Workflow("flow", type(None), type(None), module=tmp_path / "none.wasm")
    with pytest.raises(InvalidArgumentError, match=r"none\.wasm of workflow 'flow' cannot be read: No such file"):
        await client.deploy(lost)
    with pytest.raises(InvalidArgumentError, match="workflow 'flow' has no module to deploy; give it one by module="):
        await client.deploy(Workflow("flow", type(None), type(None)))


# Guests


@pytest.mark.parametrize(
    ("guest", "limits", "message"),
    [
        (
            "(loop $l (br $l))",
            Limits(turn_seconds=0.1),
            "without a host call and may for 0.1 s; mend the guest or raise the limit, then unblock",
        ),
        (
            "(call $run)",
            Limits(),
            "the guest of w ran into the end of its stack, 524,288 bytes: its calls nest too deep",
        ),
        (
            "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1))) (unreachable))",
            Limits(memory=1024 * 1024),
            "bytes of memory and may use 1,048,576; mend the guest or raise the limit, then unblock",
        ),
    ],
    ids=["loops", "recurses", "grows"],
)
async def test_a_guest_without_bounds_is_blocked(client: Client, guest: str, limits: Limits, message: str) -> None:
    module = wat.module(f'{MEMORY} (func $run (export "run") {guest})')
    async with Worker(client):
        reason = await blocked(await client.start_workflow(flow(module, limits=limits), None, id="w"))
    assert reason.startswith("the guest of w ")
    assert message in reason
    assert "unblock" in reason or "terminate" in reason


@pytest.mark.parametrize(("pointer", "length"), [(-1, 1), (0, 0x7FFFFFFF), (65535, 2), (65536, 1), (-2, -2)])
async def test_a_pointer_outside_of_memory_is_answered_and_told(client: Client, pointer: int, length: int) -> None:
    step = wat.value(
        f"(call $host_call_api (i32.const {pointer + 3 * 65536 * (pointer > 0)}) (i32.const {length}) (i32.const 0) "
        "(i32.const 0) (i32.const 0) (i32.const 0))"
    )
    async with Worker(client):
        code, error = await client.execute_workflow(flow(wat.script(step, wat.call("wasman.error"))), None, id="w")
    assert code == -1
    assert error["type"] == "BadPointer"
    assert error["message"].startswith("the name at 0x")
    assert error["message"].endswith("bytes, is not inside the guest's memory")


async def test_a_name_that_is_not_utf8_is_answered_and_told(client: Client) -> None:
    async with Worker(client):
        module = wat.script(wat.call(b"\xc3\x28"), wat.call("wasman.error"))
        code, error = await client.execute_workflow(flow(module), None, id="w")
    assert (code, error["type"]) == (-1, "BadName")
    assert error["message"] == "host_call_api: the name b'\\xc3(' is not UTF-8"


# Activities


NOW = RetryPolicy(initial_interval=timedelta(0), maximum_attempts=2)


@activity(retry=NOW)
def raises(number: int) -> int:
    message = f"no {number}"
    raise RuntimeError(message)


@activity(retry=NOW)
def unreadable(number: int) -> int:
    raise FileNotFoundError(os.fsdecode(b"no file \xff")) from ValueError(f"\ud800 {number}")


class Mute(Exception):  # noqa: N818  as somebody else has called it
    def __str__(self) -> str:
        raise LookupError("it has no text")


@activity(retry=RetryPolicy(maximum_attempts=1))
def tells(what: str) -> None:
    nested: list[Any] = []
    for _ in range(240):
        nested = [nested]
    told = {"set": {1}, "object": object(), "text": "\ud800", "nan": float("nan"), "deep": nested, "bytes": b"\xff"}
    raise Mute if what == "mute" else ApplicationError("no", details=told[what])


@activity(retry=NOW)
def forbidden(number: int) -> int:
    return f"{number} apples"  # type: ignore[return-value]  # the mistake that is tested


@activity(retry=NOW)
def huge(number: int) -> bytes:
    return bytes(100_000_000 * number)


@pytest.mark.parametrize(
    ("name", "request_", "type_", "message", "attempt"),
    [
        ("raises", b"1", "RuntimeError", "no 1", 2),
        ("unreadable", b"1", "FileNotFoundError", "no file \\udcff", 2),
        ("forbidden", b"1", "InvalidResult", "what activity 'forbidden' returned does not fit its annotation", 1),
        (
            "raises",
            b'"x"',
            "InvalidRequest",
            "what the guest sent to activity 'raises' does not fit: the value itself",
            1,
        ),
        (
            "raises",
            b"{",
            "InvalidRequest",
            "what the guest sent to activity 'raises' does not fit: the value itself",
            1,
        ),
    ],
    ids=["raises", "text that UTF-8 lacks", "forbidden type", "wrong request", "no JSON"],
)
async def test_an_activity_that_misbehaves(
    client: Client, name: str, request_: bytes, type_: str, message: str, attempt: int
) -> None:
    async with Worker(client, activities=[raises, unreadable, forbidden, huge]):
        module = wat.script(wat.call(name, request_), wat.call("wasman.error"))
        code, error = await client.execute_workflow(flow(module), None, id="w")
    assert (code, error["type"], error["activity"], error["attempt"]) == (-1, type_, name, attempt)
    assert message in error["message"]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("set", [1]),
        ("nan", None),
        ("object", "(the details cannot be written: Unable to serialize unknown type: <class 'object'>)"),
        ("text", "(the details cannot be written: Error serializing to JSON: "),
        ("bytes", "(the details cannot be written: Error serializing to JSON: "),
        ("deep", "(the details cannot be written: recursion limit exceeded "),
        ("mute", None),
    ],
)
async def test_details_that_json_has_no_place_for(client: Client, what: str, told: object) -> None:
    async with Worker(client, activities=[tells]):
        module = wat.script(wat.call("tells", f'"{what}"'.encode()), wat.call("wasman.error"))
        with anyio.fail_after(15):
            _, error = await client.execute_workflow(flow(module), None, id="w")
    found = error.get("details")
    assert found == told or (isinstance(told, str) and found.startswith(told))
    assert error["message"] == ("(Mute tells nothing: LookupError('it has no text'))" if what == "mute" else "no")


async def test_an_activity_that_returns_too_much(client: Client) -> None:
    async with Worker(client, activities=[huge]):
        handle = await client.start_workflow(flow(wat.script(wat.call("huge", b"1"))), None, id="w")
        reason = await blocked(handle)
    assert reason == (
        "activity 'huge' returned 100,000,000 bytes and the guest of w may be given 16,777,216; raise the limit and "
        "unblock: it will be called again, under the same key "
        "(wasman unblock w --response BYTES)"
    )


# Ids


async def test_an_id_used_twice(client: Client) -> None:
    handle = await client.start_workflow(flow(wat.script()), None, id="twice")
    with pytest.raises(WorkflowAlreadyExistsError) as raised:
        await client.start_workflow(flow(wat.script()), None, id="twice")
    assert str(raised.value) == (
        f"workflow id 'twice' is taken by run {handle.run_id}, which is running; use another id, or its handle, or "
        "start with an id_conflict_policy: use_existing or terminate_existing"
    )
    assert raised.value.run_id == handle.run_id
    async with Worker(client):
        assert await handle.result() == []


@pytest.mark.parametrize(
    ("id_", "message"),
    [
        ("", "a workflow id is a non-empty string, not ''"),
        ("é" * 101, "the workflow id 'éééééééééééééééééééé'... has 202 bytes of UTF-8; at most 200 are allowed"),
        ("a/b", "the workflow id 'a/b' holds '/'; ids hold no '/', no '..' and no control characters"),
        ("..", "the workflow id '..' holds '..'"),
        ("a..b", "the workflow id 'a..b' holds '..'"),
        ("nul\0", "the workflow id 'nul\\x00' holds '\\x00'"),
        ("line\n", "the workflow id 'line\\n' holds '\\n'"),
        ("\ud800", "the workflow id '\\ud800' holds '\\ud800'"),
    ],
)
async def test_an_id_that_cannot_be_one(client: Client, id_: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        await client.start_workflow(flow(wat.script()), None, id=id_)
    assert str(raised.value).startswith(message)
    with pytest.raises(InvalidArgumentError):
        client.get_handle(id_)
    assert [one async for one in client.list_workflows()] == []


async def test_an_id_of_200_bytes_is_one(client: Client) -> None:
    for id_ in ("é" * 100, "a.b", ".", "x y", "'; drop table instance; --"):
        async with Worker(client):
            assert await client.execute_workflow(flow(wat.script()), None, id=id_) == []


# Stores


async def test_a_store_that_is_read_only(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with Client.connect(f"sqlite:///{path}") as client:
        await client.start_workflow(flow(wat.script()), None, id="w")
    # Not by permissions: the tests may run as root, whom nothing is forbidden.
    refused = pytest.raises(StoreUnavailableError, match="is read-only: make the file and its folder writable")
    with _made_read_only(), refused:
        async with Client.connect(f"sqlite:///{path}") as client:
            await client.start_workflow(flow(wat.script()), None, id="w2")
    async with Client.connect(f"sqlite:///{path}") as client, Worker(client):
        assert await client.get_handle("w").result() == []


@contextlib.contextmanager
def _made_read_only() -> Iterator[None]:
    """As a file system that is mounted read-only, for SQLite's own eyes."""
    connect = sqlite3.connect

    def readonly(database: str, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(database.replace("mode=rwc", "mode=ro"), **options)
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", readonly)
        yield


async def test_a_store_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    note_done: list[int] = []
    large = random.Random(1).randbytes(200_000).hex()  # what is stored is compressed

    @activity
    def note(number: int) -> int:
        note_done.append(number)
        return number

    async with Client.connect(f"sqlite:///{path}") as client:
        database = client.store._connection  # type: ignore[attr-defined]
        workflow = flow(wat.script(wat.call("note", b"1"), wat.call("note", b"2")))
        await client.start_workflow(workflow, None, id="first")
        [[pages]] = database.execute("pragma page_count")
        database.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(StoreUnavailableError) as raised:
            await client.start_workflow(workflow, large, id="too much")
        assert f"the store {path} is full: free some space on its disk" in str(raised.value)
        database.execute("pragma max_page_count = 1000000")
        async with Worker(client, activities=[note]):
            assert await client.get_handle("first").result() == [1, 2]
            assert await client.execute_workflow(workflow, large, id="too much") == [1, 2]
    assert note_done == [1, 2, 1, 2]


async def test_a_store_that_is_full_for_a_while_stops_no_run(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    done: list[int] = []

    @activity
    def note(number: int) -> bytes:
        done.append(number)
        if len(done) == 1:
            database.execute("pragma max_page_count = 1")  # which means: as many as there are
        return b'"%s"' % random.Random(number).randbytes(30_000).hex().encode()

    async with Client.connect(f"sqlite:///{path}") as client:
        database = client.store._connection  # type: ignore[attr-defined]
        workflow = flow(wat.script(wat.call("note", b"1", 5), wat.call("note", b"2", 5)))
        async with Worker(client, activities=[_on_the_loop(note)]):
            handle = await client.start_workflow(workflow, None, id="w")
            await anyio.sleep(0.5)
            assert (await handle.describe()).log_entries == 1
            database.execute("pragma max_page_count = 1000000")
            with anyio.fail_after(10):
                assert await handle.result() == [-2, -2]
    assert done == [1, 2]


def _on_the_loop(function: Any) -> Any:
    """The same activity, async: SQLite's connection belongs to the loop's thread."""

    @activity(name="note")
    async def note(number: int) -> bytes:
        return bytes(function(number))

    return note


async def test_a_store_that_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with Client.connect(f"sqlite:///{path}") as client:
        client.store.busy_timeout = 0.3  # type: ignore[attr-defined]
        await client.deploy(flow(wat.script()))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("begin immediate")
            with pytest.raises(StoreUnavailableError) as raised:
                await client.start_workflow(flow(wat.script()), None, id="w")
            other.execute("rollback")
        assert str(raised.value) == (
            f"the store {path} was locked by another process for 0.3 s: find out which one, and end it"
        )
        async with Worker(client):
            assert await client.execute_workflow(flow(wat.script()), None, id="w") == []


async def test_a_store_of_a_newer_schema(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with Client.connect(f"sqlite:///{path}") as client:
        await client.start_workflow(flow(wat.script()), None, id="w")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("pragma user_version = 99")
    with pytest.raises(StoreSchemaError) as raised:
        async with Client.connect(f"sqlite:///{path}"):
            pass
    assert "has schema 99, and this wasman knows 3: a newer wasman has made it, so upgrade this one" in str(
        raised.value
    )


@pytest.mark.parametrize("url", ["", "sqlite://", "sqlite:///", "postgres://x", "store.db", "sqlite:///a\0b"])
def test_a_url_that_names_no_store(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"names no store: use sqlite:///relative\.db"):
        Client.connect(url)


# Sessions


class Streams(Session):
    source: Source
    target: Sink


async def test_a_session_whose_file_is_missing(client: Client, tmp_path: Path) -> None:
    session = Streams(source=FileSource(path=tmp_path / "none"), target=FileSink(path=tmp_path / "out"))
    with pytest.raises(InvalidArgumentError) as raised:
        await client.start_workflow(flow(wat.script()), None, id="w", session=session)
    assert str(raised.value) == f"the source {tmp_path / 'none'} cannot be opened: No such file or directory"
    (tmp_path / "in").write_bytes(b"")
    session = Streams(source=FileSource(path=tmp_path / "in"), target=FileSink(path=tmp_path / "no" / "out"))
    with pytest.raises(InvalidArgumentError) as raised:
        await client.start_workflow(flow(wat.script()), None, id="w", session=session)
    assert str(raised.value) == (
        f"the sink {tmp_path / 'no' / 'out'} cannot be written: there is no folder {tmp_path / 'no'}"
    )
    assert [one async for one in client.list_workflows()] == []


@pytest.mark.parametrize("check_digest", [False, True])
async def test_a_session_whose_file_has_changed(client: Client, tmp_path: Path, *, check_digest: bool) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"before")
    session = Streams(source=FileSource(path=path, check_digest=check_digest), target=FileSink(path=tmp_path / "out"))
    handle = await client.start_workflow(flow(wat.script(wat.copy())), None, id="w", session=session)
    status = path.stat()
    path.write_bytes(b"after!")
    # With its digest even a file of the same length and time is found out.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (not check_digest)))
    async with Worker(client):
        reason = await blocked(handle)
        assert f"the source {path} has changed since the run started" in reason
        assert "put the old one back, then unblock, or terminate and start anew" in reason
        path.write_bytes(b"before")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        await handle.unblock()
        assert await handle.result() == [6]
    assert (tmp_path / "out").read_bytes() == b"before"


async def test_an_input_that_does_not_fit(client: Client) -> None:
    typed: Workflow[int, Any] = Workflow("flow", int, Any, module=wat.script(), limits=Limits(response=100))
    with pytest.raises(
        InvalidArgumentError,
        match="the input of workflow 'flow' does not fit: the value itself: Input should be a valid integer",
    ):
        await client.start_workflow(typed, "many", id="w")  # type: ignore[misc]  # the mistake that is tested
    with pytest.raises(InvalidArgumentError, match="the input of 'w' has 200 bytes; at most 100 are allowed"):
        await client.start_workflow(typed, 10**199, id="w")


async def test_a_result_that_is_not_of_its_type_is_told_and_kept(client: Client) -> None:
    typed: Workflow[None, int] = Workflow("flow", type(None), int, module=wat.script())
    async with Worker(client):
        with pytest.raises(InvalidArgumentError, match="the result of workflow 'flow' is not of its output type"):
            await client.execute_workflow(typed, None, id="w")
    assert await client.get_handle("w").result() == []


async def test_a_guest_that_fails_is_told_with_its_reason(client: Client) -> None:
    module = wat.script(wat.call("wasman.fail", b'{"type": "Empty", "message": "nothing to do"}'))
    async with Worker(client):
        with pytest.raises(WorkflowFailedError) as raised:
            await client.execute_workflow(flow(module), None, id="w")
    assert str(raised.value).endswith("of 'w' failed: Empty: nothing to do")
    assert raised.value.failure is not None
    assert raised.value.failure.type == "Empty"
