"""What an object store keeps of one instance in one object, and how that object is written.

Everything of an instance that can change stands in its head, so one conditional put of the head is one atomic change of
the instance: record, columns, the end of its log, its mail, what it still has to send. Whatever is too large or too old
to be written again at each step is an object of its own, immutable, and named by the head.

The stored form is one line of JSON, then the bytes it gives the sizes of, one behind the other; all of it is sealed
(`wasman_host.seal`) for the object's own name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from attrs import evolve, field, frozen
from pydantic_core import to_json

from wasman_host.errors import CorruptSnapshotError, UnsupportedStateError
from wasman_host.seal import Address, seal, unseal
from wasman_host.store.forms import columns_as_json, columns_of_json
from wasman_host.store.protocol import OPEN, Blob, Change, Columns, Key, Message, Status, Stored

__all__ = [
    "Head",
    "Letter",
    "Part",
    "decode_head",
    "decode_part",
    "decode_past",
    "encode_head",
    "encode_part",
    "encode_past",
    "folder_of",
    "head_name",
    "open_object",
    "places",
    "seal_object",
    "split_mark",
    "word",
]

_VERSION = 1
_WORD = re.compile(r"[a-z0-9][a-z0-9_.-]{0,79}", re.ASCII).fullmatch
_TIMED = frozenset({Status.RUNNING, Status.WAITING, Status.PUBLISHING})
_BETWEEN = "~"  # the parts of a mark's name; no word has it


def word(text: str) -> str:
    """A short word for a file's name: the text itself where every file system can hold it, else a hash of it."""
    return text if _WORD(text) else "=" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def folder_of(key: Key) -> str:
    """Where all objects of an instance are."""
    return f"i/{word(key.tenant)}/{word(key.id)}"


def head_name(folder: str) -> str:
    """The object that holds the instance in `folder`."""
    return f"{folder}/rec"


@frozen
class Letter:
    """Mail that nobody has consumed.

    Attributes:
        kind: As that of a message.
        sent: When it was accepted, ns since 1970.
        body: Its bytes, or b"" where they are an object.
        name: That object's name, or "".
    """

    kind: str
    sent: int
    body: bytes = field(repr=False)
    name: str = ""


@frozen
class Part:
    """A piece of a run's log that is an object of its own, with the names of blobs.

    Attributes:
        name: The object's name.
        start: The first entry's number.
        stop: One more than the last entry's; no more than `start` where it holds nothing but names.
    """

    name: str
    start: int
    stop: int


@frozen
class Head:
    """An instance, whole.

    Attributes:
        key: The instance.
        life: Drawn when the id was created; a deleted id that is created again lives another life. Begins the names of
            all its objects.
        number: When it was created, ns since 1970 by its creator's clock: which of two is older.
        run: The current run.
        version: Counts its changes.
        nonce: That of the last change.
        columns: What is searched by.
        record: Sealed, as it was given.
        tail: As it was given.
        entries: The newest log entries of the run.
        parts: Where those before them are, oldest first.
        blobs: Names of the run's blobs, and of their objects, as far as no part holds them.
        gone: Names of blobs that parts hold and that were dropped.
        past: Former runs, and where their logs are.
        older: The object that holds the runs before those, or "".
        letters: Mail by id, oldest first.
        consumed: When mail was consumed, by id, while it may be sent again.
        outbox: What its last change sends and creates, and what may not have arrived yet.
        marks: The marks by which it is found, by kind.
        deleted: Whether nothing of it is left but this object.
    """

    key: Key
    life: str
    number: int
    run: str
    version: int
    nonce: str
    columns: Columns
    record: bytes = field(repr=False)
    tail: bytes = b""
    entries: tuple[tuple[int, bytes], ...] = field(default=(), repr=False)
    parts: tuple[Part, ...] = ()
    blobs: Mapping[str, str] = field(factory=dict)
    gone: frozenset[str] = frozenset()
    past: Mapping[str, tuple[Part, ...]] = field(factory=dict)
    older: str = ""
    letters: Mapping[str, Letter] = field(factory=dict)
    consumed: Mapping[str, int] = field(factory=dict)
    outbox: tuple[Change | Message, ...] = ()
    marks: Mapping[str, str] = field(factory=dict)
    deleted: bool = False

    @property
    def stored(self) -> Stored:
        """As the protocol shows it."""
        return Stored(
            self.key,
            self.run,
            self.version,
            self.nonce,
            self.columns,
            self.record,
            len(self.letters),
            self.tail,
        )

    @property
    def found(self) -> tuple[str, int, str, int]:
        """(run, version, nonce, mail), by which a change is decided."""
        return (self.run, self.version, self.nonce, len(self.letters))

    def holds_entry(self, n: int) -> bool:
        """Whether entry n of the run is there."""
        if self.entries and n > self.entries[-1][0]:
            return False  # what a step of every workflow asks
        return any(n == there for there, _ in self.entries) or any(part.start <= n < part.stop for part in self.parts)


# -- marks ------------------------------------------------------------------------------------------------------------


