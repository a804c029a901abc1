"""The task of the benchmarks."""

from __future__ import annotations

from queuebridge import task


@task(name="benchmark.add", queue="benchmark")
def add_numbers(a: int, b: int, *, note: str = "") -> int:
    """Add two numbers."""
    return a + b + len(note)
