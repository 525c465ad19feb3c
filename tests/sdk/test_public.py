"""What an application may import, and from where."""

import inspect

import wasman_sdk
from wasman_host import errors as host_errors
from wasman_sdk import errors, testing

EXPECTED = {
    "ActivityInfo",
    "BytesSource",
    "CancelWorkflowInput",
    "Channel",
    "ChannelSink",
    "ChannelSource",
    "Client",
    "ClientInterceptor",
    "CountWorkflowsInput",
    "DeployInput",
    "DescribeWorkflowInput",
    "Engine",
    "Event",
    "ExecuteActivityInput",
    "FileSink",
    "FileSource",
    "GetResultInput",
    "HistoryEvent",
    "HistoryInput",
    "HttpSource",
    "Limits",
    "ListWorkflowsPageInput",
    "PayloadCodec",
    "PendingActivity",
    "RetryPolicy",
    "Runner",
    "RunnerOptions",
    "Secret",
    "Session",
    "Signal",
    "SignalWorkflowInput",
    "Sink",
    "SinkWriter",
    "Source",
    "SourceReader",
    "StartWorkflowInput",
    "StartWorkflowOptions",
    "StreamContext",
    "SyncClient",
    "SyncEngine",
    "SyncRunner",
    "SyncTestRunner",
    "SyncWorkflowHandle",
    "TerminateWorkflowInput",
    "TestRunner",
    "UnblockWorkflowInput",
    "WaitingSignal",
    "Worker",
    "WorkerInterceptor",
    "Workflow",
    "WorkflowDescription",
    "WorkflowFilter",
    "WorkflowHandle",
    "WorkflowIDConflictPolicy",
    "WorkflowIDReusePolicy",
    "WorkflowPage",
    "activity",
    "errors",
    "module_digest",
}


def test_all_is_exact_and_sorted() -> None:
    assert wasman_sdk.__all__ == sorted({*EXPECTED, *errors.__all__})
    public = {name for name in vars(wasman_sdk) if name.isidentifier() and not name.startswith("_")}  # pytest adds some
    assert public - set(wasman_sdk.__all__) <= {"cli", "testing"}  # what only the command and tests import


def test_what_tests_may_import_is_named_as_it_is_imported() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    assert {getattr(testing, name).__module__ for name in testing.__all__} == {"wasman_sdk.testing"}


def test_every_error_is_public_and_in_the_tree_that_its_docstring_draws() -> None:
    raised = {
        name for name, value in vars(host_errors).items() if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert raised <= set(errors.__all__) == set(host_errors.__all__)
    tree = host_errors.__doc__
    assert tree is not None
    lines = [line.strip(" │├└─") for line in tree.splitlines()]
    drawn = [line.split()[0] for line in lines if line.partition(" ")[0].endswith("Error")]
    assert sorted(drawn) == sorted(raised)
    for name in raised:
        kind = getattr(errors, name)
        assert name == "WasmanError" or issubclass(kind, errors.WasmanError)


def test_what_is_public_is_named_as_it_is_imported() -> None:
    for name in wasman_sdk.__all__:
        value = getattr(wasman_sdk, name)
        if inspect.isclass(value):
            assert value.__module__ == "wasman_sdk", name
            assert value.__doc__, name
