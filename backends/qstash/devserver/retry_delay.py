"""A safe evaluator of `Upstash-Retry-Delay` expressions such as `max(1000, pow(2, retried) * 100)`.

A small recursive-descent parser over a fixed grammar; nothing is ever handed to `eval`. Numbers are
floats, as in the hosted service's language, so an overflow is an infinity rather than an error.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from queuebridge.backends.qstash.protocol import MAX_RETRY_DELAY_SECONDS

Evaluate = Callable[[float], float]

_MAX_MS: Final = MAX_RETRY_DELAY_SECONDS * 1000.0
_MAX_LENGTH: Final = 500
_MAX_DEPTH: Final = 50
_TOKEN: Final = re.compile(r"\s*(?:([0-9]+\.?[0-9]*|\.[0-9]+)|([A-Za-z_]\w*)|([-+*/(),]))", re.ASCII)


class RetryDelayError(ValueError):
    """Raised when an expression cannot be parsed; the message says where."""


def _round_half_away(value: float) -> float:
    if not math.isfinite(value):
        return value
    return math.copysign(math.floor(abs(value) + 0.5), value)


def _divide(left: float, right: float) -> float:
    if right == 0:
        return math.nan if left == 0 or math.isnan(left) else math.copysign(math.inf, left)
    return left / right


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _pow(base: float, exponent: float) -> float:
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and math.fmod(exponent, 2) else math.inf
    except ValueError:
        return math.inf if base == 0 else math.nan  # a negative power of 0, a root of a negative number


def _sqrt(value: float) -> float:
    return math.nan if value < 0 else math.sqrt(value)


def _whole(function: Callable[[float], int]) -> Callable[[float], float]:
    return lambda value: float(function(value)) if math.isfinite(value) else value


def _known(choose: Callable[[float, float], float]) -> Callable[[float, float], float]:
    """Return a choice of two that is undefined when one of them is."""
    return lambda left, right: math.nan if math.isnan(left) or math.isnan(right) else choose(left, right)


_UNARY: Final[dict[str, Callable[[float], float]]] = {
    "exp": _exp,
    "sqrt": _sqrt,
    "abs": abs,
    "floor": _whole(math.floor),
    "ceil": _whole(math.ceil),
    "round": _round_half_away,
}
_BINARY: Final[dict[str, Callable[[float, float], float]]] = {
    "pow": _pow,
    "min": _known(min),
    "max": _known(max),
}
_SUMS: Final[dict[str, Callable[[float, float], float]]] = {"+": operator.add, "-": operator.sub}
_PRODUCTS: Final[dict[str, Callable[[float, float], float]]] = {"*": operator.mul, "/": _divide}


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _tokenize(text)
        self._position = 0
        self._depth = 0

    def parse(self) -> Evaluate:
        result = self._sum()
        if self._peek():
            raise RetryDelayError(f"unexpected {self._peek()!r}")
        return result

    def _peek(self) -> str:
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._position += 1
        return token

    def _expect(self, token: str) -> None:
        found = self._next()
        if found != token:
            raise RetryDelayError(f"expected {token!r}, found {found or 'the end'!r}")

    def _sum(self) -> Evaluate:
        result = self._product()
        while self._peek() in _SUMS:
            result = _combine(_SUMS[self._next()], result, self._product())
        return result

    def _product(self) -> Evaluate:
        result = self._factor()
        while self._peek() in _PRODUCTS:
            result = _combine(_PRODUCTS[self._next()], result, self._factor())
        return result

    def _factor(self) -> Evaluate:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise RetryDelayError("nested too deeply")
        try:
            return self._primary()
        finally:
            self._depth -= 1

    def _primary(self) -> Evaluate:
        token = self._next()
        if token == "-":  # noqa: S105 - an operator
            operand = self._factor()
            return lambda retried: -operand(retried)
        if token == "+":  # noqa: S105 - an operator
            return self._factor()
        if token == "(":  # noqa: S105 - a bracket
            inner = self._sum()
            self._expect(")")
            return inner
        if token == "retried":  # noqa: S105 - the variable
            return lambda retried: retried
        if token[:1].isdigit() or token[:1] == ".":
            number = float(token)
            return lambda _retried: number
        return self._call(token)

    def _call(self, name: str) -> Evaluate:
        if name in _UNARY:
            function = _UNARY[name]
            self._expect("(")
            argument = self._sum()
            self._expect(")")
            return lambda retried: function(argument(retried))
        if name in _BINARY:
            self._expect("(")
            left = self._sum()
            self._expect(",")
            right = self._sum()
            self._expect(")")
            return _combine(_BINARY[name], left, right)
        raise RetryDelayError(f"unknown name {name!r}" if name else "the expression ends too early")


def _combine(function: Callable[[float, float], float], left: Evaluate, right: Evaluate) -> Evaluate:
    return lambda retried: function(left(retried), right(retried))


def _tokenize(text: str) -> list[str]:
    if len(text) > _MAX_LENGTH:
        raise RetryDelayError(f"longer than {_MAX_LENGTH} characters")
    tokens: list[str] = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise RetryDelayError(f"unexpected character at position {position}: {text[position:][:1]!r}")
        tokens.append(match.group(match.lastindex or 0))
        position = match.end()
    return tokens


@lru_cache(maxsize=256)
def compile_expression(text: str) -> Evaluate:
    """Return a function from `retried` (0 before the first retry) to milliseconds, unclamped.

    The result may be infinite or no number; use `retry_delay_seconds` for the protocol's rule.

    Raises:
        RetryDelayError: the text is not an expression of the documented language.
    """
    return _Parser(text).parse()


def retry_delay_seconds(text: str, retried: int) -> float | None:
    """Return the seconds to wait before the next retry, clamped to one day.

    None stands for a result that is not a finite number (overflow, 0/0, the root of a negative
    number); the default backoff applies then.

    Raises:
        RetryDelayError: the text is not an expression of the documented language.
    """
    milliseconds = compile_expression(text)(float(retried))
    if not math.isfinite(milliseconds):
        return None
    return min(max(milliseconds, 0.0), _MAX_MS) / 1000.0
