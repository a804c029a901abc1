"""What is known of a job that did not take effect once, for whoever has to find out why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from queuebridge.demo.attribution import Effect
from queuebridge.demo.outcomes import JobVerdict
from queuebridge.demo.steps import STEPS
from queuebridge.ledger import DeliveryRecord, Execution


def evidence(
    verdicts: Mapping[str, JobVerdict],
    effects: Sequence[Effect],
    executions: Mapping[str, Sequence[Execution]],
    deliveries: Mapping[str, Sequence[DeliveryRecord]],
) -> Iterator[str]:
    """Yield lines about every job that was lost, run twice or not settled."""
    for job_id, verdict in verdicts.items():
        known = executions.get(job_id, ())
        settled = bool(known) and all(execution.state.settled for execution in known)
        if settled and not verdict.lost and not verdict.duplicated:
            continue
        what = "lost" if verdict.lost else "run twice" if verdict.duplicated else "not settled"
        yield f"job {job_id} of step {STEPS[verdict.step].name} ({what}), enqueued at {verdict.sent_at:.3f}"
        for one in known:
            copies = ", ".join(
                f"{copy.backend} {copy.role.value} {copy.state.value}" + (f" ({copy.error})" if copy.error else "")
                for copy in one.copies
            )
            yield (
                f"  dispatch {one.dispatch_id}: {one.state.value}, {one.attempts} attempts, last token {one.token} of "
                f"{one.owner}, next check {one.next_check_at_ms}; copies: {copies or 'not recorded'}"
            )
        for delivery in deliveries.get(job_id, ()):
            yield (
                f"  delivered at {delivery.at_ms / 1000:.3f} by {delivery.backend} ({delivery.message_id}): "
                f"{delivery.outcome.value}, attempt {delivery.attempt}"
            )
        for effect in effects:
            if effect["job_id"] == job_id:
                yield (
                    f"  effect at {effect['at']:.3f} by process {effect['pid']}, attempt {effect['attempt']}, "
                    f"token {effect['fence']}"
                )
