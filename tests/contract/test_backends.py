"""What every backend promises, with real executors. One class of behaviours, run over all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from contract_tasks import Person, Point
from contracts import (
    BACKENDS,
    UNATTENDED,
    Effects,
    Target,
    celery_target,
    effects_here,
    inline_target,
    new_tag,
    qstash_target,
    rq_target,
)
from processes import Spawner, wait_until
from services import Service

from queuebridge import Call, EnqueueOptions, InvalidArguments, InvalidOption, OptionNotSupported, UnknownTask


@pytest.fixture(scope="module")
def spawner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawner]:
    """Starts the workers that all tests of this module share."""
    made = Spawner(tmp_path_factory.mktemp("workers"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def effects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Effects]:
    """Where all executors note effects, those in this process too."""
    made = Effects(tmp_path_factory.mktemp("effects") / "effects")
    with effects_here(made):
        yield made


@pytest.fixture(scope="module")
def inline(effects: Effects) -> Iterator[Target]:
    """The inline backend."""
    with inline_target(effects) as made:
        yield made


@pytest.fixture(scope="module")
def qstash(effects: Effects) -> Iterator[Target]:
    """QStash, as the embedded server."""
    with qstash_target(effects) as made:
        yield made


@pytest.fixture(scope="module")
def celery_redis(effects: Effects, spawner: Spawner, redis_server: Service) -> Iterator[Target]:
    """Celery over Redis."""
    with redis_server.fresh() as url:
        with celery_target("celery-redis", url, effects, spawner) as made:
            yield made
        spawner.close()


@pytest.fixture(scope="module")
def celery_rabbitmq(effects: Effects, spawner: Spawner, rabbitmq_server: Service) -> Iterator[Target]:
    """Celery over RabbitMQ."""
    with rabbitmq_server.fresh() as url:
        with celery_target("celery-rabbitmq", url, effects, spawner) as made:
            yield made
        spawner.close()


@pytest.fixture(scope="module")
def rq(effects: Effects, spawner: Spawner, redis_server: Service) -> Iterator[Target]:
    """RQ."""
    with redis_server.fresh() as url:
        with rq_target(url, effects, spawner) as made:
            yield made
        spawner.close()


@pytest.fixture(params=BACKENDS)
def target(request: pytest.FixtureRequest) -> Target:
    """Each backend in turn."""
    made: Target = request.getfixturevalue(request.param.replace("-", "_"))
    return made


def options(**more: object) -> EnqueueOptions:
    return EnqueueOptions(**more)  # type: ignore[arg-type]


class TestBackend:
    """The contract."""

    def test_accepted_job_runs_exactly_once_with_typed_arguments(self, target: Target) -> None:
        tag = new_tag()

        target.bridge.enqueue(
            "contract.typed",
            tag,
            Person(name="Ä", born=date(2000, 2, 29)),
            Point(x=1),
            Decimal("1.10"),
            date(2024, 2, 29),
            UUID(int=7),
            rest=(1, 2),
        )

        (effect,) = target.effects.wait(tag)
        assert effect["kinds"] == ["Person", "Point", "Decimal", "date", "UUID", "tuple"]
        assert effect["same"] is True
        target.settled()
        assert len(target.effects.of(tag)) == 1

    def test_receipt_is_true(self, target: Target) -> None:
        tag = new_tag()

        receipt = target.bridge.enqueue("contract.record", tag)

        (effect,) = target.effects.wait(tag)
        assert receipt.backend == effect["backend"] == target.name.partition("-")[0]
        assert receipt.job_id == receipt.id == effect["job_id"]
        assert receipt.dispatch_id == effect["dispatch_id"]
        assert receipt.message_id == effect["message_id"]
        assert receipt.task == "contract.record"
        assert receipt.queue == effect["queue"] == "default"
        assert receipt.deduplicated is False

    def test_message_id_is_one_that_the_transport_knows(self, target: Target) -> None:
        if target.message_exists is None:
            pytest.skip("nothing stays in this transport")
        chosen = options(countdown=600) if target.name == "qstash" else options(queue=UNATTENDED)

        receipt = target.bridge.apply_async("contract.record", [new_tag()], options=chosen)

        assert target.message_exists(receipt.message_id)

    def test_chosen_job_id_is_kept(self, target: Target) -> None:
        tag = new_tag()

        receipt = target.bridge.apply_async("contract.record", [tag], options=options(task_id=f"own-{tag}"))

        assert receipt.job_id == f"own-{tag}"
        assert [effect["job_id"] for effect in target.effects.wait(tag)] == [f"own-{tag}"]

    def test_coroutine_function_runs(self, target: Target) -> None:
        tag = new_tag()

        target.bridge.enqueue("contract.record_async", tag)

        assert len(target.effects.wait(tag)) == 1

    def test_metadata_and_headers_arrive(self, target: Target) -> None:
        tag = new_tag()
        metadata = {"user_id": 7, "organization_id": "ö", "nested": {"list": [1, None, True]}}
        headers = {"X-Tenant": "a b", "lower": "größe"}

        target.bridge.apply_async("contract.record", [tag], options=options(metadata=metadata, headers=headers))

        (effect,) = target.effects.wait(tag)
        assert effect["metadata"] == metadata
        assert effect["headers"] == headers

    def test_job_without_headers_sees_none(self, target: Target) -> None:
        tag = new_tag()

        target.bridge.enqueue("contract.record", tag)

        (effect,) = target.effects.wait(tag)
        assert (effect["metadata"], effect["headers"]) == ({}, {})

    def test_enqueue_many_runs_each_once_and_answers_in_order(self, target: Target) -> None:
        tag = new_tag()

        receipts = target.bridge.enqueue_many([Call("contract.record", [tag, number]) for number in range(20)])

        effects = target.effects.wait(tag, count=20, timeout=40)
        assert [receipt.job_id for receipt in receipts] == [
            effect["job_id"] for effect in sorted(effects, key=lambda effect: effect["value"])
        ]
        assert len({receipt.dispatch_id for receipt in receipts}) == 20
        target.settled()
        assert len(target.effects.of(tag)) == 20

    def test_enqueue_many_takes_different_tasks_and_options(self, target: Target) -> None:
        tags = [new_tag() for _ in range(3)]
        calls = [
            Call("contract.record", [tags[0]], {"value": 1}),
            Call("contract.record_async", [tags[1]]),
            Call("contract.record", [tags[2]], options=options(metadata={"a": 1}, task_id=f"own-{tags[2]}")),
        ]
        if target.delays:
            calls.append(Call("contract.record", [new_tag()], options=options(countdown=600)))

        receipts = target.bridge.enqueue_many(calls)

        effects = [target.effects.wait(tag)[0] for tag in tags]
        assert [effect["job_id"] for effect in effects] == [receipt.job_id for receipt in receipts[:3]]
        assert effects[2]["metadata"] == {"a": 1}

    def test_enqueue_many_with_one_bad_call_sends_nothing(self, target: Target) -> None:
        tag = new_tag()
        good = Call("contract.record", [tag])
        own = target.bridge.backend.name

        for bad, error in (
            (Call("contract.record", []), InvalidArguments),
            (Call("contract.recrod", [tag]), UnknownTask),
            (Call("contract.record", [tag], options=options(options={own: {"x": 1}})), InvalidOption),
        ):
            with pytest.raises(error):
                target.bridge.enqueue_many([good, bad])
        target.settled()

        assert target.effects.of(tag) == []

    @pytest.mark.parametrize("how", ["countdown", "eta"])
    def test_delayed_job_does_not_start_before_its_time(self, how: str, target: Target) -> None:
        tag = new_tag()
        start = time.time() + 1.2
        chosen = (
            options(countdown=1.2)
            if how == "countdown"
            else options(eta=datetime.fromtimestamp(start, timezone(timedelta(hours=5))))
        )
        if not target.delays:
            with pytest.raises(OptionNotSupported):
                target.bridge.apply_async("contract.record", [tag], options=chosen)
            return

        target.bridge.apply_async("contract.record", [tag], options=chosen)

        (effect,) = target.effects.wait(tag)
        assert start <= effect["time"] + 0.001
        # Whole seconds at the coarsest, and a scheduler that looks once a second.
        assert effect["time"] <= start + 5

    def test_job_that_expired_before_its_start_does_not_run(self, target: Target, tmp_path: Path) -> None:
        if not target.delays:
            pytest.skip("jobs start at once")
        tag, blocker, gate = new_tag(), new_tag(), tmp_path / "gate"
        target.bridge.enqueue("contract.hold", blocker, str(gate))
        target.effects.wait(blocker)

        target.bridge.apply_async("contract.record", [tag], options=options(expires=0.3))
        expired = time.time() + 0.3
        wait_until(lambda: time.time() > expired, what="the job to expire")
        gate.touch()
        target.effects.wait(blocker, "finished")
        target.settled()

        assert target.effects.of(tag) == []

    def test_job_that_does_not_expire_in_time_runs(self, target: Target) -> None:
        tag = new_tag()

        target.bridge.apply_async("contract.record", [tag], options=options(expires=3600))

        assert len(target.effects.wait(tag)) == 1

    def test_timeout_stops_the_body(self, target: Target) -> None:
        tag = new_tag()

        target.bridge.enqueue("contract.slow", tag)

        (stopped,) = target.effects.wait(tag, "stopped")
        (started,) = target.effects.of(tag, "run")
        assert 0.5 <= stopped["time"] - started["time"] <= 3
        target.settled()
        assert target.effects.of(tag, "finished") == []

    def test_failed_job_is_retried_with_backoff_until_it_succeeds(self, target: Target) -> None:
        tag = new_tag()

        receipt = target.bridge.enqueue("contract.fail", tag, times=1)

        (succeeded,) = target.effects.wait(tag, "succeeded")
        runs = target.effects.of(tag, "run")
        assert [run["attempt"] for run in runs] == [1, 2]
        assert {run["job_id"] for run in runs} == {receipt.job_id}
        assert {run["max_attempts"] for run in runs} == {3}
        if target.delays:
            assert 0.99 <= succeeded["time"] - runs[0]["time"] <= 6
        target.settled()
        assert len(target.effects.of(tag, "run")) == 2

    def test_job_is_not_retried_beyond_its_limit(self, target: Target) -> None:
        tag = new_tag()

        target.bridge.enqueue("contract.fail", tag, times=99)

        runs = target.effects.wait(tag, count=3)
        assert [run["attempt"] for run in runs] == [1, 2, 3]
        # Were there a fourth attempt, it would be due before this later job of the same kind has used up its own.
        witness = new_tag()
        target.bridge.enqueue("contract.fail", witness, times=99)
        target.effects.wait(witness, count=3)
        assert len(target.effects.of(tag)) == 3

    def test_permanent_failure_is_not_retried(self, target: Target) -> None:
        tag, witness = new_tag(), new_tag()

        target.bridge.enqueue("contract.fail", tag, times=99, kind="permanent")
        target.effects.wait(tag)
        target.bridge.enqueue("contract.fail", witness, times=1)

        target.effects.wait(witness, "succeeded")
        assert len(target.effects.of(tag)) == 1

    def test_task_decides_when_it_is_retried(self, target: Target) -> None:
        tag = new_tag()

        target.bridge.enqueue("contract.fail", tag, times=1, kind="later")

        (succeeded,) = target.effects.wait(tag, "succeeded")
        if target.delays:
            assert succeeded["time"] - target.effects.of(tag, "run")[0]["time"] >= 0.99

    def test_same_idempotency_key_is_one_job(self, target: Target) -> None:
        tag = new_tag()
        keyed = options(idempotency_key=f"key-{tag}")
        if not target.deduplicates:
            with pytest.raises(OptionNotSupported, match="idempotency_key"):
                target.bridge.apply_async("contract.record", [tag], options=keyed)
            return

        first = target.bridge.apply_async("contract.record", [tag], options=keyed)
        second = target.bridge.apply_async("contract.record", [tag], options=keyed)
        (third,) = target.bridge.enqueue_many([Call("contract.record", [tag], options=keyed)])
        target.effects.wait(tag)
        target.settled()
        fourth = target.bridge.apply_async("contract.record", [tag], options=keyed)
        target.settled()

        assert [receipt.deduplicated for receipt in (first, second, third, fourth)] == [False, True, True, True]
        assert len({receipt.job_id for receipt in (first, second, third, fourth)}) == 1
        assert len(target.effects.of(tag)) == 1

    def test_other_idempotency_key_is_another_job(self, target: Target) -> None:
        if not target.deduplicates:
            pytest.skip("no idempotency keys")
        tag = new_tag()

        for key in (f"a-{tag}", f"b-{tag}"):
            target.bridge.apply_async("contract.record", [tag], options=options(idempotency_key=key))

        assert len(target.effects.wait(tag, count=2)) == 2

    def test_long_payload_arrives_whole(self, target: Target) -> None:
        tag = new_tag()
        value = "ä" * 200_000

        target.bridge.enqueue("contract.record", tag, value)

        (effect,) = target.effects.wait(tag)
        assert effect["value"] == value

    def test_closed_backend_can_be_used_again(self, target: Target) -> None:
        tag = new_tag()

        target.bridge.close()
        target.bridge.enqueue("contract.record", tag)
        target.bridge.close()
        target.bridge.close()
        target.bridge.enqueue_many([Call("contract.record", [tag])])

        assert len(target.effects.wait(tag, count=2)) == 2

    def test_ping_reaches_the_transport_and_shows_no_secret(self, target: Target) -> None:
        said = target.bridge.backend.ping()

        assert "\n" not in said
        assert said
        for secret in (target.environ.get("QSTASH_TOKEN"), "guest:guest"):
            assert secret is None or secret not in said

    def test_capabilities_are_what_is_honoured(self, target: Target) -> None:
        capabilities = target.bridge.backend.capabilities

        assert capabilities.delay is target.delays
        assert capabilities.deduplication is target.deduplicates
        json.dumps(dict(capabilities.reasons))
