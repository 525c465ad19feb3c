"""The names of ours that a page for newcomers maps others to: each of them must be there."""

import inspect
import re
from functools import reduce
from typing import Any

import wasman_sdk
from tests.doc_pages import ROOT
from wasman_host.store import open_store
from wasman_sdk import cli, testing

CODE = re.compile(r"`([^`]+)`")


def parameters(function: Any) -> set[str]:
    """Its parameters; for those that hand options on, these too."""
    found = set(inspect.signature(function).parameters)
    for annotation in inspect.get_annotations(function, eval_str=False).values():
        if handed_on := re.fullmatch(r"Unpack\[(\w+)\]", str(annotation)):
            found |= set(getattr(wasman_sdk, handed_on[1]).__annotations__)
    return found


def has(owner: Any, name: str) -> bool:
    """Whether instances have it: of the class, or an attribute that its docstring speaks of."""
    documented = re.search(rf"^\s*{name}: ", inspect.getdoc(owner) or "", re.MULTILINE)
    return hasattr(owner, name) or documented is not None


def guests_export(name: str) -> bool:
    package, _, function = name.partition(".")
    folder = ROOT / "guest_sdk" / {"wasman": "", "v0": "v0", "steps": "v0/steps"}[package]
    return any(
        re.search(rf"^func {function}[\[(]", path.read_text("utf-8"), re.MULTILINE) for path in folder.glob("*.go")
    )


def check(mentioned: str) -> None:
    """Raises AssertionError, or what a store says of its URL, unless the name is one of ours."""
    if "://" in mentioned:
        open_store(mentioned)
    elif command := re.fullmatch(r"wasman (\w+)", mentioned):
        assert command[1] in cli.wasman.commands, f"the command has no {command[1]}"
    elif mentioned.startswith(("wasman.", "v0.", "steps.")):
        assert guests_export(mentioned), f"guests have no {mentioned}"
    else:
        call = re.fullmatch(r"([\w.]+)\((\w+)=\)", mentioned)
        path = call[1] if call else mentioned
        package = testing if path.startswith("testing.") else wasman_sdk
        first, *rest = path.removeprefix("testing.").split(".")
        assert first in package.__all__, f"{package.__name__} exports no {first}"
        owner = reduce(getattr, rest[:-1], getattr(package, first))
        if rest:
            assert has(owner, rest[-1]), f"{first} has no {rest[-1]}"
        if call:
            assert call[2] in parameters(reduce(getattr, rest, getattr(package, first))), f"{path} takes no {call[2]}"
