"""Percentiles of many values in little memory."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

# Values of up to so many bits are kept as they are, of larger ones the leading bits.
_BITS = 7
RELATIVE_ERROR = 1 / 2**_BITS


@dataclass(frozen=True, kw_only=True, slots=True)
class Percentiles:
    """Percentiles of times in milliseconds; None if there were no values. Accurate as said in `Histogram`.

    Attributes:
        count: How many values there were.
        p50, p95, p99: The smallest value that so many per cent of all do not exceed (nearest rank).
    """

    count: int
    p50: int | None
    p95: int | None
    p99: int | None


class Histogram:
    """Counts whole numbers by size, so that memory depends on their range and not on how many there are.

    Values below 128 are exact. Each power of two above is divided into 64 parts of the same width, and a value
    counts as the middle of its part: a percentile is off by at most 1/128 (0.8 %) of the exact one. That makes about
    2000 counters for all times up to ten years in milliseconds. Negative values, which come from clocks that
    disagree, count as 0.

    Attributes:
        count: How many values there were.
        total: Their exact sum.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self._parts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Count a value."""
        value = max(0, value)
        self.count += 1
        self.total += value
        self._parts[_middle(value)] += 1

    @property
    def size(self) -> int:
        """Return how many counters there are."""
        return len(self._parts)

    @property
    def mean(self) -> float | None:
        """Return the exact average, None without values."""
        return self.total / self.count if self.count else None

    def percentile(self, percent: float) -> int | None:
        """Return the smallest value that `percent` of all values do not exceed, None without values."""
        rank = max(1, math.ceil(self.count * percent / 100))
        for value in sorted(self._parts):
            rank -= self._parts[value]
            if rank <= 0:
                return value
        return None

    def percentiles(self) -> Percentiles:
        """Return the percentiles that reports show."""
        return Percentiles(count=self.count, p50=self.percentile(50), p95=self.percentile(95), p99=self.percentile(99))


def _middle(value: int) -> int:
    """Return the value for which all of its part of the histogram stand."""
    dropped = max(0, value.bit_length() - _BITS)
    return (value >> dropped << dropped) + (1 << dropped >> 1)
