"""The real SDK, the embedded server and the receiver together, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts import Effects, Target, effects_here, new_tag, qstash_target
from processes import wait_until
from qstash import QStash

from queuebridge import Call, EnqueueOptions


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server that pushes to a receiver."""
    effects = Effects(tmp_path_factory.mktemp("effects") / "effects")
    with effects_here(effects), qstash_target(effects) as made:
        yield made


@pytest.fixture
def client(target: Target) -> Iterator[QStash]:
    """The SDK as a user has it."""
    made = QStash(target.environ["QSTASH_TOKEN"], base_url=target.environ["QSTASH_URL"], retry=False)
    yield made
    made.http._client.close()


def receiver(target: Target, path: str) -> str:
    return f"{target.environ['QUEUEBRIDGE_PUBLIC_URL']}/queuebridge{path}"


def test_plain_message_of_the_sdk_runs_a_task(target: Target, client: QStash) -> None:
    tag = new_tag()

    answer = client.message.publish_json(
        url=receiver(target, "/tasks/contract.record"), body={"tag": tag, "value": {"ä": 1}}
    )

    (effect,) = target.effects.wait(tag)
    assert effect["value"] == {"ä": 1}
    assert effect["job_id"].replace("_", "") == answer.message_id.replace("_", "")  # type: ignore[union-attr]


def test_message_that_can_never_work_is_in_the_dead_letter_queue_at_once(target: Target, client: QStash) -> None:
    answer = client.message.publish(url=receiver(target, "/deliver"), body="not an envelope", retries=3)
    message_id = answer.message_id  # type: ignore[union-attr]

    def dead() -> Any:
        return next((entry for entry in client.dlq.list().messages if entry.message_id == message_id), None)

    entry = wait_until(dead, what="the message in the dead letter queue")
    assert entry.response_status == 489
    assert "envelope" in json.loads(entry.response_body or "")["error"]


def test_job_that_is_used_up_is_reported_to_the_receiver(
    target: Target, client: QStash, caplog: pytest.LogCaptureFixture
) -> None:
    tag = new_tag()

    receipt = target.bridge.enqueue("contract.fail", tag, times=99, kind="permanent")

    def reported() -> bool:
        return any(
            getattr(record, "event", "") == "transport_failed" and receipt.job_id in record.getMessage()
            for record in caplog.records
        )

    wait_until(reported, what="the failure callback")
    assert len(target.effects.of(tag)) == 1


def test_fifo_queue_delivers_one_after_the_other(target: Target, tmp_path: Path) -> None:
    tag, gate = new_tag(), tmp_path / "gate"
    queue = EnqueueOptions(options={"qstash": {"queue": f"q-{tag}"}})

    target.bridge.apply_async("contract.hold", [tag, str(gate)], options=queue)
    for number in range(3):
        target.bridge.apply_async("contract.record", [tag, number], options=queue)
    target.effects.wait(tag)
    gate.touch()

    target.effects.wait(tag, count=4)
    assert [(effect["event"], effect.get("value")) for effect in target.effects.of(tag)] == [
        ("run", None),
        ("finished", None),
        ("run", 0),
        ("run", 1),
        ("run", 2),
    ]


def test_forwarded_header_and_label_arrive_at_the_server(target: Target, client: QStash) -> None:
    options = EnqueueOptions(countdown=600, options={"qstash": {"headers": {"X-Tenant": "a"}, "label": "mail"}})

    (receipt,) = target.bridge.enqueue_many([Call("contract.record", ["x"], options=options)])

    message = client.message.get(receipt.message_id)
    assert message.headers is not None
    assert message.headers["X-Tenant"] == ["a"]
    assert message.label == "mail"
    assert message.max_retries == 0
    client.message.cancel(receipt.message_id)
