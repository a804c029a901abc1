"""Parking, hops, and jobs that their transport gives back."""

from __future__ import annotations

from typing import Any

from queuebridge.backend import Backend, Capabilities, Publication
from queuebridge.envelope import Envelope
from queuebridge.ledger import WriteState
from queuebridge.ledger.custody import Custody
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.parking import Parking
from queuebridge.publishing.recording import take_back
from queuebridge.receipt import Write
from queuebridge.storage.memory import MemoryLedger

NOW = 1_800_000_000.0


class Recording(Backend):
    name = "qstash"
    capabilities = Capabilities(delay=True)

    def __init__(self) -> None:
        self.published: list[Publication] = []

    def check(self, publication: Publication) -> None:
        """Take everything."""

    def publish(self, publication: Publication) -> Write:
        self.published.append(publication)
        return Write(backend=self.name, message_id="m")

    def ping(self) -> str:
        return ""


def envelope(**changes: Any) -> Envelope:
    fields = {"job_id": "job", "dispatch_id": "d", "task": "t", "queue": "q", "enqueued_at_ms": int(NOW * 1000)}
    return Envelope(**{**fields, **changes})


def test_parked_delivery_waits_by_the_transports_clock() -> None:
    backend = Recording()

    # This clock is half a minute behind: by it, the delivery would come back at once.
    Parking(backend, clock=lambda: NOW - 30).park(envelope(), delay_seconds=20, number=1)

    assert backend.published[0].delay_seconds == 20
    assert backend.published[0].deliver_at_ms is None


def test_options_of_the_backend_hold_for_every_publication() -> None:
    backend = Recording()
    parking = Parking(backend, clock=lambda: NOW)
    labelled = envelope(version=2, options={"qstash": {"label": "mail"}, "celery": {"shadow": "x"}})

    parking.park(labelled, delay_seconds=1, number=1)
    parking.hop(labelled)

    assert [publication.options for publication in backend.published] == [{"label": "mail"}] * 2


def test_hops_never_take_an_epoch_of_the_ledger() -> None:
    backend = Recording()
    parking = Parking(backend, clock=lambda: NOW)
    later = int(NOW * 1000) + 3_600_000

    parking.park(envelope(not_before_ms=later), delay_seconds=1, number=1)
    parking.hop(backend.published[0].envelope)
    parking.park(envelope(not_before_ms=later), delay_seconds=1, number=2)

    epochs = [publication.envelope.epoch for publication in backend.published]
    assert len(set(epochs)) == 3


def give_back(ledger: MemoryLedger) -> None:
    take_back(envelope(), "qstash", ledger=ledger, custody=Custody(()), settings=LedgerSettings())


def test_given_up_job_that_the_ledger_has_never_seen_is_looked_after() -> None:
    ledger = MemoryLedger(lambda: NOW)

    give_back(ledger)

    [due] = ledger.take_due(10, lease_ms=1000)
    assert Envelope.decode(due.body).dispatch_id == "d"
    # Known to be written once, so that it is published anew, and not resent.
    assert [copy.state for copy in due.execution.copies] == [WriteState.WRITTEN]


def test_given_up_job_is_given_out_once() -> None:
    ledger = MemoryLedger(lambda: NOW)

    give_back(ledger)
    give_back(ledger)

    assert len(ledger.take_due(10, lease_ms=1000)) == 1
