"""When a failed job runs again."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from queuebridge import RetryPolicy


@pytest.mark.parametrize(
    ("retry", "seconds"), [(1, 10.0), (2, 20.0), (3, 40.0), (4, 80.0), (8, 1280.0), (9, 2560.0), (10, 3600.0)]
)
def test_exponential_delay_doubles_up_to_the_cap(retry: int, seconds: float) -> None:
    assert RetryPolicy(jitter=False).delay_before_retry(retry) == seconds


@pytest.mark.parametrize(("retry", "seconds"), [(1, 1.0), (2, 5.0), (3, 30.0), (4, 30.0), (1000, 30.0)])
def test_last_of_the_listed_delays_is_used_for_all_further_retries(retry: int, seconds: float) -> None:
    assert RetryPolicy(delays=(1, 5, 30)).delay_before_retry(retry) == seconds


def test_listed_delays_have_no_jitter() -> None:
    assert {RetryPolicy(delays=(7,), jitter=True).delay_before_retry(1) for _ in range(100)} == {7.0}


def test_jitter_shortens_by_up_to_a_half() -> None:
    policy = RetryPolicy(base=100, jitter=True)
    delays = [policy.delay_before_retry(1) for _ in range(2000)]

    assert all(50 < delay <= 100 for delay in delays)
    assert min(delays) < 60
    assert max(delays) > 90


@given(st.integers(1, 1001), st.floats(0, 86_400), st.floats(0, 86_400))
def test_delay_is_never_longer_than_the_cap_nor_an_overflow(retry: int, base: float, cap: float) -> None:
    delay = RetryPolicy(base=base, cap=cap, jitter=False).delay_before_retry(retry)

    assert delay == min(cap, delay)
    assert delay >= min(base, cap)


@given(st.integers(1, 100))
def test_later_retries_never_wait_less(retry: int) -> None:
    policy = RetryPolicy(jitter=False)

    assert policy.delay_before_retry(retry) <= policy.delay_before_retry(retry + 1)


def test_attempt_that_was_not_counted_waits_like_the_first() -> None:
    assert RetryPolicy(delays=(1, 2, 3)).delay_before_retry(0) == 1.0


def test_attempts_are_one_more_than_retries() -> None:
    assert [RetryPolicy(retries=retries).max_attempts for retries in (0, 1, 5)] == [1, 2, 6]


@pytest.mark.parametrize(
    "settings",
    [
        {"retries": -1},
        {"retries": 1001},
        {"base": -1},
        {"base": 86_401},
        {"base": math.nan},
        {"cap": math.inf},
        {"cap": -1},
        {"delays": (1, -1)},
        {"delays": (86_401,)},
        {"delays": (math.nan,)},
        {"tries": 1},
    ],
    ids=str,
)
def test_impossible_policy_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetryPolicy(**settings)
