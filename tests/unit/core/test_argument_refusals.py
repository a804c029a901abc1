"""What cannot travel is refused at enqueue, with the parameter named and the value kept quiet."""

from __future__ import annotations

import enum
import functools
import math
import types
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, Field, PlainSerializer, SecretStr, StrictFloat, StrictInt

from queuebridge import InvalidArguments
from queuebridge.arguments import ArgumentSchema
from queuebridge.errors import TaskRegistrationError

if TYPE_CHECKING:
    from fractions import Fraction

SECRET = "hunter2-TOP-SECRET"


class Text(str, enum.Enum):
    A = "a"


class Pair(enum.Enum):
    A = (1, 2)


class Animal(BaseModel):
    name: str


class Dog(Animal):
    breed: str = "pug"


class Reading(BaseModel):
    data: bytes


class Hiding(BaseModel):
    shown: int = 0
    hidden: str = Field("", exclude=True)


class Free(BaseModel):
    data: Any


class WrittenUnderAnotherName(BaseModel):
    name: str = Field(serialization_alias="Name")


class Cat(BaseModel):
    kind: Literal["cat"]


class Cow(BaseModel):
    kind: Literal["cow"]


@dataclass
class Box:
    content: Any


def schema_of(hint: Any) -> ArgumentSchema:
    def function(value):  # type: ignore[no-untyped-def]
        return value

    function.__annotations__ = {"value": hint}
    return ArgumentSchema("task", function)


def refusal(hint: Any, value: Any) -> str:
    with pytest.raises(InvalidArguments) as caught:
        schema_of(hint).dump((value,), {})
    return str(caught.value)


CHANGED: list[tuple[Any, Any, str]] = [
    (Any, datetime(2024, 1, 1, tzinfo=timezone.utc), "value: datetime would arrive as str"),
    (Any, date(2024, 1, 1), "value: date would arrive as str"),
    (Any, Decimal("1.5"), "value: Decimal would arrive as str"),
    (Any, uuid.UUID(int=1), "value: UUID would arrive as str"),
    (Any, b"a", "value: bytes would arrive as str"),
    (Any, (1, 2), "value: tuple would arrive as list"),
    (Any, {1}, "value: set would arrive as list"),
    (Any, {1: "a"}, "value: a key of type int would arrive as str"),
    (Any, {"a": [1, (2,)]}, "value[str][1]: tuple would arrive as list"),
    (Any, math.nan, "value: float would arrive as str"),
    (Any, Text.A, "value: Text would arrive as str"),
    (Any, Animal(name="a"), "value: Animal would arrive as dict"),
    (list, [(1,)], "value[0]: tuple would arrive as list"),
    (dict, {"a": date(2024, 1, 1)}, "value[str]: date would arrive as str"),
    (dict[Annotated[str, PlainSerializer(str.lower)], int], {"A": 1}, "value: its keys would arrive changed"),
    (dict[Annotated[str, PlainSerializer(str.lower)], int], {"A": 1, "a": 2}, "value: its keys would arrive changed"),
    (list[Annotated[str, PlainSerializer(list)]], ["ab"], "value.0: Input should be a valid string"),
    (Free, Free(data=(1,)), "value.data: tuple would arrive as list"),
    (Box, Box((1,)), "value.content: tuple would arrive as list"),
    (Animal, Dog(name="a"), "value: Dog would arrive as Animal"),
    (Hiding, Hiding(hidden="x"), "value.hidden: it would arrive with another value"),
    (SecretStr, SecretStr(SECRET), "value: SecretStr would arrive with another value"),
    (uuid.UUID | str, str(uuid.UUID(int=1)), "value: str would arrive as UUID"),
    (Text | str, Text.A, "value: Text would arrive as str"),
    (Pair, Pair.A, "value: Input should be (1, 2) (when read back from its JSON form)"),
    (
        WrittenUnderAnotherName,
        WrittenUnderAnotherName(name="a"),
        "value.name: Field required (when read back from its JSON form)",
    ),
    (
        StrictFloat,
        math.nan,
        "value: Input should be a valid number (when read back from its JSON form)",
    ),
    (
        datetime,
        datetime(1900, 1, 1, tzinfo=timezone(timedelta(seconds=1172))),
        "value: datetime would arrive with another value",
    ),
]


