"""Celery jobs in real Celery workers."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import celery
import kombu
import pytest
from contracts import Effects, contract_registry, new_tag, wait_for_worker, worker_command, worker_environ
from processes import ChildProcess, Spawner, wait_until
from services import Service

from queuebridge import BackendUnavailable, Bridge, EnqueueOptions, InvalidOption, TaskRegistry, task
from queuebridge.backends.celery import CeleryBackend
from queuebridge.backends.celery.message import HEADER
from queuebridge.envelope import VERSION

WORKERS: dict[str, list[str]] = {
    "queuebridge worker": worker_command("-c", "1"),
    "celery -A": [
        sys.executable,
        *("-m", "celery", "-A", "queuebridge.backends.celery.app"),
        *("worker", "-c", "1", "--loglevel", "INFO"),
    ],
}
BROKERS = ("redis", "rabbitmq")


@pytest.fixture
def effects(tmp_path: Path) -> Effects:
    """Where the workers note what they do."""
    return Effects(tmp_path / "effects")


@pytest.fixture(params=BROKERS)
def broker_url(request: pytest.FixtureRequest) -> str:
    """Each broker in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def environ_of(url: str, **more: str) -> dict[str, str]:
    return {"QUEUEBRIDGE_BACKEND": "celery", "CELERY_BROKER_URL": url, **more}


def bridge_to(environ: Mapping[str, str], registry: TaskRegistry | None = None) -> Bridge:
    return Bridge(registry=registry or contract_registry(), environ=environ)


def start(
    spawn: Spawner,
    environ: Mapping[str, str],
    effects: Effects,
    *more: str,
    command: list[str] | None = None,
) -> ChildProcess:
    """Start a worker and wait until it is ready."""
    chosen = command or worker_command("-c", "1", *(["--", *more] if more else []))
    worker = spawn(chosen, env=worker_environ(environ, effects), name="worker")
    wait_for_worker(worker)
    return worker


@pytest.mark.parametrize("command", WORKERS.values(), ids=WORKERS)
def test_either_command_runs_jobs_and_ends_when_asked_to(
    command: list[str], spawn: Spawner, effects: Effects, redis_url: str
) -> None:
    worker = start(spawn, environ_of(redis_url), effects, command=command)
    tag = new_tag()

    with bridge_to(environ_of(redis_url)) as bridge:
        bridge.enqueue("contract.record", tag)
        effects.wait(tag)

    assert worker.terminate() == 0


def test_option_that_celery_does_not_know_ends_the_worker_with_an_error(spawn: Spawner, effects: Effects) -> None:
    environ = environ_of("memory://")
    worker = spawn(worker_command("--", "--no-such-option"), env=worker_environ(environ, effects))

    assert worker.wait() == 2
    assert "--no-such-option" in worker.stderr


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_other_pools_run_jobs_and_stop_them_at_their_timeout(
    pool: str, spawn: Spawner, effects: Effects, redis_url: str
) -> None:
    start(spawn, environ_of(redis_url), effects, "--pool", pool)
    done, slow = new_tag(), new_tag()

    with bridge_to(environ_of(redis_url)) as bridge:
        bridge.enqueue("contract.record", done)
        bridge.enqueue("contract.slow", slow)
        effects.wait(done)
        effects.wait(slow, "stopped")


