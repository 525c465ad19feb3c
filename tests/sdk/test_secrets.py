"""Secrets in a session: refused, unless they are references."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import AnyUrl, BaseModel, Field, SecretBytes, SecretStr, ValidationError

from tests import wat
from wasman_sdk import (
    BytesSource,
    Client,
    HttpSource,
    InvalidArgumentError,
    Secret,
    SecretUnavailableError,
    Session,
    Worker,
    Workflow,
    activity,
)

CALL: Workflow[Any, Any] = Workflow("call", Any, Any, module=wat.script(wat.call("use")))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Inner(BaseModel):
    api_key: str


class Given(Session):
    note: Any = None
    password: str | Secret = ""
    inner: Inner | None = None
    headers: dict[str, str | Secret] = Field(default_factory=dict)
    max_tokens: int = 5
    page_token: str = "x"
    data: BytesSource | None = None
    download: HttpSource | None = None


HIDDEN = "hunter2"


@pytest.mark.parametrize(
    ("session", "field", "why"),
    [
        (Given(note=SecretStr(HIDDEN)), "note", "is a SecretStr"),
        (Given(note={"deep": [1, SecretBytes(HIDDEN.encode())]}), "note.deep.1", "is a SecretBytes"),
        (Given(password=HIDDEN), "password", "is called as credentials are"),
        (Given(inner=Inner(api_key=HIDDEN)), "inner.api_key", "is called as credentials are"),
        (Given(headers={"Authorization": HIDDEN}), "headers.Authorization", "is called as credentials are"),
        (Given(headers={"x-auth-token": HIDDEN}), "headers.x-auth-token", "is called as credentials are"),
        (Given(note=f"postgres://user:{HIDDEN}@host/db"), "note", "is a URL with a password"),
        (Given(note=AnyUrl(f"amqp://user:{HIDDEN}@host/db")), "note", "is a URL with a password"),
        (Given(note=f"https://host/x?a=1&X-Amz-Signature={HIDDEN}"), "note", "is a URL with X-Amz-Signature= in it"),
        (
            Given(note=f"-----BEGIN RSA PRIVATE KEY-----\n{HIDDEN}"),
            "note",
            "holds a private key",
        ),
        (
            Given(download=HttpSource(url=f"https://user:{HIDDEN}@host/x")),
            "download.url",
            "is a URL with a password",
        ),
        (
            Given(download=HttpSource(url="https://host/x", headers={"Cookie": HIDDEN})),
            "download.headers.Cookie",
            "is called as credentials are",
        ),
    ],
)
async def test_a_secret_is_refused_and_its_field_named(
    session: Given, field: str, why: str, anyio_backend: str
) -> None:
    del anyio_backend
    async with Client.connect("memory://") as client:
        told = f"the session's {field!r} {why}, and a session is stored as it is; give a reference instead"
        with pytest.raises(InvalidArgumentError, match=re.escape(told)) as caught:
            await client.start_workflow(CALL, None, id="w", session=session)
        assert HIDDEN not in str(caught.value)
        assert await client.count() == 0


async def test_a_reference_is_stored_and_found_where_it_is_needed(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del anyio_backend
    (tmp_path / "token").write_text("from the file\n")
    monkeypatch.setenv("TEST_PASSWORD", "from the environment")
    seen: list[str] = []

    @activity
    async def use(session: Given) -> None:
        assert isinstance(session.password, Secret)
        token = session.headers["authorization"]
        assert isinstance(token, Secret)
        seen.extend((session.password.get_secret_value(), token.get_secret_value(), repr(session)))

    session = Given(
        note="https://user@host:80/x?page=2#a:b@c",
        password=Secret.from_env("TEST_PASSWORD"),
        headers={"authorization": Secret.from_file(tmp_path / "token")},
        data=BytesSource(data=b"https://a:b@c"),
    )
    stored = session.model_dump_json()
    assert '"password":{"env":"TEST_PASSWORD"}' in stored
    assert "from the" not in stored
    async with Client.connect("memory://") as client, Worker(client, activities=[use]):
        await client.execute_workflow(CALL, None, id="w", session=session)
    assert seen[:2] == ["from the environment", "from the file"]
    assert "from the" not in seen[2]


def test_a_secret_that_is_not_there_says_where_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_PASSWORD", raising=False)
    with pytest.raises(SecretUnavailableError, match="the environment variable TEST_PASSWORD is not set here"):
        Secret.from_env("TEST_PASSWORD").get_secret_value()
    with pytest.raises(SecretUnavailableError, match=r"the file .*/nowhere, which holds a secret, cannot be read here"):
        Secret.from_file(tmp_path / "nowhere").get_secret_value()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SecretUnavailableError, match="it is no UTF-8"):
        Secret.from_file(tmp_path / "binary").get_secret_value()


@pytest.mark.parametrize("given", [{}, {"env": ""}, {"env": "A", "file": "/b"}, {"value": "x"}])
def test_a_reference_is_one_place(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Secret.model_validate(given)
