"""What can be an activity: functions, methods and objects; and what the decorator refuses, by the parameter's name."""

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Annotated, Any, Protocol, runtime_checkable

import pytest
from pydantic import BaseModel, Field

from tests import wat
from wasman_sdk import ActivityInfo, Client, InvalidArgumentError, RetryPolicy, Session, Worker, Workflow, activity


class Address(BaseModel):
    street: str
    number: int = 1


class Pool:
    """No data: nothing that JSON could be read as."""

    def __init__(self, name: str = "main") -> None:
        self.name = name


class Geocoder:
    def __init__(self, scale: int) -> None:
        self.scale = scale

    @activity
    async def locate(self, address: Address, info: ActivityInfo) -> int:
        return self.scale * address.number + info.attempt

    @activity(name="slowly")
    def locate_slowly(self, address: Address) -> int:
        return -self.scale * address.number

    @activity
    def __call__(self) -> str:
        return f"called with {self.scale}"

    @staticmethod
    @activity
    def static(number: int) -> int:
        return number + 1

    @activity
    def unannotated(self, request) -> Any:  # type: ignore[no-untyped-def]  # noqa: ANN001
        return request


class Finer(Geocoder):
    @activity
    async def locate(self, address: Address, info: ActivityInfo) -> int:
        return 1000 + await super().locate(address, info)


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    del anyio_backend
    async with Client.connect("memory://") as client:
        yield client


async def asked(client: Client, *names: str, request: bytes = b'{"street": "a", "number": 7}', **options: Any) -> Any:
    workflow: Workflow[Any, Any] = Workflow(
        "flow", Any, Any, module=wat.script(*(wat.call(name, request) for name in names))
    )
    async with Worker(client, **options):
        return await client.execute_workflow(workflow, None, id="w")


async def test_methods_are_called_on_their_objects(client: Client) -> None:
    tens, finer = Geocoder(10), Finer(1)
    assert tens.locate_slowly(Address(street="a")) == -10  # still a plain method
    given = [tens.locate, finer.locate_slowly, tens, tens.unannotated]
    result = await asked(client, "locate", "slowly", "Geocoder", "unannotated", activities=given)
    assert result == [71, -7, "called with 10", {"street": "a", "number": 7}]


async def test_an_overridden_method_is_the_one_that_is_called(client: Client) -> None:
    assert await asked(client, "locate", activities=[Finer(2).locate]) == [1015]


async def test_a_static_method_is_a_function(client: Client) -> None:
    assert await asked(client, "static", request=b"3", activities=[Geocoder.static]) == [4]


def test_a_method_of_no_object_is_refused() -> None:
    message = "activity 'locate' is a method of Geocoder, and whose is not said; give `object.locate`"
    with pytest.raises(InvalidArgumentError, match=message):
        Worker("memory://", activities=[Geocoder.locate])
    with pytest.raises(InvalidArgumentError, match=r"Geocoder'> is no activity; decorate it with @activity"):
        Worker("memory://", activities=[Geocoder])


def test_one_method_of_two_objects_needs_two_names() -> None:
    with pytest.raises(InvalidArgumentError, match="two activities are called 'locate'"):
        Worker("memory://", activities=[Geocoder(1).locate, Geocoder(2).locate])


async def test_annotations_may_name_what_is_local(client: Client) -> None:
    class Local(BaseModel):
        number: int

    class Holder:
        class Inner(BaseModel):
            number: int

        @activity
        def method(self, given: "Local") -> "Local":
            return given

        @activity
        def inner(self, given: "Inner") -> "Inner":
            return given

    @activity
    def function(given: "Local") -> int:
        return given.number

    holder = Holder()
    given = [holder.method, holder.inner, function]
    result = await asked(client, "method", "inner", "function", request=b'{"number": 2}', activities=given)
    assert result == [{"number": 2}, {"number": 2}, 2]


async def test_resources_may_be_optional_come_first_and_be_annotated(client: Client) -> None:
    @activity
    def first(pool: Pool) -> str:
        return pool.name

    @activity
    def optional(_given: Any, pool: Pool | None, *, other: Pool | None = None, tries: int = 3) -> list[Any]:
        return [pool and pool.name, other and other.name, tries]

    @activity
    def annotated(_given: Annotated[Any, Field()], pool: Annotated[Pool, "the main one"]) -> str:
        return pool.name

    names = ("first", "optional", "annotated")
    assert await asked(client, *names, activities=[first, optional, annotated], resources=[Pool("p")]) == [
        "p",
        ["p", "p", 3],
        "p",
    ]


async def test_an_optional_resource_that_is_not_there_is_none_or_the_default(client: Client) -> None:
    default = Pool("default")

    @activity
    def optional(_given: Any, pool: Pool | None, other: Pool = default) -> list[Any]:
        return [pool, other.name]

    assert await asked(client, "optional", activities=[optional]) == [[None, "default"]]
    with pytest.raises(InvalidArgumentError, match="parameter 'pool' wants one Pool and the worker has 2"):
        Worker(client, activities=[optional], resources=[Pool(), Pool()])


