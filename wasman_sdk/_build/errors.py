"""What keeps a guest from being built."""

from __future__ import annotations

__all__ = ["BuildError", "NoCompilerError"]


class BuildError(Exception):
    """A guest cannot be built.

    Attributes:
        output: What the compiler said, "" where it was not asked.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class NoCompilerError(BuildError):
    """A compiler is absent, or of a version that builds something else; the message says what to install."""
