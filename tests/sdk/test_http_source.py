"""A source by HTTP against a real server that loses connections, changes, stalls, and has no ranges."""

import gzip
import hashlib
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import ValidationError

from tests import wat
from wasman_host import http_source
from wasman_sdk import (
    Client,
    FileSink,
    HttpSource,
    InvalidArgumentError,
    Runner,
    Secret,
    Session,
    SimulatedCrashError,
    TestRunner,
    Worker,
    Workflow,
)

CHUNK = 10_000
COPY: Workflow[Any, Any] = Workflow("copy", Any, Any, module=wat.script(wat.copy(CHUNK)))


class Fetch(Session):
    download: HttpSource
    upload: FileSink


class Site:
    """What one server has, and what is wrong with it.

    Attributes:
        data: What every path names.
        etag: Its ETag; "" for none.
        ranges: Whether it knows `Range`.
        matches: Whether it knows `If-Match`.
        lengths: Whether it says how long a body is; else its end is that of the connection.
        drops: How many bytes of a body it sends before it drops the connection, one for each answer.
        statuses: What it answers instead, one for each request.
        stalls: In how many bodies it waits, in the middle, until it is closed.
        changes: What it has from the next request for more than the first byte on: data and ETag.
        headers: What it sends besides.
        redirects: Where it sends on to, by path.
        seen: The requests so far: their path and headers.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.etag = data, '"one"'
        self.ranges = self.matches = self.lengths = True
        self.drops: list[int] = []
        self.statuses: list[int] = []
        self.stalls = 0
        self.changes: tuple[bytes, str] | None = None
        self.headers: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.closed = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/data"

    @property
    def ranges_seen(self) -> list[str]:
        return [headers.get("range", "") for _, headers in self.seen]

    def close(self) -> None:
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.seen.append((request.path, {name.lower(): value for name, value in request.headers.items()}))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if asked is None or asked[2] != "0":
            if self.changes is not None:
                self.data, self.etag = self.changes
            if self.statuses:
                self.refuse(request, self.statuses.pop(0))
                return
        if request.path in self.redirects:
            self.refuse(request, 302, location=self.redirects[request.path])
            return
        if self.matches and request.headers.get("If-Match", self.etag) != self.etag:
            self.refuse(request, 412)
            return
        start, body = 0, self.data
        if self.ranges and asked is not None:
            start = int(asked[1])
            body = self.data[start : int(asked[2]) + 1 if asked[2] else None]
            if not body:
                self.refuse(request, 416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(self.data)}")
        else:
            request.send_response(200)
        if self.etag:
            request.send_header("ETag", self.etag)
        for name, value in self.headers.items():
            request.send_header(name, value)
        if self.lengths:
            request.send_header("Content-Length", str(len(body)))
        else:
            request.send_header("Connection", "close")
        request.end_headers()
        probed = asked is not None and asked[2] == "0"
        stop = len(body)
        if self.drops and not probed:
            stop = min(stop, self.drops.pop(0))
        stalls = self.stalls and not probed
        try:
            request.wfile.write(body[: stop // 2 if stalls else stop])
            if stalls:
                self.stalls -= 1
                self.closed.wait(20)
        except OSError:
            stop = 0
        if stop < len(body) or stalls:
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)

    def refuse(self, request: BaseHTTPRequestHandler, status: int, location: str = "") -> None:
        request.send_response(status)
        if location:
            request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_source, "_PAUSES", (0.0, 0.001, 0.001, 0.001))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(random.Random(1).randbytes(30 * CHUNK + 1))
    yield site
    site.close()


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect("memory://") as client, Worker(client):
        yield client


def session(site: Site, tmp_path: Path, **options: Any) -> Fetch:
    return Fetch(download=HttpSource(url=site.url, **options), upload=FileSink(path=tmp_path / "out"))


async def until_blocked(client: Client, id: str = "w") -> str:
    with anyio.fail_after(10):
        while (found := await client.get_handle(id).describe()).status != "blocked":
            await anyio.sleep(0.01)
    return found.reason


async def copied(client: Client, site: Site, tmp_path: Path, **options: Any) -> None:
    data = site.data
    with anyio.fail_after(20):
        await client.execute_workflow(COPY, None, id="w", session=session(site, tmp_path, **options))
    assert (tmp_path / "out").read_bytes() == data


async def test_it_is_read_in_one_request(client: Client, site: Site, tmp_path: Path) -> None:
    await copied(client, site, tmp_path)
    assert site.ranges_seen == ["bytes=0-0", ""]
    assert site.seen[1][1]["if-match"] == '"one"'


async def test_an_empty_one(client: Client, site: Site, tmp_path: Path) -> None:
    site.data = b""
    await copied(client, site, tmp_path)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("seed", range(4))
async def test_connections_that_are_lost_anywhere(
    client: Client,
    site: Site,
    tmp_path: Path,
    ranges: bool,  # noqa: FBT001  pytest passes it by name
    seed: int,
) -> None:
    draw = random.Random(seed)
    site.ranges = ranges
    site.drops = [draw.choice([1, draw.randrange(len(site.data)), CHUNK, CHUNK + 1]) for _ in range(12)]
    if not ranges:  # what was read before is sent again, and counts for nothing
        site.drops = sorted({*site.drops, CHUNK})[-4:]
    await copied(client, site, tmp_path)
    assert len(site.seen) > 3
    assert (len(set(site.ranges_seen)) > 3) is ranges or not ranges


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_body_that_ends_early_is_no_end(
    client: Client,
    site: Site,
    tmp_path: Path,
    ranges: bool,  # noqa: FBT001  pytest passes it by name
) -> None:
    site.lengths, site.drops = False, [CHUNK, 2 * CHUNK]
    handle = await client.start_workflow(COPY, None, id="w", session=session(site, tmp_path))
    site.ranges = ranges
    assert await handle.result() == [len(site.data)]
    assert (tmp_path / "out").read_bytes() == site.data


async def test_a_run_that_comes_back_asks_from_where_its_snapshot_stands(
    anyio_backend: str, site: Site, tmp_path: Path
) -> None:
    del anyio_backend
    read = wat.value(f"(call $stream_data (i32.const 0) (i32.const {wat.BUFFER}) (i32.const {CHUNK}))")
    write = wat.value(f"(call $stream_data (i32.const 1) (i32.const {wat.BUFFER}) (i32.const {CHUNK}))")
    module = wat.script(read, write, wat.checkpoint(), read, write, wat.checkpoint(), wat.copy(CHUNK), reentrant=True)
    async with Client.connect("memory://") as client:
        options: Any = {"session_id": "w", "store": client, "session": session(site, tmp_path)}
        for _ in range(2):
            with pytest.raises(SimulatedCrashError):
                await TestRunner(module, crash_at=1, **options).run()
        await Runner(module, **options).run()
    assert (tmp_path / "out").read_bytes() == site.data
    assert site.ranges_seen == ["bytes=0-0", "", f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]


@pytest.mark.parametrize("matches", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
async def test_one_that_changes_blocks_the_run_and_goes_on_when_it_is_back(
    client: Client,
    site: Site,
    tmp_path: Path,
    matches: bool,  # noqa: FBT001  pytest passes it by name
    ranges: bool,  # noqa: FBT001  the same
) -> None:
    whole = site.data
    site.matches, site.ranges = matches, ranges
    handle = await client.start_workflow(COPY, None, id="w", session=session(site, tmp_path))
    site.drops = [5 * CHUNK + 1]
    site.changes = (whole, '"two"')
    reason = await until_blocked(client)
    assert f"the source {site.url} has changed since the run started" in reason
    assert '"one"' in reason
    site.changes = (whole, '"one"')
    await handle.unblock()
    await handle.result()
    assert (tmp_path / "out").read_bytes() == whole


async def test_a_shorter_one_under_the_same_etag_blocks(client: Client, site: Site, tmp_path: Path) -> None:
    await client.start_workflow(COPY, None, id="w", session=session(site, tmp_path))
    site.changes = (site.data[:CHUNK], '"one"')
    assert f"has {CHUNK} bytes, and had {len(site.data)}, under one ETag" in await until_blocked(client)


@pytest.mark.parametrize(("etag", "told"), [("", "no strong ETag"), ('W/"one"', 'only a weak validator, W/"one"')])
async def test_one_without_a_strong_validator_is_refused_at_the_start(
    client: Client, site: Site, tmp_path: Path, etag: str, told: str
) -> None:
    site.etag = etag
    with pytest.raises(InvalidArgumentError, match=f"after a crash: its server gives {re.escape(told)}; state what"):
        await client.start_workflow(COPY, None, id="w", session=session(site, tmp_path))
    assert await client.count() == 0


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_stated_digest_is_a_validator(
    client: Client,
    site: Site,
    tmp_path: Path,
    ranges: bool,  # noqa: FBT001  pytest passes it by name
) -> None:
    site.etag, site.ranges, site.drops = "", ranges, [3 * CHUNK]
    await copied(client, site, tmp_path, sha256=hashlib.sha256(site.data).hexdigest())


async def test_another_digest_blocks_before_a_byte_is_seen(client: Client, site: Site, tmp_path: Path) -> None:
    site.etag = ""
    await client.start_workflow(COPY, None, id="w", session=session(site, tmp_path, sha256="0" * 64))
    assert f"the source {site.url} is not what was stated: its sha256 is" in await until_blocked(client)
    assert not [one async for one in anyio.Path(tmp_path).iterdir()]


async def test_what_passes_is_waited_for(client: Client, site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429, 500]
    await copied(client, site, tmp_path)


async def test_what_does_not_pass_blocks_the_run_which_goes_on_later(
    client: Client, site: Site, tmp_path: Path
) -> None:
    handle = await client.start_workflow(COPY, None, id="w", session=session(site, tmp_path))
    site.statuses = [500] * 5
    told = f"the source {site.url} cannot be read from byte 0 on, after 5 attempts ({site.url} answers 500"
    assert told in await until_blocked(client)
    await handle.unblock()
    await handle.result()
    assert (tmp_path / "out").read_bytes() == site.data


@pytest.mark.parametrize("status", [403, 404, 410, 416])
async def test_what_is_refused_in_the_middle_blocks_at_once(
    client: Client, site: Site, tmp_path: Path, status: int
) -> None:
    site.drops = [CHUNK]
    await client.start_workflow(COPY, None, id="w", session=session(site, tmp_path))
    with anyio.fail_after(10):
        while site.drops:
            await anyio.sleep(0.001)
    site.statuses = [status]
    handle = client.get_handle("w")
    with anyio.fail_after(10):
        while (found := await handle.describe()).status not in {"blocked", "completed"}:
            await anyio.sleep(0.01)
    if found.status == "blocked":  # else it was read to its end before the server changed its mind
        assert f"the source {site.url} answers {status} " in found.reason


@pytest.mark.parametrize("status", [401, 404])
async def test_what_is_not_there_is_refused_at_the_start(
    client: Client, site: Site, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "answer", lambda request: site.refuse(request, status))
    with pytest.raises(
        InvalidArgumentError, match=f"^the source {re.escape(site.url)} answers {status} .*; mend that$"
    ):
        await client.start_workflow(COPY, None, id="w", session=session(site, tmp_path))


async def test_nobody_listens(client: Client, site: Site, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x?page=hidden"
        given = Fetch(download=HttpSource(url=url), upload=FileSink(path=tmp_path / "out"))
        with pytest.raises(InvalidArgumentError, match=r"/x cannot be reached \(.*\); try again later"):
            await client.start_workflow(COPY, None, id="w", session=given)
    assert not site.seen


async def test_one_that_stalls_is_asked_again(client: Client, site: Site, tmp_path: Path) -> None:
    site.stalls = 2
    await copied(client, site, tmp_path, timeout=0.2)
    assert len(site.seen) == 4


async def test_one_that_insists_on_an_encoding_is_refused(client: Client, site: Site, tmp_path: Path) -> None:
    site.headers["Content-Encoding"] = "br"
    with pytest.raises(InvalidArgumentError, match="is sent with Content-Encoding 'br', and was asked for as it is"):
        await client.start_workflow(COPY, None, id="w", session=session(site, tmp_path))


# Redirects, and what is secret


async def test_a_redirect_is_followed_and_told_no_secrets(
    client: Client, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SITE_TOKEN", "s3cret")
    other = Site(site.data)
    try:
        site.redirects = {"/data": "/here", "/here": other.url.replace("/data", "/there")}
        headers = {"X-Token": Secret.from_env("SITE_TOKEN"), "X-Plain": "plain"}
        await copied(client, site, tmp_path, headers=headers)
        assert {path for path, _ in other.seen} == {"/there"}
        assert not any("x-token" in headers or "x-plain" in headers for _, headers in other.seen)
        assert all(headers["x-token"] == "s3cret" for _, headers in site.seen)
        assert other.ranges_seen == ["bytes=0-0", ""]
    finally:
        other.close()


async def test_a_redirect_without_end(client: Client, site: Site, tmp_path: Path) -> None:
    site.redirects = {"/data": "/data"}
    with pytest.raises(InvalidArgumentError, match="it is redirected more than 10 times"):
        await client.start_workflow(COPY, None, id="w", session=session(site, tmp_path))


async def test_a_secret_that_a_worker_has_not_blocks_and_is_named(
    client: Client, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SITE_URL", site.url + "?signature=hidden")
    options = Fetch(download=HttpSource(url=Secret.from_env("SITE_URL")), upload=FileSink(path=tmp_path / "out"))
    for name in ("first", "second"):
        handle = await client.start_workflow(COPY, None, id=name, session=options)
        monkeypatch.delenv("SITE_URL")
        reason = await until_blocked(client, name)
        assert "the environment variable SITE_URL is not set here" in reason
        assert "hidden" not in reason
        monkeypatch.setenv("SITE_URL", site.url + "?signature=hidden")
        await handle.unblock()
        await handle.result()
    assert site.seen[-1][0] == "/data?signature=hidden"


async def test_a_header_that_is_none_does_not_show_its_secret(
    client: Client, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SITE_TOKEN", "hidden\nhidden")
    given = session(site, tmp_path, headers={"X-Token": Secret.from_env("SITE_TOKEN")})
    with pytest.raises(InvalidArgumentError, match="one of its headers is none") as caught:
        await client.start_workflow(COPY, None, id="w", session=given)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": "ftp://example.org/x"}, "begins with http:// or https:// and a host"),
        ({"url": "http:///x"}, "begins with http:// or https:// and a host"),
        ({"url": "http://example.org", "headers": {"range": "bytes=0-"}}, "the header range is wasman's own"),
        ({"url": "http://example.org", "sha256": "abc"}, "sha256"),
        ({"url": "http://example.org", "timeout": 0}, "timeout"),
    ],
)
def test_what_cannot_be_a_source_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        HttpSource(**options)


def test_wasman_is_imported_without_httpx() -> None:
    program = "import sys, wasman_sdk; print('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout == b"False\n"


@pytest.mark.parametrize("encoding", [{}, {"Content-Encoding": "gzip"}])
async def test_what_is_compressed_is_inflated_on_the_way(
    client: Client, site: Site, tmp_path: Path, encoding: dict[str, str]
) -> None:
    data = site.data
    site.data, site.headers = gzip.compress(data), encoding
    site.drops = [CHUNK, 3 * CHUNK]
    with anyio.fail_after(20):
        await client.execute_workflow(COPY, None, id="w", session=session(site, tmp_path, decompress="gzip"))
    assert (tmp_path / "out").read_bytes() == data
