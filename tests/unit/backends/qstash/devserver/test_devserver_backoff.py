from __future__ import annotations

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
        ((("Retry-After", "86401"),), None),
        ((("Retry-After", "86400"),), 86_400.0),
        ((), None),
    ],
)
def test_first_readable_header_of_the_family_decides(headers: tuple[tuple[str, str], ...], wait: float | None) -> None:
    assert requested_wait(headers, NOW) == wait


def test_response_header_beats_the_expression() -> None:
    assert next_wait(retried=0, expression="5000", response_headers=(("Retry-After", "1"),), now=NOW) == 1.0


def test_expression_beats_the_default_backoff() -> None:
    assert next_wait(retried=2, expression="1000 * retried", response_headers=(), now=NOW) == 2.0


def test_infinite_expression_falls_back_to_the_default_backoff() -> None:
    wait = next_wait(retried=0, expression="1/0", response_headers=(), now=NOW)

    assert wait == pytest.approx(12.18, rel=1e-3)
