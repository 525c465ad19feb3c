"""Sessions: how an instance is bound to the outside world, given once at its start and the same on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, model_serializer, model_validator

from wasman_host.errors import InvalidArgumentError
from wasman_host.record import StreamSpec
from wasman_host.streams import identify_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

__all__ = ["FileSink", "FileSource", "Session", "Sink", "Source", "bind"]


class _Stream(BaseModel):
    """A stream by its persisted type tag: what is stored of a subclass is read back as that subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        for known in cls.__subclasses__():
            if known.type_tag == tag:
                return known.model_validate(fields)
        message = f"{tag!r} is no known type of {cls.__name__.lower()}"
        raise ValueError(message)

    @model_serializer(mode="plain")
    def _with_tag(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
        return {"type": self.type_tag, **plain}

    def bound(self) -> _Stream:
        """The same stream, meaning the same on every machine and in every working directory."""
        return self

    async def identity(self) -> Mapping[str, Any]:
        """What tells, after a crash, whether it is still the same.

        Raises:
            InvalidArgumentError: It cannot be used.
        """
        return {}

    def spec(self, identity: Mapping[str, Any]) -> StreamSpec:
        """What the engine needs to open it."""
        config = self.model_dump()
        return StreamSpec(config.pop("type"), config, identity)


class Source(_Stream):
    """Where a guest's download comes from. Use one of its subclasses, such as `FileSource`."""


class Sink(_Stream):
    """Where a guest's upload goes to. Use one of its subclasses, such as `FileSink`."""


class FileSource(Source):
    """A file. It must stay as it is until the run has ended.

    Attributes:
        path: Where it is; resolved at the start.
        check_digest: Compare its sha256 whenever it is opened again, not only its length and modification time.
    """

    type_tag: ClassVar[str] = "file"

    path: Path
    check_digest: bool = False

    def bound(self) -> FileSource:
        """See `_Stream`."""
        return FileSource(path=self.path.absolute(), check_digest=self.check_digest)

    async def identity(self) -> Mapping[str, Any]:
        """See `_Stream`."""
        try:
            return await anyio.to_thread.run_sync(lambda: identify_file(self.path, with_digest=self.check_digest))
        except OSError as error:
            message = f"the source {self.path} cannot be opened: {error.strerror}"
            raise InvalidArgumentError(message) from error


class FileSink(Sink):
    """A file that appears under its name, complete, when the run completes; one that was there is replaced.

    Attributes:
        path: Where it will be; resolved at the start. Its folder must exist.
    """

    type_tag: ClassVar[str] = "file"

    path: Path

    def bound(self) -> FileSink:
        """See `_Stream`."""
        return FileSink(path=self.path.absolute())

    async def identity(self) -> Mapping[str, Any]:
        """See `_Stream`."""
        if not await anyio.Path(self.path.parent).is_dir():
            message = f"the sink {self.path} cannot be written: there is no folder {self.path.parent}"
            raise InvalidArgumentError(message)
        return {}


class Session(BaseModel):
    """How an instance is bound to the outside world; fields of type `Source` and `Sink` of a subclass are its streams.

    It is stored as it is: keep secrets out of it, and give what finds them instead (the name of an environment
    variable).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


async def bind(session: Session) -> tuple[Session, dict[str, StreamSpec], dict[str, StreamSpec]]:
    """The session as it is stored, its sources and its sinks.

    Raises:
        InvalidArgumentError: A source or sink cannot be used.
    """
    bound: dict[str, _Stream] = {}
    sources: dict[str, StreamSpec] = {}
    sinks: dict[str, StreamSpec] = {}
    for name in type(session).model_fields:
        stream = getattr(session, name)
        if isinstance(stream, _Stream):
            bound[name] = stream.bound()
            spec = bound[name].spec(await bound[name].identity())
            (sources if isinstance(stream, Source) else sinks)[name] = spec
    return session.model_copy(update=bound), sources, sinks
