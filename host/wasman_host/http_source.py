"""A source that is read by HTTP(S), and is the same bytes at every reading.

A run pins the strong ETag that it was started with (RFC 9110, sections 8.8.3, 13.1.1 and 14.2). Every request asks for
it (`If-Match`), for the bytes from an offset on (`Range`), and the answer must name it again. A connection that is lost
is made again from where the reader stands; a server that has no ranges sends everything, and what was read is skipped.
What may pass is tried again for a while, and then blocks the run: no failure becomes an end of the bytes.

Where the sha256 of the whole is stated, no ETag is needed: it is fetched into a nameless file, compared, and read
there.

Imported when a source is opened: httpx is not needed for anything else.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import hashlib
import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import httpx
from attrs import frozen
from typing_extensions import override

from wasman_host.errors import SecretUnavailableError, SourceChangedError, StreamError
from wasman_host.references import resolved, said
from wasman_host.streams import FileSource, SourceReader

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping, Sequence

    from wasman_host.record import StreamSpec

__all__ = ["HttpSource", "identify_http"]

_PAUSES: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0, 20.0)  # seconds between attempts of which none gives a byte
_AT_START = 2  # pauses that a start waits
_RETRY_AFTER = 60.0  # seconds that a server may ask for
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = 10
_BLOCK = 1024 * 1024
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class _Empty(Exception):  # noqa: N818  not an error: there are no bytes at all
    """The first byte was asked for, and there is none."""


class _Transient(Exception):  # noqa: N818  not an error yet: it is tried again
    """What may pass."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


@functools.cache
def _trusted() -> ssl.SSLContext:
    return httpx.create_ssl_context()


@frozen
class _Answer:
    """An answer whose body has not been read.

    Attributes:
        response: Itself, to be closed.
        etag: Its strong ETag, "" where it has none.
        start: The offset of its body's first byte.
        total: How many bytes there are in all, or None where the server does not say.
    """

    response: httpx.Response
    etag: str
    start: int
    total: int | None


