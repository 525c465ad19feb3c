"""Writes docs/reference.md from the docstrings of all that an application may import.

    python tools/reference.py            write the page
    python tools/reference.py --check    only say whether it is what would be written; exit code 1 if not

Signatures are read from the source, so they show overloads, and defaults as they were written. (pdoc makes HTML; what
turns griffe's trees into Markdown is three more packages. The page has to be readable where the repository is.)
"""

import argparse
import ast
import importlib
import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"
WIDTH = 100  # columns of a signature

HEAD = """\
# Reference

Every public name, by what it is for. This page is made from docstrings by `make docs`: change them, not it. The
[index](README.md) lists the pages that explain.
"""

# What comes under which heading; a name that is nowhere comes under the last one before the errors.
GROUPS = {
    "Workflows and clients": (
        "Workflow", "Limits", "Client", "WorkflowHandle", "StartWorkflowOptions", "WorkflowIDConflictPolicy",
        "WorkflowIDReusePolicy", "WorkflowDescription", "PendingActivity", "HistoryEvent", "WorkflowFilter",
        "WorkflowPage", "SyncClient", "SyncWorkflowHandle",
    ),
    "Activities and workers": ("activity", "ActivityInfo", "RetryPolicy", "Worker"),
    "Sessions and streams": (
        "Session", "Secret", "Source", "Sink", "FileSource", "FileSink", "BytesSource", "HttpSource", "Channel",
        "ChannelSource", "ChannelSink", "StreamContext", "SourceReader", "SinkWriter",
    ),
    "Runners and engines": (
        "Runner", "SyncRunner", "TestRunner", "SyncTestRunner", "RunnerOptions", "Engine", "SyncEngine",
    ),
}  # fmt: skip
LAST = "Interceptors, events and the rest"

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):")
TITLES = {
    "Args": "Parameters",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Raises": "Raises",
    "Yields": "Yields",
}
ENTRY = re.compile(r"(\*{0,2}\w[\w., ]*?):\s+(.*)")


def page() -> str:
    """The whole page."""
    sdk, testing = importlib.import_module("wasman_sdk"), importlib.import_module("wasman_sdk.testing")
    errors = set(sdk.errors.__all__)
    grouped = {name for names in GROUPS.values() for name in names}
    rest = [name for name in sdk.__all__ if name not in grouped | errors | {"errors"}]
    parts = [HEAD]
    for title, names in [*GROUPS.items(), (LAST, rest)]:
        parts.append(f"\n## {title}\n")
        for name in names:
            parts.extend(entry(name, getattr(sdk, name), sdk.__all__))
    parts.append("\n## Errors\n\n" + prose(inspect.getdoc(importlib.import_module("wasman_host.errors")) or ""))
    for name in sdk.errors.__all__:
        parts.extend(entry(name, getattr(sdk, name), sdk.__all__))
    parts.append("\n## wasman_sdk.testing\n\n" + prose(inspect.getdoc(testing) or ""))
    for name in testing.__all__:
        parts.extend(entry(name, getattr(testing, name), testing.__all__))
    return "".join(parts)


def entry(name: str, value: Any, public: Collection[str]) -> Iterator[str]:
    """A public name: its heading, its signature, its docstring, and the same for its methods.

    Those that it has from a class which is not public itself are its own to whoever reads this.
    """
    yield f"\n### {name}\n"
    if inspect.isclass(value):
        node = tree_of(value)
        assert isinstance(node, ast.ClassDef), name
        doc = inspect.cleandoc(value.__doc__ or "")
        constructor = [one for one in functions(node) if one.name == "__init__"] if "\nArgs:\n" in doc else []
        yield code(class_lines(node)) if has_fields(node) else f"\n`{class_lines(node)[0]}`\n"
        yield from (code(["\n".join(signature(name, one))]) for one in constructor)
        yield section(doc)
        yield from methods(name, node)
        for base in value.__mro__[1:]:
            if base.__name__ not in public and base.__module__.startswith(("wasman_sdk", "wasman_host")):
                inherited = tree_of(base)
                assert isinstance(inherited, ast.ClassDef), base
                inherited.body = [one for one in inherited.body if getattr(one, "name", "") not in vars(value)]
                yield from methods(name, inherited)
    elif inspect.isfunction(value):
        yield from function(f"{name}", [tree_of(value)])
    else:  # an object that is called and has functions: `activity`
        node = tree_of(type(value))
        assert isinstance(node, ast.ClassDef), name
        calls = [one for one in functions(node) if one.name == "__call__"]
        yield from function(name, calls)
        for attribute, found in vars(type(value)).items():
            if isinstance(found, staticmethod):
                yield f"\n#### {name}.{attribute}\n"
                yield from function(f"{name}.{attribute}", [tree_of(found.__func__)])
            elif not attribute.startswith("_"):
                yield f"\n#### {name}.{attribute}\n"
                yield section(type(found).__doc__)


def tree_of(value: Any) -> ast.stmt:
    """The statement that defines a class or a function; what is public says of itself that it is of the package."""
    wanted: str = value.__name__
    for name, module in sorted(sys.modules.items()):
        if name.startswith(("wasman_sdk", "wasman_host")) and vars(module).get(wanted) is value:
            for node in ast.parse(inspect.getsource(module)).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == wanted:
                    return node
    raise LookupError(f"no module of wasman defines {value!r}")


