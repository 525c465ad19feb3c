"""For the tests of applications: skipped time, mocked activities, and crashes wherever one wants them.

    async with WorkflowEnvironment(workflows=[order], activities=[charge]) as env:
        env.mock_activity(charge, returns=Receipt(number=1))
        report = await env.client.execute_workflow(order, Order(...), id="order-1")

Installed, it brings the pytest fixture `wasman_environment` along.
"""

from wasman_sdk.testing._activities import ActivityEnvironment
from wasman_sdk.testing._environment import WorkflowEnvironment
from wasman_sdk.testing._faults import Fault, FaultyStore, How, Point
from wasman_sdk.testing._mocks import ActivityMock, RecordedCall
from wasman_sdk.testing._survival import Survival, assert_survives

__all__ = [
    "ActivityEnvironment",
    "ActivityMock",
    "Fault",
    "FaultyStore",
    "How",
    "Point",
    "RecordedCall",
    "Survival",
    "WorkflowEnvironment",
    "assert_survives",
]


def _named_as_imported() -> None:
    """Tracebacks and help name what a test imports, not where it is kept."""
    for name in __all__:
        globals()[name].__module__ = "wasman_sdk.testing"


_named_as_imported()
