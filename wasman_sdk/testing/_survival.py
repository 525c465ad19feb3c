"""Whether a program gives the same, wherever its worker dies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from attrs import frozen

from wasman_sdk.testing._environment import WorkflowEnvironment
from wasman_sdk.testing._faults import Fault, How, Point

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wasman_sdk._workflow import Workflow

__all__ = ["Survival", "assert_survives"]

T = TypeVar("T")


@frozen
class Survival:
    """What a program has survived.

    Attributes:
        commits: What the undisturbed run committed, in words, in order.
        lives: How often the program was run besides that.
        struck: How often something went wrong as it should: where instances run side by side, what would have been
            disturbed may have come before.
    """

    commits: Sequence[str]
    lives: int
    struck: int


@frozen
class _Life:
    result: Any
    calls: Mapping[str, tuple[str, bytes]]
    commits: Sequence[str]
    struck: int


async def assert_survives(
    run: Callable[[WorkflowEnvironment], Awaitable[T]],
    *,
    workflows: Sequence[Workflow[Any, Any]] = (),
    activities: Sequence[Callable[..., Any]] = (),
    resources: Sequence[object] | Callable[[], Sequence[object]] = (),
    hows: Sequence[How] = (How.DIES_BEFORE, How.DIES_AFTER, How.ERROR_AFTER),
    check: Callable[[T], None] | None = None,
    timeout: float = 30.0,
    **options: Any,
) -> Survival:
    """Run a program undisturbed, then again for each commit of its worker, which dies there; another one finishes it.

    All runs must give the same. Guests see the same run ids, random bytes and times; only an attempt that a death has
    cut has no backoff, and what comes after is earlier by that. No call of an activity that was
    answered may be made again under another idempotency key; under its own key it may be, at least once is the promise,
    and whether the activity minds is what `run` should look at: give back what has become of the world.

    Args:
        run: The program: starts workflows by `env.client`, waits for them, and gives what is to be compared. It must
            begin with a world of its own each time: make it inside, and mock activities there or give `resources` as a
            function.
        workflows: As in `WorkflowEnvironment`.
        activities: The same.
        resources: The same, or a function that makes them anew for each run.
        hows: What happens at each commit: the worker dies before it, dies after it, or lives on, having lost the answer
            to a commit that took effect.
        check: Looks at each result besides; raises what it does not like.
        timeout: Seconds that one run may take.
        options: More of `WorkflowEnvironment`.

    Returns:
        What was survived.

    Raises:
        AssertionError: A disturbed run gave something else, failed, did not end, or called activities otherwise.
    """
    start = options.pop("start", None) or datetime.now(UTC)

    async def live(*faults: Fault) -> _Life:
        made = resources() if callable(resources) else resources
        environment = WorkflowEnvironment(
            workflows=workflows, activities=activities, resources=made, start=start, faults=faults, **options
        )
        with anyio.fail_after(timeout):
            async with environment as env:
                result = await run(env)
                commits = tuple(env.commits)
            if check is not None:
                check(result)
        calls = {call.idempotency_key: (call.name, call.content) for call in env.calls()}
        return _Life(result, calls, commits, env.struck)

    right = await live()
    lives = struck = 0
    for n, commit in enumerate(right.commits, start=1):
        for how in hows:
            where = f"a worker that {_WORDS[how]} its commit {n} of {len(right.commits)} ({commit})"
            try:
                found = await live(Fault(Point("commit", n), how))
            except Exception as error:
                problem = "it did not end" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
                raise AssertionError(f"{where} is not survived: {problem}") from error
            lives, struck = lives + 1, struck + found.struck
            difference = _difference(right, found)
            assert not difference, f"{where} changes the outcome: {difference}"
    return Survival(right.commits, lives, struck)


_WORDS = {
    How.DIES_BEFORE: "dies before",
    How.DIES_AFTER: "dies after",
    How.ERROR_BEFORE: "cannot reach its store at",
    How.ERROR_AFTER: "loses the answer to",
}


def _difference(right: _Life, found: _Life) -> str:
    answered = {call: key for key, call in right.calls.items()}
    for key, (name, content) in found.calls.items():
        if right.calls.get(key) != (name, content):
            shown = content[:80].decode(errors="replace")
            before = answered.get((name, content))
            again = f", which the undisturbed run does under key {before}" if before else ""
            return f"activity {name!r} is called with {shown} under key {key}{again}"
    if found.result != right.result:
        return f"it gives {found.result!r}, undisturbed it is {right.result!r}"
    missing = [name for key, (name, _) in right.calls.items() if key not in found.calls]
    return f"activity {missing[0]!r} is not called any more" if missing else ""