class _Requests:
    """Requests for one resource.

    Args:
        config: As the session has it: url, headers, timeout, decompress.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        url = config["url"]
        self.name = f"what the URL in {said(url)} names" if isinstance(url, dict) else _shown(url)
        self._encodings = {"", "identity", config.get("decompress") or ""}
        self._client: httpx.AsyncClient | None = None

    async def ask(self, offset: int, etag: str, last: int | None = None) -> _Answer:
        """The answer to a request for the bytes from `offset` on, to `last` at most.

        Raises:
            _Transient: It may pass.
            _Empty: `last` was given, and there is no byte.
            SourceChangedError: The server has not got what `etag` names.
            StreamError: Anything else.
        """
        try:
            response = await self._sent(offset, etag, last)
        except httpx.LocalProtocolError:
            # What is wrong with it would show it, and it may be a secret.
            message = f"the source {self.name} cannot be asked for: one of its headers is none; mend it, then unblock"
            raise StreamError(message) from None
        except (httpx.TransportError, OSError) as error:
            raise _Transient(f"{self.name} cannot be reached ({_told(error)})") from error
        except (httpx.InvalidURL, httpx.HTTPError, ValueError) as error:
            why = "its value is none" if isinstance(self._config["url"], dict) else _told(error)
            message = f"the source {self.name} cannot be asked for ({why}); mend that, then unblock"
            raise StreamError(message) from None
        except SecretUnavailableError as error:
            message = f"the source {self.name} cannot be asked for: {error}, then unblock"
            raise StreamError(message) from error
        try:
            return self._understood(response, offset, etag, last)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await response.aclose()
            raise

    async def _sent(self, offset: int, etag: str, last: int | None) -> httpx.Response:
        if self._client is None:
            timeout = httpx.Timeout(float(self._config["timeout"]))
            self._client = httpx.AsyncClient(verify=_trusted(), timeout=timeout, follow_redirects=False)
        client, config = self._client, self._config
        url = httpx.URL(_value(config["url"]))
        origin = (url.scheme, url.host, url.port)
        ours = {"Accept-Encoding": "identity"}
        if offset or last is not None:
            ours["Range"] = f"bytes={offset}-{'' if last is None else last}"
        if etag:
            ours["If-Match"] = etag
        theirs = {name: _value(value) for name, value in config["headers"].items()}
        for _ in range(_REDIRECTS):
            if url.scheme not in {"http", "https"}:
                message = f"it is redirected to {url.scheme!r}, which is neither http nor https"
                raise httpx.InvalidURL(message)
            # What was meant for one server is not told to another, whatever kind of secret it is.
            given = theirs if (url.scheme, url.host, url.port) == origin else {}
            response = await client.send(client.build_request("GET", url, headers={**given, **ours}), stream=True)
            if not response.has_redirect_location:
                return response
            await response.aclose()
            url = url.join(response.headers["location"])
        message = f"it is redirected more than {_REDIRECTS} times"
        raise httpx.InvalidURL(message)

    def _understood(self, response: httpx.Response, offset: int, etag: str, last: int | None) -> _Answer:
        status, headers = response.status_code, response.headers
        answer = f"{status} {response.reason_phrase}".strip()
        if status in _TRANSIENT:
            raise _Transient(f"{self.name} answers {answer}", _retry_after(headers.get("retry-after", "")))
        if status == httpx.codes.PRECONDITION_FAILED and etag:
            raise self._changed(f"its ETag was {etag}, and the server has not got that any more")
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and last is not None:
            raise _Empty
        if status not in {httpx.codes.OK, httpx.codes.PARTIAL_CONTENT}:
            more = (
                "" if status != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE else f" to a request for byte {offset} on"
            )
            message = f"the source {self.name} answers {answer}{more}; mend that, then unblock"
            raise StreamError(message)
        if headers.get("content-encoding", "") not in self._encodings:
            message = (
                f"the source {self.name} is sent with Content-Encoding {headers['content-encoding']!r}, and was asked "
                f"for as it is; mend that, then unblock"
            )
            raise StreamError(message)
        found = _strong(headers.get("etag", ""))
        if etag and found != etag:
            raise self._changed(f"its ETag was {etag}, it is {headers.get('etag') or 'missing'}")
        start, total = 0, _number(headers.get("content-length", ""))
        if status == httpx.codes.PARTIAL_CONTENT:
            match = _RANGE.fullmatch(headers.get("content-range", ""))
            if match is None or int(match[1]) != offset:
                given = headers.get("content-range") or "a part of which it does not say where it lies"
                message = f"the source {self.name} was asked for byte {offset} on and answers {given}; mend that server"
                raise StreamError(message)
            start, total = offset, _number(match[3])
        return _Answer(response, found, start, total)

    def _changed(self, how: str) -> SourceChangedError:
        return SourceChangedError(
            f"the source {self.name} has changed since the run started ({how}); put the old one back, then unblock, or "
            f"terminate and start anew"
        )

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


async def identify_http(config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells whether it is still the same: the sha256 that is stated, else its strong ETag and its length.

    Raises:
        StreamError: It cannot be asked for.
    """
    requests = _Requests(config)
    try:
        answer = await _answered(requests)
        await answer.response.aclose()
    finally:
        with anyio.CancelScope(shield=True):
            await requests.close()
    if config["sha256"]:
        return {"sha256": config["sha256"]}
    if not answer.etag:
        given = answer.response.headers.get("etag")
        message = (
            f"the source {requests.name} cannot be read again after a crash: its server gives "
            f"{f'only a weak validator, {given}' if given else 'no strong ETag'}; state what it is by sha256=..."
        )
        raise StreamError(message)
    return {"etag": answer.etag, "size": answer.total}


async def _answered(requests: _Requests) -> _Answer:
    """An answer that says what it is: to a request for one byte, since who serves signed URLs refuses HEAD."""
    last: int | None = 0
    for pause in (*_PAUSES[:_AT_START], None):
        try:
            return await requests.ask(0, "", last)
        except _Transient as error:
            if pause is None:
                raise StreamError(f"{error}; try again later") from error
            await anyio.sleep(max(pause, min(error.pause, 1.0)))
        except _Empty:
            last = None
    return await requests.ask(0, "", None)


