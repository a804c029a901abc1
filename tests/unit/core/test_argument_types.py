"""Arguments of every type travel as JSON and come back typed."""

from __future__ import annotations

import collections
import dataclasses
import enum
import ipaddress
import json
import math
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, Json, StrictFloat, StrictInt, computed_field
from typing_extensions import TypedDict

from queuebridge.arguments import ArgumentSchema


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Text(str, enum.Enum):
    A = "a"


class Address(BaseModel):
    street: str
    since: date


class Person(BaseModel):
    name: str
    address: Address
    tags: set[str] = set()
    born: datetime | None = None


class Aliased(BaseModel):
    user_name: str = Field(alias="userName")


class AliasedForReading(BaseModel):
    user_name: str = Field(validation_alias="userName")


class Raw(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    data: bytes


class Computing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    side: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.side**2


class WithJson(BaseModel):
    inner: Json[dict[str, int]]


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


@dataclasses.dataclass
class Point:
    x: int
    y: Decimal


@dataclasses.dataclass(frozen=True)
class Line:
    start: Point
    end: Point


class Pair(NamedTuple):
    left: int
    right: date


class Options(TypedDict, total=False):
    since: date
    limit: int


def travel(hint: Any, value: Any) -> Any:
    """Send a value as the only argument of a function with this hint, through real JSON, and return what comes out."""

    def function(value):  # type: ignore[no-untyped-def]
        return value

    function.__annotations__ = {"value": hint}
    schema = ArgumentSchema("task", function)
    args, kwargs = schema.dump((value,), {})
    # Python's own JSON, and strictly: no NaN may be left.
    args, kwargs = json.loads(json.dumps([args, kwargs], allow_nan=False))
    return schema.load(args, kwargs).args[0]


TYPED: list[tuple[Any, Any]] = [
    (int, 7),
    (int, 10**30),
    (bool, True),
    (float, 0.1),
    (str, "Grüße, 世界 \x00"),
    (type(None), None),
    (bytes, b"\xff\x00\xfe"),
    (bytes, b"text"),
    (date, date(2024, 2, 29)),
    (datetime, datetime(2024, 5, 1, 12, 30, 15, 123456)),  # noqa: DTZ001 - a naive one stays naive
    (datetime, datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))),
    (time, time(23, 59, 58, 999999)),
    (timedelta, timedelta(days=-400, microseconds=1)),
    (timedelta, timedelta.max),
    (uuid.UUID, uuid.UUID("c8236f1a-2fd9-4d37-bc7e-e0a83be8e1f4")),
    (Decimal, Decimal("0.1000")),
    (Decimal, Decimal("1E+500")),
    (complex, 1 + 2j),
    (Color, Color.BLUE),
    (Level, Level.HIGH),
    (Text, Text.A),
    (Access, Access.WRITE),
    (Access, Access.READ | Access.WRITE),
    (pathlib.Path, pathlib.Path("/var/lib")),
    (ipaddress.IPv4Address, ipaddress.ip_address("192.0.2.1")),
    (list[date], [date(2024, 1, 1)]),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (tuple[int, str], (1, "a")),
    (tuple[date, ...], (date(2024, 1, 1), date(2024, 1, 2))),
    (dict[int, Decimal], {1: Decimal("1.5")}),
    (dict[date, bytes], {date(2024, 1, 1): b"\xff"}),
    (dict[bytes, int], {b"\xff": 1}),
    (collections.deque[int], collections.deque([1, 2])),
    (Optional[date], date(2024, 1, 1)),  # noqa: UP045 - both spellings
    (Optional[date], None),  # noqa: UP045
    (date | None, date(2024, 1, 1)),
    (Union[int, str], "5"),  # noqa: UP007
    (int | str, 5),
    (int | float, 1),
    (int | float, 1.0),
    (datetime | date, date(2024, 1, 1)),
    (datetime | date, datetime(2024, 1, 1)),  # noqa: DTZ001
    (bytes | str, b"\xff"),
    (bytes | str, "a"),
    (uuid.UUID | str, uuid.UUID("c8236f1a-2fd9-4d37-bc7e-e0a83be8e1f4")),
    (uuid.UUID | str, "no uuid"),
    (Literal["a", 1, True], True),
    (Literal["a", 1, True], 1),
    (Literal[Text.A], Text.A),
    (Address, Address(street="Main", since=date(2024, 1, 1))),
    (Person, Person(name="A", address=Address(street="M", since=date(2024, 1, 1)), tags={"x"})),
    (list[Person], [Person(name="A", address=Address(street="M", since=date(2024, 1, 1)))]),
    (Aliased, Aliased(userName="ann")),
    (Raw, Raw(data=b"\xff")),
    (Computing, Computing(side=3)),
    (WithJson, WithJson(inner='{"a": 1}')),
    (Node, Node(value=1, children=[Node(value=2)])),
    (Annotated[Cat | Dog, Field(discriminator="kind")], Dog()),
    (Cat | Dog, Dog()),
    (Point, Point(1, Decimal("2.50"))),
    (Line, Line(Point(1, Decimal(2)), Point(3, Decimal(4)))),
    (Pair, Pair(1, date(2024, 1, 1))),
    (Options, {"since": date(2024, 1, 1)}),
    (Annotated[int, Field(gt=3)], 4),
    (StrictInt, 3),
    (Annotated[date, Field(strict=True)], date(2024, 1, 1)),
    (Annotated[bytes, Field(strict=True)], b"\xff"),
    (Any, {"a": [1, 2.5, None, True, "x"]}),
    (object, "x"),
    (list, [1, "a"]),
    (dict, {"a": 1}),
]


