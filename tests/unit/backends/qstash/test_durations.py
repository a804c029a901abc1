from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuebridge.backends.qstash.durations import (
    format_duration,
    parse_duration,
    parse_go_duration,
    parse_retry_after,
)

# 2026-01-02 03:04:05 UTC
NOW = 1_767_323_045.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("10m", 600),
        ("2h", 7200),
        ("1d", 86_400),
        ("1h30m3s", 5403),
        ("1d10h30m", 124_200),
        ("1d1h30m", 91_800),
        ("30m1h", 5400),
        ("90m", 5400),
        ("0", 0),
        ("007s", 7),
        ("30", 30),
        ("0s", 0),
        (" 5s ", 5),
    ],
)
def test_request_duration_is_read_as_seconds(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "1x", "-1s", "1.5h", "1 h", "1h-1m", "1S", "1h30", "1ms", "1w", "1e3", "+1s", "٣s", "٣", "9" * 13],
)
def test_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**10))
def test_written_duration_reads_back_as_the_same_seconds(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


def test_duration_is_written_with_the_largest_units_first() -> None:
    assert format_duration(86_400 + 5403) == "1d1h30m3s"


def test_negative_duration_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_duration(-1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m5s", 365.0),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        ("10us", 1e-5),
        ("10\u00b5s", 1e-5),
        ("10\u03bcs", 1e-5),
        ("7ns", 7e-9),
        ("1h2m3s4ms5us6ns", 3723.004005006),
        (".5s", 0.5),
        ("1.s", 1.0),
    ],
)
def test_go_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert parse_go_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "1d", "-5s", "5s!", "ms"])
def test_text_that_is_no_go_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a Go duration"):
        parse_go_duration(text)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("1.5", 1.5),
        (" 7 ", 7.0),
        ("250ms", 0.25),
        ("Friday, 02-Jan-26 03:04:35 GMT", 30.0),
        ("Fri Jan  2 03:04:35 2026", 30.0),
        ("Fri, 02 Jan 2026 04:04:35 +0100", 30.0),
        ("6m5s", 365.0),
        ("Fri, 02 Jan 2026 03:04:35 GMT", 30.0),
        ("Fri, 02 Jan 2026 03:04:35 -0000", 30.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(value: str, seconds: float) -> None:
    assert parse_retry_after(value, now=NOW) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "soon", "-5", "Fri, 99 Jan 2026 99:00:00 GMT", "nan"])
def test_unreadable_retry_after_is_no_answer(value: str) -> None:
    assert parse_retry_after(value, now=NOW) is None


@given(st.text())
def test_any_retry_after_text_gives_a_wait_or_none(value: str) -> None:
    wait = parse_retry_after(value, now=NOW)

    assert wait is None or wait >= 0
