"""Secrets by reference: what is stored says where a secret is found, and whoever needs it looks there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasman_host.errors import SecretUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["resolved", "said"]


def said(reference: Mapping[str, Any]) -> str:
    """Where the secret is, in words."""
    if "env" in reference:
        return f"the environment variable {reference['env']}"
    return f"the file {reference['file']}"


def resolved(reference: Mapping[str, Any]) -> str:
    """The secret that `{"env": name}` or `{"file": path}` refers to; of a file, without a newline at its end.

    Raises:
        SecretUnavailableError: It is not on this machine.
    """
    if "env" in reference:
        found = os.environ.get(reference["env"])
        if found is None:
            message = f"{said(reference)} is not set here; set it for the process that needs it"
            raise SecretUnavailableError(message)
        return found
    try:
        text = Path(reference["file"]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        message = f"{said(reference)}, which holds a secret, cannot be read here ({why}); put it there"
        raise SecretUnavailableError(message) from error
    return text.removesuffix("\n").removesuffix("\r")
