"""A wasm module's sections: what must be known of it, and rewritten in it, before it is compiled.

Rewritten are four things. Every mutable global is exported (as `__wasman_global_N`), so that a snapshot can hold it.
Every table is exported (as `__wasman_table_N`), so that its size can be looked at. The start section is taken out and
its function exported, because it would run again at every restore. Data segments that lie at known places are emptied,
and passive: their bytes are mapped into the memory (`initial_data`); copied, they would be pages of the guest's own.

Source: WebAssembly Core Specification 2.0, chapter 5.5 (modules) and 7.4 (name section).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, frozen

from wasman_host.errors import InvalidModuleError

__all__ = [
    "REWRITER",
    "Function",
    "Import",
    "ModuleBinary",
    "custom_sections",
    "exported_body",
    "initial_data",
    "mutable_globals",
    "parse",
    "section",
    "with_section",
    "without_section",
]

REWRITER = "3"  # in the key of cached code: raise it when anything changes that is rewritten or read here

_MAGIC = b"\0asm"
_VERSION = b"\1\0\0\0"
_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _GLOBAL, _EXPORT, _START, _ELEMENT, _CODE, _DATA = range(12)
_WASM_PAGE = 65536
_MAX_TABLES = 100  # more than any guest may have
_TYPES = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128", 0x70: "funcref", 0x6F: "externref"}
_KINDS = ("func", "table", "memory", "global", "tag")
GLOBAL_PREFIX = "__wasman_global_"
TABLE_PREFIX = "__wasman_table_"
START_EXPORT = "__wasman_start"


@frozen
class Function:
    """A function's type, as names such as "i32"."""

    params: Sequence[str]
    results: Sequence[str]

    def __str__(self) -> str:
        return f"({', '.join(self.params)}) -> ({', '.join(self.results)})"


@frozen
class Import:
    """Something that the module wants from its host."""

    module: str
    name: str
    kind: str
    type: Function | None = None
    mutable: bool = False


