"""What time travel and faults are for: how jobs fare in a week of bad luck, in a moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from queuebridge import task
from queuebridge.registry import default_registry
from queuebridge.storage.sql.upgrade import upgrade
from queuebridge.testing import BridgeReceiver, QStashReceiver, QStashServer

effects: Counter[str] = Counter()


@pytest.fixture
def queuebridge_receiver_settings(tmp_path: Path) -> dict[str, str]:
    """A ledger, so that copies of a delivery take effect once."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    upgrade(url)
    return {"QUEUEBRIDGE_LEDGER": url}


@pytest.fixture(autouse=True)
def _tasks_of_this_file(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for table in ("_tasks", "_aliases"):
        monkeypatch.setattr(default_registry, table, {})
    effects.clear()
    yield
    effects.clear()


def test_each_job_takes_effect_once_whatever_happens_to_its_deliveries(
    qstash_server: QStashServer, queuebridge_receiver: BridgeReceiver
) -> None:
    @task(name="bad_luck.work", retries=10, backoff=[3600])
    def work(name: str) -> None:
        effects[name] += 1

    qstash_server.stop()
    qstash_server.drop_next(3)
    qstash_server.lose_answer_of_next(3)
    qstash_server.fail_next(2, status=503, headers={"Retry-After": "86400"})
    qstash_server.duplicate_next(4)

    for name in ("a", "b", "c", "d", "e"):
        work.delay(name)
    begin = qstash_server.now
    qstash_server.advance("7d")

    assert effects == Counter(dict.fromkeys(("a", "b", "c", "d", "e"), 1))
    deliveries = qstash_server.deliveries
    faults = Counter(delivery.fault for delivery in deliveries)
    assert (faults["drop"], faults["lose_answer"], faults["error"], faults["duplicate"]) == (3, 3, 2, 8)
    assert max(delivery.time for delivery in deliveries) - begin >= 86_400
    assert queuebridge_receiver.bridge.ledger is not None


def test_stopped_time_holds_back_what_is_delayed(qstash_server: QStashServer, qstash_receiver: QStashReceiver) -> None:
    qstash_server.stop()
    url = qstash_receiver.url
    for body, delay in (("second", "2m"), ("first", "1m"), ("now", "0s")):
        qstash_server.client.message.publish(url=f"{url}/{body}", delay=delay, callback=f"{url}/done-{body}")
    qstash_server.wait_until_idle()
    assert [request.path for request in qstash_receiver.requests] == ["/now", "/done-now"]

    qstash_server.advance("1h")

    assert [request.path for request in qstash_receiver.requests[2:]] == [
        *("/first", "/done-first"),
        *("/second", "/done-second"),
    ]
