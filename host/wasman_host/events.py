"""What happens to instances in a worker, for its log and for whoever traces it: one list of points for both."""

from __future__ import annotations

from typing import Literal, TypeAlias

from attrs import frozen

__all__ = ["Event", "EventKind"]

EventKind: TypeAlias = Literal[
    "claimed",
    "released",
    "waiting",
    "blocked",
    "completed",
    "failed",
    "cancelled",
    "terminated",
    "timed_out",
    "activity_started",
    "activity_completed",
    "activity_failed",
    "activity_cancelled",
]


@frozen
class Event:
    """Something that has happened to an instance in this worker.

    Attributes:
        kind: "claimed": this worker has taken the run up; "released": it has handed it back, to be taken up later or
            elsewhere; "waiting": for a worker that has the activity; "blocked"; "completed", "failed", "cancelled",
            "terminated", "timed_out": the run has ended, and that is durable; "activity_started", "activity_completed",
            "activity_failed": an attempt begins, or has ended (what it gave is not durable yet); "activity_cancelled":
            it was given up, because its run was cancelled or has ended, or its worker left or lost its lease.
        tenant: Whose instance it is.
        workflow: The workflow's name.
        workflow_id: The instance.
        run_id: Its run.
        time: By the store's clock, ns since 1970.
        activity: The activity's name; "" where it is about the run.
        attempt: Which attempt, from 1; 0 where it is about the run.
        reason: Why: of what is blocked, waits, failed or was ended; of a claim that the owner before has died; "" else.
    """

    kind: EventKind
    tenant: str
    workflow: str
    workflow_id: str
    run_id: str
    time: int
    activity: str = ""
    attempt: int = 0
    reason: str = ""
