from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuebridge.backends.qstash.devserver.retry_delay import (
    RetryDelayError,
    compile_expression,
    retry_delay_seconds,
)


@pytest.mark.parametrize(
    ("expression", "seconds"),
    [
        ("1000", [1, 1, 1, 1]),
        ("1000 * (1 + retried)", [1, 2, 3, 4]),
        ("pow(2, retried) * 1000", [1, 2, 4, 8]),
        ("max(1000, pow(2, retried) * 100)", [1, 1, 1, 1, 1.6]),
        ("5000 * retried", [0, 5, 10, 15]),
        ("min(1500,1000*(retried+1))", [1, 1.5]),
        ("floor(1999.9) + ceil(0.1)", [2]),
        ("round(2.5) * 1000", [3]),
        ("round(-2.5) * -1000", [3]),
        ("sqrt(16) * 250", [1]),
        ("abs(-1000)", [1]),
        ("exp(0) * 1000", [1]),
        ("10000 / 4 - 500 * 2", [1.5]),
        ("2000 - 500 - 500", [1]),
        ("--1000", [1]),
        (" .5 * 2000 ", [1]),
        ("-1000", [0]),
        ("1000\t*\n2", [2]),
        ("2 + 3 * 1000", [3.002]),
        ("(2 + 3) * 1000", [5]),
        ("-retried + 2000", [2, 1.999]),
        ("2. * 1000", [2]),
        ("max(min(pow(2, retried), 4), 2) * 1000", [2, 2, 4, 4]),
        ("min(1000, pow(10, 400))", [1]),
        ("min(1000, exp(1000))", [1]),
        ("max(1000, pow(0 - 10, 401))", [1]),
        ("min(1000, pow(0, 0 - 1))", [1]),
        ("min(1000, floor(1/0))", [1]),
        ("max(1000, ceil(0 - 1/0))", [1]),
        ("1000 * 1000 * 1000", [86_400]),
    ],
)
def test_expression_gives_the_documented_delays(expression: str, seconds: list[float]) -> None:
    delays = [retry_delay_seconds(expression, retried) for retried in range(len(seconds))]

    assert delays == pytest.approx(seconds)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "1 +",
        "1 2",
        "(1",
        "1)",
        "pow(2)",
        "pow(2, 3, 4)",
        "exp()",
        "foo(1)",
        "retries",
        "retried()",
        "1e3",
        "2 ** 3",
        "__import__('os')",
        "1; 2",
        "1,2",
        "١",
        "(" * 60 + "1" + ")" * 60,
        "1+" * 300 + "1",
    ],
)
def test_text_outside_the_language_is_refused(expression: str) -> None:
    with pytest.raises(RetryDelayError):
        compile_expression(expression)


@pytest.mark.parametrize(
    "expression",
    [
        *("0/0", "1/0", "sqrt(0 - 1)", "exp(100000)", "pow(10, 400)", "floor(1/0)", "pow(0, 0-1)", "9" * 400),
        *("min(1000, 0/0)", "min(0/0, 1000)", "max(sqrt(0-1), 1)", "max(1, pow(0-8, 0.5))", "0 * (1/0)"),
    ],
)
def test_result_that_is_no_finite_number_leaves_the_default_backoff(expression: str) -> None:
    assert retry_delay_seconds(expression, 0) is None


@given(st.text(alphabet="0123456789.+-*/(), retidpowexmn", max_size=60), st.integers(min_value=0, max_value=1000))
def test_any_text_gives_a_bounded_wait_or_the_one_error(expression: str, retried: int) -> None:
    try:
        wait = retry_delay_seconds(expression, retried)
    except RetryDelayError:
        return

    assert wait is None or 0 <= wait <= 86_400
