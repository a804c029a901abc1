"""Percentiles from a histogram, against those of all the values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuebridge.reporting.percentiles import RELATIVE_ERROR, Histogram

TEN_YEARS_MS = 10 * 366 * 86_400_000


def histogram_of(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def exact(values: list[int], percent: float) -> int:
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


@given(
    values=st.lists(st.integers(0, TEN_YEARS_MS) | st.integers(0, 1000), min_size=1),
    percent=st.sampled_from([0, 1, 50, 95, 99, 100]),
)
def test_percentile_is_within_the_documented_error(values: list[int], percent: float) -> None:
    found = histogram_of(values).percentile(percent)

    wanted = exact(values, percent)
    assert found is not None
    assert RELATIVE_ERROR <= 0.01
    assert abs(found - wanted) <= RELATIVE_ERROR * wanted


@given(st.lists(st.integers(0, 127), min_size=1))
def test_small_values_are_exact(values: list[int]) -> None:
    assert histogram_of(values).percentile(95) == exact(values, 95)


@given(st.lists(st.integers(0, TEN_YEARS_MS), min_size=1))
def test_average_is_exact(values: list[int]) -> None:
    assert histogram_of(values).mean == sum(values) / len(values)


def test_percentile_is_the_nearest_rank() -> None:
    histogram = histogram_of(list(range(1, 101)))

    assert [histogram.percentile(percent) for percent in (50, 95, 99)] == [50, 95, 99]


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    histogram = histogram_of([int(1.0002**power) for power in range(132_000)])

    assert histogram.count == 132_000
    assert histogram.percentile(100) > TEN_YEARS_MS * 0.9  # type: ignore[operator]
    assert histogram.size < 2300


def test_no_values_have_no_percentiles() -> None:
    histogram = Histogram()

    assert (histogram.mean, histogram.percentiles().p50, histogram.percentiles().count) == (None, None, 0)


@pytest.mark.parametrize("value", [-1, -5000])
def test_time_from_clocks_that_disagree_counts_as_none(value: int) -> None:
    assert histogram_of([value]).percentile(50) == 0
