from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.backoff import default_backoff, next_wait, requested_wait

NOW = 1_800_000_000.0


def test_default_backoff_is_the_documented_table() -> None:
    waits = [default_backoff(number) for number in range(1, 7)]

    assert waits == pytest.approx([12.18, 148.4, 1808, 22026, 86400, 86400], rel=1e-3)


def test_default_backoff_of_a_thousandth_retry_is_a_day() -> None:
    assert default_backoff(1000) == 86_400


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ((("Retry-After", "7"),), 7.0),
        ((("retry-after", "0"),), 0.0),
        ((("X-RateLimit-Reset-Tokens", "6m5s"), ("X-RateLimit-Reset-Requests", "250ms")), 0.25),
        ((("X-RateLimit-Reset", "9"), ("Retry-After", "3")), 3.0),
        ((("Retry-After", "soon"), ("X-RateLimit-Reset", "9")), 9.0),
        ((("RETRY-AFTER", " 7 "),), 7.0),
        ((("Retry-After", "1.5"),), 1.5),
        ((("Retry-After", "3"), ("Retry-After", "9")), 3.0),
        ((("X-RateLimit-Reset", "1h2m3s4ms"),), 3723.004),
        ((("X-RateLimit-Reset-Requests", "0s"),), 0.0),
        ((("Retry-After", "Fri, 15 Jan 2027 08:00:30 GMT"),), 30.0),
        ((("Retry-After", "Fri, 15 Jan 2027 07:00:00 GMT"),), 0.0),
        ((("Retry-After", "Sat, 16 Jan 2027 08:00:01 GMT"),), None),
        ((("Retry-After", "24h"),), 86_400.0),
        ((("Retry-After", "24h1ns"), ("X-RateLimit-Reset-Tokens", "2s")), 2.0),
        ((("X-RateLimit-Reset", "1800000030"),), None),
        ((("Retry-After", "-5"),), None),
        ((("Retry-After", "-5s"),), None),
        ((("Retry-After", "1d"),), None),
        ((("Retry-After", "9" * 500 + "s"),), None),
        ((("Retry-After", ""),), None),
        ((("RateLimit-Reset", "5"),), None),
        ((("Retry-After", "86401"),), None),
        ((("Retry-After", "86400"),), 86_400.0),
        ((), None),
    ],
)
def test_first_readable_header_of_the_family_decides(headers: tuple[tuple[str, str], ...], wait: float | None) -> None:
    assert requested_wait(headers, NOW) == (wait if wait is None else pytest.approx(wait))


def test_response_header_beats_the_expression() -> None:
    assert next_wait(retried=0, expression="5000", response_headers=(("Retry-After", "1"),), now=NOW) == 1.0


def test_expression_beats_the_default_backoff() -> None:
    assert next_wait(retried=2, expression="1000 * retried", response_headers=(), now=NOW) == 2.0


def test_infinite_expression_falls_back_to_the_default_backoff() -> None:
    wait = next_wait(retried=0, expression="1/0", response_headers=(), now=NOW)

    assert wait == pytest.approx(12.18, rel=1e-3)


def test_wait_beyond_a_day_leaves_the_decision_to_the_expression() -> None:
    assert next_wait(retried=0, expression="5000", response_headers=(("Retry-After", "25h"),), now=NOW) == 5.0


def retry_waits(world: Any, **spec: Any) -> list[float]:
    """The waits before each retry of a message that always fails, in seconds."""
    message = world.publish(**spec)
    waits = []
    while True:
        (started,) = world.start()
        world.finish(started, 500)
        if message.finished:
            return waits
        waits.append(message.due - world.clock.now)
        world.clock.now = message.due


def test_message_without_an_expression_waits_as_the_table_says(world: Any) -> None:
    assert retry_waits(world) == pytest.approx([12.18, 148.4, 1808], rel=1e-3)


def test_expression_counts_retries_from_zero(world: Any) -> None:
    waits = retry_waits(world, retry_delay="1000 * (1 + retried)", max_retries=4)

    assert waits == pytest.approx([1, 2, 3, 4], abs=1e-6)


def test_time_scale_divides_every_wait_before_a_retry(make_world: Callable[..., Any]) -> None:
    assert retry_waits(make_world(time_scale=10), retry_delay="5000", max_retries=2) == pytest.approx([0.5, 0.5])


def test_date_in_an_answer_is_by_the_machine_s_time_where_the_server_s_was_moved(world: Any) -> None:
    world.engine.clock.move_to(world.clock.now + 7 * 86_400)
    message = world.publish()
    world.start()

    world.finish(message, 503, headers=(("Retry-After", "Fri, 15 Jan 2027 08:00:30 GMT"),))

    assert message.due == pytest.approx(world.engine.clock() + 30)
