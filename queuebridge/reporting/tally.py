"""Counting executions one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from queuebridge.ledger import Copy, DeliveryOutcome, DeliveryRecord, Execution, State, WriteState
from queuebridge.reporting.percentiles import Histogram
from queuebridge.reporting.records import ShadowReport, SideReport, StageReport
from queuebridge.stages import Role, Side, Stage

# The answers to a delivery that does not run.
_UNRUN = (DeliveryOutcome.SUPPRESSED, DeliveryOutcome.BUSY)


def awaits_legacy(execution: Execution) -> bool:
    """Return whether an execution that has not ended may still be delivered by the legacy side."""
    copy = execution.copy(Side.LEGACY)
    return copy is not None and copy.state is not WriteState.FAILED


class Tally:
    """Adds up executions; keeps none of them. The arguments are those of `build_report`."""

    def __init__(self, *, now_ms: int, late_after_ms: int, grace_ms: int) -> None:
        self._now_ms = now_ms
        self._late_after_ms = late_after_ms
        self._grace_ms = grace_ms
        self._states: Counter[State] = Counter()
        self._executed_by: Counter[str] = Counter()
        self._answers: Counter[DeliveryOutcome] = Counter()
        self._open = self._lost = self._late = self._stale_settles = 0
        self._arrived_twice = self._unsuppressed = self._safety_ran = self._safety_first = 0
        self._lag = Histogram()
        self._sides = {side: _SideTally() for side in Side}
        self._shadow = _ShadowTally()

    def add(self, execution: Execution, deliveries: Sequence[DeliveryRecord]) -> None:
        """Count an execution with its deliveries, the oldest first."""
        self._states[execution.state] += 1
        if not execution.state.settled:
            if self._now_ms > execution.deadline_ms:
                self._lost += 1
            else:
                self._open += 1
        if execution.executed_by is not None:
            self._executed_by[execution.executed_by] += 1
        self._stale_settles += execution.stale_settles
        self._answers.update(delivery.outcome for delivery in deliveries)
        grants = [delivery for delivery in deliveries if delivery.outcome is DeliveryOutcome.GRANTED]
        self._add_start(execution, grants[0] if grants else None)
        self._add_safety(grants)
        self._add_sides(execution, deliveries)
        self._shadow.add(execution, deliveries)

    def report(self, *, stage: str | None, task: str, open_legacy: int) -> StageReport:
        """Return what was counted."""
        return StageReport(
            stage=stage,
            task=task,
            jobs=self._states.total() - self._states[State.RETRIED],
            retried=self._states[State.RETRIED],
            done=self._states[State.DONE],
            failed=self._states[State.FAILED],
            quarantined=self._states[State.QUARANTINED],
            expired=self._states[State.EXPIRED],
            cancelled=self._states[State.CANCELLED],
            open=self._open,
            lost=self._lost,
            legacy=self._sides[Side.LEGACY].report(),
            push=self._sides[Side.PUSH].report(),
            executed_by=dict(sorted(self._executed_by.items())),
            suppressed=self._answers[DeliveryOutcome.SUPPRESSED],
            busy=self._answers[DeliveryOutcome.BUSY],
            arrived_twice=self._arrived_twice,
            unsuppressed=self._unsuppressed,
            safety_ran=self._safety_ran,
            safety_first=self._safety_first,
            late=self._late,
            stale_settles=self._stale_settles,
            open_legacy=open_legacy,
            lag_ms=self._lag.percentiles(),
            shadow=self._shadow.report(),
        )

    def _add_start(self, execution: Execution, first: DeliveryRecord | None) -> None:
        # Later grants are attempts after a failure, which wait on purpose.
        if first is not None:
            self._late += first.lag_ms > self._late_after_ms
            self._lag.add(first.lag_ms)
            if first.side is not None:
                self._sides[first.side].lag.add(first.lag_ms)
        elif not execution.state.settled:
            self._late += self._now_ms - _could_start_ms(execution) > self._late_after_ms

    def _add_safety(self, grants: Sequence[DeliveryRecord]) -> None:
        if any(grant.role is Role.SAFETY for grant in grants):
            self._safety_ran += 1
            self._safety_first += grants[0].role is Role.SAFETY

    def _add_sides(self, execution: Execution, deliveries: Sequence[DeliveryRecord]) -> None:
        arrived = {delivery.side for delivery in deliveries if delivery.side is not None}
        for side in arrived:
            self._sides[side].delivered += 1
        # Only a shadow copy arrives without asking for the right to run.
        asked = {delivery.side for delivery in deliveries if delivery.outcome is not DeliveryOutcome.SHADOWED}
        if asked.issuperset(Side):
            self._arrived_twice += 1
            self._unsuppressed += not any(delivery.outcome in _UNRUN for delivery in deliveries)
        old = self._now_ms - _could_start_ms(execution) > self._grace_ms
        for copy in execution.copies:
            missing = (
                copy.state is WriteState.WRITTEN
                and copy.side not in arrived
                and old
                and execution.state is not State.CANCELLED
            )
            self._sides[copy.side].writes[copy.state] += 1
            self._sides[copy.side].missing += missing
            self._shadow.missing += missing and copy.role is Role.SHADOW


class _SideTally:
    def __init__(self) -> None:
        self.writes: Counter[WriteState] = Counter()
        self.delivered = 0
        self.missing = 0
        self.lag = Histogram()

    def report(self) -> SideReport:
        return SideReport(
            written=self.writes[WriteState.WRITTEN],
            unknown=self.writes[WriteState.UNKNOWN],
            failed=self.writes[WriteState.FAILED],
            planned=self.writes[WriteState.PLANNED],
            held=self.writes[WriteState.HELD],
            delivered=self.delivered,
            missing=self.missing,
            lag_ms=self.lag.percentiles(),
        )


class _ShadowTally:
    def __init__(self) -> None:
        self.missing = 0
        self._invalid = self._different = self._same = self._uncompared = self._unsampled = 0
        self._lag = Histogram()

    def add(self, execution: Execution, deliveries: Sequence[DeliveryRecord]) -> None:
        """Count the shadow copy of an execution, if it has one."""
        if execution.stage == Stage.SHADOW.value and not any(map(_is_shadow, execution.copies)):
            self._unsampled += 1
        arrivals = [delivery for delivery in deliveries if delivery.outcome is DeliveryOutcome.SHADOWED]
        if not arrivals:
            return
        self._lag.add(arrivals[0].lag_ms)
        # A copy that an older deployment did not know comes again, and may be valid then.
        last = arrivals[-1]
        if last.problem is not None:
            self._invalid += 1
        elif last.digest is None or execution.digest is None:
            self._uncompared += 1
        elif last.digest == execution.digest:
            self._same += 1
        else:
            self._different += 1

    def report(self) -> ShadowReport:
        return ShadowReport(
            arrived=self._lag.count,
            missing=self.missing,
            invalid=self._invalid,
            different=self._different,
            same=self._same,
            uncompared=self._uncompared,
            unsampled=self._unsampled,
            lag_ms=self._lag.percentiles(),
        )


def _is_shadow(copy: Copy) -> bool:
    return copy.role is Role.SHADOW


def _could_start_ms(execution: Execution) -> int:
    """Return since when an execution could have started, on the store's clock."""
    return max(execution.accepted_at_ms, execution.not_before_ms or 0)