def places(head: Head, now: int) -> dict[str, str]:
    """The marks that an instance needs to be found by, as kind and all of the name but its random end.

    A mark is an object of which only the name counts:

        q/<queue>/<time>~<tenant>~<id>~<random>      may be claimed from that time on (20 digits)
        own/<worker>/<tenant>~<id>~<random>          belongs to the worker
        mail/<worker>/<tenant>~<id>~<random>         ... who has unread mail there
        out/<tenant>~<id>~<random>                   has something to send, or is to be buried
    """
    columns = head.columns
    end = f"{word(head.key.tenant)}{_BETWEEN}{word(head.key.id)}{_BETWEEN}"
    wanted: dict[str, str] = {}
    if head.outbox or head.deleted:
        wanted["out"] = f"out/{end}"
    if head.deleted or columns.status not in OPEN or not columns.workflow:
        return wanted
    if columns.owner is not None:
        wanted["own"] = f"own/{word(columns.owner)}/{end}"
        if head.letters:
            wanted["mail"] = f"mail/{word(columns.owner)}/{end}"
        return wanted
    times = [time for time in (columns.expires,) if time is not None]
    if columns.wake is not None and columns.status in _TIMED:
        times.append(columns.wake)
    if head.letters:
        # By its age, as `claim_order` sorts it; but it may be claimed at once.
        times.append(min(columns.created, now))
    if times:
        wanted["q"] = f"q/{word(columns.queue)}/{max(0, min(times)):020d}{_BETWEEN}{end}"
    return wanted


def split_mark(name: str) -> tuple[int, str] | None:
    """(time or 0, the folder of the instance) of the last word of a mark's name; None where it is no mark."""
    words = name.rsplit("/", 1)[-1].split(_BETWEEN)
    if len(words) not in {3, 4} or (len(words) == 4 and not words[0].isdecimal()):  # noqa: PLR2004  see `places`
        return None
    return (int(words[0]) if len(words) == 4 else 0, f"i/{words[-3]}/{words[-2]}")  # noqa: PLR2004


# -- stored forms -----------------------------------------------------------------------------------------------------


def seal_object(name: str, data: bytes, *, deflate: bool = True) -> bytes:
    """What the object of that name holds."""
    return seal(Address("", "", "", "object", name), data, deflate=deflate)


def open_object(name: str, sealed: bytes, what: str) -> bytes:
    """The inverse of `seal_object`; errors begin with `what`."""
    try:
        return unseal(Address("", "", "", "object", name), sealed)
    except CorruptSnapshotError as error:
        raise CorruptSnapshotError(f"{what}: {error}") from error
    except UnsupportedStateError as error:
        raise UnsupportedStateError(f"{what}: {error}") from error


def encode_part(entries: Sequence[tuple[int, bytes]], blobs: Mapping[str, str]) -> bytes:
    """A piece of a log, with the names of the blobs that belong to it, to be sealed."""
    head = to_json({"v": _VERSION, "entries": [(n, len(entry)) for n, entry in entries], "blobs": dict(blobs)})
    return b"".join((head, b"\n", *(entry for _, entry in entries)))


