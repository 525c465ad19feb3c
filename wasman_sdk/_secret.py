"""Secrets that are stored by reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator

from wasman_host.references import resolved

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Secret"]


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
