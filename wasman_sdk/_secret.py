"""Secrets that are stored by reference, and the refusal of all others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator

from wasman_host.errors import InvalidArgumentError
from wasman_host.references import resolved

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Secret", "refuse_secrets"]

_CREDENTIAL = re.compile(
    r"(^|[_-])(password|passwd|pwd|passphrase|secret|credentials?|bearer|authorization|cookie"
    r"|(api|secret|private|access|account)[_-]?key|(access|auth|api|refresh|session|id|bearer)[_-]?token)$"
    r"|^token$|^x-.*(token|key)$",
    re.IGNORECASE,
)
_SIGNED = re.compile(
    r"(^|[_-])(sig|signature|security-token|token|password|secret|(api|access|account)[_-]?key)$", re.IGNORECASE
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


class Secret(BaseModel):
    """Where a secret is found; only that is stored: `Secret.from_env("API_TOKEN")`, `Secret.from_file("/run/token")`.

    Attributes:
        env: The name of an environment variable of the process that needs it.
        file: The path of a file where that process runs.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    env: str | None = None
    file: Path | None = None

    @classmethod
    def from_env(cls, name: str) -> Secret:
        """The value of an environment variable, in whichever process needs it."""
        return cls(env=name)

    @classmethod
    def from_file(cls, path: Path | str) -> Secret:
        """The text of a file, without a newline at its end; an absolute path, the same on every machine."""
        return cls(file=Path(path).absolute())

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (not self.env) == (self.file is None):
            message = "a Secret is the name of an environment variable or the path of a file"
            raise ValueError(message)
        return self

    @model_serializer(mode="plain")
    def reference(self) -> dict[str, str]:
        """What is stored."""
        return {"env": self.env} if self.env else {"file": str(self.file)}

    def get_secret_value(self) -> str:
        """Look it up, where it is needed.

        Raises:
            SecretUnavailableError: It is not on this machine.
        """
        return resolved(self.reference())


def refuse_secrets(session: BaseModel) -> None:
    """Raise `InvalidArgumentError` for what is a secret in a session, or looks like one; it names the field."""
    for path, name, value in _leaves(session, "", ""):
        why = _secret(name, value)
        if why:
            message = (
                f"the session's {path.removeprefix('.')!r} {why}, and a session is stored as it is; give a reference "
                f'instead, by a field of type Secret: Secret.from_env("NAME") or Secret.from_file(path)'
            )
            raise InvalidArgumentError(message)


def _leaves(value: Any, path: str, name: str) -> Iterator[tuple[str, str, Any]]:
    """What a session holds: its path, the name that it has there, and itself."""
    if isinstance(value, Secret):
        return
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, f"{path}.{key}", str(key))
    elif isinstance(value, list | tuple | set | frozenset):
        for place, one in enumerate(value):
            yield from _leaves(one, f"{path}.{place}", name)
    else:
        yield path, name, value


def _secret(name: str, value: Any) -> str:
    """Why it is taken for a secret, or ""."""
    if hasattr(value, "get_secret_value"):
        return f"is a {type(value).__name__}"
    if isinstance(value, str | bytes) and value and _CREDENTIAL.search(name):
        return "is called as credentials are"
    text = value if isinstance(value, str) else str(value) if hasattr(value, "unicode_string") else ""
    if "://" in text:
        try:
            parts = urlsplit(text)
            if parts.password:
                return "is a URL with a password"
            signed = [key for key, one in parse_qsl(parts.query) if one and _SIGNED.search(key)]
        except ValueError:
            return ""
        return f"is a URL with {signed[0]}= in it" if signed else ""
    return "holds a private key" if _PRIVATE_KEY.search(text) else ""
