from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.housekeeping import sweep
from queuebridge.backends.qstash.devserver.messages import LogState, MessageSpec, Phase

MakeWorld = Callable[..., Any]


def test_message_without_delay_starts_at_once_and_is_delivered(world: Any) -> None:
    message = world.publish()

    assert world.start() == [message]
    world.finish(message, 204)

    assert message.phase is Phase.DELIVERED
    assert world.states(message) == [LogState.CREATED, LogState.ACTIVE, LogState.DELIVERED]


def test_accepted_message_waits_for_its_commit(world: Any) -> None:
    _, message = world.engine.accept(world.account, MessageSpec(url="http://h/"), b"", not_before=0)
    assert world.start() == []

    world.engine.release(message)

    assert world.start() == [message]


def test_discarded_message_leaves_nothing_behind(world: Any) -> None:
    accept = world.engine.accept
    _, message = accept(world.account, MessageSpec(url="http://h/"), b"", not_before=0, dedup_key="id:a")

    world.engine.discard(message)
    world.engine.release(message)

    assert world.start() == []
    assert message.id not in world.account.messages
    again, _ = accept(world.account, MessageSpec(url="http://h/"), b"", not_before=0, dedup_key="id:a")
    assert not again.deduplicated


def test_delayed_message_starts_when_its_time_comes(world: Any) -> None:
    message = world.publish(delay=60)

    assert world.advance(59.9) == []
    assert world.engine.next_due() == pytest.approx(world.clock.now + 0.1)
    assert world.advance(0.2) == [message]


def test_failed_attempt_is_retried_after_the_default_backoff(world: Any) -> None:
    message = world.publish()
    world.start()

    world.finish(message, 500)

    assert world.advance(12.1) == []
    assert world.advance(0.1) == [message]
    assert message.retried == 1
    assert world.states(message)[-3:] == [LogState.ERROR, LogState.RETRY, LogState.ACTIVE]


def test_time_scale_divides_retry_waits_but_not_delays(make_world: MakeWorld) -> None:
    world = make_world(time_scale=100)
    message = world.publish(delay=10)
    assert world.advance(9.9) == []
    assert world.advance(0.2) == [message]

    world.finish(message, 500)

    assert world.advance(0.13) == [message]


@pytest.mark.parametrize("status", [301, 404, 489, 500, 0])
def test_any_answer_but_success_is_retried(world: Any, status: int) -> None:
    message = world.publish(retry_delay="1000")
    world.start()

    world.finish(message, status)

    assert world.advance(1.0) == [message]


def test_exhausted_message_goes_to_the_dead_letters_with_its_last_answer(world: Any) -> None:
    message = world.publish(max_retries=1, retry_delay="1000")
    world.start()
    world.finish(message, 500, body=b"first")
    world.advance(1)

    world.finish(message, 503, body=b"last")

    (letter,) = world.account.dead_letters.values()
    assert (letter.message, letter.outcome.status, letter.outcome.body) == (message, 503, b"last")
    assert letter.dlq_id == f"{int(world.clock.now * 1000)}-0"
    assert world.states(message)[-2:] == [LogState.ERROR, LogState.FAILED]
    assert world.advance(100_000) == []


def test_zero_retries_means_one_attempt(world: Any) -> None:
    message = world.publish(max_retries=0)
    world.start()

    world.finish(message, 500)

    assert message.phase is Phase.FAILED


def test_489_with_its_header_fails_at_once(world: Any) -> None:
    message = world.publish()
    world.start()

    world.finish(message, 489, headers=(("upstash-nonretryable-error", "true"),))

    assert message.phase is Phase.FAILED
    assert len(world.account.dead_letters) == 1


def test_dead_letters_of_one_millisecond_have_different_ids(world: Any) -> None:
    for _ in range(2):
        message = world.publish(max_retries=0)
        world.start()
        world.finish(message, 500)

    first, second = world.account.dead_letters
    assert first.endswith("-0")
    assert second.endswith("-1")


def test_duplicate_within_ten_minutes_answers_the_first_id(world: Any) -> None:
    first = world.publish(dedup_key="id:a")
    world.start()
    world.finish(first)
    world.clock.now += 599

    accepted, message = world.engine.accept(
        world.account, MessageSpec(url="http://h/"), b"", not_before=0, dedup_key="id:a"
    )

    assert (accepted.message_id, accepted.deduplicated, message) == (first.id, True, None)


