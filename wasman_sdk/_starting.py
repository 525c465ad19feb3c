"""How a client starts a workflow: the options of a start, and what they are to the host."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from wasman_host.errors import InvalidArgumentError
from wasman_host.payload import JSON, Payload
from wasman_host.starting import StartOptions, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from wasman_host.values import frozen
from wasman_sdk._session import Session, bind

if TYPE_CHECKING:
    from wasman_host.record import Limits, StreamSpec

__all__ = ["Options", "StartWorkflowOptions", "conflict_policy", "reuse_policy"]

Conflict: TypeAlias = WorkflowIDConflictPolicy | Literal["fail", "use_existing", "terminate_existing"]
Reuse: TypeAlias = WorkflowIDReusePolicy | Literal["allow_duplicate", "allow_duplicate_failed_only", "reject_duplicate"]


class StartWorkflowOptions(TypedDict, total=False):
    """Options of `start_workflow` and `execute_workflow`; each may be left out.

    Attributes:
        session: How the run is bound to the outside world.
        memo: For people who look at it: JSON by name, at most 64 KiB. A listing shows it.
        search_attributes: To find it by: at most 100 strings by name, names of at most 200 bytes of UTF-8, values of
            at most 2,000.
        queue: The task queue whose workers may run it; "default" by default.
        id_conflict_policy: Where the id has an open run: "fail" (the default), "use_existing" or "terminate_existing";
            see `WorkflowIDConflictPolicy`.
        id_reuse_policy: Where the id has a closed run: "allow_duplicate" (the default), "allow_duplicate_failed_only"
            or "reject_duplicate"; see `WorkflowIDReusePolicy`.
        execution_timeout: Ends the run, and what continues it, as timed out so long after it has begun.
        run_timeout: Ends the run as timed out so long after it has begun.
        start_delay: The run begins so much later; until then `describe` shows that it waits.
    """

    session: Session | None
    memo: Mapping[str, Any] | None
    search_attributes: Mapping[str, str] | None
    queue: str
    id_conflict_policy: Conflict
    id_reuse_policy: Reuse
    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    start_delay: timedelta | None


@frozen
class Options:
    """The options of one start, with their defaults; a name that is none of them is a `TypeError`."""

    session: Session | None = None
    memo: Mapping[str, Any] | None = None
    search_attributes: Mapping[str, str] | None = None
    queue: str = "default"
    id_conflict_policy: Conflict = WorkflowIDConflictPolicy.FAIL
    id_reuse_policy: Reuse = WorkflowIDReusePolicy.ALLOW_DUPLICATE
    execution_timeout: timedelta | None = None
    run_timeout: timedelta | None = None
    start_delay: timedelta | None = None

    async def for_host(self, id_: str, resume: str, limits: Limits) -> tuple[StartOptions, Payload | None]:
        """The same for the host, and the session as it is stored.

        Raises:
            InvalidArgumentError: An option is not what it has to be.
        """
        sources: Mapping[str, StreamSpec] = {}
        sinks: Mapping[str, StreamSpec] = {}
        stored = None
        if self.session is not None:
            bound, sources, sinks = await bind(self.session)
            stored = Payload.of(bound.model_dump_json(by_alias=True).encode(), JSON)
        options = StartOptions(
            resume=resume,
            limits=limits,
            sources=sources,
            sinks=sinks,
            memo=self.memo or {},
            attributes=self.search_attributes or {},
            queue=self.queue,
            conflict=conflict_policy(self.id_conflict_policy),
            reuse=reuse_policy(self.id_reuse_policy),
            execution_timeout=_nanoseconds(self.execution_timeout, "execution_timeout", id_),
            run_timeout=_nanoseconds(self.run_timeout, "run_timeout", id_),
            start_delay=_nanoseconds(self.start_delay, "start_delay", id_) or 0,
        )
        return options, stored


def conflict_policy(given: Conflict) -> WorkflowIDConflictPolicy:
    """The policy of that name. Raises `InvalidArgumentError`, which lists them."""
    try:
        return WorkflowIDConflictPolicy(given)
    except ValueError:
        raise _no_policy("id_conflict_policy", given, WorkflowIDConflictPolicy) from None


def reuse_policy(given: Reuse) -> WorkflowIDReusePolicy:
    """The policy of that name. Raises `InvalidArgumentError`, which lists them."""
    try:
        return WorkflowIDReusePolicy(given)
    except ValueError:
        raise _no_policy("id_reuse_policy", given, WorkflowIDReusePolicy) from None


def _no_policy(
    what: str, given: object, kind: type[WorkflowIDConflictPolicy | WorkflowIDReusePolicy]
) -> InvalidArgumentError:
    return InvalidArgumentError(f"{given!r} is no {what}; there are {', '.join(known.value for known in kind)}")


def _nanoseconds(given: object, what: str, id_: str) -> int | None:
    if given is None:
        return None
    if not isinstance(given, timedelta):
        kind = type(given).__name__
        raise InvalidArgumentError(f"{what} of {id_!r} is a {kind}; give a timedelta, such as timedelta(hours=1)")
    return given // timedelta(microseconds=1) * 1000