@pytest.mark.parametrize("victim", ["child", "whole worker"])
def test_job_of_a_killed_worker_runs_on_another_one(
    victim: str, broker_url: str, spawn: Spawner, effects: Effects, tmp_path: Path
) -> None:
    # A Redis broker gives messages of the dead to others after this time; RabbitMQ does so at once.
    environ = environ_of(broker_url, QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS="10")
    if broker_url.startswith("redis") and victim == "whole worker":
        environ["QUEUEBRIDGE_CELERY_APP"] = "short_visibility:app"
        (tmp_path / "short_visibility.py").write_text(SHORT_VISIBILITY.format(url=broker_url))
        environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1] / "support")])
        del environ["CELERY_BROKER_URL"]
    worker = start(spawn, environ, effects, *UNACKED)
    tag, gate = new_tag(), tmp_path / "gate"
    with bridge_to(environ_of(broker_url)) as bridge:
        receipt = bridge.enqueue("contract.hold", tag, str(gate))
        (first,) = effects.wait(tag)

        if victim == "child":
            assert first["pid"] != worker.pid
            os.kill(first["pid"], signal.SIGKILL)
        else:
            worker.kill()
            killed = time.time()
            # A Redis broker looks for messages of the dead when a worker starts, and then seldom.
            wait_until(lambda: time.time() > killed + 1.1, what="the visibility timeout to pass")
            start(spawn, environ, effects, *UNACKED)

        gate.touch()
        (finished,) = effects.wait(tag, "finished", timeout=30)

    assert finished["pid"] != first["pid"]
    assert finished["job_id"] == receipt.job_id
    assert finished["dispatch_id"] == receipt.dispatch_id
    assert [run["attempt"] for run in effects.of(tag, "run")] == [1, 1]


# The setting of queuebridge is at least 10 s, for good reason.
SHORT_VISIBILITY = """
import celery

app = celery.Celery("short", broker="{url}", set_as_current=False)
app.conf.task_default_queue = "default"
app.conf.worker_prefetch_multiplier = 1
app.conf.broker_connection_retry_on_startup = True
app.conf.broker_transport_options = {{"visibility_timeout": 1, "unacked_restore_limit": 10}}
"""
UNACKED = ("--without-gossip", "--without-mingle")


# On the wire


class Wire:
    """A broker whose messages nobody takes but the test."""

    def __init__(self, url: str) -> None:
        self.url = url

    def messages(self, queue: str = "default") -> list[kombu.Message]:
        """Take all messages out of a queue."""
        taken = []
        with kombu.Connection(self.url) as connection:
            simple = connection.SimpleQueue(queue, no_ack=True)
            try:
                while True:
                    taken.append(simple.get_nowait())
            except simple.Empty:
                return taken
            finally:
                simple.close()

    def message(self, queue: str = "default") -> kombu.Message:
        """Take the only message out of a queue."""
        (only,) = self.messages(queue)
        return only


@pytest.fixture(scope="module")
def quiet_rabbitmq_url(rabbitmq_server: Service) -> Iterator[str]:
    """A virtual host without workers, for all tests of messages: making one takes longer than they do."""
    with rabbitmq_server.fresh() as url:
        yield url


@pytest.fixture(params=BROKERS)
def wire(request: pytest.FixtureRequest) -> Wire:
    """Each broker in turn, empty and without a worker."""
    name = "quiet_rabbitmq_url" if request.param == "rabbitmq" else "redis_url"
    made = Wire(request.getfixturevalue(name))
    for queue in ("default", "other", "routed", "explicit"):
        made.messages(queue)
    return made


@pytest.fixture
def bridge(wire: Wire) -> Iterator[Bridge]:
    """A bridge to it."""
    with bridge_to(environ_of(wire.url)) as made:
        yield made


def app_of(bridge: Bridge) -> celery.Celery:
    assert isinstance(bridge.backend, CeleryBackend)
    return bridge.backend.app


VARYING = {"id", "root_id", "origin", "correlation_id", "delivery_tag", "reply_to"}


def shape(message: kombu.Message) -> dict[str, Any]:
    """Return everything about a message that does not differ from one message to the next."""
    return {
        "headers": {name: value for name, value in message.headers.items() if name not in VARYING | {HEADER}},
        "properties": {
            name: value
            for name, value in message.properties.items()
            if name not in VARYING | {"delivery_info", "cluster_id", "application_headers"}
        },
        "delivery_info": {name: value for name, value in (message.delivery_info or {}).items() if name not in VARYING},
        "body": message.body,
        "content": (message.content_type, message.content_encoding),
    }


def test_message_is_celerys_own_with_one_header_more(bridge: Bridge, wire: Wire) -> None:
    bridge.enqueue("contract.record", "x", value=[1, None])
    ours = wire.message()
    # The library alone, for the same call.
    app_of(bridge).send_task("contract.record", args=["x"], kwargs={"value": [1, None]})
    theirs = wire.message()

    assert set(ours.headers) - set(theirs.headers) == {HEADER}
    assert set(theirs.headers) <= set(ours.headers)
    assert shape(ours) == shape(theirs)