def test_after_ten_minutes_the_same_id_is_a_new_message(world: Any) -> None:
    first = world.publish(dedup_key="id:a")
    world.clock.now += 600

    assert world.publish(dedup_key="id:a").id != first.id


def test_accounts_do_not_share_deduplication(world: Any) -> None:
    world.publish(dedup_key="id:a")
    other = world.engine.accounts["testUser1"]

    accepted, _ = world.engine.accept(other, MessageSpec(url="http://h/"), b"", not_before=0, dedup_key="id:a")

    assert not accepted.deduplicated


def test_cancelled_waiting_message_is_never_sent(world: Any) -> None:
    message = world.publish(delay=60)

    assert world.engine.cancel(world.account, message)

    assert world.advance(61) == []
    assert world.states(message) == [LogState.CREATED, LogState.CANCEL_REQUESTED, LogState.CANCELED]


def test_message_is_cancelled_once(world: Any) -> None:
    message = world.publish()
    world.start()
    assert world.engine.cancel(world.account, message)

    assert not world.engine.cancel(world.account, message)


def test_cancelled_message_in_flight_is_not_retried(world: Any) -> None:
    message = world.publish()
    world.start()
    world.engine.cancel(world.account, message)

    world.finish(message, 500)

    assert message.phase is Phase.CANCELED
    assert not world.account.dead_letters


def test_cancelled_message_in_flight_may_still_be_delivered(world: Any) -> None:
    message = world.publish()
    world.start()
    world.engine.cancel(world.account, message)

    world.finish(message, 200)

    assert message.phase is Phase.DELIVERED


def test_finished_message_cannot_be_cancelled(world: Any) -> None:
    message = world.publish()
    world.start()
    world.finish(message)

    assert not world.engine.cancel(world.account, message)


def test_account_wide_parallelism_bounds_what_is_active(make_world: MakeWorld) -> None:
    world = make_world(max_parallelism=2)
    first, second, third = (world.publish() for _ in range(3))
    assert world.start() == [first, second]
    assert world.start() == []

    world.finish(first)

    assert world.start() == [third]


def test_finished_message_is_readable_for_a_minute(world: Any) -> None:
    message = world.publish()
    world.start()
    world.finish(message)

    world.clock.now += 59
    sweep(world.engine)
    assert message.id in world.account.messages
    world.clock.now += 1
    sweep(world.engine)
    assert message.id not in world.account.messages


def test_sweep_forgets_a_bounded_number_and_says_that_more_is_left(world: Any) -> None:
    for _ in range(600):
        world.engine.cancel(world.account, world.publish())
    world.clock.now += 60

    assert sweep(world.engine)
    assert len(world.account.messages) == 100
    assert not sweep(world.engine)
    assert not world.account.messages


def test_sweep_forgets_publishes_and_dead_letters_past_their_time(world: Any) -> None:
    message = world.publish(max_retries=0, dedup_key="id:a")
    world.start()
    world.finish(message, 500)

    world.clock.now += 7 * 86_400
    sweep(world.engine)

    assert not world.account.deduplication
    assert not world.account.dead_letters


def test_sweep_forgets_logs_past_their_time(world: Any) -> None:
    world.engine.cancel(world.account, world.publish())
    world.clock.now += 6 * 86_400
    later = world.publish(delay=60)

    world.clock.now += 86_400
    sweep(world.engine)

    (entry,) = world.account.history.oldest_first()
    assert entry.message is later


def test_retried_dead_letter_is_a_new_message_in_place_of_the_entry(world: Any) -> None:
    message = world.publish(max_retries=0)
    world.start()
    world.finish(message, 500)
    (letter,) = world.account.dead_letters.values()

    again = world.engine.retry_dead_letter(world.account, letter, message.spec, not_before=0)
    world.engine.release(again)

    assert again.id != message.id
    assert again.body == message.body
    assert not world.account.dead_letters
    assert world.start() == [again]


def test_cancelled_messages_do_not_stay_in_the_timetable(world: Any) -> None:
    messages = [world.publish(delay=1_000_000) for _ in range(2500)]

    for message in messages[:2000]:
        world.engine.cancel(world.account, message)

    assert len(world.engine._timetable) < 1500
    assert len(world.advance(1_000_000)) == 100
