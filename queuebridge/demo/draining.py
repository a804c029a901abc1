"""Whether anything is left that could still arrive: a late duplicate must not escape by being late."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from queuebridge.demo.leftovers import bring_forward_in_rq, connect, waiting_in_celery, waiting_in_rq
from queuebridge.demo.producer import Accepted
from queuebridge.ledger import DeliveryOutcome, DeliveryRecord, Execution, Ledger, WriteState
from queuebridge.stages import Side


@dataclass(frozen=True, kw_only=True, slots=True)
class Outstanding:
    """What is left.

    Attributes:
        unsettled: Accepted jobs of which the ledger knows no end. Only they can have held copies that are still
            written.
        pushed: Messages in the embedded server: safety and shadow copies, parked deliveries.
        legacy: Messages with the broker, and with workers.
    """

    unsettled: int
    pushed: int
    legacy: int

    def __bool__(self) -> bool:
        return bool(self.unsettled or self.pushed or self.legacy)

    def __str__(self) -> str:
        counts = {
            "jobs without an end": self.unsettled,
            "messages to be pushed": self.pushed,
            "messages of the old backend": self.legacy,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


@dataclass(frozen=True, kw_only=True)
class Drain:
    """Looks at all places where a job can wait.

    Attributes:
        ledger: The ledger.
        redis_url: The address of the broker.
        queue: The queue of all jobs.
        legacy: The old backend.
    """

    ledger: Ledger
    redis_url: str
    queue: str
    legacy: str

    def outstanding(self, accepted: Sequence[Accepted]) -> Outstanding:
        """Return what is left, as far as the ledger and the broker know."""
        known = [execution for job in accepted for execution in self.ledger.executions.of_job(job.receipt.job_id)]
        jobs = {execution.job_id for execution in known}
        deliveries = self.ledger.executions.deliveries([execution.dispatch_id for execution in known])
        return Outstanding(
            unsettled=sum(job.receipt.job_id not in jobs for job in accepted)
            + sum(not execution.state.settled for execution in known),
            pushed=sum(_awaits_push(execution, deliveries[execution.dispatch_id]) for execution in known),
            legacy=self._in_legacy(),
        )

    def bring_forward(self, job_ids: Collection[str]) -> None:
        """Have the old backend bring at once what it would bring again only minutes after the death of a worker."""
        # A Redis broker of Celery does so after its visibility timeout, which the demo keeps short.
        if self.legacy == "rq":
            with contextlib.closing(connect(self.redis_url)) as client:
                bring_forward_in_rq(client, self.queue, job_ids)

    def _in_legacy(self) -> int:
        with contextlib.closing(connect(self.redis_url)) as client:
            waiting = waiting_in_rq if self.legacy == "rq" else waiting_in_celery
            return waiting(client, self.queue)


def messages_in(database: Path) -> int:
    """Return how many messages an embedded server, which must not be running, has yet to deliver."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM message").fetchone()[0])


def _awaits_push(execution: Execution, deliveries: Sequence[DeliveryRecord]) -> bool:
    """Return whether a push copy has not arrived yet, or was parked when it did."""
    copy = execution.copy(Side.PUSH)
    if copy is None or copy.state is not WriteState.WRITTEN:
        return False
    arrived = [delivery for delivery in deliveries if delivery.side is Side.PUSH]
    return not arrived or arrived[-1].outcome is DeliveryOutcome.BUSY
