"""What one guest may use, as far as it is made with it."""

from __future__ import annotations

from attrs import frozen

from wasman_host.errors import InvalidArgumentError

__all__ = ["MAX_STACK", "MAX_TABLE", "STACK", "STACK_STEP", "GuestLimits", "check_stack"]

STACK = 512 * 1024  # bytes a guest's calls may nest, if nothing else is said
STACK_STEP = 64 * 1024  # each depth is an engine of its own, so there are not too many of them
MAX_STACK = 64 * 1024 * 1024
MAX_TABLE = 10_000_000  # elements that all tables of a guest can grow to, whatever the limit: a guest may see this


@frozen
class GuestLimits:
    """Bytes of memory, elements of each table, bytes that its calls may nest."""

    memory: int
    table_elements: int
    stack: int


def check_stack(stack: int) -> None:
    """Raise `InvalidArgumentError` for a depth that no guest can be given."""
    if not STACK_STEP <= stack <= MAX_STACK:
        message = f"a stack of {stack:,} bytes: it may be {STACK_STEP:,} to {MAX_STACK:,}"
        raise InvalidArgumentError(message)
