"""What goes wrong in a simulated world, and how often."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Probabilities, each per occasion.

    Attributes:
        write_fails: A backend does not take a message, and says so.
        write_lies: It takes it, and says that it did not; no adapter of ours may do so, but networks have done worse.
        write_unknown_taken, write_unknown_lost: It says nothing, and has taken the message, or has not.
        ledger_before, ledger_after: The ledger cannot be reached; or it does what it was asked, and its answer is lost.
        dropped, answer_lost: A delivery does not arrive; or its answer does not.
        duplicated, delayed: A message is delivered twice; or late.
        producer_dies, reconciler_dies: Per step.
        executor_dies: Per step, before, between and after its calls.
        dies_before_effect, dies_after_effect: In the body.
        stalls: An executor stands still past its lease, and does not renew it.
        refused_retry: A worker cannot put its message off.
    """

    write_fails: float = 0.03
    write_lies: float = 0.002
    write_unknown_taken: float = 0.02
    write_unknown_lost: float = 0.02
    ledger_before: float = 0.01
    ledger_after: float = 0.01
    dropped: float = 0.05
    answer_lost: float = 0.03
    duplicated: float = 0.05
    delayed: float = 0.05
    producer_dies: float = 0.005
    reconciler_dies: float = 0.01
    executor_dies: float = 0.01
    dies_before_effect: float = 0.02
    dies_after_effect: float = 0.02
    stalls: float = 0.02
    refused_retry: float = 0.05

    @classmethod
    def of_a_world(cls, rng: random.Random) -> Faults:
        """Return the faults of one world: some are calm, some are rough, and each has its own weather."""
        rough = rng.choice((0.2, 1.0, 1.0, 3.0))
        return cls(
            **{f.name: min(0.4, float(f.default) * rough * rng.choice((0.0, 0.5, 1.0, 1.0, 4.0))) for f in fields(cls)}
        )


NO_FAULTS = Faults(**{f.name: 0.0 for f in fields(Faults)})
