"""What the receiver answers where a ledger says what may run."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from ledgers import claim_request, new_dispatch
from receiving import ENVIRON, ReceiverUnderTest, Recorder, envelope
from staging import Clock, SideBackend, WatchedLedger, failed, unknown

from bridge_app import create_app
from queuebridge import Bridge
from queuebridge.ledger import DeliveryOutcome, State
from queuebridge.parking import ledger_epoch

ENVIRONMENT = {name: value for name, value in ENVIRON.items() if name != "QUEUEBRIDGE_BACKEND"}


class Stand:
    """A receiver with a ledger, and with a push backend that keeps what is put off."""

    def __init__(self, *, with_ledger: bool = True, environ: dict[str, str] | None = None) -> None:
        self.clock = Clock()
        self.ledger = WatchedLedger(self.clock)
        self.push = SideBackend("qstash")
        recorder = Recorder()
        variables = {**ENVIRONMENT, **(environ or {})}
        bridge = Bridge(
            self.push,
            registry=recorder.registry,
            environ=variables,
            ledger=self.ledger if with_ledger else None,
            clock=self.clock,
        )
        self.receiver = ReceiverUnderTest(recorder=recorder, app=create_app(bridge, environ=variables))

    def deliver(self, **changes: Any) -> Any:
        values = {"job_id": "job-1", "dispatch_id": "d1", "enqueued_at_ms": self.clock.ms, **changes}
        return self.receiver.deliver(**values)

    def hold_claim(self) -> None:
        """Have another executor run the job."""
        self.ledger.claim(claim_request(new_dispatch(dispatch_id="d1", job_id="job-1"), lease_ms=40_000), grace_ms=0)

    def outcomes(self) -> list[DeliveryOutcome]:
        return [record.outcome for record in self.ledger.executions.deliveries(["d1"])["d1"]]


@pytest.fixture
def stand() -> Stand:
    """A receiver with a ledger."""
    return Stand()


def test_second_delivery_of_a_finished_job_is_200_and_not_run(stand: Stand) -> None:
    stand.deliver()

    answer = stand.deliver()

    assert (answer.status_code, answer.get_json()["status"]) == (200, "duplicate")
    assert len(stand.receiver.calls) == 1


def test_busy_job_is_parked_until_the_lease_ends_under_an_epoch_of_the_ledger(stand: Stand) -> None:
    stand.hold_claim()
    stand.clock.move(15)

    answer = stand.deliver()

    assert (answer.status_code, answer.get_json()) == (200, {"status": "parked", "job_id": "job-1"})
    (parked,) = stand.push.sent
    assert parked.envelope.epoch == ledger_epoch(1)
    assert (parked.delay_seconds, parked.counted_by_ledger) == (25.0, True)
    assert (stand.receiver.calls, stand.outcomes()) == ([], [DeliveryOutcome.GRANTED, DeliveryOutcome.BUSY])


def test_job_that_is_parked_again_and_again_never_repeats_an_epoch(stand: Stand) -> None:
    stand.hold_claim()

    for _ in range(3):
        stand.deliver(epoch=stand.push.epochs[-1] if stand.push.epochs else 0)

    assert stand.push.epochs == [ledger_epoch(number) for number in (1, 2, 3)]


@pytest.mark.parametrize("answer", [failed, unknown])
def test_busy_job_that_cannot_be_parked_is_503(stand: Stand, answer: Any) -> None:
    stand.hold_claim()
    stand.push.answer = answer("qstash")

    reply = stand.deliver()

    assert (reply.status_code, reply.headers["Retry-After"], reply.get_json()["status"]) == (503, "10", "busy")
    assert "Upstash-NonRetryable-Error" not in reply.headers


def test_job_that_waits_for_its_retry_is_parked_until_then(stand: Stand) -> None:
    stand.hold_claim()
    execution = stand.ledger.executions.get("d1")
    assert execution is not None
    stand.ledger.release("d1", execution.token, retry_in_ms=90_000, grace_ms=0, error="E", traceback=None)

    assert stand.deliver().get_json()["status"] == "parked"
    assert stand.push.sent[0].delay_seconds == 90.0


def test_shadow_copy_is_200_and_not_run(stand: Stand) -> None:
    answer = stand.deliver(role="shadow", stage="shadow")

    assert (answer.status_code, answer.get_json()["status"]) == (200, "shadowed")
    assert (stand.receiver.calls, stand.outcomes()) == ([], [DeliveryOutcome.SHADOWED])


def test_delivery_is_503_with_retry_after_while_the_ledger_is_away(stand: Stand) -> None:
    stand.ledger.away = {"*"}

    answer = stand.deliver()

    assert (answer.status_code, answer.get_json()["status"], stand.receiver.calls) == (503, "deferred", [])
    assert 7_500 <= float(answer.headers["Retry-After"].removesuffix("ms")) * _unit(answer) <= 22_500


def _unit(answer: Any) -> int:
    return 1 if answer.headers["Retry-After"].endswith("ms") else 1000


def test_delivery_is_run_while_the_ledger_is_away_if_that_was_chosen() -> None:
    stand = Stand(environ={"QUEUEBRIDGE_LEDGER_DOWN": "execute"})
    stand.ledger.away = {"*"}

    assert stand.deliver().get_json()["status"] == "done"
    assert stand.receiver.calls[0]["job"].fence is None


def test_attempt_is_the_one_that_the_ledger_counts(stand: Stand) -> None:
    body = json.dumps(envelope(job_id="job-1", dispatch_id="d1")).encode()

    stand.receiver.post(body, headers={"Upstash-Retried": "5"})

    assert [call["attempt"] for call in stand.receiver.calls] == [1]


def test_expired_job_is_200_and_settled(stand: Stand) -> None:
    answer = stand.deliver(expires_at_ms=stand.clock.ms - 1)

    execution = stand.ledger.executions.get("d1")
    assert (answer.status_code, answer.get_json()["status"]) == (200, "expired")
    assert execution is not None
    assert execution.state is State.EXPIRED


def test_same_message_of_a_schedule_runs_once(stand: Stand) -> None:
    path = "/queuebridge/tasks/record"

    answers = [stand.receiver.post(b'{"value": 3}', path=path).get_json()["status"] for _ in range(2)]

    assert answers == ["done", "duplicate"]


# Hops


@pytest.mark.parametrize("with_ledger", [True, False])
def test_delivery_long_before_its_time_hops_and_asks_no_ledger(with_ledger: bool) -> None:
    stand = Stand(with_ledger=with_ledger)
    start = stand.clock.ms + 3_600_000

    answer = stand.deliver(not_before_ms=start, epoch=2)

    assert (answer.status_code, answer.get_json()) == (200, {"status": "hopped", "job_id": "job-1"})
    (hop,) = stand.push.sent
    assert (hop.deliver_at_ms, hop.envelope.epoch, hop.counted_by_ledger) == (start, 3, with_ledger)
    assert (stand.receiver.calls, stand.ledger.calls) == ([], [])


def test_delivery_a_little_before_its_time_runs(stand: Stand) -> None:
    assert stand.deliver(not_before_ms=stand.clock.ms + 60_000).get_json()["status"] == "done"


def test_hop_that_cannot_be_published_is_503(stand: Stand) -> None:
    stand.push.answer = failed("qstash")

    answer = stand.deliver(not_before_ms=stand.clock.ms + 3_600_000)

    assert (answer.status_code, stand.receiver.calls) == (503, [])


# Failure callbacks


def call_failed(stand: Stand, **changes: Any) -> Any:
    job = json.dumps(envelope(job_id="job-1", dispatch_id="d1", **changes)).encode()
    body = json.dumps({"sourceMessageId": "m", "sourceBody": base64.b64encode(job).decode()}).encode()
    return stand.receiver.post(body, path="/queuebridge/failed")


def test_job_that_qstash_gave_up_is_looked_at_by_reconcile_at_once(stand: Stand) -> None:
    stand.ledger.record([new_dispatch(dispatch_id="d1", job_id="job-1")])

    assert call_failed(stand).status_code == 200

    execution = stand.ledger.executions.get("d1")
    assert execution is not None
    assert execution.next_check_at_ms == stand.clock.ms


def test_shadow_copy_that_qstash_gave_up_is_left_alone(stand: Stand) -> None:
    assert call_failed(stand, role="shadow").status_code == 200
    assert "check_in" not in stand.ledger.calls


def test_failure_callback_comes_again_while_the_ledger_is_away(stand: Stand) -> None:
    stand.ledger.away = {"*"}

    answer = call_failed(stand)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")


def test_failure_callback_without_a_ledger_is_recorded() -> None:
    assert call_failed(Stand(with_ledger=False)).get_json() == {"status": "recorded"}
