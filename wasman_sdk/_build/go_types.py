"""Go types for what pydantic reads and writes, by way of its JSON schemas: they say what really crosses the border.

A type may be read in one place (a guest sends it) and written in another (a guest receives it). pydantic tells both
apart where they differ, and then there are two Go types; most are one.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from attrs import define, field, frozen
from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import override

from wasman_sdk._build.errors import BuildError
from wasman_sdk._build.go_names import exported

__all__ = ["GoTypes", "Wanted", "comment"]

_REF = "#/$defs/"
_NONE = "wasman.None"
# By JSON schema's formats: the Go type, and what to know of it.
_TEXT = {
    "date-time": ("time.Time", ""),
    "duration": ("iso8601.Duration", ""),
    "base64": ("[]byte", ""),
    "binary": ("string", "bytes, as UTF-8"),
    "base64url": ("string", "bytes, in base64 of the alphabet for URLs"),
    "decimal": ("string", "a decimal number"),
    "uuid": ("string", "a UUID"),
    "date": ("string", "a date, 2006-01-02"),
    "time": ("string", "a time of day, 15:04:05"),
}
_PLAIN = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}
_IMPORTS = {"time.": "time", "iso8601.": "wasman.dev/guest/iso8601", "wasman.": "wasman.dev/guest"}
_TAG = re.compile(r'[^\x00-\x1f,"\\`]+')


class _Schemas(GenerateJsonSchema):
    """Decimals are one type, and not the union of what they may be read from."""

    @override
    def decimal_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "string", "format": "decimal"}


@frozen
class Wanted:
    """A type that a guest sends or receives.

    Attributes:
        where: What for, in messages.
        type: The Python type.
        sent: Whether the guest sends it.
    """

    where: str
    type: Any
    sent: bool


@define
class _Field:
    name: str
    type: str
    tag: str
    comment: str


@define
class GoTypes:
    """The types of a Go file.

    Attributes:
        expressions: The Go type of each that was wanted.
        declarations: All named types, gofmt's way.
        imports: The packages that they need.
    """

    wanted: Sequence[Wanted]
    expressions: Sequence[str] = ()
    declarations: list[str] = field(factory=list)
    imports: set[str] = field(factory=set)
    _definitions: Mapping[str, Any] = field(factory=dict)
    _names: dict[str, str] = field(factory=dict)
    _received_only: set[str] = field(factory=set)
    _constants: set[str] = field(factory=set)

    @classmethod
    def of(cls, wanted: Sequence[Wanted]) -> GoTypes:
        """The types that these need.

        Raises:
            BuildError: Go has no such type; the message says where, and what to do.
        """
        types = cls(wanted)
        types._make()
        return types

    @property
    def names(self) -> set[str]:
        """The names that the declarations take."""
        return set(self._names.values()) | self._constants

    def _make(self) -> None:
        schemas = self._schemas()
        sent = self._reached(schema for one, schema in zip(self.wanted, schemas, strict=True) if one.sent)
        self._received_only = set(self._definitions) - sent
        for name in sorted(self._definitions):
            self._names[name] = _free(exported(name), self.names)
        self.expressions = [self._top(one, schema) for one, schema in zip(self.wanted, schemas, strict=True)]
        for name in sorted(self._definitions, key=self._names.__getitem__):
            self.declarations.append(self._declaration(name))
        for text in (*self.expressions, *self.declarations):
            self.imports |= {package for prefix, package in _IMPORTS.items() if re.search(rf"\b{prefix}\w", text)}

    def _schemas(self) -> list[Any]:
        modes: tuple[Literal["validation", "serialization"], ...] = ("serialization", "validation")
        inputs = []
        for key, one in enumerate(self.wanted):
            if one.type in {bytes, type(None)}:
                continue
            adapter: TypeAdapter[Any] = TypeAdapter(one.type)
            try:
                adapter.json_schema(mode=modes[one.sent], schema_generator=_Schemas)
            except PydanticInvalidForJsonSchema as error:
                raise BuildError(f"{one.where}: {error.message}") from None
            inputs.append((key, modes[one.sent], adapter))
        found, whole = TypeAdapter.json_schemas(inputs, by_alias=True, schema_generator=_Schemas)
        by_key, self._definitions = _united({key: schema for (key, _), schema in found.items()}, whole.get("$defs", {}))
        return [by_key.get(key) for key in range(len(self.wanted))]

    def _reached(self, schemas: Iterator[Any]) -> set[str]:
        """The definitions that these refer to, by whatever way."""
        reached: set[str] = set()
        left = list(schemas)
        while left:
            one = left.pop()
            if isinstance(one, dict):
                name = str(one.get("$ref", "")).removeprefix(_REF)
                if name and name not in reached:
                    reached.add(name)
                    left.append(self._definitions[name])
                left += one.values()
            elif isinstance(one, list):
                left += one
        return reached

    def _top(self, one: Wanted, schema: Any) -> str:
        if schema is None:
            return "[]byte" if one.type is bytes else _NONE
        type_ = self._type(schema, one.where)[0]
        return type_ if one.sent else _without_pointer(type_)

    # Schemas

    def _type(self, schema: Any, where: str) -> tuple[str, str]:
        """The Go type of a schema, and what to know of it."""
        if schema is True or not (keys := set(schema) - {"title", "description", "default", "examples"}):
            return "any", ""
        if "$ref" in keys:
            return self._names[schema["$ref"].removeprefix(_REF)], ""
        for union in ("anyOf", "oneOf", "allOf"):  # `allOf` has one, where an older pydantic says more of a reference
            if union in keys:
                return self._union(schema[union], where)
        if "const" in keys or "enum" in keys:
            return self._literal(schema.get("enum", [schema.get("const")]), where)
        kind = schema.get("type")
        if kind in _PLAIN:
            return _TEXT.get(schema.get("format", ""), (_PLAIN[kind], ""))
        if kind == "array":
            return self._array(schema, where)
        if kind == "object" and "properties" not in keys:
            return self._map(schema, where)
        raise BuildError(f"{where}: Go has no type for {json.dumps(schema, sort_keys=True)[:200]}")

    def _union(self, options: Sequence[Any], where: str) -> tuple[str, str]:
        left = [one for one in options if one != {"type": "null"}]
        types = [self._type(one, where) for one in left]
        if len(left) > 1:
            names = " or ".join(dict.fromkeys(name for name, _ in types))
            raise BuildError(
                f"{where} is a union ({names}), and Go has none: make it a model with a field for each, or Any, which "
                f"a guest reads by itself"
            )
        name, note = types[0]
        if len(left) == len(options) or name == "any":
            return name, note
        return f"*{name}", note

    def _literal(self, values: Sequence[Any], where: str) -> tuple[str, str]:
        for kind, name in ((str, "string"), (bool, "bool"), (int, "int64")):
            if all(type(value) is kind for value in values):
                return name, "one of " + ", ".join(json.dumps(value) for value in values)
        raise BuildError(f"{where} takes values of several types ({json.dumps(values)}), and in Go a type has one")

    def _array(self, schema: Any, where: str) -> tuple[str, str]:
        if "prefixItems" in schema:
            raise BuildError(f"{where} is a tuple, and Go has none: make it a model, or a list of one type")
        name, note = self._type(schema.get("items", True), where)
        return f"[]{name}", note

    def _map(self, schema: Any, where: str) -> tuple[str, str]:
        values = schema.get("additionalProperties", True)
        for inner in schema.get("patternProperties", {}).values():
            values = inner
        name, note = self._type(values, where)
        return f"map[string]{name}", note

    # Declarations

    def _declaration(self, definition: str) -> str:
        schema, name = self._definitions[definition], self._names[definition]
        said = comment(f"{name}: {schema['description']}") if schema.get("description") else ""
        if "enum" in schema or "const" in schema:
            return said + self._enum(name, schema)
        if schema.get("type") == "object" and ("properties" in schema or not schema.get("additionalProperties", False)):
            return said + self._struct(name, definition, schema)
        return f"{said}type {name} {self._type(schema, name)[0]}\n"

    def _enum(self, name: str, schema: Any) -> str:
        values = schema.get("enum", [schema.get("const")])
        kind, _ = self._literal(values, name)
        if kind == "bool":
            return f"type {name} bool\n"
        constants = []
        for value in values:
            constants.append(_free(name + exported(f"x_{value}")[1:], self.names))
            self._constants.add(constants[-1])
        width = max(len(one) for one in constants)
        lines = "".join(
            f"\t{one:{width}} {name} = {_go(value)}\n" for one, value in zip(constants, values, strict=True)
        )
        return f"type {name} {kind}\n\n// Its values.\nconst (\n{lines})\n"

    def _struct(self, name: str, definition: str, schema: Any) -> str:
        required = set(schema.get("required", ()))
        if definition in self._received_only:
            required = set(schema.get("properties", ()))
        fields: list[_Field] = []
        for key, inner in schema.get("properties", {}).items():
            where = f"{name}.{key}"
            if not _TAG.fullmatch(key):
                raise BuildError(f"{where}: a Go tag has no place for this name; give the field another alias")
            type_, note = self._type(inner, where)
            options = ""
            if key not in required:
                type_, more = _optional(_without_pointer(type_), inner)
                options, note = ",omitempty", "; ".join(filter(None, (note, more)))
            elif key == "-":
                options = ","
            if definition in self._received_only:
                type_ = _without_pointer(type_)
            said = "; ".join(filter(None, (inner.get("description", ""), note)))
            own = _free(exported(key), {one.name for one in fields})
            fields.append(_Field(own, type_, f'`json:"{key}{options}"`', said))
        if not fields:
            return f"type {name} struct{{}}\n"
        return f"type {name} struct {{\n{''.join(_aligned(fields))}}}\n"


def _united(schemas: Mapping[int, Any], definitions: Mapping[str, Any]) -> tuple[Mapping[int, Any], Mapping[str, Any]]:
    """The same, types that are equal sent and received made one.

    pydantic does so itself, but not where they refer to themselves. A pair is one unless something else than the names
    of such pairs tells its halves apart.
    """
    halves = ("-Input", "-Output")
    pairs = {name.removesuffix(halves[0]) for name in definitions if name.endswith(halves[0])}
    pairs = {name for name in pairs if f"{name}{halves[1]}" in definitions and name not in definitions}

    def renamed(schema: Any) -> Any:
        text = json.dumps(schema)
        for name in pairs:
            for half in halves:
                text = text.replace(json.dumps(f"{_REF}{name}{half}"), json.dumps(_REF + name))
        return json.loads(text)

    while True:
        apart = {
            name
            for name in pairs
            if renamed(definitions[f"{name}{halves[0]}"]) != renamed(definitions[f"{name}{halves[1]}"])
        }
        if not apart:
            break
        pairs -= apart
    names = {f"{name}{half}": name for name in pairs for half in halves}
    united = {names.get(name, name): renamed(schema) for name, schema in definitions.items()}
    return {key: renamed(schema) for key, schema in schemas.items()}, united


def _without_pointer(type_: str) -> str:
    """A list or a map that may be null, where its nil says so: where it is received, or left out if it is empty."""
    return type_.removeprefix("*") if type_.startswith(("*[]", "*map[")) else type_


def _optional(type_: str, schema: Any) -> tuple[str, str]:
    """The type of a field that may be left out, and what leaving it out means."""
    if type_.startswith(("*", "[]", "map[")) or type_ == "any":
        return type_, ""
    if "default" not in schema:
        return f"*{type_}", "nil for its default"
    default = schema["default"]
    if type_ in {"string", "bool", "int64", "float64"} and default in ("", False):
        return type_, ""
    return f"*{type_}", f"nil for {json.dumps(default)}"


def _aligned(fields: Sequence[_Field]) -> Iterator[str]:
    """The lines of a struct as gofmt has them: columns reach from one comment to the next."""
    block: list[_Field] = []
    for one in [*fields, None]:
        if block and (one is None or one.comment):
            first, second = (max(len(getattr(other, part)) for other in block) for part in ("name", "type"))
            yield from (f"\t{other.name:{first}} {other.type:{second}} {other.tag}\n" for other in block)
            block = []
        if one is not None:
            if one.comment:
                yield textwrap.indent(comment(one.comment), "\t")
            block.append(one)


def comment(text: str) -> str:
    """A doc comment: the first paragraph of a text, as gofmt leaves it."""
    words = re.split(r"\n\s*\n", text.strip())[0].replace("``", "`").replace("''", "'")
    lines = textwrap.wrap(" ".join(words.split()), 110, break_long_words=False, break_on_hyphens=False)
    return "".join(f"// {line}\n" for line in lines)


def _free(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(other for number in range(2, 10_000) if (other := f"{name}{number}") not in taken)


def _go(value: str | int) -> str:
    return json.dumps(value, ensure_ascii=False)
