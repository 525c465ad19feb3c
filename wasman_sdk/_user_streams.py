"""Sources and sinks of the application's own: how the engine opens them, and what they may not do to it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import field, frozen
from pydantic import ValidationError
from typing_extensions import override

from wasman_host.errors import InvalidArgumentError, SourceChangedError, StreamError, WasmanError
from wasman_host.known_streams import known_types
from wasman_host.streams import SinkWriter, SourceReader
from wasman_sdk._streams import Sink, Source, Stream
from wasman_sdk._validation import first_problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wasman_host.progress import ProgressCallback
    from wasman_host.record import StreamSpec
    from wasman_host.streams import StreamTypes

__all__ = ["StreamContext", "stream_types"]

S = TypeVar("S", bound=Stream)
T = TypeVar("T")


@frozen
class StreamContext:
    """What a source or sink of the application's own is opened with.

    Attributes:
        run_id: The run, or "" for a source: name the part of a sink by it.
        token: What the sink gave for the snapshot from which the run goes on; None where it writes from its beginning,
            where it has finished and is only published, and where it is discarded.
        resources: The worker's.
    """

    run_id: str = ""
    token: Mapping[str, Any] | None = None
    resources: Sequence[object] = field(default=(), repr=False)

    def resource(self, kind: type[T]) -> T:
        """The worker's one resource of this class.

        Raises:
            StreamError: It has none, or several.
        """
        found = [one for one in self.resources if isinstance(one, kind)]
        if len(found) != 1:
            message = f"the stream wants one {kind.__name__} and the worker has {len(found)}; give it resources=[...]"
            raise StreamError(message)
        return found[0]


def stream_types(
    classes: Sequence[type[Source | Sink]] = (),
    resources: Sequence[object] = (),
    on_progress: ProgressCallback | None = None,
) -> StreamTypes:
    """The types that a worker knows, with those of its application.

    Raises:
        InvalidArgumentError: A class is no source or sink, has no tag or that of another one, or cannot be opened; or
            progress cannot be told.
    """
    types = known_types()
    listener: Any = on_progress
    if listener is not None and (not callable(listener) or inspect.iscoroutinefunction(listener)):
        message = f"on_progress is a plain function, which nobody awaits, and is called often; not {listener!r}"
        raise InvalidArgumentError(message)
    types.progress = on_progress
    given: Sequence[Any] = classes
    for cls in given:
        if not isinstance(cls, type) or not issubclass(cls, Source | Sink):
            message = f"{cls!r} is no class of sources or sinks; derive one from Source or Sink"
            raise InvalidArgumentError(message)
        if not cls.type_tag:
            message = f'{cls.__name__} has no type_tag; give it one that never changes: type_tag: ClassVar[str] = "..."'
            raise InvalidArgumentError(message)
        known: Mapping[str, object] = types.sources if issubclass(cls, Source) else types.sinks
        if cls.type_tag in known:
            message = f"{cls.__name__} has the type_tag {cls.type_tag!r}, and so has another class; rename one of them"
            raise InvalidArgumentError(message)
        if cls.open in {Source.open, Sink.open}:
            message = f"{cls.__name__} has no method open(context), which gives its reader or writer"
            raise InvalidArgumentError(message)
        if issubclass(cls, Source):
            types.sources[cls.type_tag] = _source_opener(cls, resources)
        else:
            types.sinks[cls.type_tag] = _sink_opener(cls, resources)
    return types


def _source_opener(cls: type[Source], resources: Sequence[object]) -> Callable[[StreamSpec], Awaitable[SourceReader]]:
    name = f"the source {cls.type_tag!r}"

    async def opened(spec: StreamSpec) -> SourceReader:
        source = _read_back(cls, spec)
        found = dict(await _guarded(name, source.identity()))
        if found != dict(spec.identity):
            message = (
                f"{name} has changed since the run started (it was {dict(spec.identity)}, it is {found}); put the old "
                f"one back, then unblock, or terminate and start anew"
            )
            raise SourceChangedError(message)
        reader = await _guarded(name, source.open(StreamContext(resources=resources)))
        return _GuardedReader(name, reader)

    return opened


def _sink_opener(
    cls: type[Sink], resources: Sequence[object]
) -> Callable[[StreamSpec, str, Mapping[str, Any] | None], Awaitable[SinkWriter]]:
    name = f"the sink {cls.type_tag!r}"

    async def opened(spec: StreamSpec, run: str, token: Mapping[str, Any] | None) -> SinkWriter:
        sink = _read_back(cls, spec)
        return _GuardedWriter(name, await _guarded(name, sink.open(StreamContext(run, token, resources))))

    return opened


def _read_back(cls: type[S], spec: StreamSpec) -> S:
    try:
        return cls.model_validate({"type": spec.type, **spec.config})
    except ValidationError as error:
        message = f"what is stored of stream {spec.type!r} is no {cls.__name__} any more: {first_problem(error)}"
        raise StreamError(message) from error


async def _guarded(name: str, call: Awaitable[T]) -> T:
    """What the application's code gives; what it raises blocks the run, and is not taken for an error of wasman."""
    try:
        return await call
    except Exception as error:
        raise _raised(name, error) from error


def _raised(name: str, error: Exception) -> Exception:
    if isinstance(error, WasmanError) and not isinstance(error, InvalidArgumentError):
        return error
    return StreamError(f"{name} raised {error!r}; mend that, then unblock")


class _GuardedReader(SourceReader):
    """Of the application's own: it may give fewer bytes than were asked for, and raise what it likes."""

    def __init__(self, name: str, reader: SourceReader) -> None:
        self._name, self._reader = name, reader

    @property
    @override
    def length(self) -> int | None:
        return self._reader.length

    @override
    async def read_into(self, offset: int, view: memoryview) -> int:
        done = 0
        while done < len(view):  # a read fills the view unless the source ends, so that a replay sees the same chunks
            got = await _guarded(self._name, self._reader.read_into(offset + done, view[done:]))
            if not 0 <= got <= len(view) - done:
                message = f"{self._name} says that it has read {got} of {len(view) - done} bytes; mend it, then unblock"
                raise StreamError(message)
            if not got:
                break
            done += got
        return done

    @override
    async def close(self) -> None:
        await _guarded(self._name, self._reader.close())


class _GuardedWriter(SinkWriter):
    """Of the application's own: it may raise what it likes."""

    def __init__(self, name: str, writer: SinkWriter) -> None:
        self._name, self._writer = name, writer

    @override
    async def write(self, offset: int, view: memoryview) -> None:
        await _guarded(self._name, self._writer.write(offset, view))

    @override
    def write_now(self, offset: int, view: memoryview) -> bool:
        try:
            return self._writer.write_now(offset, view)
        except Exception as error:
            raise _raised(self._name, error) from error

    @override
    async def sync(self, length: int) -> Mapping[str, Any]:
        return await _guarded(self._name, self._writer.sync(length))

    @override
    async def digest(self, length: int) -> str:
        return await _guarded(self._name, self._writer.digest(length))

    @override
    async def finish(self, length: int) -> tuple[str, Mapping[str, Any]]:
        return await _guarded(self._name, self._writer.finish(length))

    @override
    async def publish(self, length: int, digest: str, token: Mapping[str, Any]) -> None:
        await _guarded(self._name, self._writer.publish(length, digest, token))

    @override
    async def discard(self) -> None:
        await _guarded(self._name, self._writer.discard())

    @override
    async def close(self) -> None:
        await _guarded(self._name, self._writer.close())
