"""Each mechanism broken on purpose: the simulation has to notice, or it would prove nothing.

| broken on purpose | what the simulation sees |
|---|---|
| the ledger grants every claim | P2: granted while another attempt held a valid claim |
| the token is not compared when settling | P2: settled by an attempt that may not |
| the token is not compared when renewing | P2: a stale claim was renewed |
| a settled dispatch is settled again | P2: settled by an attempt that may not |
| leases are not renewed | P2: an effect was not settled, for no reason |
| attempts are not counted | P1: a poisonous job never ends |
| a busy delivery is acknowledged as a duplicate | P1: acknowledged while somebody else runs it |
| a busy delivery is parked under an epoch that was used | P1: an epoch was used twice |
| hops and the ledger share epochs | P1: an epoch was used twice |
| nobody reconciles | P1: has not ended |
| a failed reconcile write is not tried again | P1: has not ended |
| what the transport gave up is not recorded | P1: has not ended |
| jobs are not recorded first | P6, P1: spooled and held jobs are not there |
| jobs are recorded after they were published | P6: enqueue said that it was not accepted, and it ran |
| a refused job is not withdrawn | P6: enqueue said that it was not accepted, and it ran |
| a known job's receipt names every copy | P6: a backend does not have what the receipt says |
| an unknown outcome counts as a failure | P6: enqueue said that it was not accepted, and it ran |
| the hash of a per cent includes the per cent | P5: moved out |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import simulation.transports
from simulation.processes import Reconciling
from simulation.world import World

import queuebridge.publishing.staged
import queuebridge.reconcile
from queuebridge.claims import Claims
from queuebridge.errors import BackendUnavailable
from queuebridge.ledger import Granted, State
from queuebridge.outcome import Outcome, Status
from queuebridge.parking import Parking
from queuebridge.publishing.staged import StagedPublisher
from queuebridge.receipt import Receipt, Write
from queuebridge.routing import rules
from queuebridge.storage.memory import MemoryLedger

WORLDS = 60
JOBS = 60
# In seconds; a job that has not ended by then never will.
PATIENCE = 3600.0

Patch = pytest.MonkeyPatch


def grant_every_claim(patch: Patch) -> None:
    answer = MemoryLedger._answer

    def always(self: MemoryLedger, row: Any, request: Any, now_ms: int, grace_ms: int) -> Any:
        row.state, row.lease_until_ms, row.retry_at_ms = State.ACCEPTED, None, None
        return answer(self, row, request, now_ms, grace_ms)

    patch.setattr(MemoryLedger, "_answer", always)


def ignore_the_token(method: str) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        real = getattr(MemoryLedger, method)

        def with_the_current_token(self: MemoryLedger, dispatch_id: str, token: int, *args: Any, **more: Any) -> Any:
            return real(self, dispatch_id, self._tables.rows[dispatch_id].token, *args, **more)

        patch.setattr(MemoryLedger, method, with_the_current_token)

    apply.__name__ = f"ignore_the_token_in_{method}"
    return apply


def settle_again(patch: Patch) -> None:
    settle = MemoryLedger.settle

    def again(self: MemoryLedger, dispatch_id: str, token: int, settlement: Any) -> bool:
        row = self._tables.rows[dispatch_id]
        if row.state.settled:
            row.state, row.token = State.RUNNING, token
        return settle(self, dispatch_id, token, settlement)

    patch.setattr(MemoryLedger, "settle", again)


def do_not_renew(patch: Patch) -> None:
    patch.setattr(Claims, "_renew", lambda self, lease: True)


def do_not_count_attempts(patch: Patch) -> None:
    answer = MemoryLedger._answer

    def uncounted(self: MemoryLedger, row: Any, *args: Any) -> Any:
        claim = answer(self, row, *args)
        row.attempts = 0
        return replace(claim, attempt=1) if isinstance(claim, Granted) else claim

    patch.setattr(MemoryLedger, "_answer", uncounted)


def call_busy_a_duplicate(patch: Patch) -> None:
    begin = Claims.begin

    def hasty(self: Claims, *args: Any) -> Any:
        answer = begin(self, *args)
        busy = isinstance(answer, Outcome) and answer.status is Status.BUSY
        return Outcome(status=Status.DUPLICATE) if busy else answer

    patch.setattr(Claims, "begin", hasty)


def park_under_one_epoch(patch: Patch) -> None:
    park = Parking.park
    patch.setattr(Parking, "park", lambda self, envelope, *, number, **more: park(self, envelope, number=1, **more))


def share_epochs_with_hops(patch: Patch) -> None:
    patch.setattr("queuebridge.parking._EPOCHS_EACH", 1)
    patch.setattr(simulation.transports, "ledger_epoch", lambda number: number)


def nobody_reconciles(patch: Patch) -> None:
    patch.setattr(Reconciling, "run", lambda self: None)


def forget_failed_writes(patch: Patch) -> None:
    patch.setattr(queuebridge.reconcile, "_check_in_ms", lambda due, action, out: None)


def only_look_at_what_was_given_up(patch: Patch) -> None:
    def look(envelope: Any, backend: str, *, ledger: Any, **more: Any) -> None:
        ledger.check_in(envelope.dispatch_id, 0)

    patch.setattr(simulation.transports, "take_back", look)


def do_not_record(patch: Patch) -> None:
    def pretend(self: StagedPublisher, jobs: Any, answers: Any) -> None:
        for job in jobs:
            job.recorded = job.new = self._records(job.prepared)

    patch.setattr(StagedPublisher, "_record", pretend)


def record_after_publishing(patch: Patch) -> None:
    record, write = StagedPublisher._record, StagedPublisher._write

    def late(self: StagedPublisher, jobs: Any, answers: Any) -> None:
        write(self, jobs, answers)
        record(self, jobs, answers)

    patch.setattr(StagedPublisher, "_record", lambda self, jobs, answers: None)
    patch.setattr(StagedPublisher, "_write", late)


def do_not_withdraw(patch: Patch) -> None:
    patch.setattr(StagedPublisher, "_withdraw", lambda self, dispatch_id: True)


def name_every_copy(patch: Patch) -> None:
    known_receipt = queuebridge.publishing.staged.known_receipt

    def boasting(prepared: Any, record: Any) -> Receipt:
        writes = tuple(Write(backend=copy.backend, message_id="", deduplicated=True) for copy in record.copies)
        return replace(known_receipt(prepared, record), writes=writes)

    patch.setattr(queuebridge.publishing.staged, "known_receipt", boasting)


def call_unknown_failed(patch: Patch) -> None:
    patch.setattr(
        simulation.transports,
        "PublishOutcomeUnknown",
        lambda backend, reason, job_id: BackendUnavailable(backend, reason),
    )


def hash_the_per_cent(patch: Patch) -> None:
    decide, bucket_of = rules.StageRule.decide, rules.bucket_of

    def unstable(self: rules.StageRule, *args: Any) -> Any:
        patch.setattr(rules, "bucket_of", lambda name, key: bucket_of(name, f"{self.percent}:{key}"))
        return decide(self, *args)

    patch.setattr(rules.StageRule, "decide", unstable)


BROKEN: dict[Callable[[Patch], None], str] = {
    grant_every_claim: "P2",
    ignore_the_token("settle"): "P2",
    ignore_the_token("renew"): "P2",
    settle_again: "P2",
    do_not_renew: "P2",
    do_not_count_attempts: "P1",
    call_busy_a_duplicate: "P1",
    park_under_one_epoch: "P1",
    share_epochs_with_hops: "P1",
    nobody_reconciles: "P1",
    forget_failed_writes: "P1",
    only_look_at_what_was_given_up: "P1",
    do_not_record: "P6",
    record_after_publishing: "P6",
    do_not_withdraw: "P6",
    name_every_copy: "P6",
    call_unknown_failed: "P6",
    hash_the_per_cent: "P5",
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("break_it", "promise"),
    BROKEN.items(),
    ids=[break_it.__name__ for break_it in BROKEN],
)
def test_broken_mechanism_is_noticed(
    break_it: Callable[[Patch], None], promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)

    for seed in range(WORLDS):
        violations = World(seed, jobs=JOBS, patience=PATIENCE).live().violations
        if any(violation.startswith(promise) for violation in violations):
            return
    pytest.fail(f"{WORLDS} worlds did not notice.")


@pytest.mark.timeout(300)
def test_the_same_worlds_keep_every_promise_otherwise() -> None:
    for seed in range(WORLDS // 4):
        assert not World(seed, jobs=JOBS, patience=PATIENCE).live().violations