def test_options_become_celerys_own(bridge: Bridge, wire: Wire) -> None:
    options = EnqueueOptions(
        priority=3,
        countdown=60,
        expires=3600,
        queue="other",
        task_id="job-1",
        options={"celery": {"compression": "gzip", "shadow": "shown as", "ignore_result": True}},
    )

    bridge.apply_async("contract.slow", ["x"], options=options)

    message: Any = wire.message("other")
    assert message.headers["id"] == "job-1"
    assert int(message.properties["priority"]) == 3
    assert message.headers["compression"] == "application/x-gzip"
    assert message.headers["shadow"] == "shown as"
    assert message.headers["ignore_result"] is True
    assert message.headers["eta"] is not None
    assert message.headers["expires"] is not None
    # The worker kills what the timeout of the task (0.6 s) could not stop.
    assert message.headers["timelimit"] == [10.6, None]
    assert message.payload[0] == ["x"]


def test_routes_of_the_app_are_followed_for_the_default_queue(wire: Wire) -> None:
    app = celery.Celery("own", broker=wire.url, set_as_current=False)
    app.conf.task_routes = {"contract.record": {"queue": "routed"}}
    with Bridge(CeleryBackend(app), registry=contract_registry(), environ={}) as bridge:
        bridge.enqueue("contract.record", "x")
        bridge.apply_async("contract.record", ["y"], options=EnqueueOptions(queue="explicit"))
        bridge.apply_async(
            "contract.record", ["z"], options=EnqueueOptions(options={"celery": {"routing_key": "routed"}})
        )

    assert [message.payload[0] for message in wire.messages("routed")] == [["x"], ["z"]]
    assert wire.message("explicit").payload[0] == ["y"]


def test_closing_leaves_an_app_that_was_handed_in_alone(wire: Wire) -> None:
    app = celery.Celery("own", broker=wire.url, set_as_current=False)
    app.conf.task_default_queue = "default"
    app.send_task("own")
    pool = app.pool
    backend = CeleryBackend(app)
    bridge = Bridge(backend, registry=contract_registry(), environ={})
    bridge.enqueue("contract.record", "x")
    bridge.close()
    app.send_task("own")

    assert app.pool is pool
    assert [message.headers["task"] for message in wire.messages()] == ["own", "contract.record", "own"]
    app.close()


@pytest.mark.parametrize("name", ["task", "id", "retries", "eta", "timelimit", HEADER])
def test_header_that_would_replace_one_of_celerys_is_refused(name: str, bridge: Bridge, wire: Wire) -> None:
    with pytest.raises(InvalidOption, match=name):
        bridge.apply_async("contract.record", ["x"], options=EnqueueOptions(headers={name: "x"}))

    assert wire.messages() == []


def test_every_header_that_celery_sends_is_known_as_its_own(bridge: Bridge, wire: Wire) -> None:
    from queuebridge.backends.celery.message import NATIVE_HEADERS

    app_of(bridge).send_task("contract.record", args=["x"], countdown=1, expires=100, compression="gzip", shadow="s")

    assert set(wire.message().headers) <= NATIVE_HEADERS


# In the worker


def test_plain_celery_message_runs_with_the_defaults_of_the_task(
    broker_url: str, spawn: Spawner, effects: Effects
) -> None:
    start(spawn, environ_of(broker_url), effects)
    plain, failing = new_tag(), new_tag()
    with celery.Celery("plain", broker=broker_url, set_as_current=False) as app:
        app.conf.task_default_queue = "default"
        sent = app.send_task("contract.record", args=[plain], headers={"X-Tenant": "a"})
        app.send_task("contract.fail", args=[failing], kwargs={"times": 99}, task_id="a:b/c")
        (effect,) = effects.wait(plain)
        runs = effects.wait(failing, count=3)

    assert effect["job_id"] == effect["message_id"] == sent.id
    assert effect["headers"] == {"X-Tenant": "a"}
    assert (effect["attempt"], effect["max_attempts"]) == (1, 1)
    assert [run["attempt"] for run in runs] == [1, 2, 3]
    assert {run["job_id"] for run in runs} == {"a:b/c"}


