"""Sources and sinks as a session names them: what they are, in JSON; the engine opens them where the run is."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import anyio
import anyio.to_thread
from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import to_json, to_jsonable_python

from wasman_host.errors import InvalidArgumentError
from wasman_host.gzip_streams import gzip_identity
from wasman_host.record import StreamSpec
from wasman_host.streams import identify_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from wasman_host.streams import SinkWriter, SourceReader
    from wasman_sdk._user_streams import StreamContext

__all__ = ["BytesSource", "FileSink", "FileSource", "Sink", "Source", "Stream"]

_INLINE = 64 * 1024  # bytes: they are part of the record, which is written again and again


class Stream(BaseModel):
    """A stream by its persisted type tag: what is stored of a subclass is read back as that subclass.

    Attributes:
        type_tag: How it is named in what is stored: it must never change.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )

    type_tag: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _by_tag(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, dict):
            return handler(value)
        fields = dict(value)
        tag = fields.pop("type", cls.type_tag)
        if tag == cls.type_tag and tag:
            return handler(fields)
        for known in _below(cls):
            if known.type_tag == tag and tag:
                # As JSON, so that what JSON has no word for, such as bytes, is read as it was written.
                return cast("Self", known.model_validate_json(to_json(fields, bytes_mode="base64")))
        message = f"{tag!r} is no known type of {cls.__name__.lower()}"
        if not tag:
            message = f"{cls.__name__} has no type_tag to be stored under: use a class that has one"
        raise ValueError(message)

    @model_serializer(mode="plain")
    def _with_tag(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {"type": self.type_tag, **to_jsonable_python(fields, bytes_mode="base64")}

    def bound(self) -> Stream:
        """The same stream, meaning the same on every machine and in every working directory."""
        return self

    async def identity(self) -> Mapping[str, Any]:
        """What tells, after a crash, whether it is still the same. JSON.

        It is asked for at the start, and what it raises there is what starting the run raises.

        Raises:
            InvalidArgumentError: It cannot be used.
        """
        return {}

    def spec(self, identity: Mapping[str, Any]) -> StreamSpec:
        """What the engine needs to open it."""
        config = self.model_dump()
        return StreamSpec(config.pop("type"), config, identity)


def _below(cls: type[Stream]) -> Iterator[type[Stream]]:
    for known in cls.__subclasses__():
        yield known
        yield from _below(known)


class Source(Stream):
    """Where a guest's download comes from: a `FileSource`, `HttpSource`, `BytesSource`, `ChannelSource`, or your own.

    A class of your own has a `type_tag`, fields that JSON can hold, `identity` and `open`; give the class to the worker
    (`Worker(streams=[...])`). Its bytes are not logged: after a crash they are read again, from any offset. So
    `identity` is asked for again then, and a source that has become another one blocks the run by
    `SourceChangedError`. One without an identity cannot be used.

    Attributes:
        known_without_identity: Whether `open` itself finds out that it is no longer the same, or cannot be.
    """

    known_without_identity: ClassVar[bool] = False

    async def open(self, context: StreamContext) -> SourceReader:
        """Open it, in the worker, when the guest first downloads, and again after a crash.

        What this and its reader raise blocks the run; whoever has mended the cause unblocks it.
        """
        raise NotImplementedError


class Sink(Stream):
    """Where a guest's upload goes to: a `FileSink`, a `ChannelSink`, or a class of your own.

    A class of your own has a `type_tag`, fields that JSON can hold, and `open`; give the class to the worker
    (`Worker(streams=[...])`). What the guest has written must not be seen before the run has ended: it is written to a
    part that is named by the run, and published at the end. `SinkWriter` says when which of its methods is called.
    """

    async def open(self, context: StreamContext) -> SinkWriter:
        """Open the part of run `context.run_id`, in the worker, when the guest first uploads, and again after a crash.

        Where the run goes on from a snapshot, `context.token` is what `SinkWriter.sync` gave for it: the guest writes
        again from there on. What this and its writer raise blocks the run; whoever has mended the cause unblocks it.
        """
        raise NotImplementedError


class FileSource(Source):
    """A file. It must stay as it is until the run has ended.

    Attributes:
        path: Where it is; resolved at the start.
        check_digest: Compare its sha256 whenever it is opened again, not only its length and modification time.
        decompress: "gzip" where it is a gzip file, and the guest is to read what is in it.
    """

    type_tag: ClassVar[str] = "file"

    path: Path
    check_digest: bool = False
    decompress: Literal["", "gzip"] = ""

    def bound(self) -> FileSource:
        """See `Stream`."""
        return self.model_copy(update={"path": self.path.absolute()})

    async def identity(self) -> Mapping[str, Any]:
        """See `Stream`."""
        try:
            return await anyio.to_thread.run_sync(lambda: identify_file(self.path, with_digest=self.check_digest))
        except OSError as error:
            message = f"the source {self.path} cannot be opened: {error.strerror}"
            raise InvalidArgumentError(message) from error


class FileSink(Sink):
    """A file that appears under its name, complete, when the run completes; one that was there is replaced.

    Attributes:
        path: Where it will be; resolved at the start. Its folder must exist.
        compress: "gzip" where it is to be a gzip file of what the guest writes.
    """

    type_tag: ClassVar[str] = "file"

    path: Path
    compress: Literal["", "gzip"] = ""

    def bound(self) -> FileSink:
        """See `Stream`."""
        return self.model_copy(update={"path": self.path.absolute()})

    async def identity(self) -> Mapping[str, Any]:
        """See `Stream`."""
        if not await anyio.Path(self.path.parent).is_dir():
            message = f"the sink {self.path} cannot be written: there is no folder {self.path.parent}"
            raise InvalidArgumentError(message)
        return gzip_identity() if self.compress else {}


class BytesSource(Source):
    """A few bytes that are stored with the session, at most 65,536.

    Attributes:
        data: The bytes; URL-safe base64 where the session is JSON.
    """

    type_tag: ClassVar[str] = "bytes"

    data: bytes

    @field_validator("data", mode="before")
    @classmethod
    def _decoded(cls, value: Any) -> Any:
        return base64.b64decode(value, altchars="-_", validate=True) if isinstance(value, str) else value

    @field_validator("data")
    @classmethod
    def _small(cls, value: bytes) -> bytes:
        if len(value) > _INLINE:
            message = (
                f"a BytesSource is stored with its session and holds {_INLINE:,} bytes, not {len(value):,}; use a file"
            )
            raise ValueError(message)
        return value

    def __repr_args__(self) -> Any:
        yield "data", f"<{len(self.data):,} bytes>"

    async def identity(self) -> Mapping[str, Any]:
        """See `Stream`."""
        return {"sha256": hashlib.sha256(self.data).hexdigest()}
