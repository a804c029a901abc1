"""Whether a stage has shown that the next one is safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from queuebridge.ledger import ExecutionLog
from queuebridge.reporting.records import SideReport, StageReport
from queuebridge.reporting.report import build_total
from queuebridge.stages import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """What the evidence of a stage must reach. Shares are from 0 to 1.

    Attributes:
        min_jobs: So many jobs (in the shadow stage: shadow copies that have arrived) at least.
        min_arrived: The share of written copies that have arrived, of those that have arrived or are missing.
        min_suppressed: The share of jobs with a suppressed duplicate, of those that arrived on both sides.
        max_write_failures: The share of push writes that failed or got no answer must be below this, or none.
        max_safety_first: The share of jobs that the safety copy had to start must be below this, or none.
        max_p95_lag_ms: 95 % of the jobs that push started must have started within this time.
    """

    min_jobs: int = 100
    min_arrived: float = 0.999
    min_suppressed: float = 0.99
    max_write_failures: float = 0.001
    max_safety_first: float = 0.001
    max_p95_lag_ms: int = 30_000


DEFAULT_THRESHOLDS = Thresholds()


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether the next stage may begin.

    Attributes:
        ready: Whether nothing speaks against it.
        reasons: What speaks against it; if nothing does, what speaks for it. Each says what was counted, the figure,
            and the threshold.
    """

    ready: bool
    reasons: tuple[str, ...]


def judge(report: StageReport, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> Verdict:
    """Judge whether the jobs of a report may go to the stage after theirs."""
    stage = next((stage for stage in Stage if stage.value == report.stage), None)
    if stage is None:
        return Verdict(ready=False, reasons=("These jobs were written without a stage.",))
    if stage is Stage.LEGACY:
        return Verdict(
            ready=True,
            reasons=("Stage shadow may always follow: its push copies never run, and the caller is unaffected.",),
        )
    if stage.after is None:
        return Verdict(ready=False, reasons=(f"Stage {stage.value} is the last one.",))
    findings = list(_CHECKS[stage](report, thresholds))
    against = tuple(str(finding) for finding in findings if not finding.ok)
    return Verdict(ready=not against, reasons=against or tuple(map(str, findings)))


def judge_advance(
    log: ExecutionLog,
    *,
    task: str | None,
    stage: Stage,
    now_ms: int,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    since_ms: int | None = None,
) -> Verdict:
    """Judge whether tasks may go from a stage to the next.

    Args:
        log: Where the evidence is.
        task: The name of a task, or a glob pattern, whose tasks are judged together; None for all.
        stage: The stage in which they are.
        now_ms: The store's time.
        thresholds: What the evidence must reach.
        since_ms: When the stage began; jobs accepted before are no evidence.

    Raises:
        LedgerUnavailable: The store cannot be reached.
    """
    return judge(build_total(log, now_ms=now_ms, task=task, stage=stage, since_ms=since_ms), thresholds)


@dataclass(frozen=True, slots=True)
class _Finding:
    ok: bool
    what: str
    figure: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.what}: {self.figure}; wanted: {self.wanted}."


def _shadow(report: StageReport, thresholds: Thresholds) -> Iterator[_Finding]:
    shadow = report.shadow
    yield _at_least("Shadow copies that have arrived", shadow.arrived, thresholds.min_jobs)
    yield _arrivals("Shadow", shadow.arrived, shadow.missing, thresholds)
    yield _none("Shadow copies that could not have run (unknown task, invalid arguments)", shadow.invalid)
    yield _none(
        "Shadow copies with other arguments than what legacy ran",
        shadow.different,
        of=f"{shadow.different + shadow.same} compared",
    )
    yield _write_failures(report.push, thresholds)


def _dual(report: StageReport, thresholds: Thresholds) -> Iterator[_Finding]:
    yield _enough(report, thresholds)
    yield _lost(report)
    yield _arrivals("Push", report.push.delivered, report.push.missing, thresholds)
    # Legacy workers that do not ask for claims are not seen to get anything.
    yield _arrivals("Legacy", report.legacy.delivered, report.legacy.missing, thresholds)
    yield _write_failures(report.push, thresholds)
    yield _at_least("Jobs that arrived on both sides", report.arrived_twice, 1)
    suppressed = report.arrived_twice - report.unsuppressed
    yield _Finding(
        suppressed >= thresholds.min_suppressed * report.arrived_twice,
        "Jobs with a duplicate suppressed or put off, of those that arrived on both sides",
        _share(suppressed, report.arrived_twice),
        f"at least {_percent(thresholds.min_suppressed)}",
    )
    yield _none("Settlements refused because the claim had been taken over", report.stale_settles)


def _live(report: StageReport, thresholds: Thresholds) -> Iterator[_Finding]:
    yield _enough(report, thresholds)
    yield _lost(report)
    yield _below(
        "Jobs that their safety copy had to start", report.safety_first, report.jobs, thresholds.max_safety_first
    )
    p95_ms = report.push.lag_ms.p95
    yield _Finding(
        p95_ms is not None and p95_ms <= thresholds.max_p95_lag_ms,
        "Lag of the jobs that push started, p95",
        "unknown, it has started none" if p95_ms is None else f"{p95_ms} ms",
        f"at most {thresholds.max_p95_lag_ms} ms",
    )


def _rampdown(report: StageReport, thresholds: Thresholds) -> Iterator[_Finding]:
    yield _enough(report, thresholds)
    yield _lost(report)
    legacy = report.legacy
    yield _none("Writes that fell back to legacy", legacy.written + legacy.unknown + legacy.failed + legacy.planned)
    yield _none("Jobs that have not ended and that legacy may still deliver", report.open_legacy)


_CHECKS: Mapping[Stage, Callable[[StageReport, Thresholds], Iterator[_Finding]]] = {
    Stage.SHADOW: _shadow,
    Stage.DUAL: _dual,
    Stage.LIVE: _live,
    Stage.RAMPDOWN: _rampdown,
}


def _enough(report: StageReport, thresholds: Thresholds) -> _Finding:
    return _at_least("Jobs written by this stage", report.jobs, thresholds.min_jobs)


def _lost(report: StageReport) -> _Finding:
    return _none("Lost jobs (not ended by their deadline)", report.lost)


def _arrivals(what: str, arrived: int, missing: int, thresholds: Thresholds) -> _Finding:
    due = arrived + missing
    return _Finding(
        due > 0 and arrived >= thresholds.min_arrived * due,
        f"{what} copies that have arrived, of those that are due",
        _share(arrived, due),
        f"at least {_percent(thresholds.min_arrived)}",
    )


def _write_failures(push: SideReport, thresholds: Thresholds) -> _Finding:
    failures = push.failed + push.unknown
    what = "Push writes that failed or got no answer"
    return _below(what, failures, push.written + failures, thresholds.max_write_failures)


def _at_least(what: str, count: int, wanted: int) -> _Finding:
    return _Finding(count >= wanted, what, f"{count}", f"at least {wanted}")


def _none(what: str, count: int, *, of: str | None = None) -> _Finding:
    return _Finding(count == 0, what, f"{count} of {of}" if of else f"{count}", "none")


def _below(what: str, part: int, whole: int, limit: float) -> _Finding:
    return _Finding(
        part == 0 or part < limit * whole, what, _share(part, whole), f"none, or less than {_percent(limit)}"
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({_percent(part / whole)})" if whole else "0 of 0"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
