"""The verdict over a migration: what became of the jobs, by step and by backend."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from queuebridge.demo.attribution import Effect, Killed, attribute
from queuebridge.demo.draining import Outstanding
from queuebridge.demo.effects import BackendResult, is_true, percentile
from queuebridge.demo.producer import Accepted
from queuebridge.demo.steps import STEPS, Step
from queuebridge.ledger import DeliveryOutcome, DeliveryRecord, Execution
from queuebridge.stages import PUSH_BACKEND, Side


@dataclass(frozen=True, kw_only=True, slots=True)
class JobVerdict:
    """What became of one accepted job.

    Attributes:
        step: The step it belongs to.
        backend: What ran it; for one that nothing ran, what should have.
        lost: Whether it left no effect, or none that is true.
        duplicated, rerun_after_kill: Its repeated effects, as in `Repeats`.
        suppressed: How many of its deliveries the ledger kept from running, because it had ended.
        sent_at, done_at: When it was enqueued, and when it took effect, in Unix seconds.
    """

    step: int
    backend: str
    lost: bool
    duplicated: int
    rerun_after_kill: int
    suppressed: int
    sent_at: float
    done_at: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What became of the jobs of one step.

    Attributes:
        step: The step.
        jobs: How many were accepted.
        executed_by: How many took effect through which backend.
        suppressed, lost, duplicated, rerun_after_kill: As in `JobVerdict`, added up.
        lag_p50_ms, lag_p95_ms: From enqueue to effect.
    """

    step: Step
    jobs: int
    executed_by: Mapping[str, int]
    suppressed: int
    lost: int
    duplicated: int
    rerun_after_kill: int
    lag_p50_ms: float
    lag_p95_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return the result as the demo's JSON output has it."""
        return {
            "stage": self.step.stage.value,
            "step": self.step.name,
            "jobs": self.jobs,
            "executed_by": dict(self.executed_by),
            "suppressed": self.suppressed,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "rerun_after_kill": self.rerun_after_kill,
            "lag_ms": {"p50": round(self.lag_p50_ms, 1), "p95": round(self.lag_p95_ms, 1)},
        }


@dataclass(frozen=True, kw_only=True)
class Migration:
    """The end of a migration.

    Attributes:
        legacy: The old backend.
        ledger: The kind of the ledger.
        broker: The Redis of the old backend.
        seed: What decided the kills; None without chaos.
        kills: How often what was killed.
        stages: What became of the jobs, by step.
        backends: The same, by backend.
        strangers: Effects of jobs that were never accepted.
        left: What could still arrive when the demo gave up waiting; nothing, if all is well.
    """

    legacy: str
    ledger: str
    broker: str
    seed: int | None
    kills: Mapping[str, int]
    stages: Sequence[StepResult]
    backends: Sequence[BackendResult]
    strangers: int
    left: Outstanding

    @property
    def ok(self) -> bool:
        """Return whether every accepted job took effect once, but for those whose process was killed in between."""
        return (
            all(step.jobs and not step.lost and not step.duplicated for step in self.stages)
            and not self.strangers
            and not self.left
        )

    def as_json(self) -> dict[str, Any]:
        """Return the result as the demo's JSON output has it."""
        chaos = {"chaos": {"seed": self.seed, "kills": dict(self.kills)}} if self.seed is not None else {}
        return {
            "ok": self.ok,
            "legacy": self.legacy,
            "ledger": self.ledger,
            **chaos,
            "stages": [step.as_json() for step in self.stages],
            "backends": [backend.as_json() for backend in self.backends],
            **({"left": str(self.left)} if self.left else {}),
        }


def judge_jobs(
    accepted: Mapping[str, Accepted],
    effects: Sequence[Effect],
    *,
    killed: Sequence[Killed],
    executions: Mapping[str, Sequence[Execution]],
    deliveries: Mapping[str, Sequence[DeliveryRecord]],
    legacy: str,
) -> dict[str, JobVerdict]:
    """Return what became of each accepted job, by job id.

    Args:
        accepted: The accepted jobs by job id.
        effects: All effects, in the order in which they were appended.
        killed: The processes that the demo killed.
        executions: What the ledger knows, by job id.
        deliveries: The deliveries that the ledger knows, by job id.
        legacy: The old backend.
    """
    left: dict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        left[effect["job_id"]].append(effect)
    verdicts = {}
    for job_id, job in accepted.items():
        own = left[job_id]
        first = next((effect for effect in own if is_true(effect, job.path)), None)
        settled_by = frozenset(one.token for one in executions.get(job_id, ()) if one.state.settled)
        repeats = attribute(own, killed, settled_by)
        expected = legacy if STEPS[job.step].stage.plan.preferred is Side.LEGACY else PUSH_BACKEND
        verdicts[job_id] = JobVerdict(
            step=job.step,
            backend=first["backend"] if first is not None else expected,
            lost=first is None,
            duplicated=repeats.duplicated,
            rerun_after_kill=repeats.rerun_after_kill,
            suppressed=sum(delivery.outcome is DeliveryOutcome.SUPPRESSED for delivery in deliveries.get(job_id, ())),
            sent_at=job.at,
            done_at=first["at"] if first is not None else None,
        )
    return verdicts


def by_step(verdicts: Collection[JobVerdict], legacy: str) -> list[StepResult]:
    """Add verdicts up by step."""
    return [
        _step_result(step, [verdict for verdict in verdicts if verdict.step == position], legacy)
        for position, step in enumerate(STEPS)
    ]


def by_backend(verdicts: Collection[JobVerdict], legacy: str) -> list[BackendResult]:
    """Add verdicts up by the backend that ran the job, or should have."""
    return [
        _backend_result(name, [verdict for verdict in verdicts if verdict.backend == name])
        for name in (legacy, PUSH_BACKEND)
    ]


def _step_result(step: Step, verdicts: Sequence[JobVerdict], legacy: str) -> StepResult:
    ran = Counter(verdict.backend for verdict in verdicts if not verdict.lost)
    lags = _lags_ms(verdicts)
    return StepResult(
        step=step,
        jobs=len(verdicts),
        executed_by={name: ran[name] for name in (legacy, PUSH_BACKEND)},
        suppressed=sum(verdict.suppressed for verdict in verdicts),
        lost=sum(verdict.lost for verdict in verdicts),
        duplicated=sum(verdict.duplicated for verdict in verdicts),
        rerun_after_kill=sum(verdict.rerun_after_kill for verdict in verdicts),
        lag_p50_ms=percentile(lags, 0.50),
        lag_p95_ms=percentile(lags, 0.95),
    )


def _backend_result(name: str, verdicts: Sequence[JobVerdict]) -> BackendResult:
    done = [verdict.done_at for verdict in verdicts if verdict.done_at is not None]
    elapsed = max(done) - min(verdict.sent_at for verdict in verdicts) if done else 0.0
    lags = _lags_ms(verdicts)
    return BackendResult(
        name=name,
        jobs=len(verdicts),
        executed=len(done),
        lost=len(verdicts) - len(done),
        duplicated=sum(verdict.duplicated for verdict in verdicts),
        throughput_per_s=len(done) / elapsed if elapsed > 0 else 0.0,
        latency_p50_ms=percentile(lags, 0.50),
        latency_p95_ms=percentile(lags, 0.95),
    )


def _lags_ms(verdicts: Sequence[JobVerdict]) -> list[float]:
    return sorted((verdict.done_at - verdict.sent_at) * 1000 for verdict in verdicts if verdict.done_at is not None)