@pytest.mark.parametrize(("hint", "value", "problem"), CHANGED, ids=lambda part: str(part)[:40])
def test_value_that_would_arrive_changed_is_refused(hint: Any, value: Any, problem: str) -> None:
    assert problem in refusal(hint, value)


@pytest.mark.parametrize(
    ("hint", "value", "problem"),
    [
        (Any, object(), "value: this value of type object has no JSON form"),
        (Any, {"a": object()}, "value: this value of type object has no JSON form"),
        (str, "\ud800", "value: this value of type str has no JSON form"),
        (Reading, Reading(data=b"\xff"), "value: bytes inside a model or dataclass travel as text"),
        (Animal, Animal.model_construct(name=5), "value: this value of type Animal has no JSON form"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_value_without_a_json_form_is_refused(hint: Any, value: Any, problem: str) -> None:
    assert problem in refusal(hint, value)


def test_endless_value_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)

    assert "value: " in refusal(Any, endless)


@pytest.mark.parametrize(
    ("hint", "value", "problem"),
    [
        (int, "x", "value: Input should be a valid integer"),
        (StrictInt, "1", "value: Input should be a valid integer"),
        (Annotated[int, Field(gt=3)], 3, "value: Input should be greater than 3"),
        (date, "2024-13-01", "value: Input should be a valid date"),
        (Animal, {"nom": "a"}, "value.name: Field required"),
        (list[int], [1, "x"], "value.1: Input should be a valid integer"),
        (int | None, "x", "value: Input should be a valid integer"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_value_that_does_not_fit_the_hint_is_refused(hint: Any, value: Any, problem: str) -> None:
    assert problem in refusal(hint, value)


def test_every_problem_is_listed() -> None:
    def function(a: int, b: int, *rest: int, **more: int) -> None: ...

    with pytest.raises(InvalidArguments) as caught:
        ArgumentSchema("task", function).dump(("x", "y", "z"), {"d": "w"})

    names = [problem.partition(":")[0] for problem in caught.value.problems]
    assert names == ["a", "b", "*rest.0", "**more.d"]


def test_missing_argument_is_named() -> None:
    def function(a: int, b: int) -> None: ...

    with pytest.raises(InvalidArguments, match=r"'task': missing a required argument: 'b' \(signature: "):
        ArgumentSchema("task", function).dump((1,), {})


def test_unexpected_argument_is_named() -> None:
    def function(a: int) -> None: ...

    with pytest.raises(InvalidArguments, match="got an unexpected keyword argument 'b'"):
        ArgumentSchema("task", function).dump((1,), {"b": SECRET})


def test_positional_only_argument_cannot_be_named() -> None:
    def function(a: int, /) -> None: ...

    with pytest.raises(InvalidArguments, match="'a'"):
        ArgumentSchema("task", function).dump((), {"a": 1})


def test_missing_argument_is_noticed_by_the_executor() -> None:
    def function(a: int, b: int) -> None: ...

    with pytest.raises(InvalidArguments, match="missing a required argument: 'b'"):
        ArgumentSchema("task", function).load([1], {})


def test_wrong_argument_is_noticed_by_the_executor() -> None:
    with pytest.raises(InvalidArguments, match="value: Input should be a valid date"):
        schema_of(date).load(["soon"], {})


def test_executor_refuses_what_is_no_json() -> None:
    with pytest.raises(InvalidArguments, match="not JSON values"):
        schema_of(Any).load([object()], {})


def test_executor_reads_nan_as_foreign_json_writes_it() -> None:
    assert math.isnan(schema_of(float).load([math.nan], {}).args[0])


def must_be_short(value: str) -> str:
    if len(value) > 3:
        raise ValueError("it is too long")
    return value


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, SECRET),
        (StrictInt, SECRET),
        (date, SECRET),
        (uuid.UUID, SECRET),
        (Decimal, SECRET),
        (Text, SECRET),
        (Literal["a"], SECRET),
        (bytes, 5),
        (Animal, {"name": [SECRET]}),
        (Animal, Animal.model_construct(name=[SECRET])),
        (dict[str, int], {f"{SECRET}@example.com": SECRET}),
        (int | date, SECRET),
        (Annotated[str, AfterValidator(must_be_short)], SECRET),
        (Annotated[Cat | Cow, Field(discriminator="kind")], {"kind": SECRET}),
        (Any, (SECRET,)),
        (Any, {SECRET: (1,)}),
        (Any, [SECRET, object()]),
        (Any, f"{SECRET}\ud800"),
        (SecretStr, SecretStr(SECRET)),
        (WrittenUnderAnotherName, WrittenUnderAnotherName(name=SECRET)),
        (uuid.UUID | str, str(uuid.UUID(int=77))),
    ],
    ids=lambda part: str(part)[:30],
)
def test_error_never_shows_the_value(hint: Any, value: Any) -> None:
    text = refusal(hint, value)

    assert SECRET not in text
    assert str(uuid.UUID(int=77)) not in text


def test_error_of_the_executor_never_shows_the_value() -> None:
    with pytest.raises(InvalidArguments) as caught:
        schema_of(int).load([SECRET], {})

    assert SECRET not in str(caught.value)


def test_message_of_a_validator_is_told() -> None:
    assert "value: Value error, it is too long" in refusal(Annotated[str, AfterValidator(must_be_short)], "long one")


def test_problem_in_a_discriminated_union_names_the_choices() -> None:
    hint = Annotated[Cat | Cow, Field(discriminator="kind")]

    assert "value: Input tag 'kind' is none of 'cat', 'cow'" in refusal(hint, {"kind": "dog"})


def use_of_a_type_known_to_checkers_only(value: Fraction) -> None: ...


def test_type_imported_under_type_checking_is_refused() -> None:
    with pytest.raises(TaskRegistrationError, match=r"name 'Fraction' is not defined.*TYPE_CHECKING"):
        ArgumentSchema("task", use_of_a_type_known_to_checkers_only)


def takes_a_type_defined_below(value: Below) -> Below:
    return value


class Below(BaseModel):
    day: date


def test_forward_reference_is_resolved() -> None:
    schema = ArgumentSchema("task", takes_a_type_defined_below)

    assert schema.load(*schema.dump((Below(day=date(2024, 1, 1)),), {})).args == (Below(day=date(2024, 1, 1)),)


@pytest.mark.parametrize(
    "hint",
    [Callable[[int], int], type[int], bytearray, types.ModuleType, "list[", "types.Missing"],
    ids=str,
)
def test_hint_without_a_json_form_is_refused(hint: Any) -> None:
    with pytest.raises(TaskRegistrationError, match="task 'task'"):
        schema_of(hint)


def test_model_that_is_not_fully_defined_is_refused() -> None:
    class Half(BaseModel):
        other: NotThere  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TaskRegistrationError, match="NotThere"):
        schema_of(Half)


def test_hints_of_a_decorated_function_are_those_of_the_innermost_one() -> None:
    def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @quiet
    def function(day: date) -> None: ...

    assert ArgumentSchema("task", function).dump((date(2024, 1, 1),), {}) == (["2024-01-01"], {})


def test_value_whose_comparison_fails_is_taken_as_it_is() -> None:
    class Array:
        def __init__(self, items: list[int]) -> None:
            self.items = items

        def __eq__(self, other: object) -> Any:
            raise ValueError("The truth value of an array is ambiguous")

        __hash__ = None  # type: ignore[assignment]

        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            from pydantic_core import core_schema as cs

            return cs.no_info_plain_validator_function(
                lambda value: value if isinstance(value, cls) else cls(value),
                serialization=cs.plain_serializer_function_ser_schema(lambda value: value.items),
            )

    schema = schema_of(Array)

    assert schema.load(*schema.dump((Array([1]),), {})).args[0].items == [1]


def test_object_without_a_comparison_is_compared_by_its_attributes() -> None:
    class Tag:
        def __init__(self, name: str) -> None:
            self.name = name

        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            from pydantic_core import core_schema as cs

            return cs.no_info_plain_validator_function(
                lambda value: value if isinstance(value, cls) else cls(value),
                serialization=cs.plain_serializer_function_ser_schema(lambda value: value.name.lower()),
            )

    assert schema_of(Tag).dump((Tag("a"),), {}) == (["a"], {})
    assert "value.name: it would arrive with another value" in refusal(Tag, Tag("A"))
