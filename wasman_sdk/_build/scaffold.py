"""A new project: a guest with a test, and an application that runs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from wasman_sdk._build.errors import BuildError
from wasman_sdk._build.sdk import write_workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["write_project"]

_TEMPLATE = Path(__file__).with_name("template")
_IGNORED = """# of this machine
guest/go.work
guest/go.work.sum

# what is built, and what a run leaves
*.wasm
*.db*
__pycache__/
"""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def write_project(folder: Path) -> Sequence[Path]:
    """Write a project into a new folder; its files, relative to the folder.

    Raises:
        BuildError: Something is there already, the name is none for a Go module, or it cannot be written.
    """
    if not _NAME.fullmatch(folder.name):
        message = f"{folder.name!r} is no name for a project: letters, digits, - and _, a letter first"
        raise BuildError(message)
    written = []
    try:
        folder.mkdir(parents=True)
        for source in sorted(
            path for path in _TEMPLATE.rglob("*") if path.is_file() and path.parent.name != "__pycache__"
        ):
            target = folder / source.relative_to(_TEMPLATE)
            target.parent.mkdir(exist_ok=True)
            target.write_text(source.read_text("utf-8").replace("PROJECT", folder.name), "utf-8")
            written.append(target.relative_to(folder))
        (folder / ".gitignore").write_text(_IGNORED, "utf-8")
        written.insert(0, Path(".gitignore"))
        write_workspace(folder / "guest")
    except FileExistsError:
        raise BuildError(f"{folder} is there already: name a folder that is not") from None
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error.strerror}") from None
    return written
