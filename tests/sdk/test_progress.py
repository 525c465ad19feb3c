"""How far streams are: told now and then, and never able to hurt the run."""

import logging
from pathlib import Path
from typing import Any

import pytest

from tests import wat
from wasman_host import progress
from wasman_sdk import (
    BytesSource,
    Client,
    FileSink,
    FileSource,
    InvalidArgumentError,
    Runner,
    Session,
    Worker,
    Workflow,
)

CHUNK = 1000
COPY: Workflow[Any, Any] = Workflow("copy", Any, Any, module=wat.script(wat.copy(CHUNK)))


class Files(Session):
    source: FileSource | BytesSource
    target: FileSink


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def files(tmp_path: Path, size: int) -> Files:
    (tmp_path / "in").write_bytes(bytes(size))
    return Files(source=FileSource(path=tmp_path / "in"), target=FileSink(path=tmp_path / "out"))


async def test_an_application_is_told_of_both_directions_and_of_their_ends(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del anyio_backend
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    told: list[tuple[Any, ...]] = []
    async with Client.connect("memory://") as client, Worker(client, on_progress=lambda *given: told.append(given)):
        await client.execute_workflow(COPY, None, id="w", session=files(tmp_path, 3 * CHUNK + 1))
    sizes = [CHUNK, 2 * CHUNK, 3 * CHUNK, 3 * CHUNK + 1]
    assert [one for one in told if one[2] == "download"] == [
        ("w", "source", "download", n, 3 * CHUNK + 1) for n in sizes
    ]
    uploads = [("w", "target", "upload", n, None) for n in sizes]
    assert [one for one in told if one[2] == "upload"] == [*uploads, ("w", "target", "upload", *[3 * CHUNK + 1] * 2)]


async def test_it_is_told_now_and_then_only(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del anyio_backend
    monkeypatch.setattr(progress, "_EVERY", 3600.0)
    told: list[tuple[Any, ...]] = []
    session = files(tmp_path, 50 * CHUNK)
    options: Any = {"session_id": "w", "session": session, "on_progress": lambda *given: told.append(given[2:])}
    await Runner(wat.script(wat.copy(CHUNK)), **options).run()
    size = 50 * CHUNK
    assert told == [
        ("download", CHUNK, size), ("upload", CHUNK, None), ("download", size, size), ("upload", size, size),
    ]  # fmt: skip


async def test_what_it_raises_is_logged_and_hurts_nothing(
    anyio_backend: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    del anyio_backend

    def broken(*_: Any) -> None:
        message = "of the application's own"
        raise ValueError(message)

    async with Client.connect("memory://") as client, Worker(client, on_progress=broken):
        assert await client.execute_workflow(COPY, None, id="w", session=files(tmp_path, CHUNK)) == [CHUNK]
    raised = [one for one in caplog.records if one.name == "wasman.streams" and one.levelno == logging.ERROR]
    assert raised
    assert "on_progress has raised; the run of w goes on" in raised[0].getMessage()


async def nobody_awaits(*_: Any) -> None: ...


@pytest.mark.parametrize("given", ["no function", nobody_awaits])
def test_what_cannot_be_called_is_refused(given: Any) -> None:
    for make in (lambda: Worker("memory://", on_progress=given), lambda: Runner(b"", on_progress=given)):
        with pytest.raises(InvalidArgumentError, match="on_progress is a plain function"):
            make()
