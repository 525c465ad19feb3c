"""wasman: durable WebAssembly workflows. Everything an application needs is here."""

from wasman_host.codec import PayloadCodec
from wasman_host.events import Event
from wasman_host.guest.module import digest as module_digest
from wasman_host.record import Limits
from wasman_host.starting import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from wasman_host.streams import SinkWriter, SourceReader
from wasman_sdk import errors
from wasman_sdk._activity import activity
from wasman_sdk._attempt import ActivityInfo
from wasman_sdk._channel import Channel, ChannelSink, ChannelSource
from wasman_sdk._client import Client
from wasman_sdk._descriptions import HistoryEvent, PendingActivity, WaitingSignal, WorkflowDescription
from wasman_sdk._engine import Engine, SyncEngine
from wasman_sdk._handle import WorkflowHandle
from wasman_sdk._http import HttpSource
from wasman_sdk._interceptors import (
    CancelWorkflowInput,
    ClientInterceptor,
    CountWorkflowsInput,
    DeployInput,
    DescribeWorkflowInput,
    ExecuteActivityInput,
    GetResultInput,
    HistoryInput,
    ListWorkflowsPageInput,
    SignalWorkflowInput,
    StartWorkflowInput,
    TerminateWorkflowInput,
    UnblockWorkflowInput,
    WorkerInterceptor,
)
from wasman_sdk._listing import WorkflowFilter, WorkflowPage
from wasman_sdk._retry import RetryPolicy
from wasman_sdk._runner import Runner, RunnerOptions, SyncRunner, SyncTestRunner, TestRunner
from wasman_sdk._secret import Secret
from wasman_sdk._session import Session
from wasman_sdk._signal import Signal
from wasman_sdk._starting import StartWorkflowOptions
from wasman_sdk._streams import BytesSource, FileSink, FileSource, Sink, Source
from wasman_sdk._sync_client import SyncClient, SyncWorkflowHandle
from wasman_sdk._user_streams import StreamContext
from wasman_sdk._worker import Worker
from wasman_sdk._workflow import Workflow
from wasman_sdk.errors import *  # noqa: F403  every error is public, and `errors.__all__` lists them

__all__ = [
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
]
__all__ += errors.__all__
__all__.sort()


def _named_as_imported() -> None:
    """Tracebacks and help name what the application imports, not where it is kept."""
    for name in __all__:
        value = globals()[name]
        if isinstance(value, type) and value.__module__.startswith(("wasman_sdk.", "wasman_host.")):
            value.__module__ = "wasman_sdk"


_named_as_imported()
