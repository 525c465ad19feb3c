"""One fresh process of the test of memory: a guest streams, and what the process came to at most is printed, in bytes.

python streaming.py download|upload BYTES FOLDER
"""

import os
import resource
import sys
from pathlib import Path

import anyio
from wasmtime import wat2wasm

from wasman_sdk import Client, FileSink, FileSource, Session, Sink, Source, Worker, Workflow

CHUNK = 65536

# Both give the bytes that were moved. The buffer is the memory's second page.
GUEST = f"""
(module
  (import "env" "stream_data" (func $stream (param i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "download") (param i64) (result i64) (local $n i32) (local $all i64)
    (loop $more
      (local.set $n (call $stream (i32.const 0) (i32.const {CHUNK}) (i32.const {CHUNK})))
      (local.set $all (i64.add (local.get $all) (i64.extend_i32_s (local.get $n))))
      (br_if $more (i32.gt_s (local.get $n) (i32.const 0))))
    (local.get $all))
  (func (export "upload") (param $left i64) (result i64) (local $all i64)
    (loop $more
      (i64.store (i32.const {CHUNK}) (local.get $all))
      (local.set $all (i64.add (local.get $all) (i64.extend_i32_s
        (call $stream (i32.const 1) (i32.const {CHUNK}) (i32.const {CHUNK})))))
      (br_if $more (i64.lt_u (local.get $all) (local.get $left))))
    (drop (call $stream (i32.const 1) (i32.const 0) (i32.const 0)))
    (local.get $all)))
"""


class Download(Session):
    source: Source


class Upload(Session):
    target: Sink


async def stream(direction: str, size: int, folder: Path) -> None:
    workflow = Workflow("stream", int, int, module=wat2wasm(GUEST), entry=direction)
    session: Session = Upload(target=FileSink(path=folder / "out"))
    if direction == "download":
        source = folder / "in"
        source.touch()
        os.truncate(source, size)  # a hole: read like any file, and takes no room
        session = Download(source=FileSource(path=source))
    async with Client.connect(f"sqlite:///{folder}/wasman.db") as client, Worker(client, workflows=[workflow]):
        assert await client.execute_workflow(workflow, size, id="stream", session=session) == size
    if direction == "upload":
        assert (folder / "out").stat().st_size == size


if __name__ == "__main__":
    anyio.run(stream, sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.write(1, str(peak if sys.platform == "darwin" else 1024 * peak).encode())
