"""What a report says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from queuebridge.reporting.percentiles import Percentiles


@dataclass(frozen=True, kw_only=True, slots=True)
class SideReport:
    """The copies on one side. Each dispatch counts once in each figure.

    Attributes:
        written, unknown, failed: Writes that succeeded, that got no answer, and that failed.
        planned: Copies of which it is not yet known whether they were written.
        held: Copies that wait in the ledger, or were not needed any more.
        delivered: Dispatches that have arrived on this side.
        missing: Copies that were written, could have started longer ago than the grace, and have not arrived.
            Those of cancelled jobs do not count: their messages may have been deleted.
        lag_ms: How long after they could have started the jobs were started that this side started.
    """

    written: int
    unknown: int
    failed: int
    planned: int
    held: int
    delivered: int
    missing: int
    lag_ms: Percentiles


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowReport:
    """The shadow copies. `arrived` is the sum of `invalid`, `different`, `same` and `uncompared`.

    Attributes:
        arrived: Dispatches whose shadow copy has arrived. If it came several times, the last time counts.
        missing: As in `SideReport`.
        invalid: It could not have run: unknown task, invalid arguments.
        different: It has other arguments than the copy that ran.
        same: It has the same arguments as the copy that ran.
        uncompared: Nothing has run yet with which it could be compared.
        unsampled: Dispatches of the shadow stage without a shadow copy.
        lag_ms: How long after the job could have started its shadow copy arrived first.
    """

    arrived: int
    missing: int
    invalid: int
    different: int
    same: int
    uncompared: int
    unsampled: int
    lag_ms: Percentiles


@dataclass(frozen=True, kw_only=True, slots=True)
class StageReport:
    """What the ledger knows of the jobs of a task that were written by a stage.

    A job that was published anew for a retry has several dispatches. `jobs` counts it once, by its last one;
    figures of writes, deliveries and executions count every dispatch.

    Attributes:
        stage: The name of the stage; None for jobs without a migration.
        task: The name of the task, or the pattern that several were added up for.
        jobs: How many jobs there are.
        retried: Dispatches that ended with the publication of another one.
        done, failed, quarantined, expired, cancelled: Jobs that ended so.
        open: Jobs that have not ended, and still have time.
        lost: Jobs that have not ended by their deadline.
        legacy, push: The copies on each side.
        executed_by: By backend, the dispatches that it executed last.
        suppressed: Deliveries answered without running, because the dispatch had ended, or ended then (it had
            expired, or its attempts were used up).
        busy: Deliveries put off, because another execution was under way.
        arrived_twice: Dispatches that arrived on both sides.
        unsuppressed: Of these, the ones without a delivery that was suppressed or put off: both copies ran, the
            second one after the first attempt had failed or its executor had died.
        safety_ran: Dispatches of which an execution was granted to the safety copy.
        safety_first: Of these, the ones whose first execution was: the preferred copy did not come in time. (Others
            are attempts after a failure, for which whichever copy comes first may run.)
        late: Dispatches that were started, or still wait to be, longer after they could than the limit.
        stale_settles: Settlements that were refused, because the claim had been taken over.
        open_legacy: Jobs of the task that have not ended, of every stage and age, with a legacy copy yet to come.
        lag_ms: How long after they could have started jobs were started for the first time.
        shadow: The shadow copies.
    """

    stage: str | None
    task: str
    jobs: int
    retried: int
    done: int
    failed: int
    quarantined: int
    expired: int
    cancelled: int
    open: int
    lost: int
    legacy: SideReport
    push: SideReport
    executed_by: Mapping[str, int]
    suppressed: int
    busy: int
    arrived_twice: int
    unsuppressed: int
    safety_ran: int
    safety_first: int
    late: int
    stale_settles: int
    open_legacy: int
    lag_ms: Percentiles
    shadow: ShadowReport
