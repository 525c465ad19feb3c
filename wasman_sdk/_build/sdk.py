"""The guest SDK that came with this package, and the Go workspace by which a guest uses it.

A workspace file (GOWORK) in a temporary folder names the guest's module and the SDK's. It wins over whatever version or
place the guest's go.mod asks for, changes no file of the guest, needs no network, and leaves no path in the module. A
guest that uses modules of others must not ask for the SDK: Go would read the go.mod of the version that it asks for.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasman_sdk._build.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["MODULE", "module_of", "sdk_folder", "workspace", "write_workspace"]

MODULE = "wasman.dev/guest"


def sdk_folder() -> Path:
    """The SDK's folder: inside of the installed package, or in the repository that is installed editable.

    Raises:
        BuildError: It is in neither, so the installation is damaged.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_guest_sdk", package.parent / "guest_sdk"):
        if (folder / "go.mod").is_file():
            return folder
    raise BuildError(f"the guest SDK is not beside {package}: install wasman anew")


def module_of(folder: Path) -> Path:
    """The folder of the Go module that a folder belongs to.

    Raises:
        BuildError: It belongs to none.
    """
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        if (place / "go.mod").is_file():
            return place
    raise BuildError(f"{folder} belongs to no Go module: there is no go.mod; `wasman new NAME` writes a guest with one")


def workspace(folder: Path, go: str, environment: Mapping[str, str]) -> str:
    """A workspace file with the guest in `folder` and the SDK, and with what the guest's own workspace has.

    Args:
        folder: Where the guest is.
        go: The program that reads the guest's own workspace file.
        environment: Its environment.

    Raises:
        BuildError: The guest belongs to no module, or its workspace file cannot be read.
    """
    own, sdk = module_of(folder), sdk_folder()
    uses, replaced = {own: None, sdk: None}, ""
    there = _own_workspace(folder, go, environment)
    if there is not None:
        file, content = there
        for used in _places(file.parent, content):
            # Another copy of the SDK is there where the file was written on another machine, or by another wasman.
            if (used / "go.mod").is_file() and _path_of(used) != MODULE:
                uses[used] = None
        replaced = "".join(_replacements(file.parent, content))
    lines = [f"use {json.dumps(str(place))}\n" for place in uses]
    return f"go {_version_of(max(uses, key=_version_key))}\n\n{''.join(lines)}{replaced}"


def write_workspace(folder: Path) -> Path:
    """Write a workspace file beside the guest's go.mod, for `go test` and for editors; the file.

    Raises:
        BuildError: The guest belongs to no module.
    """
    own, sdk = module_of(folder), sdk_folder()
    file = own / "go.work"
    version = max((own, sdk), key=_version_key)
    file.write_text(f"go {_version_of(version)}\n\nuse .\nuse {json.dumps(str(sdk))}\n", "utf-8")
    return file


def _own_workspace(folder: Path, go: str, environment: Mapping[str, str]) -> tuple[Path, Any] | None:
    file = _told(folder, [go, "env", "GOWORK"], environment).strip()
    if not file or file == "off":
        return None
    return Path(file), json.loads(_told(folder, [go, "work", "edit", "-json", file], environment))


def _told(folder: Path, command: list[str], environment: Mapping[str, str]) -> str:
    told = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if told.returncode:
        raise BuildError(f"the workspace file of {folder} cannot be read", told.stderr)
    return told.stdout


def _places(base: Path, content: Any) -> Iterator[Path]:
    for one in content.get("Use") or ():
        yield (base / one["DiskPath"]).resolve()


def _replacements(base: Path, content: Any) -> Iterator[str]:
    for one in content.get("Replace") or ():
        old, new = one["Old"], one["New"]
        if old["Path"] == MODULE:
            continue
        place = new["Path"] if "Version" in new else json.dumps(str((base / new["Path"]).resolve()))
        yield f"replace {old['Path']} {old.get('Version', '')} => {place} {new.get('Version', '')}\n"


def _path_of(module: Path) -> str:
    return _directive(module, "module", "")


def _version_of(module: Path) -> str:
    return _directive(module, "go", "1.25", r"[\d.]+")


def _version_key(module: Path) -> list[int]:
    return [int(part) for part in _version_of(module).strip(".").split(".")]


def _directive(module: Path, name: str, default: str, value: str = r"\S+") -> str:
    found = re.search(rf'^{name}\s+"?({value})"?', (module / "go.mod").read_text("utf-8"), re.MULTILINE)
    return found[1] if found else default
