"""Listings: which instances are asked for, and pages of them that are read as they are needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypedDict

from attrs import frozen
from typing_extensions import override

from wasman_host.control import describe_stored
from wasman_host.errors import InvalidArgumentError
from wasman_host.store.protocol import Filter, Status
from wasman_sdk._descriptions import WorkflowDescription, description_of

if TYPE_CHECKING:
    from wasman_host.store.protocol import Store

__all__ = ["Listing", "WorkflowFilter", "WorkflowPage", "filter_of", "page_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = 2**63 - 1


class WorkflowFilter(TypedDict, total=False):
    """Which instances `list_workflows`, `list_workflows_page` and `count` mean: all that is given must match.

    Attributes:
        status: One status, or several: "running", "waiting", "blocked", "publishing", "completed", "failed",
            "cancelled", "terminated", "timed_out", "continued".
        workflow: The workflow's name.
        id_prefix: How the id begins.
        search_attributes: All of these must be there.
        parent: The id of the instance that started it.
        started_after: Started at that time or later; a datetime with a time zone.
        started_before: Started earlier than that.
        closed_after: Ended at that time or later.
        closed_before: Ended earlier than that.
    """

    status: str | Collection[str] | None
    workflow: str | None
    id_prefix: str | None
    search_attributes: Mapping[str, str] | None
    parent: str | None
    started_after: datetime | None
    started_before: datetime | None
    closed_after: datetime | None
    closed_before: datetime | None


@frozen
class WorkflowPage:
    """One page of a listing, newest first.

    Attributes:
        workflows: The instances.
        cursor: What the next page is asked for with, or None where this is the last one. Text without spaces or
            control characters, but with what the ids hold: quote it in a URL.
    """

    workflows: Sequence[WorkflowDescription]
    cursor: str | None


@frozen
class _Given:
    """The fields of a filter, with their defaults; a name that is none of them is a `TypeError`."""

    status: str | Collection[str] | None = None
    workflow: str | None = None
    id_prefix: str | None = None
    search_attributes: Mapping[str, str] | None = None
    parent: str | None = None
    started_after: datetime | None = None
    started_before: datetime | None = None
    closed_after: datetime | None = None
    closed_before: datetime | None = None


def filter_of(tenant: str, given: WorkflowFilter) -> Filter:
    """The same for a store.

    Raises:
        InvalidArgumentError: There is no such status, or a time has no time zone.
    """
    where = _Given(**given)
    return Filter(
        tenant,
        None if where.status is None else _statuses(where.status),
        where.workflow,
        where.id_prefix,
        _nanoseconds(where.started_after, "started_after"),
        _nanoseconds(where.started_before, "started_before"),
        _nanoseconds(where.closed_after, "closed_after"),
        _nanoseconds(where.closed_before, "closed_before"),
        where.parent,
        where.search_attributes or {},
    )


def _statuses(given: str | Collection[str]) -> frozenset[Status]:
    try:
        return frozenset(Status(one) for one in ({given} if isinstance(given, str) else given))
    except ValueError as error:
        message = f"{error}; there are {', '.join(known.value for known in Status)}"
        raise InvalidArgumentError(message) from error


def _nanoseconds(given: datetime | None, what: str) -> int | None:
    if given is None:
        return None
    if given.tzinfo is None:
        raise InvalidArgumentError(f"{what} is {given}, which has no time zone; give one, such as datetime.now(UTC)")
    # Stores count in 64 bits, which end in the year 2262: nothing is later than that.
    return max(-_LATEST, min((given - _EPOCH) // timedelta(microseconds=1) * 1000, _LATEST))


async def page_of(store: Store, where: Filter, size: int, cursor: str | None) -> WorkflowPage:
    """One page.

    Raises:
        InvalidArgumentError: The size is less than 1, or the cursor is not of this listing.
    """
    page = await store.list(where, size, cursor)
    return WorkflowPage([description_of(describe_stored(stored)) for stored in page.rows], page.cursor)


class Listing(AsyncIterator[WorkflowDescription]):
    """Instances, newest first; the next page is read when the one before has been gone through."""

    def __init__(self, read: Callable[[str | None], Awaitable[WorkflowPage]], page_size: int) -> None:
        """Nothing is read yet; `read` gives the page at a cursor."""
        if page_size < 1:
            raise InvalidArgumentError(f"a page of {page_size} instances: the size must be at least 1")
        self._read = read
        self._rows: list[WorkflowDescription] = []  # the next one last
        self._cursor: str | None = None
        self._begun = False

    @override
    async def __anext__(self) -> WorkflowDescription:
        while not self._rows:
            if self._begun and self._cursor is None:
                raise StopAsyncIteration
            page = await self._read(self._cursor)
            self._begun, self._cursor = True, page.cursor
            self._rows = list(reversed(page.workflows))
        return self._rows.pop()
