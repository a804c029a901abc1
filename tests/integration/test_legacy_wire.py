"""P3: in stage `legacy` the broker receives what the library alone would have sent, plus one header.

What is random in a message is fixed, on both sides alike: the task id, the queue for replies and the delivery tag.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import celery
import kombu
import pytest
import redis
from contracts import contract_registry, wait_for_worker
from kombu.utils.json import dumps
from processes import Spawner, wait_until
from rq.job import Job
from services import Service

import queuebridge.bridge
from queuebridge import Bridge, EnqueueOptions
from queuebridge.backends.celery.message import HEADER
from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER

QUEUE = "default"
# In whole milliseconds, as an envelope has them.
NOW = datetime.now(timezone.utc).replace(microsecond=678_000)
SOON, LATER = NOW + timedelta(minutes=10), NOW + timedelta(hours=10)

# Options of an enqueue, and those of the library's own `send_task` that mean the same.
OPTIONS: dict[str, tuple[EnqueueOptions, dict[str, Any]]] = {
    "none": (EnqueueOptions(task_id="job-1"), {}),
    "times": (
        EnqueueOptions(task_id="job-1", eta=SOON, expires=LATER),
        {"eta": SOON, "expires": LATER},
    ),
    "priority, queue and headers": (
        EnqueueOptions(task_id="job-1", priority=3, queue=QUEUE, headers={"x-tenant": "7"}),
        {"priority": 3, "headers": {"x-tenant": "7"}},
    ),
    "Celery's own": (
        EnqueueOptions(
            task_id="job-1", options={"celery": {"compression": "gzip", "shadow": "shown as", "ignore_result": True}}
        ),
        {"compression": "gzip", "shadow": "shown as", "ignore_result": True},
    ),
}

# The app of a program that knows nothing of queuebridge.
PLAIN_APP = """
import json, os, sys
import celery

app = celery.Celery("plain", broker=os.environ["BROKER"], set_as_current=False)
app.conf.task_default_queue = "default"
app.conf.broker_connection_retry_on_startup = True

@app.task(name="contract.record", shared=False)
def record(tag, value=None):
    loaded = [name for name in sys.modules if name.partition(".")[0] in ("queuebridge", "bridge_app")]
    with open(os.environ["RESULT"], "w") as file:
        file.write(json.dumps([tag, value, loaded]) + "\\n")
