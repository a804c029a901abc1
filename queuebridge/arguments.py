"""From Python arguments to JSON and back, by the type hints of a function."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast, get_type_hints

import pydantic
from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from pydantic_core import (
    CoreConfig,
    ErrorDetails,
    PydanticSerializationError,
    SchemaError,
    SchemaSerializer,
    SchemaValidator,
    ValidationError,
    from_json,
    to_json,
)
from typing_extensions import NotRequired, TypedDict

from queuebridge.errors import InvalidArguments, TaskRegistrationError
from queuebridge.roundtrip import difference, is_faithful

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_JSON_SCALARS = (str, int, bool, type(None))
# Bytes need not be UTF-8, and JSON has no NaN or infinity: both travel as text and come back typed.
_WRITING = CoreConfig(ser_json_bytes="base64", ser_json_inf_nan="strings")
_READING = ConfigDict(extra="forbid", val_json_bytes="base64")
# Fields travel under their aliases. One whose alias holds only for reading is found by its name, where
# pydantic can do that.
_BY_NAME: dict[str, Any] = (
    {"by_alias": True, "by_name": True} if tuple(map(int, pydantic.VERSION.split(".")[:2])) >= (2, 11) else {}
)
# Types that pydantic checks in memory only.
_NEVER_JSON = ("callable", "is-subclass", "is-instance")
_UNKNOWN_TYPE = re.compile(r"Unable to serialize unknown type: <class '([\w.<>]+)'>")
_NAME = re.compile(r"\*{0,2}[A-Za-z_][\w.\[\], -]{0,60}")


class CallArguments(NamedTuple):
    """Typed values, in the form in which a function is called."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class ArgumentSchema:
    """What a function accepts, and how that travels as JSON.

    Args:
        task: The name of the task, for errors.
        function: The function; its type hints are resolved now.

    Raises:
        TaskRegistrationError: A type hint cannot be resolved, or pydantic has no JSON form for it.
    """

    def __init__(self, task: str, function: Callable[..., Any]) -> None:
        self._task = task
        self._signature = inspect.signature(function)
        self._positional: list[str] = []
        self._variadic: dict[str, str] = {}
        schema = self._core_schema(self._fields(_hints(task, function)))
        self._validator = SchemaValidator(schema)
        self._serializer = SchemaSerializer(schema, _WRITING)
        fields = (schema["schema"] if schema["type"] == "definitions" else schema)["fields"]
        self._names = frozenset(fields) if not self._variadic else None
        self._required = {
            name
            for name, parameter in self._signature.parameters.items()
            if parameter.default is parameter.empty and name not in self._variadic
        }
        self._positional_only = {
            name
            for name, parameter in self._signature.parameters.items()
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        }
        # Values that are JSON as they are need not be converted to it.
        self._plain = all(_is_plain(field["schema"]) for field in fields.values())
        # What may come back changed is tried out at enqueue.
        self._doubtful: list[str] = []
        self._anything: set[str] = set()
        for key, field in fields.items():
            kind = field["schema"]["type"]
            if kind in _NEVER_JSON:
                raise TaskRegistrationError(
                    f"The arguments of task {task!r} have no JSON form: {key} is declared {kind}."
                )
            if kind == "any":
                self._anything.add(key)
            if not is_faithful(field["schema"]):
                self._doubtful.append(key)

    @property
    def positional(self) -> Sequence[str]:
        """Return the names of the parameters that may be given by position."""
        return self._positional

    def dump(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Validate arguments and return them in JSON form, positional ones still positional.

        Raises:
            InvalidArguments: They do not fit the signature or the hints, or would not come back the same.
        """
        bound = self._arguments(args, kwargs)
        try:
            valid = self._validator.validate_python(self._to_fields(bound))
        except ValidationError as error:
            raise InvalidArguments(self._task, _problems(error)) from None
        try:
            plain = self._plain and all(type(value) in _JSON_SCALARS for value in valid.values())
            dumped = valid if plain else self._dump_fields(valid)
            wire = to_json(dumped, inf_nan_mode="strings")
            if b'"NaN"' in wire or b'Infinity"' in wire:
                # The serializer leaves such floats as they are.
                dumped = from_json(wire)
        except (ValueError, TypeError, RecursionError):
            raise InvalidArguments(self._task, self._without_json_form(valid)) from None
        if self._doubtful:
            self._refuse_what_would_change(valid, wire)
        wire_args = [dumped[name] for name in self._positional[: len(args)]]
        extra: dict[str, Any] = {}
        for parameter, key in self._variadic.items():
            if parameter in bound:
                if key.startswith("**"):
                    extra = dumped[key]
                else:
                    wire_args.extend(dumped[key])
        return wire_args, {name: extra[name] if name in extra else dumped[name] for name in kwargs}

    def load(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallArguments:
        """Return arguments in JSON form as typed values, ready to call the function with.

        Raises:
            InvalidArguments: They do not fit the signature or the hints.
        """
        arguments = self._arguments(args, kwargs)
        try:
            typed = self._read(to_json(self._to_fields(arguments), inf_nan_mode="strings"))
        except ValidationError as error:
            raise InvalidArguments(self._task, _problems(error)) from None
        except PydanticSerializationError:
            raise InvalidArguments(self._task, ["they are not JSON values"]) from None
        if not self._variadic:
            # As they were given: what fits the signature fits it with other values too.
            given = self._positional[: len(args)]
            return CallArguments(tuple(typed[name] for name in given), {name: typed[name] for name in kwargs})
        bound = self._bind(args, kwargs)
        for name in bound.arguments:
            bound.arguments[name] = typed[self._variadic.get(name, name)]
        return CallArguments(bound.args, bound.kwargs)

    def _fields(self, hints: Mapping[str, Any]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for parameter in self._signature.parameters.values():
            key, hint = parameter.name, hints.get(parameter.name, Any)
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                key, hint = f"*{key}", list[hint]  # type: ignore[valid-type]
                self._variadic[parameter.name] = key
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                key, hint = f"**{key}", dict[str, hint]  # type: ignore[valid-type]
                self._variadic[parameter.name] = key
            elif parameter.kind in _POSITIONAL:
                self._positional.append(parameter.name)
            # Whether an argument is missing is decided by the signature alone: defaults stay the function's.
            fields[key] = NotRequired[hint]
        return fields

    def _core_schema(self, fields: Mapping[str, Any]) -> Any:
        # A TypedDict, because unlike a model it forbids no name that a parameter may have.
        arguments = cast("Any", TypedDict)("Arguments", dict(fields))
        arguments.__pydantic_config__ = _READING
        try:
            adapter = TypeAdapter(arguments)
            if not isinstance(adapter.core_schema, dict):
                # A model among the types mentions one that is not defined; this says which.
                adapter.rebuild(raise_errors=True)
        except (PydanticUserError, PydanticUndefinedAnnotation, SchemaError) as error:
            problem = str(error).splitlines()[0]
            raise TaskRegistrationError(f"The arguments of task {self._task!r} have no JSON form: {problem}") from error
        return adapter.core_schema

    def _arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments by parameter name."""
        if self._names is not None and len(args) <= len(self._positional):
            # What `bind` would find out for a plain signature, in a third of its time.
            arguments = dict(zip(self._positional, args, strict=False))
            if not (arguments.keys() & kwargs.keys() or self._positional_only & kwargs.keys()):
                arguments.update(kwargs)
                if self._required <= arguments.keys() <= self._names:
                    return arguments
        return self._bind(args, kwargs).arguments

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        try:
            return self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArguments(self._task, [f"{error} (signature: {self._signature})"]) from None

    def _to_fields(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._variadic:
            return arguments
        fields = dict(arguments)
        for name, key in self._variadic.items():
            if name in fields:
                value = fields.pop(name)
                fields[key] = list(value) if isinstance(value, tuple) else value
        return fields

    def _read(self, wire: bytes) -> Any:
        # JSON mode, not Python mode: only there do strict types accept the JSON form of a date or bytes.
        return self._validator.validate_json(wire, **_BY_NAME)

    def _dump_fields(self, valid: Mapping[str, Any]) -> dict[str, Any]:
        dumped: dict[str, Any] = self._serializer.to_python(
            valid, mode="json", by_alias=True, round_trip=True, warnings="error"
        )
        return dumped

    def _without_json_form(self, valid: Mapping[str, Any]) -> list[str]:
        found = [(key, self._problem_of(key, value)) for key, value in valid.items()]
        return [f"{key}: {problem}" for key, problem in found if problem] or ["they have no JSON form"]

    def _problem_of(self, key: str, value: object) -> str | None:
        """Return why an argument cannot be dumped. Not in pydantic's words: they may have the value."""
        try:
            to_json(self._dump_fields({key: value}))
        except UnicodeDecodeError:
            return (
                "bytes inside a model or dataclass travel as text; for any bytes, give it "
                "ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')"
            )
        except (ValueError, TypeError, RecursionError) as error:
            unknown = _UNKNOWN_TYPE.search(str(error))
            culprit = unknown.group(1) if unknown else type(value).__name__
            return f"this value of type {culprit} has no JSON form"
        return None

    def _refuse_what_would_change(self, valid: Mapping[str, Any], wire: bytes) -> None:
        doubtful = [
            key
            for key in self._doubtful
            if key in valid and not (key in self._anything and type(valid[key]) in _JSON_SCALARS)
        ]
        if not doubtful:
            return
        try:
            back = self._read(wire)
        except ValidationError as error:
            raise InvalidArguments(
                self._task, [f"{problem} (when read back from its JSON form)" for problem in _problems(error)]
            ) from None
        differences = [(key, difference(valid[key], back[key])) for key in doubtful]
        problems = [
            f"{key}{found}; give it a precise type hint, or pass plain JSON values"
            for key, found in differences
            if found is not None
        ]
        if problems:
            raise InvalidArguments(self._task, problems)


def _is_plain(schema: Mapping[str, Any]) -> bool:
    if schema["type"] == "nullable":
        return _is_plain(schema["schema"])
    return schema["type"] in ("str", "int", "bool") and "serialization" not in schema


def _hints(task: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise TaskRegistrationError(
            f"The type hints of task {task!r} cannot be resolved: {error}. Import the types at run time and at "
            "module level, not under TYPE_CHECKING or inside a function."
        ) from error


def _problems(error: ValidationError) -> list[str]:
    # Never the input itself: it may be a secret, and errors are logged.
    return [
        f"{'.'.join(map(_shown, e['loc'])) or 'arguments'}: {_message(e)}"
        for e in error.errors(include_url=False, include_input=False)
    ]


def _shown(part: int | str) -> str:
    # Names of fields and types. The keys of a dictionary are data as much as its values.
    return str(part) if isinstance(part, int) or _NAME.fullmatch(part) else "[key]"


def _message(problem: ErrorDetails) -> str:
    if problem["type"] == "union_tag_invalid":
        # Pydantic's own message has the tag that was found.
        context = problem.get("ctx", {})
        return f"Input tag {context.get('discriminator')} is none of {context.get('expected_tags')}"
    return problem["msg"]
