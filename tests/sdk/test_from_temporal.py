"""docs/from-temporal.md names nothing here that there is not, and says something of each of Temporal's names."""

from collections.abc import Iterator

import pytest

from tests.doc_pages import ROOT
from tests.sdk.mapped_names import CODE, check

PAGE = ROOT / "docs" / "from-temporal.md"


def rows() -> Iterator[tuple[str, str, str]]:
    """Of every row of every table: what it is there, here, and the note."""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("|") and not line.startswith(("| --- ", "| Temporal ", "| DBOS ")):
            there, here, note = (cell.strip() for cell in line.split("|")[1:-1])
            yield there, here, note


def test_every_row_says_something() -> None:
    for there, here, note in rows():
        names = CODE.findall(here)
        assert here == (", ".join(f"`{name}`" for name in names) or "—"), there
        assert names or note, f"{there} has no counterpart, and the page does not say what to do"
    assert len(list(rows())) > 120


def test_what_a_user_looks_for_is_there() -> None:
    page = PAGE.read_text("utf-8")
    for name in (
        "Client.connect", "start_workflow", "execute_workflow", "get_workflow_handle", "id_conflict_policy",
        "id_reuse_policy", "execution_timeout", "RetryPolicy", "heartbeat", "CancelledError", "ApplicationError",
        "WorkflowHandle.signal", "WorkflowHandle.query", "execute_update", "execute_child_workflow", "create_schedule",
        "task_queue", "Interceptor", "PayloadCodec", "start_time_skipping", "Replayer", "workflow.patched", "DBOS.step",
    ):  # fmt: skip
        assert name in page


@pytest.mark.parametrize("mentioned", sorted({name for _, here, _ in rows() for name in CODE.findall(here)}))
def test_what_stands_for_it_is_there(mentioned: str) -> None:
    check(mentioned)


@pytest.mark.parametrize(
    "wrong",
    [
        "Client.query", "Client.start_workflow(cron=)", "testing.Replayer", "testing.WorkflowEnvironment.jump",
        "wasman query", "activity(task_queue=)", "activity.defn", "Client.list_workflows(query=)",
    ],
)  # fmt: skip
def test_what_is_not_there_is_noticed(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check(wrong)