class HttpSource(SourceReader):
    """Bytes of one resource; a connection stays open from one read to the next."""

    def __init__(self, spec: StreamSpec) -> None:
        self._requests = _Requests(spec.config)
        self._etag = str(spec.identity.get("etag", ""))
        self._length: int | None = spec.identity.get("size")
        self._answer: _Answer | None = None
        self._parts: AsyncIterator[bytes] | None = None
        self._at = 0  # where `_rest` begins
        self._rest = memoryview(b"")

    @classmethod
    async def open(cls, spec: StreamSpec) -> SourceReader:
        """Nothing is asked for yet, unless its digest is to be compared. Raises `StreamError`."""
        source = cls(spec)
        if "sha256" not in spec.identity:
            return source
        try:
            return await source.fetched(spec.identity["sha256"])
        finally:
            with anyio.CancelScope(shield=True):
                await source.close()

    @property
    @override
    def length(self) -> int | None:
        return self._length

    @override
    async def read_into(self, offset: int, view: memoryview) -> int:
        done = 0
        while done < len(view) and await self._come_to(offset + done):
            done += self._take(view[done:])
        return done

    @override
    def read_now(self, offset: int, view: memoryview) -> int | None:
        if self._length is not None:
            left = max(0, self._length - offset)
            view = view[:left] if left < len(view) else view
        if not view:
            return 0
        if offset != self._at or len(self._rest) < len(view):
            return None
        return self._take(view)

    def _take(self, view: memoryview) -> int:
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._at += count
        return count

    async def _come_to(self, offset: int) -> bool:
        """Have at least one byte from `offset` on; False where the source ends there."""
        failures = 0
        while not (self._rest and self._at == offset):
            if self._length is not None and offset >= self._length:
                return False
            try:
                if not await self._more(offset):
                    return False
            except (_Transient, httpx.TransportError, OSError) as error:
                await self._hang_up()
                if failures == len(_PAUSES):
                    message = (
                        f"the source {self._requests.name} cannot be read from byte {offset} on, after {failures + 1} "
                        f"attempts ({_told(error)}); mend that, then unblock"
                    )
                    raise StreamError(message) from error
                pause = error.pause if isinstance(error, _Transient) else 0.0
                await anyio.sleep(max(pause, _PAUSES[failures]))
                failures += 1
        return True

    async def _more(self, offset: int) -> bool:
        """Take one part of an answer's body, asking for one where there is none that leads to `offset`."""
        if self._parts is None or offset < self._at:
            await self._hang_up()
            self._answer = await self._requests.ask(offset, self._etag)
            self._check_total(self._answer)
            self._at, self._rest = self._answer.start, memoryview(b"")
            self._parts = self._answer.response.aiter_raw()
        part = await anext(self._parts, None)
        if part is None:
            end = self._at + len(self._rest)
            await self._hang_up()
            if self._length is not None and end < self._length:
                raise _Transient(f"it ended after {end} of {self._length} bytes")
            if end < offset:
                message = f"the source {self._requests.name} ended at byte {end}, and the run goes on at byte {offset}"
                raise SourceChangedError(message)
            self._length = end
            return False
        end = self._at + len(self._rest) + len(part)
        self._at, self._rest = end - len(part), memoryview(part)
        if self._at < offset:  # of a server without ranges: these were read before
            skipped = min(len(part), offset - self._at)
            self._at, self._rest = self._at + skipped, self._rest[skipped:]
        return True

    def _check_total(self, answer: _Answer) -> None:
        if self._length is None:
            self._length = answer.total
        elif answer.total not in {None, self._length}:
            message = (
                f"the source {self._requests.name} has {answer.total} bytes, and had {self._length}, under one ETag; "
                f"mend its server, or terminate and start anew"
            )
            raise SourceChangedError(message)

    async def fetched(self, digest: str) -> FileSource:
        """All of it in a nameless file, compared with its sha256. Raises `SourceChangedError` where it is another."""
        taken, at, block = hashlib.sha256(), 0, memoryview(bytearray(_BLOCK))
        try:
            with tempfile.TemporaryFile() as file:
                while count := await self.read_into(at, block):
                    await anyio.to_thread.run_sync(file.write, block[:count])
                    await anyio.to_thread.run_sync(taken.update, block[:count])
                    at += count
                file.flush()
                if taken.hexdigest() != digest:
                    message = (
                        f"the source {self._requests.name} is not what was stated: its sha256 is "
                        f"{taken.hexdigest()} and should be {digest}; put the right one there, then unblock, or "
                        f"terminate and start anew"
                    )
                    raise SourceChangedError(message)
                return FileSource(Path(self._requests.name), os.dup(file.fileno()), at)
        except OSError as error:
            message = f"the source {self._requests.name} cannot be kept ({error.strerror}); mend that, then unblock"
            raise StreamError(message) from error

    async def _hang_up(self) -> None:
        parts, self._parts = self._parts, None
        answer, self._answer = self._answer, None
        with anyio.CancelScope(shield=True):
            if parts is not None:
                # Closed from outside, generators within it would be left to the garbage collector, of which trio warns.
                with anyio.CancelScope() as scope, contextlib.suppress(httpx.HTTPError, OSError):
                    scope.cancel()
                    while await anext(parts, None) is not None:
                        pass
            if answer is not None:
                await answer.response.aclose()

    @override
    async def close(self) -> None:
        await self._hang_up()
        await self._requests.close()


def _value(given: str | Mapping[str, Any]) -> str:
    return given if isinstance(given, str) else resolved(given)


def _shown(url: str) -> str:
    """A URL without what may be secret in it."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "of that URL"
    return f"{parsed.scheme}://{parsed.netloc.decode()}{parsed.path}"


def _strong(etag: str) -> str:
    return etag if etag.startswith('"') else ""


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after(given: str) -> float:
    """Seconds that the server asks for, by number or date."""
    if given.isdecimal():
        return min(float(given), _RETRY_AFTER)
    try:
        seconds = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, min(seconds, _RETRY_AFTER))
