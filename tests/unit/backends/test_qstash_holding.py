"""When QStash is asked to deliver, and how often to try, where a ledger and long delays come into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from recording_qstash import RecordingQStash
from staging import Clock

from queuebridge import OptionNotSupported, RetryPolicy
from queuebridge.backend import Publication
from queuebridge.backends.qstash.backend import QStashBackend
from queuebridge.envelope import Envelope
from queuebridge.errors import PayloadTooLarge
from queuebridge.parking import HOP_TOLERANCE_SECONDS, Parking

DAY = 86_400
LIMIT = 7 * DAY


@pytest.fixture
def server() -> Iterator[RecordingQStash]:
    """QStash, as far as publishing goes."""
    with RecordingQStash() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    """The producer's clock."""
    return Clock()


@pytest.fixture
def backend(server: RecordingQStash, clock: Clock) -> Iterator[QStashBackend]:
    """The backend; QStash tries seven times to reach the receiver where a ledger counts."""
    made = QStashBackend(
        "token",
        url=server.url,
        destination="https://jobs.example.com/queuebridge/deliver",
        reach_retries=7,
        max_delay_seconds=LIMIT,
        clock=clock,
    )
    yield made
    made.close()


def publication(clock: Clock, *, delay: float | None = None, **more: Any) -> Publication:
    """Return a job; `delay` is in seconds from now."""
    envelope = Envelope(
        job_id="job-1",
        dispatch_id="d1",
        task="work",
        queue="default",
        enqueued_at_ms=clock.ms,
        not_before_ms=clock.ms + int(delay * 1000) if delay is not None else None,
        retry=RetryPolicy(retries=more.pop("retries", 2)),
    )
    return Publication(envelope=envelope, **more)


def headers(server: RecordingQStash) -> dict[str, str]:
    return server.requests[-1].configuration


@pytest.mark.parametrize(
    ("retries", "counted", "expected"),
    [(2, False, "2"), (0, False, "0"), (2, True, "7"), (0, True, "7"), (9, True, "9")],
)
def test_retries_of_the_transport_are_for_reachability_where_the_ledger_counts(
    backend: QStashBackend, server: RecordingQStash, clock: Clock, retries: int, counted: bool, expected: str
) -> None:
    backend.publish(publication(clock, retries=retries, counted_by_ledger=counted))

    assert headers(server)["Upstash-Retries"] == expected


def test_held_copy_is_delivered_when_it_is_due_and_not_a_second_earlier(
    backend: QStashBackend, server: RecordingQStash, clock: Clock
) -> None:
    backend.publish(publication(clock, delay=10, held_until_ms=clock.ms + 60_000))

    # It is half past a second, and QStash knows whole ones.
    assert int(headers(server)["Upstash-Not-Before"]) == clock.seconds + 60.5


def test_batch_holds_each_copy_as_long_as_it_says(
    backend: QStashBackend, server: RecordingQStash, clock: Clock
) -> None:
    backend.publish_many([publication(clock, held_until_ms=clock.ms + ms) for ms in (500, 60_500)])

    assert server.requests[-1].body.decode().count("Upstash-Not-Before") == 2


def test_delivery_that_is_put_off_keeps_its_options_but_leaves_its_fifo_queue(
    backend: QStashBackend, server: RecordingQStash, clock: Clock
) -> None:
    # A FIFO queue knows no delays, and would hold up all that is behind the busy job.
    backend.publish(publication(clock, delay_seconds=30, options={"queue": "orders", "label": "mail"}))

    assert server.requests[-1].path.startswith("/v2/publish/")
    assert (headers(server)["Upstash-Delay"], headers(server)["Upstash-Label"]) == ("30s", "mail")


@pytest.mark.parametrize(
    ("delay", "first_hop"),
    [
        (60.5, 60.5),
        (LIMIT, LIMIT),
        # Cut in the middle: what is left must be longer than clocks differ by.
        (LIMIT + 1, (LIMIT + 1) / 2),
        (LIMIT + 2 * HOP_TOLERANCE_SECONDS, LIMIT),
        (30 * DAY + 0.5, LIMIT),
    ],
)
def test_delay_beyond_the_limit_is_made_in_hops(
    backend: QStashBackend, server: RecordingQStash, clock: Clock, delay: float, first_hop: float
) -> None:
    backend.publish(publication(clock, delay=delay))

    asked = int(headers(server)["Upstash-Not-Before"]) - clock.seconds
    assert first_hop <= asked < first_hop + 1


@pytest.mark.parametrize("delay", [LIMIT + 1, LIMIT + 119, LIMIT + 121, 3 * LIMIT, 30 * DAY])
def test_hops_lead_to_the_time_of_the_job_and_never_past_it(
    backend: QStashBackend, server: RecordingQStash, clock: Clock, delay: float
) -> None:
    job = publication(clock, delay=delay)
    start = clock.seconds + delay
    parking = Parking(backend, clock=clock)
    backend.publish(job)
    epochs = []

    for _ in range(10):
        epochs.append(server.requests[-1].headers["Upstash-Deduplication-Id"])
        clock.seconds = float(headers(server)["Upstash-Not-Before"])
        envelope = Envelope.decode(server.requests[-1].body)
        if not parking.is_early(envelope):
            break
        parking.hop(envelope)

    assert start <= clock.seconds < start + 1
    assert len(set(epochs)) == len(epochs) == len(server.requests)


def test_held_copy_cannot_go_on_a_fifo_queue(backend: QStashBackend, clock: Clock) -> None:
    with pytest.raises(OptionNotSupported, match="FIFO"):
        backend.check(publication(clock, held_until_ms=clock.ms + 1, options={"queue": "q"}))


def test_body_above_the_limit_is_refused_with_its_size(clock: Clock) -> None:
    small = QStashBackend("token", destination="https://x.example", max_bytes=10)

    with pytest.raises(PayloadTooLarge) as caught:
        small.check(publication(clock))
    assert caught.value.size == len(publication(clock).body)


def test_time_of_a_delivery_is_the_hold_back_else_that_of_the_job(clock: Clock) -> None:
    assert publication(clock).deliver_at_ms is None
    assert publication(clock, delay=1).deliver_at_ms == clock.ms + 1000
    assert publication(clock, delay=1, held_until_ms=7).deliver_at_ms == 7