def decode_part(data: bytes, what: str) -> tuple[list[tuple[int, bytes]], dict[str, str]]:
    """The inverse of `encode_part`; raises `CorruptSnapshotError`, which begins with `what`."""
    try:
        fields, body = _split(data, what)
        entries = list(
            zip((n for n, _ in fields["entries"]), body([size for _, size in fields["entries"]]), strict=True)
        )
        return entries, fields["blobs"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptSnapshotError(f"{what} cannot be read ({error!r}); restore it from a backup") from error


def encode_past(past: Mapping[str, Sequence[Part]], older: str) -> bytes:
    """Former runs, and the object that holds those before them, to be sealed."""
    return to_json({"v": _VERSION, "past": {run: _parts(parts) for run, parts in past.items()}, "older": older}) + b"\n"


def decode_past(data: bytes, what: str) -> tuple[dict[str, tuple[Part, ...]], str]:
    """The inverse of `encode_past`; raises `CorruptSnapshotError`, which begins with `what`."""
    try:
        fields, body = _split(data, what)
        body([])
        return {run: _of_json(parts) for run, parts in fields["past"].items()}, fields["older"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptSnapshotError(f"{what} cannot be read ({error!r}); restore it from a backup") from error


def _split(data: bytes, what: str) -> tuple[dict[str, Any], Any]:
    line, _, rest = data.partition(b"\n")
    fields = json.loads(line)
    if fields["v"] != _VERSION:
        raise UnsupportedStateError(f"{what} was written by another wasman (version {fields['v']}); use that one")

    def body(sizes: Sequence[int]) -> list[bytes]:
        pieces, at = [], 0
        for size in sizes:
            pieces.append(rest[at : at + size])
            at += size
        if at != len(rest):
            raise ValueError(f"{len(rest)} bytes for {at}")
        return pieces

    return fields, body


def _parts(parts: Sequence[Part]) -> list[Any]:
    return [(part.name, part.start, part.stop) for part in parts]


def encode_head(head: Head, name: str) -> bytes:
    """What the object `name` holds."""
    fields: dict[str, Any] = {
        "v": _VERSION,
        "tenant": head.key.tenant,
        "id": head.key.id,
        "life": head.life,
        "number": head.number,
        "run": head.run,
        "version": head.version,
        "nonce": head.nonce,
        "columns": columns_as_json(head.columns),
        "record": len(head.record),
        "tail": len(head.tail),
        "entries": [(n, len(entry)) for n, entry in head.entries],
        "marks": head.marks,
    }
    if head.parts:
        fields["parts"] = _parts(head.parts)
    if head.past:
        fields["past"] = {run: _parts(parts) for run, parts in head.past.items()}
    if head.letters:
        fields["letters"] = [
            (id_, letter.kind, letter.sent, len(letter.body), letter.name) for id_, letter in head.letters.items()
        ]
    if head.outbox:
        fields["outbox"] = [_sent_as_json(one) for one in head.outbox]
    if head.gone:
        fields["gone"] = sorted(head.gone)
    for what in ("blobs", "older", "consumed", "deleted"):
        if value := getattr(head, what):
            fields[what] = value
    bodies = [head.record, head.tail, *(entry for _, entry in head.entries)]
    bodies += (letter.body for letter in head.letters.values())
    # Not deflated: it is written at every step, and most of it is sealed bytes already.
    return seal_object(name, b"".join((to_json(fields), b"\n", *bodies)), deflate=False)


def decode_head(sealed: bytes, name: str, what: str) -> Head:
    """The inverse of `encode_head`.

    Raises:
        CorruptSnapshotError: It is damaged, or another object's content; the message begins with `what`.
        UnsupportedStateError: Another wasman wrote it.
    """
    data = open_object(name, sealed, what)
    try:
        fields, body = _split(data, what)
        entries, letters = fields["entries"], fields.get("letters", ())
        sizes = [fields["record"], fields["tail"], *(size for _, size in entries), *(one[3] for one in letters)]
        record, tail, *rest = body(sizes)
        head = Head(
            key=Key(fields["tenant"], fields["id"]),
            life=fields["life"],
            number=fields["number"],
            run=fields["run"],
            version=fields["version"],
            nonce=fields["nonce"],
            columns=columns_of_json(fields["columns"]),
            record=record,
            tail=tail,
            entries=tuple((n, entry) for (n, _), entry in zip(entries, rest[: len(entries)], strict=True)),
            marks=fields["marks"],
        )
        if letters:
            head = evolve(
                head,
                letters={
                    id_: Letter(kind, sent, letter, place)
                    for (id_, kind, sent, _, place), letter in zip(letters, rest[len(entries) :], strict=True)
                },
            )
        if "parts" in fields or "past" in fields:
            past = {run: _of_json(parts) for run, parts in fields.get("past", {}).items()}
            gone = frozenset(fields.get("gone", ()))
            head = evolve(head, parts=_of_json(fields.get("parts", ())), past=past, gone=gone)
        if "outbox" in fields:
            head = evolve(head, outbox=tuple(_sent_of_json(one) for one in fields["outbox"]))
        others = {what: fields[what] for what in ("blobs", "older", "consumed", "deleted") if what in fields}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptSnapshotError(f"{what} cannot be read ({error!r}); restore it from a backup") from error
    return evolve(head, **others) if others else head


def _of_json(parts: Sequence[Sequence[Any]]) -> tuple[Part, ...]:
    return tuple(Part(name, start, stop) for name, start, stop in parts)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _sent_as_json(one: Change | Message) -> list[Any]:
    if isinstance(one, Message):
        return [one.key.tenant, one.key.id, one.id, one.kind, _text(one.body), one.run]
    effects: list[Change | Message] = [*one.creates, *one.sends]
    return [
        one.key.tenant,
        one.key.id,
        {
            "run": one.run,
            "nonce": one.nonce,
            "record": _text(cast("bytes", one.record)),
            "columns": columns_as_json(cast("Columns", one.columns)),
            "tail": _text(one.tail),
            "entries": [(n, _text(entry)) for n, entry in one.entries],
            "blobs": [(blob.name, _text(blob.data)) for blob in one.blobs],
            "effects": [_sent_as_json(effect) for effect in effects],
        },
    ]


def _sent_of_json(given: Sequence[Any]) -> Change | Message:
    tenant, id_, *rest = given
    key = Key(tenant, id_)
    if len(rest) > 1:
        message, kind, body, *run = rest
        return Message(key, message, kind, base64.b64decode(body), run=run[0] if run else "")
    fields = rest[0]
    effects: list[Change | Message] = [_sent_of_json(effect) for effect in fields["effects"]]
    return Change(
        key,
        None,
        fields["run"],
        fields["nonce"],
        base64.b64decode(fields["record"]),
        columns_of_json(fields["columns"]),
        tail=base64.b64decode(fields["tail"]),
        entries=[(n, base64.b64decode(entry)) for n, entry in fields["entries"]],
        blobs=[Blob(name, base64.b64decode(data)) for name, data in fields["blobs"]],
        sends=[effect for effect in effects if isinstance(effect, Message)],
        creates=[effect for effect in effects if isinstance(effect, Change)],
    )
