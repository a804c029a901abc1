"""Whether a value comes back from its JSON form as it was sent."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, time
from typing import Any

from pydantic import BaseModel

Schema = Mapping[str, Any]

_ANY: Schema = {"type": "any"}
_PLAIN = (str, int, bool, type(None))


def is_faithful(schema: Schema) -> bool:
    """Return whether every value that a pydantic core schema accepts comes back the same.

    False only means that it cannot be told from the schema: for unions, models, user-defined validators and
    whatever allows any value, and for times, whose offset loses its seconds.
    """
    kind = schema["type"]
    if kind == "json-or-python" and _is_abstract_sequence(schema["python_schema"]):
        # The hint promises no more than a sequence; a tuple may arrive as a list.
        return is_faithful(schema["json_schema"])
    test = _TESTS.get(kind)
    # With "serialization", the user has a say in how it is written.
    return test is not None and "serialization" not in schema and test(schema)


def difference(sent: object, back: object) -> str | None:
    """Return in words, without any value, where two objects differ; None if they are the same.

    Unlike `==`, it minds types: 1 is not True, a member of a text enumeration is not its text. Private
    attributes of models do not count. Objects that cannot be compared are taken to be the same.

    The words begin with the way to the difference, such as `.items[2]: tuple would arrive as list`.
    """
    kind = type(sent)
    if kind is not type(back):
        return f": {kind.__name__} would arrive as {type(back).__name__}"
    if kind in _PLAIN:
        return None if sent == back else ": it would arrive with another value"
    if isinstance(sent, dict) and isinstance(back, dict):
        return _difference_of_dicts(sent, back)
    if isinstance(sent, list | tuple | deque) and isinstance(back, list | tuple | deque):
        return _difference_of_sequences(sent, back)
    state = _state(sent)
    if state is not None:
        return _difference_of_states(state, _state(back) or {})
    return None if _equal(sent, back) else f": {kind.__name__} would arrive with another value"


def _items_are_faithful(schema: Schema) -> bool:
    items = schema.get("items_schema", _ANY)
    return all(is_faithful(item) for item in (items if isinstance(items, list) else [items]))


def _dict_is_faithful(schema: Schema) -> bool:
    keys = schema.get("keys_schema", _ANY)
    exact = keys["type"] in ("str", "int", "uuid", "date") and not keys.get("strict") and is_faithful(keys)
    return exact and is_faithful(schema.get("values_schema", _ANY))


def _enum_is_faithful(schema: Schema) -> bool:
    values = [member.value for member in schema["members"]]
    return not issubclass(schema["cls"], enum.Flag) and _are_of_one_plain_type(values)


def _is_abstract_sequence(python_schema: Schema) -> bool:
    first = python_schema["steps"][0] if python_schema["type"] == "chain" else python_schema
    return bool(first["type"] == "is-instance" and first.get("cls_repr") == "Sequence")


def _are_of_one_plain_type(values: Sequence[object]) -> bool:
    return {type(value) for value in values} in ({str}, {int})


def _difference_of_dicts(sent: dict[Any, Any], back: dict[Any, Any]) -> str | None:
    for key, other in zip(sent, back, strict=False):
        if type(key) is not type(other):
            return f": a key of type {type(key).__name__} would arrive as {type(other).__name__}"
    if sent.keys() != back.keys():
        return ": its keys would arrive changed"
    for key, value in sent.items():
        found = difference(value, back[key])
        if found is not None:
            # Not the key itself: it is data as much as the value.
            return f"[{type(key).__name__}]{found}"
    return None


def _difference_of_sequences(sent: Collection[Any], back: Collection[Any]) -> str | None:
    if len(sent) != len(back):
        return f": {type(sent).__name__} would arrive with another length"
    for index, (item, other) in enumerate(zip(sent, back, strict=True)):
        found = difference(item, other)
        if found is not None:
            return f"[{index}]{found}"
    return None


def _difference_of_states(sent: Mapping[str, Any], back: Mapping[str, Any]) -> str | None:
    for name, value in sent.items():
        found = difference(value, back.get(name))
        if found is not None:
            return f".{name}{found}"
    return None


def _state(value: object) -> dict[str, Any] | None:
    """Return the attributes that make up an object; None if it has a `==` of its own to go by."""
    if isinstance(value, BaseModel):
        return {**vars(value), **(value.__pydantic_extra__ or {})}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if type(value).__eq__ is object.__eq__ and not isinstance(value, enum.Enum):
        return dict(getattr(value, "__dict__", {}))
    return None


def _equal(sent: Any, back: Any) -> bool:
    if isinstance(sent, float) and math.isnan(sent):
        return math.isnan(back)
    if isinstance(sent, datetime | time):
        # Never `==`: in the hour that a time zone repeats, it calls a time different from itself elsewhere.
        return bool(sent.replace(tzinfo=None) == back.replace(tzinfo=None) and sent.utcoffset() == back.utcoffset())
    if isinstance(sent, set | frozenset):
        return {(type(item), item) for item in sent} == {(type(item), item) for item in back}
    try:
        return bool(sent == back)
    except Exception:  # noqa: BLE001 - such as an array, which compares element by element
        return True


# Type of core schema -> whether one of this type is faithful. Others are not.
_TESTS: dict[str, Callable[[Schema], bool]] = {
    **dict.fromkeys(
        ("none", "bool", "int", "str", "bytes", "date", "timedelta", "decimal", "uuid"), lambda _schema: True
    ),
    # A strict one refuses the text form of NaN and infinity.
    "float": lambda schema: not schema.get("strict"),
    "nullable": lambda schema: is_faithful(schema["schema"]),
    "literal": lambda schema: _are_of_one_plain_type(schema["expected"]),
    "enum": _enum_is_faithful,
    "dict": _dict_is_faithful,
    **dict.fromkeys(("list", "set", "frozenset", "tuple", "generator"), _items_are_faithful),
}
