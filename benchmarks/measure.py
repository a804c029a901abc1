"""Compare two ways of doing the same thing, in one run, as the ratio of their medians."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: What is compared.
        ours, plain: The median of each side, in `unit`.
        unit: What was measured.
        ratio: Ours over plain.
        budget: What the ratio must not exceed, or not fall below if `more_is_better`.
        more_is_better: Whether a higher ratio is better.
    """

    name: str
    ours: float
    plain: float
    unit: str
    budget: float | None
    more_is_better: bool = False

    @property
    def ratio(self) -> float:
        """Return ours over plain."""
        return self.ours / self.plain

    @property
    def within_budget(self) -> bool:
        """Return whether the budget is kept; true without one."""
        if self.budget is None:
            return True
        return self.ratio >= self.budget if self.more_is_better else self.ratio <= self.budget


def microseconds_each(call: Callable[[], object], count: int) -> float:
    """Return the mean time of one call in microseconds."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count * 1e6


def medians(ours: Callable[[], float], plain: Callable[[], float], *, rounds: int) -> tuple[float, float]:
    """Return the median of each measurement.

    The two alternate, and which one is first alternates too, so that a disturbance hits both alike.
    """
    results: tuple[list[float], list[float]] = ([], [])
    sides = (ours, plain)
    for side in (0, 1):
        sides[side]()
    gc.disable()
    try:
        for number in range(rounds):
            for side in ((0, 1), (1, 0))[number % 2]:
                results[side].append(sides[side]())
            gc.collect()
    finally:
        gc.enable()
    return statistics.median(results[0]), statistics.median(results[1])