@frozen
class ModuleBinary:
    """What a module says of itself.

    Attributes:
        imports: All imports, in order.
        functions: Exported functions by name, as their author wrote them.
        memory: (initial, maximum or None) 64 KiB pages of its own memory, None where it has none.
        shared: Whether that memory is shared between threads.
        memory_exported: Whether it is exported as "memory".
        globals: Names under which its mutable globals are exported, in order, with their types.
        tables: Names under which its own tables are exported, in order.
        stack_pointer: Which of `globals` is the stack pointer, or None where it cannot be told.
        has_start: Whether a start function was taken out.
    """

    imports: Sequence[Import]
    functions: Mapping[str, Function]
    memory: tuple[int, int | None] | None
    shared: bool
    memory_exported: bool
    globals: Sequence[tuple[str, str]]
    tables: Sequence[str]
    stack_pointer: int | None
    has_start: bool

    def to_json(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ModuleBinary:
        """What `to_json` gave."""
        imports = [
            Import(**{**item, "type": item["type"] and Function(**item["type"])}) for item in fields["imports"]
        ]  # fmt: skip
        memory = fields["memory"]
        return cls(
            **{
                **fields,
                "imports": imports,
                "functions": {name: Function(**function) for name, function in fields["functions"].items()},
                "memory": memory and (memory[0], memory[1]),
                "globals": [(name, kind) for name, kind in fields["globals"]],
            }
        )


class _Reader:
    """Bytes with a place in them. Reading past the end is an error, as is every number that is too long."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def done(self) -> bool:
        return self.at >= len(self.data)

    def byte(self) -> int:
        if self.done:
            message = "ends in the middle of a section"
            raise InvalidModuleError(message)
        self.at += 1
        return self.data[self.at - 1]

    def bytes(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            message = "ends in the middle of a section"
            raise InvalidModuleError(message)
        self.at += length
        return self.data[self.at - length : self.at]

    def unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:  # noqa: PLR2004  the continuation bit of LEB128
                return value
            if shift > 63:  # noqa: PLR2004  no number of a module is wider than 64 bits
                message = "holds a number that is too long"
                raise InvalidModuleError(message)

    def signed(self) -> int:
        begin = self.at
        value = self.unsigned()
        bits = 7 * (self.at - begin)
        return value - (1 << bits) if value >> (bits - 1) & 1 else value

    def name(self) -> str:
        try:
            return self.bytes(self.unsigned()).decode()
        except UnicodeDecodeError as error:
            message = "holds a name that is not UTF-8"
            raise InvalidModuleError(message) from error

    def limits(self) -> tuple[int, int | None, int]:
        flags = self.byte()
        return self.unsigned(), self.unsigned() if flags & 1 else None, flags


def _number(value: int) -> bytes:
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        out.append(byte | 0x80 if value else byte)
        if not value:
            return bytes(out)


def _text(name: str) -> bytes:
    encoded = name.encode()
    return _number(len(encoded)) + encoded


def _constant(reader: _Reader) -> int | None:
    """Skip a constant expression; its value where it is one i32.const."""
    value: int | None = None
    while True:
        opcode = reader.byte()
        match opcode:
            case 0x0B:
                return value
            case 0x41:
                value = reader.signed()
            case 0x42:
                reader.signed()
            case 0x43:
                reader.bytes(4)
            case 0x44:
                reader.bytes(8)
            case 0x23 | 0xD2:
                reader.unsigned()
            case 0xD0:
                reader.byte()
            case 0xFD:
                reader.unsigned()
                reader.bytes(16)
            case 0x6A | 0x6B | 0x6C | 0x7C | 0x7D | 0x7E:
                value = None
            case _:
                message = f"initialises something by opcode {opcode:#x}, which wasman does not know"
                raise InvalidModuleError(message)


def _types(reader: _Reader) -> list[Function]:
    types = []
    for _ in range(reader.unsigned()):
        if reader.byte() != 0x60:  # noqa: PLR2004  the only form of a type before the GC proposal
            message = "declares a type that is not a function; the GC proposal is not supported"
            raise InvalidModuleError(message)
        params = [_TYPES.get(reader.byte(), "?") for _ in range(reader.unsigned())]
        results = [_TYPES.get(reader.byte(), "?") for _ in range(reader.unsigned())]
        types.append(Function(params, results))
    return types


def _imports(reader: _Reader, types: Sequence[Function]) -> list[Import]:
    imports = []
    for _ in range(reader.unsigned()):
        module, name, kind = reader.name(), reader.name(), reader.byte()
        match kind:
            case 0:
                index = reader.unsigned()
                if index >= len(types):
                    message = f"imports {module}.{name} with a type that it does not declare"
                    raise InvalidModuleError(message)
                imports.append(Import(module, name, "func", types[index]))
                continue
            case 1:
                reader.byte()
                reader.limits()
            case 2:
                reader.limits()
            case 3:
                reader.byte()
                imports.append(Import(module, name, "global", mutable=bool(reader.byte())))
                continue
            case 4:
                reader.byte()
                reader.unsigned()
            case _:
                message = f"imports {module}.{name}, which is of unknown kind {kind}"
                raise InvalidModuleError(message)
        imports.append(Import(module, name, _KINDS[kind]))
    return imports


def _sections(data: bytes) -> list[tuple[int, bytes]]:
    if data[:4] != _MAGIC:
        message = "is not wasm: it does not begin with the bytes \\0asm"
        raise InvalidModuleError(message)
    if data[4:8] != _VERSION:
        message = "is a wasm component or of an unknown version; wasman runs core modules of version 1"
        raise InvalidModuleError(message)
    reader = _Reader(data, 8)
    sections = []
    while not reader.done:
        number = reader.byte()
        sections.append((number, reader.bytes(reader.unsigned())))
    return sections


def _stack_pointer_name(custom: bytes) -> int | None:
    """The index of the global that the name section calls __stack_pointer."""
    reader = _Reader(custom)
    if reader.name() != "name":
        return None
    while not reader.done:
        kind, content = reader.byte(), _Reader(reader.bytes(reader.unsigned()))
        if kind == 7:  # noqa: PLR2004  the subsection of global names
            for _ in range(content.unsigned()):
                index, name = content.unsigned(), content.name()
                if name == "__stack_pointer":
                    return index
    return None


def custom_sections(data: bytes) -> list[tuple[str, int]]:
    """(name, bytes) of each custom section, in order; one whose name cannot be read is called "?".

    Raises:
        InvalidModuleError: As `parse`.
    """
    found = []
    for number, content in _sections(data):
        if number == _CUSTOM:
            try:
                found.append((_Reader(content).name(), len(content)))
            except InvalidModuleError:
                found.append(("?", len(content)))
    return found


def section(data: bytes, name: str) -> list[bytes]:
    """What the custom sections of this name hold, in order. Raises `InvalidModuleError`, as `parse`."""
    found = []
    for number, content in _sections(data):
        reader = _Reader(content)
        with contextlib.suppress(InvalidModuleError):  # one whose name cannot be read has another one
            if number == _CUSTOM and reader.name() == name:
                found.append(content[reader.at :])
    return found


def with_section(data: bytes, name: str, content: bytes) -> bytes:
    """The module with one more custom section, at its end."""
    body = _text(name) + content
    return data + bytes([_CUSTOM]) + _number(len(body)) + body


def without_section(data: bytes, name: str) -> bytes:
    """The module without its custom sections of this name. Raises `InvalidModuleError`, as `parse`."""
    kept = [
        bytes([number]) + _number(len(content)) + content
        for number, content in _sections(data)
        if number != _CUSTOM or not content.startswith(_text(name))
    ]
    return b"".join((_MAGIC, _VERSION, *kept))


def mutable_globals(data: bytes) -> list[int]:
    """The indices of a module's own mutable globals, in order. Raises `InvalidModuleError`, as `parse`."""
    found: list[int] = []
    imported = 0
    types: list[Function] = []
    for number, content in _sections(data):
        reader = _Reader(content)
        if number == _TYPE:
            types = _types(reader)
        elif number == _IMPORT:
            imported = sum(item.kind == "global" for item in _imports(reader, types))
        elif number == _GLOBAL:
            found = [index for index, _, _ in _mutable(reader, imported)]
    return found


def exported_body(data: bytes, name: str) -> bytes | None:
    """Declarations of locals and code of an exported function of the module's own; None where there is none.

    Raises:
        InvalidModuleError: As `parse`.
    """
    imported, wanted = 0, None
    types: list[Function] = []
    for number, content in _sections(data):
        reader = _Reader(content)
        if number == _TYPE:
            types = _types(reader)
        elif number == _IMPORT:
            imported = sum(item.kind == "func" for item in _imports(reader, types))
        elif number == _EXPORT:
            exports = [(reader.name(), reader.byte(), reader.unsigned()) for _ in range(reader.unsigned())]
            wanted = next((index for one, kind, index in exports if (one, kind) == (name, 0)), None)
        elif number == _CODE and wanted is not None:
            bodies = [reader.bytes(reader.unsigned()) for _ in range(reader.unsigned())]
            return bodies[wanted - imported] if imported <= wanted < imported + len(bodies) else None
    return None


def _mutable(reader: _Reader, first: int) -> list[tuple[int, str, int | None]]:
    """Index, type and initial value of each mutable global in a section of globals that begin with index `first`."""
    found: list[tuple[int, str, int | None]] = []
    for index in range(first, first + reader.unsigned()):
        kind, changes = _TYPES.get(reader.byte(), "?"), reader.byte()
        value = _constant(reader)
        if changes:
            found.append((index, kind, value))
    return found


def parse(data: bytes) -> tuple[bytes, ModuleBinary]:
    """Read a module's sections and rewrite it for snapshots. It is not validated: compiling does that.

    Returns:
        The rewritten module, and what its sections say.

    Raises:
        InvalidModuleError: The bytes are no module, or one whose sections make no sense. The message continues a
            sentence that begins with the module's name.
    """
    sections = _sections(data)
    types: list[Function] = []
    imports: list[Import] = []
    own: list[int] = []
    memory: tuple[int, int | None] | None = None
    shared = False
    mutable: list[tuple[int, str, int | None]] = []  # index, type, initial value
    exports: list[tuple[str, int, int]] = []
    start: int | None = None
    named_stack_pointer: int | None = None
    for number, content in sections:
        reader = _Reader(content)
        if number == _TYPE:
            types = _types(reader)
        elif number == _IMPORT:
            imports = _imports(reader, types)
        elif number == _FUNCTION:
            own = [reader.unsigned() for _ in range(reader.unsigned())]
        elif number == _MEMORY:
            for _ in range(reader.unsigned()):
                initial, maximum, flags = reader.limits()
                memory, shared = (initial, maximum), bool(flags & 2)
        elif number == _GLOBAL:
            mutable = _mutable(reader, sum(item.kind == "global" for item in imports))
        elif number == _EXPORT:
            exports = [(reader.name(), reader.byte(), reader.unsigned()) for _ in range(reader.unsigned())]
        elif number == _START:
            start = reader.unsigned()
        elif number == _CUSTOM:
            try:
                named_stack_pointer = named_stack_pointer or _stack_pointer_name(content)
            except InvalidModuleError:
                continue  # a damaged custom section changes nothing that the module does

    imported = [item.type for item in imports if item.type is not None]
    all_functions = [*imported, *(types[index] if index < len(types) else Function((), ()) for index in own)]
    functions = {
        name: all_functions[index] for name, kind, index in exports if kind == 0 and index < len(all_functions)
    }
    size = memory[0] * 65536 if memory else 0
    names = [(f"{GLOBAL_PREFIX}{index}", kind) for index, kind, _ in mutable]
    stack_pointer = next(
        (place for place, (index, _, _) in enumerate(mutable) if index == named_stack_pointer),
        next(
            (
                place
                for place, (_, kind, value) in enumerate(mutable)
                if kind == "i32" and value is not None and 0 < value <= size and value % 16 == 0
            ),
            None,
        ),
    )
    added = [(name, 3, index) for (name, _), (index, _, _) in zip(names, mutable, strict=True)]
    tables = _tables(sections, sum(item.kind == "table" for item in imports))
    added += [(f"{TABLE_PREFIX}{index}", 1, index) for index in tables]
    if start is not None:
        added.append((START_EXPORT, 0, start))
    segments = next((_segments(content, size) for number, content in sections if number == _DATA), None)
    binary = ModuleBinary(
        imports=imports,
        functions=functions,
        memory=memory,
        shared=shared,
        memory_exported=any(name == "memory" and kind == 2 for name, kind, _ in exports),  # noqa: PLR2004  an export kind
        globals=names,
        tables=[f"{TABLE_PREFIX}{index}" for index in tables],
        stack_pointer=stack_pointer,
        has_start=start is not None,
    )
    return (_rewritten(sections, [*exports, *added], segments) if added or segments else data), binary


def _tables(sections: Sequence[tuple[int, bytes]], imported: int) -> Sequence[int]:
    """The indices of a module's own tables."""
    count = sum(_Reader(content).unsigned() for number, content in sections if number == _TABLE)
    return range(imported, imported + min(count, _MAX_TABLES))


@frozen
class _Segment:
    """One data segment; `offset` is where it goes, None for a passive one."""

    offset: int | None
    content: bytes


def _segments(section: bytes, size: int) -> list[_Segment] | None:
    """The data segments; None where one of them lies at a place that is not known, or outside of `size` bytes."""
    reader = _Reader(section)
    segments = []
    for _ in range(reader.unsigned()):
        flags = reader.unsigned()
        offset: int | None = None
        if flags != 1:
            if flags:
                return None
            place = _constant(reader)
            if place is None:
                return None
            offset = place & 0xFFFFFFFF
        content = reader.bytes(reader.unsigned())
        if offset is not None and offset + len(content) > size:
            return None
        segments.append(_Segment(offset, content))
    return segments if reader.done else None


def initial_data(data: bytes) -> tuple[int, list[tuple[int, bytes]]] | None:
    """What the memory of a module holds before any code of it runs: its size, and bytes at their offsets.

    None where only instantiating the module tells: its data was left in it then. `parse` has read the module before.
    """
    size = 0
    for number, content in _sections(data):
        if number == _MEMORY:
            reader = _Reader(content)
            if reader.unsigned():
                size = reader.limits()[0] * _WASM_PAGE
        elif number == _DATA:
            segments = _segments(content, size)
            if segments is None:
                return None
            return size, [(one.offset, one.content) for one in segments if one.offset is not None and one.content]
    return size, []


def _rewritten(
    sections: Sequence[tuple[int, bytes]],
    exports: Sequence[tuple[str, int, int]],
    segments: Sequence[_Segment] | None,
) -> bytes:
    """The module with another export section, without its start section, its active data emptied and passive."""
    content = _number(len(exports)) + b"".join(
        _text(name) + bytes([kind]) + _number(index) for name, kind, index in exports
    )
    kept = [(number, body) for number, body in sections if number not in {_EXPORT, _START}]
    # Sections stand in the order of their numbers, custom ones anywhere; the export section follows the globals (6).
    place = next((i for i, (number, _) in enumerate(kept) if number > _EXPORT), len(kept))
    kept.insert(place, (_EXPORT, content))
    if segments is not None:
        emptied = _number(len(segments)) + b"".join(
            b"\1" + (_number(len(one.content)) + one.content if one.offset is None else b"\0") for one in segments
        )
        kept = [(number, emptied if number == _DATA else body) for number, body in kept]
    return b"".join((_MAGIC, _VERSION, *(bytes([number]) + _number(len(body)) + body for number, body in kept)))