def test_retry_is_a_new_dispatch_of_the_same_job(broker_url: str, spawn: Spawner, effects: Effects) -> None:
    start(spawn, environ_of(broker_url), effects)
    tag = new_tag()
    options = EnqueueOptions(metadata={"user_id": 7}, headers={"X-Tenant": "a"}, task_id="job-1", priority=2)

    with bridge_to(environ_of(broker_url)) as bridge:
        receipt = bridge.apply_async("contract.fail", [tag], {"times": 99}, options)
        runs = effects.wait(tag, count=3)

    dispatches = [run["dispatch_id"] for run in runs]
    assert dispatches[0] == receipt.dispatch_id
    assert len(set(dispatches)) == 3
    for run in runs:
        assert (run["job_id"], run["metadata"], run["headers"]) == ("job-1", {"user_id": 7}, {"X-Tenant": "a"})


def test_message_of_a_newer_version_is_kept_for_a_newer_worker(
    redis_url: str, spawn: Spawner, effects: Effects
) -> None:
    worker = start(spawn, environ_of(redis_url), effects)
    header = json.dumps({"version": VERSION + 1, "something": "new"})
    with celery.Celery("newer", broker=redis_url, set_as_current=False) as app:
        app.conf.task_default_queue = "default"
        app.send_task("contract.record", args=["x"], headers={HEADER: header})
        worker.wait_for_line("Retry in 60")

    assert effects.of("x") == []


def test_invalid_header_fails_the_job_without_showing_the_arguments(
    redis_url: str, spawn: Spawner, effects: Effects
) -> None:
    worker = start(spawn, environ_of(redis_url), effects)
    with celery.Celery("broken", broker=redis_url, set_as_current=False) as app:
        app.conf.task_default_queue = "default"
        for header in ("{", "[]", '{"version": 1}', '{"queue": 3}'):
            app.send_task("contract.record", args=["x"], headers={HEADER: header}, argsrepr="-")
        wait_until(lambda: worker.output.count("MalformedEnvelope") >= 4, 20, what="four refusals")

    assert effects.of("x") == []


def test_alias_of_a_renamed_task_is_known_to_workers() -> None:
    from queuebridge.backends.celery import register_tasks

    registry = TaskRegistry()
    task(name="new", aliases=["old"], registry=registry)(lambda: None)
    app = celery.Celery("own", broker="memory://", set_as_current=False)
    bridge = Bridge(CeleryBackend(app), registry=registry, environ={})
    register_tasks(app, registry, bridge.runner)

    assert {"new", "old"} <= set(app.tasks)
    app.close()


def test_results_are_stored_if_a_result_backend_is_configured(redis_url: str, spawn: Spawner, effects: Effects) -> None:
    environ = environ_of(redis_url, CELERY_RESULT_BACKEND=redis_url)
    start(spawn, environ, effects)
    with bridge_to(environ) as bridge:
        receipt = bridge.apply_async("contract.record", [new_tag()], {"value": {"a": [1]}})
        app = app_of(bridge)

        assert app.AsyncResult(receipt.job_id).get(timeout=20) == {"a": [1]}
        app.backend.client.close()  # type: ignore[attr-defined]  # of its Redis backend


def test_publish_is_confirmed_by_rabbitmq(quiet_rabbitmq_url: str) -> None:
    # Without confirmation, a message to a queue that takes no more would be reported as accepted.
    exchange = kombu.Exchange("", type="direct")
    full = kombu.Queue(
        "full", exchange, routing_key="full", queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    app = celery.Celery("own", broker=quiet_rabbitmq_url, set_as_current=False)
    app.conf.task_queues = [full]
    app.conf.task_default_queue = "full"
    with Bridge(CeleryBackend(app), registry=contract_registry(), environ={}) as bridge:
        bridge.enqueue("contract.record", "first")
        with pytest.raises(BackendUnavailable, match="did not take"):
            bridge.apply_async("contract.record", ["second"], options=EnqueueOptions(retry=False))
        with pytest.raises(BackendUnavailable, match="did not take"):
            bridge.enqueue("contract.record", "third")
    app.close()
