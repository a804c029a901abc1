"""What to say of a world that broke a promise."""

from __future__ import annotations

from simulation.world import Result


def explain(result: Result, seed: int, jobs: int) -> str:
    """Return the broken promises, the history of the world, and how to see it again."""
    return "\n".join(
        (
            f"Seed {seed} broke {len(result.violations)} promises:",
            *(f"  {violation}" for violation in result.violations),
            "Its history:",
            *(f"  {line}" for line in result.history),
            f"To see it again: PYTHONPATH=tests/support python -m simulation {seed} {jobs} [word ...]",
        )
    )
