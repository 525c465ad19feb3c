"""Sessions: how an instance is bound to the outside world, given once at its start and the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from wasman_host.errors import InvalidArgumentError
from wasman_sdk._secret import refuse_secrets
from wasman_sdk._streams import Source, Stream

if TYPE_CHECKING:
    from wasman_host.record import StreamSpec

__all__ = ["Session", "bind"]


class Session(BaseModel):
    """How an instance is bound to the outside world; fields of type `Source` and `Sink` of a subclass are its streams.

    It is stored as it is, so one that holds a secret, or what looks like one, is refused at the start: give a `Secret`
    instead, which says where it is found.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


async def bind(session: Session) -> tuple[Session, dict[str, StreamSpec], dict[str, StreamSpec]]:
    """The session as it is stored, its sources and its sinks.

    Raises:
        InvalidArgumentError: A source or sink cannot be used, or it holds a secret.
    """
    refuse_secrets(session)
    bound: dict[str, Stream] = {}
    sources: dict[str, StreamSpec] = {}
    sinks: dict[str, StreamSpec] = {}
    for name in type(session).model_fields:
        stream = getattr(session, name)
        if isinstance(stream, Stream):
            bound[name], spec = await _bound(name, stream)
            (sources if isinstance(stream, Source) else sinks)[name] = spec
    return session.model_copy(update=bound), sources, sinks


async def _bound(name: str, stream: Stream) -> tuple[Stream, StreamSpec]:
    """A stream as it is stored, and what the engine opens."""
    bound = stream.bound()
    try:
        identity = dict(await bound.identity())
    except InvalidArgumentError:
        raise
    except Exception as error:
        message = f"the session's {name!r} cannot be used: {type(stream).__name__} raised {error!r}"
        raise InvalidArgumentError(message) from error
    if isinstance(bound, Source) and not identity and not bound.known_without_identity:
        message = (
            f"the session's {name!r} is a {type(stream).__name__}, which has no identity: after a crash nobody could "
            f"tell whether its bytes are still the same; override identity()"
        )
        raise InvalidArgumentError(message)
    return bound, bound.spec(identity)