"""


@pytest.fixture(scope="module")
def quiet_rabbitmq_url(rabbitmq_server: Service) -> Iterator[str]:
    """A virtual host for all messages that nobody consumes: making one takes longer than a test of them."""
    with rabbitmq_server.fresh() as url:
        yield url


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    """Each broker in turn."""
    consumed = "spawn" in request.fixturenames
    name = "quiet_rabbitmq_url" if request.param == "rabbitmq" and not consumed else f"{request.param}_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
def environ(broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A migration of an existing Celery app, in stage `legacy`."""
    (tmp_path / "plain_app.py").write_text(PLAIN_APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BROKER", broker)
    monkeypatch.delitem(sys.modules, "plain_app", raising=False)
    return migration(QUEUEBRIDGE_LEGACY="celery", QUEUEBRIDGE_CELERY_APP="plain_app:app")


@pytest.fixture
def _nothing_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fix what Celery and kombu draw anew for each app and message."""
    monkeypatch.setattr(celery.Celery, "thread_oid", "reply-to")
    monkeypatch.setattr("kombu.transport.virtual.base.Channel._next_delivery_tag", lambda _: "tag", raising=False)


def migration(**changes: str) -> dict[str, str]:
    return {
        "QUEUEBRIDGE_STAGE": "legacy",
        "QSTASH_TOKEN": DEFAULT_DEV_USER.token,
        "QUEUEBRIDGE_PUBLIC_URL": "http://127.0.0.1:1",
        **changes,
    }


@contextmanager
def library(url: str) -> Iterator[celery.Celery]:
    """Give an app as the program would make it, which the bridge never saw."""
    app = celery.Celery("plain", broker=url, set_as_current=False)
    app.conf.task_default_queue = QUEUE
    app.conf.broker_connection_retry_on_startup = True
    try:
        yield app
    finally:
        app.close()


def take(url: str) -> dict[str, Any]:
    """Take the only message off the broker, in the form of its wire: dictionaries keep the order of their fields."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            assert client.llen(QUEUE) + client.llen(f"{QUEUE}\x06\x163") == 1
            raw: Any = client.rpop(QUEUE) or client.rpop(f"{QUEUE}\x06\x163")
        message: dict[str, Any] = json.loads(raw)
        # So that what is compared is what was on the wire.
        assert dumps(message) == raw.decode()
        return message
    with kombu.Connection(url) as connection:
        taken = connection.default_channel.basic_get(QUEUE, no_ack=True)
        assert connection.default_channel.basic_get(QUEUE, no_ack=True) is None
    properties = dict(taken.properties)
    headers = properties.pop("application_headers")
    delivery = {name: taken.delivery_info[name] for name in ("exchange", "routing_key")}
    return {"body": taken.body, "headers": headers, "properties": properties, "delivery": delivery}


@pytest.mark.usefixtures("_nothing_random")
@pytest.mark.parametrize("name", OPTIONS)
def test_p3_message_in_stage_legacy_is_the_librarys_own_but_for_one_header(
    name: str, environ: dict[str, str], broker: str
) -> None:
    options, own_options = OPTIONS[name]
    args, kwargs = ["Grüße", None], {}
    if name == "none":
        args, kwargs = ["Grüße"], {"value": [1, None, {"a": 1.5}]}
    with Bridge(registry=contract_registry(), environ=environ) as bridge:
        receipt = bridge.apply_async("contract.record", args, kwargs, options)
    ours = take(broker)
    with library(broker) as app:
        app.send_task("contract.record", args=args, kwargs=kwargs, task_id="job-1", **own_options)
    theirs = take(broker)

    assert (receipt.stage, [write.backend for write in receipt.writes]) == ("legacy", ["celery"])
    header = json.loads(ours["headers"].pop(HEADER))
    assert header["stage"] == "legacy"
    # How many milliseconds are left until it expires.
    left = [int(message["properties"].pop("expiration", 0)) for message in (ours, theirs)]
    assert left[0] == pytest.approx(left[1], abs=20_000)
    # As text, so that order and types count too.
    assert dumps(ours) == dumps(theirs) if broker.startswith("redis") else repr(ours) == repr(theirs)


def test_p3_worker_without_queuebridge_runs_a_job_of_stage_legacy(
    environ: dict[str, str], broker: str, spawn: Spawner, tmp_path: Path
) -> None:
    result = tmp_path / "result"
    command = [sys.executable, "-m", "celery", "-A", "plain_app", "worker", "--pool", "solo", "--loglevel", "INFO"]
    own = {"BROKER": broker, "RESULT": str(result), "PYTHONPATH": str(tmp_path)}
    worker = spawn(command, env=own, name="plain-worker")
    wait_for_worker(worker)

    with Bridge(registry=contract_registry(), environ=environ) as bridge:
        bridge.enqueue("contract.record", "tag", {"a": [1]})

    wait_until(lambda: result.exists() and result.read_text().endswith("\n"), what="the job to run")
    assert json.loads(result.read_text()) == ["tag", {"a": [1]}, []]


def test_p3_rq_job_in_stage_legacy_is_that_of_the_rq_backend_alone(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queuebridge.bridge, "new_dispatch_id", lambda: "dispatch-1")
    options = EnqueueOptions(task_id="job-1", metadata={"user_id": 7}, options={"rq": {"description": "shown as"}})
    alone = {"QUEUEBRIDGE_BACKEND": "rq", "REDIS_URL": redis_url}
    jobs = []
    for environ in (migration(QUEUEBRIDGE_LEGACY="rq", REDIS_URL=redis_url), alone):
        with Bridge(registry=contract_registry(), environ=environ, clock=lambda: 1e9) as bridge:
            bridge.apply_async("contract.record", ["Grüße"], {"value": [1, None]}, options)
        jobs.append(take_rq_job(redis_url))
    staged, single = jobs

    # The one thing that tells them apart, in our own envelope.
    assert staged["data"]["envelope"].pop("stage") == "legacy"
    assert dumps(staged) == dumps(single)


def take_rq_job(url: str) -> dict[str, Any]:
    """Take the only RQ job off its queue: what is stored of it, without the times at which RQ did so."""
    with redis.Redis.from_url(url) as client:
        assert client.lrange(f"rq:queue:{QUEUE}", 0, -1) == [b"job-1"]
        key = Job.key_for("job-1")
        stored: Any = client.hgetall(key)
        ttl = client.ttl(key)
        client.flushdb()
    times = (b"created_at", b"enqueued_at")
    fields = {name.decode(): value for name, value in stored.items() if name not in times}
    function, instance, args, kwargs = json.loads(zlib.decompress(fields.pop("data")))
    (body,) = args
    shown = {name: value.decode() for name, value in fields.items()}
    data = {"function": function, "instance": instance, "envelope": json.loads(body), "kwargs": kwargs}
    return {**shown, "data": data, "ttl": ttl}