@pytest.mark.parametrize(("hint", "value"), TYPED, ids=lambda part: str(part)[:40])
def test_value_comes_back_equal_and_of_the_same_type(hint: Any, value: Any) -> None:
    back = travel(hint, value)

    assert (type(back), back) == (type(value), value)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_comes_back(value: float) -> None:
    assert travel(float, value) == value


def test_nan_comes_back() -> None:
    assert math.isnan(travel(float, math.nan))


def test_nan_inside_a_model_comes_back() -> None:
    class Reading(BaseModel):
        value: float

    assert math.isnan(travel(Reading, Reading(value=math.nan)).value)


def test_alias_that_holds_for_reading_only_is_no_obstacle() -> None:
    assert travel(AliasedForReading, AliasedForReading(userName="ann")).user_name == "ann"


def test_model_travels_under_its_aliases() -> None:
    def function(value: Aliased) -> None: ...

    assert ArgumentSchema("task", function).dump((Aliased(userName="ann"),), {}) == ([{"userName": "ann"}], {})


def test_plain_json_becomes_a_model() -> None:
    assert travel(Address, {"street": "Main", "since": "2024-01-01"}) == Address(street="Main", since=date(2024, 1, 1))


def test_tuple_for_an_abstract_sequence_may_arrive_as_a_list() -> None:
    assert travel(Sequence[int], (1, 2)) == [1, 2]


def test_abstract_mapping_arrives_as_a_dict() -> None:
    assert travel(Mapping[str, date], {"a": date(2024, 1, 1)}) == {"a": date(2024, 1, 1)}


def test_time_in_the_repeated_hour_of_a_zone_comes_back_as_the_same_moment() -> None:
    value = datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))

    assert travel(datetime, value).timestamp() == value.timestamp()


def test_text_for_a_number_is_converted_where_pydantic_does_so() -> None:
    assert travel(int, "7") == 7


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
OFFSETS = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(JSON)
def test_every_json_value_passes_an_unannotated_parameter(value: Any) -> None:
    assert travel(Any, value) == value


@given(st.binary())
def test_all_bytes_come_back(value: bytes) -> None:
    assert travel(bytes, value) == value