async def test_a_payload_with_a_default_need_not_be_sent(client: Client) -> None:
    @activity
    def add(number: int = 41) -> int:
        return number + 1

    assert await asked(client, "add", request=b"", activities=[add]) == [42]


async def test_resources_may_be_known_by_a_protocol(client: Client) -> None:
    @runtime_checkable
    class Named(Protocol):
        name: str

    @activity
    def named(_given: Any, one: Named) -> str:
        return one.name

    assert await asked(client, "named", activities=[named], resources=[Pool("p")]) == ["p"]


class Unchecked(Protocol):
    name: str


def positional(first: int, /) -> None: ...
def second(first: int, second: int) -> None: ...
def unannotated(first, second) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001
def a_union(first: int, second: Pool | Address) -> None: ...
def a_dict(first: int, options: dict[str, int]) -> None: ...
def many(first: int, *more: int) -> None: ...
def named(first: int, **more: int) -> None: ...
def protocol(first: int, pool: Unchecked) -> None: ...
def unknown(first: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def no_type(first: "1 +") -> None: ...  # type: ignore[valid-type]  # noqa: F722
def unreadable(first: Pool | Session | None) -> None: ...
def unwritable() -> Pool: ...  # type: ignore[empty-body]
def generates() -> Iterator[int]:
    yield 1


async def generates_too() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (positional, "'positional': parameter 'first' is positional-only, and parameters are given by name"),
        (second, "'second': parameter 'second' is a second payload; a guest sends one"),
        (unannotated, "'unannotated': parameter 'second' is a second payload; a guest sends one"),
        (a_union, "'a_union': parameter 'second' is a second payload; a guest sends one"),
        (a_dict, "'a_dict': parameter 'options' is a second payload; a guest sends one"),
        (many, r"'many': parameter \*more: int takes any number of arguments"),
        (named, r"'named': parameter \*\*more: int takes any number of arguments"),
        (protocol, "'protocol': parameter 'pool': Unchecked is a Protocol"),
        (unknown, r"'unknown': name 'Nowhere' is not defined \(of parameter 'first'\); its annotations must be"),
        (no_type, "'no_type': .*its annotations must be importable where it is defined"),
        (unreadable, "'unreadable': parameter 'first': no .* can be read from JSON"),
        (unwritable, "'unwritable': it returns Pool, which cannot be written as JSON"),
        (generates, "'generates': it is a generator; an activity returns one result"),
        (generates_too, "'generates_too': it is a generator; an activity returns one result"),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_what_cannot_be_given_is_refused_by_name(function: Callable[..., Any], problem: str) -> None:
    with pytest.raises(TypeError, match=f"activity {problem}"):
        activity(function)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"start_to_close_timeout": 5}, "start_to_close_timeout is a timedelta longer than zero, not 5"),
        ({"start_to_close_timeout": timedelta(0)}, "start_to_close_timeout is a timedelta longer than zero"),
        ({"retry": 5}, "retry is a RetryPolicy, not 5"),
        ({"name": ""}, "an activity needs a name that does not begin with 'wasman.', not ''"),
        ({"name": 7}, "an activity needs a name"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    def function() -> None: ...

    with pytest.raises(TypeError, match=problem):
        activity(**options)(function)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="activity 'add': put @activity below @staticmethod"):

        class _Mine:
            @activity
            @staticmethod
            def add() -> None: ...

    with pytest.raises(TypeError, match="@activity is for functions and methods, not for 5"):
        activity(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="cannot be marked; decorate the function where it is defined"):
        activity(Geocoder(1).locate)


async def test_a_result_that_json_cannot_hold_is_named_by_its_path(client: Client) -> None:
    @activity(retry=RetryPolicy(maximum_attempts=1))
    def deep() -> Any:
        return {"rows": [1, {"pool": Pool()}]}

    @activity(retry=RetryPolicy(maximum_attempts=1))
    def endless() -> Any:
        rows: list[Any] = []
        rows.append({"again": rows})
        return rows

    found = await asked(client, "deep", "wasman.error", "endless", "wasman.error", activities=[deep, endless])
    assert found[1]["type"] == found[3]["type"] == "InvalidResult"
    assert found[1]["message"].endswith("does not fit its annotation: rows.1.pool: JSON has no Pool")
    assert found[3]["message"].endswith("0.again: JSON has no value that contains itself")


async def test_a_request_that_does_not_validate_names_the_field(client: Client) -> None:
    @activity
    def locate(address: Address) -> None: ...

    found = await asked(
        client, "locate", "wasman.error", request=b'{"street": "a", "number": "x"}', activities=[locate]
    )
    assert found[0] == -1
    assert found[1]["type"] == "InvalidRequest"
    assert "to activity 'locate' does not fit: number: Input should be a valid integer" in found[1]["message"]
    assert found[1]["attempt"] == 1