def functions(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions of a class, in order."""
    return [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]


def methods(owner: str, node: ast.ClassDef) -> Iterator[str]:
    """What a class documents of its functions: those that are public, and the parameters of its constructor."""
    overloads: list[ast.stmt] = []
    for one in functions(node):
        marks = {unparsed(mark) for mark in one.decorator_list}
        doc = ast.get_docstring(one)
        if "overload" in marks:
            overloads.append(one)
            continue
        shown, overloads = overloads or [one], []
        if doc is None or doc.startswith("See `Stream`") or "override" in marks:
            continue
        if one.name == "__init__" and one.args.kwonlyargs + one.args.args[1:]:
            if "Args:" in doc:
                yield code(["\n".join(signature(owner, one))])
                yield section(doc)
        elif not one.name.startswith("_"):
            yield f"\n#### {owner}.{one.name}\n"
            name = f"{owner}.{one.name}" if "classmethod" in marks else one.name
            if marks & {"property", "functools.cached_property"}:
                yield code([f"{one.name}: {unparsed(one.returns) if one.returns else 'Any'}"])
                yield section(doc)
            else:
                yield from function(name, [*shown, one], doc)


def function(name: str, nodes: Iterable[ast.stmt], doc: str | None = None) -> Iterator[str]:
    """The signatures of a function, or of its overloads if there are any, and its docstring."""
    found = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    *overloads, last = found
    shown = overloads or [last]
    yield code(["\n".join(signature(name, node)) for node in shown])
    yield section(doc or ast.get_docstring(last) or "")


def signature(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """`name(parameters) -> result`, in lines."""
    start = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    given = list(parameters(node.args))
    end = "" if node.returns is None or node.name == "__init__" else f" -> {unparsed(node.returns)}"
    line = f"{start}{name}({', '.join(given)}){end}"
    if len(line) <= WIDTH:
        yield line
    else:
        yield f"{start}{name}("
        yield from (f"    {one}," for one in given)
        yield f"){end}"


def parameters(given: ast.arguments) -> Iterator[str]:
    """The parameters as they are written, without `self` and `cls`."""
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    shown = [(one, default) for one, default in zip(plain, defaults, strict=True) if one.arg not in {"self", "cls"}]
    yield from (parameter(one, default) for one, default in shown)
    if given.vararg:
        yield f"*{parameter(given.vararg, None)}"
    elif given.kwonlyargs:
        yield "*"
    yield from (parameter(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True))
    if given.kwarg:
        yield f"**{parameter(given.kwarg, None)}"


def unparsed(node: ast.AST) -> str:
    """The source of `node`, with the quotes that the formatter wants in pages as well."""
    return re.sub(r"'([^'\"\\]*)'", r'"\1"', ast.unparse(node))


def parameter(given: ast.arg, default: ast.expr | None) -> str:
    """`name: type = default`."""
    text = given.arg + (f": {unparsed(given.annotation)}" if given.annotation else "")
    return text if default is None else f"{text} = {unparsed(default)}"


def has_fields(node: ast.ClassDef) -> bool:
    """Whether there is more to be shown of a class than its name and its bases."""
    return "\n" in class_lines(node)[0]


def class_lines(node: ast.ClassDef) -> list[str]:
    """A class with its fields: `class A(B):`, and a line for each."""
    bases = [unparsed(base) for base in node.bases]
    bases = [base for base in bases if not base.startswith("Generic[")]
    head = f"class {node.name}({', '.join(bases)})" if bases else f"class {node.name}"
    fields = [
        f"    {unparsed(one)}"
        for one in node.body
        if (isinstance(one, ast.AnnAssign) and "ClassVar" not in unparsed(one.annotation))
        or (isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant))
        if not unparsed(one).startswith("_")
    ]
    return ["\n".join([f"{head}:", *fields])] if fields else [head]


def code(blocks: list[str]) -> str:
    """A block that is shown; the mark keeps the tests from running it."""
    return "\n<!-- not run: a signature -->\n```python\n" + "\n".join(blocks) + "\n```\n"


def section(doc: str | None) -> str:
    """A docstring as Markdown, with a blank line before it."""
    return f"\n{prose(inspect.cleandoc(doc))}" if doc else ""


def prose(doc: str) -> str:
    """A docstring of the Google convention as Markdown: its sections become lists."""
    out: list[str] = []
    lines = iter(doc.splitlines())
    inside = False
    for line in lines:
        if found := SECTION.fullmatch(line):
            out += [f"**{TITLES[found[1]]}**", ""]
            inside = True
        elif not inside or not line.startswith(" "):
            inside = inside and not line
            out.append(line)
        elif line[4:5] == " ":
            out.append(f"  {line.strip()}")
        elif item := ENTRY.fullmatch(line.strip()):
            out.append(f"- `{item[1]}`: {item[2]}")
        else:
            out.append(line.strip())
    return "\n".join(out).rstrip() + "\n"


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    made = page()
    same = PAGE.exists() and PAGE.read_text("utf-8") == made
    if options.check:
        print(f"{PAGE.relative_to(ROOT)} {'is' if same else 'is not'} what the docstrings say; `make docs` makes it")
        return 0 if same else 1
    if not same:
        PAGE.write_text(made, "utf-8")
    print(f"{PAGE.relative_to(ROOT)} {'was up to date' if same else 'is written'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