@given(st.datetimes(timezones=st.none() | OFFSETS))
def test_all_datetimes_come_back(value: datetime) -> None:
    back = travel(datetime, value)

    assert (back, back.utcoffset()) == (value, value.utcoffset())


@given(st.timedeltas())
def test_all_timedeltas_come_back(value: timedelta) -> None:
    assert travel(timedelta, value) == value


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_all_decimals_come_back_with_all_their_digits(value: Decimal) -> None:
    assert travel(Decimal, value).as_tuple() == value.as_tuple()


@given(st.floats(allow_nan=False))
def test_all_floats_come_back(value: float) -> None:
    assert travel(float, value) == value


@given(st.text())
def test_all_texts_come_back(value: str) -> None:
    assert travel(str, value) == value


@given(st.dictionaries(st.integers(), st.sets(st.dates())))
def test_nested_containers_come_back(value: dict[int, set[date]]) -> None:
    assert travel(dict[int, set[date]], value) == value


@given(st.builds(Person, name=st.text(), address=st.builds(Address, street=st.text(), since=st.dates())))
def test_all_models_come_back(value: Person) -> None:
    assert travel(Person, value) == value


def sent(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    return ArgumentSchema("task", function).dump(args, kwargs)


def called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    schema = ArgumentSchema("task", function)
    wire = json.loads(json.dumps(schema.dump(args, kwargs)))
    bound = schema.load(*wire)
    return function(*bound.args, **bound.kwargs)


def test_positional_arguments_stay_positional_and_named_ones_named() -> None:
    def function(a: date, b: date, *, c: date) -> Any:
        return a, b, c

    one, two, three = date(2024, 1, 1), date(2024, 1, 2), date(2024, 1, 3)

    assert sent(function, one, b=two, c=three) == (["2024-01-01"], {"b": "2024-01-02", "c": "2024-01-03"})


def test_positional_only_keyword_only_and_variadic_arguments_come_back() -> None:
    def function(a: int, /, b: date, *rest: Decimal, c: bytes, **more: timedelta) -> Any:
        return a, b, rest, c, more

    result = called(function, 1, date(2024, 1, 1), Decimal(1), Decimal(2), c=b"\xff", d=timedelta(1), e=timedelta(2))

    assert result == (
        1,
        date(2024, 1, 1),
        (Decimal(1), Decimal(2)),
        b"\xff",
        {"d": timedelta(1), "e": timedelta(2)},
    )


def test_variadic_argument_may_have_the_name_of_a_positional_only_one() -> None:
    def function(a: int, /, **more: str) -> Any:
        return a, more

    assert called(function, 1, a="x") == (1, {"a": "x"})


def test_defaults_are_the_functions_own_and_do_not_travel() -> None:
    marker = object()

    def function(a: int, b: Any = marker) -> Any:
        return a, b

    assert sent(function, 1) == ([1], {})
    assert called(function, 1) == (1, marker)


def test_parameters_may_have_any_name() -> None:
    def function(self: int, copy: int, json: int, args: int, kwargs: int, _x: int, model_config: int, cls: int) -> Any:
        return self, copy, json, args, kwargs, _x, model_config, cls

    names = ("self", "copy", "json", "args", "kwargs", "_x", "model_config", "cls")

    assert called(function, **{name: index for index, name in enumerate(names)}) == tuple(range(8))


def test_variadic_parameters_may_have_any_name() -> None:
    def function(*json: date, **copy: date) -> Any:
        return json, copy

    day = date(2024, 1, 1)

    assert called(function, day, self=day, json=day) == ((day,), {"self": day, "json": day})


def test_unannotated_parameters_take_plain_json() -> None:
    def function(a, b=None, *rest, **more):  # type: ignore[no-untyped-def]
        return a, b, rest, more

    assert called(function, {"x": [1]}, "b", 2.5, True, z=None) == ({"x": [1]}, "b", (2.5, True), {"z": None})


def test_strict_float_is_a_float() -> None:
    assert travel(StrictFloat, 1.5) == 1.5
