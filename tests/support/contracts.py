"""The backends under contract, each with a real executor."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from contract_tasks import EFFECTS_VARIABLE, declare
from processes import ChildProcess, Spawner, wait_until
from werkzeug.serving import make_server

from bridge_app import create_app
from queuebridge import Bridge, TaskRegistry
from queuebridge.backends.qstash.devserver import EngineSettings, ServerSettings, running_server
from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER

BACKENDS = ("inline", "qstash", "celery-redis", "celery-rabbitmq", "rq")
# Nobody consumes it.
UNATTENDED = "unattended"


class Effects:
    """What the tasks have noted in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def of(self, tag: str, event: str | None = None) -> list[dict[str, Any]]:
        """Return the effects with this tag, in the order in which they happened."""
        # A reader may see a line that is half written: only those that have ended count.
        written = self.path.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in written.splitlines()]
        return [line for line in lines if line["tag"] == tag and event in (None, line["event"])]

    def wait(self, tag: str, event: str = "run", count: int = 1, timeout: float = 20) -> list[dict[str, Any]]:
        """Wait until it has happened so often, and return all of it.

        Raises:
            AssertionError: It has not.
        """
        wait_until(lambda: len(self.of(tag, event)) >= count, timeout, what=f"{count} x {event} of {tag}")
        return self.of(tag, event)


@dataclass
class Target:
    """One backend in use.

    Attributes:
        name: One of BACKENDS.
        bridge: Enqueues to it.
        effects: What its executor did.
        message_exists: Whether the transport knows a message that was sent to the queue UNATTENDED, or delayed.
        delays: Whether it can delay a job.
        deduplicates: Whether it knows idempotency keys.
    """

    name: str
    bridge: Bridge
    effects: Effects
    message_exists: Callable[[str], bool] | None = None
    delays: bool = True
    deduplicates: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)

    def settled(self) -> None:
        """Wait until the executor has done everything that was enqueued so far.

        It works on one job after the other, so that a job that went through went after all others. What is
        delayed is not waited for.
        """
        tag = new_tag()
        self.bridge.enqueue("contract.record", tag)
        self.effects.wait(tag)


def new_tag() -> str:
    """Return a name for what one test does."""
    return uuid.uuid4().hex


def contract_registry() -> TaskRegistry:
    """Return a registry with the contract tasks."""
    registry = TaskRegistry()
    declare(registry)
    return registry


def worker_command(*more: str) -> list[str]:
    """Return the command that starts the worker of the backend in the environment."""
    return [sys.executable, "-m", "queuebridge", "worker", *more]


def worker_environ(environ: Mapping[str, str], effects: Effects) -> dict[str, str]:
    """Return the environment of such a worker."""
    return {**environ, "QUEUEBRIDGE_TASKS": "contract_worker", EFFECTS_VARIABLE: str(effects.path)}


@contextmanager
def inline_target(effects: Effects) -> Iterator[Target]:
    """Jobs run in this process, at once."""
    bridge = Bridge("inline", registry=contract_registry(), environ={})
    with bridge:
        yield Target("inline", bridge, effects, delays=False)


@contextmanager
def qstash_target(effects: Effects) -> Iterator[Target]:
    """The embedded server pushes to the real receiver, over HTTP."""
    with ExitStack() as stack:
        api = stack.enter_context(running_server(ServerSettings(port=0, engine=EngineSettings(max_parallelism=1))))
        receiver_socket = make_server("127.0.0.1", 0, lambda *_: [], threaded=True)
        environ = {
            "QUEUEBRIDGE_BACKEND": "qstash",
            "QSTASH_URL": api,
            "QSTASH_TOKEN": DEFAULT_DEV_USER.token,
            "QSTASH_CURRENT_SIGNING_KEY": DEFAULT_DEV_USER.current_signing_key,
            "QSTASH_NEXT_SIGNING_KEY": DEFAULT_DEV_USER.next_signing_key,
            "QUEUEBRIDGE_PUBLIC_URL": f"http://127.0.0.1:{receiver_socket.server_port}",
        }
        bridge = stack.enter_context(Bridge(registry=contract_registry(), environ=environ))
        receiver_socket.app = create_app(Bridge(registry=contract_registry(), environ=environ), environ=environ)
        thread = Thread(target=receiver_socket.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        stack.callback(receiver_socket.server_close)
        stack.callback(thread.join)
        stack.callback(receiver_socket.shutdown)

        def exists(message_id: str) -> bool:
            from qstash import QStash

            client = QStash(DEFAULT_DEV_USER.token, base_url=api, retry=False)
            try:
                return client.message.get(message_id).message_id == message_id
            finally:
                client.http._client.close()

        yield Target("qstash", bridge, effects, exists, deduplicates=True, environ=environ)


@contextmanager
def celery_target(name: str, url: str, effects: Effects, spawner: Spawner) -> Iterator[Target]:
    """A real worker with one child process."""
    import kombu

    environ = {"QUEUEBRIDGE_BACKEND": "celery", "CELERY_BROKER_URL": url}
    worker = spawner(worker_command("-c", "1"), env=worker_environ(environ, effects), name=f"worker-{name}")
    wait_for_worker(worker)

    def exists(message_id: str) -> bool:
        with kombu.Connection(url) as connection:
            queue = connection.SimpleQueue(UNATTENDED, no_ack=True)
            found = []
            try:
                while True:
                    found.append(queue.get_nowait().headers["id"])
            except queue.Empty:
                return message_id in found
            finally:
                queue.close()

    with Bridge(registry=contract_registry(), environ=environ) as bridge:
        yield Target(name, bridge, effects, exists, environ=environ)


@contextmanager
def rq_target(url: str, effects: Effects, spawner: Spawner) -> Iterator[Target]:
    """A real worker that forks for each job, with a scheduler."""
    import redis
    from rq.job import Job
    from rq.serializers import JSONSerializer

    environ = {"QUEUEBRIDGE_BACKEND": "rq", "REDIS_URL": url}
    worker = spawner(worker_command(), env=worker_environ(environ, effects), name="worker-rq")
    wait_for_worker(worker)

    def exists(message_id: str) -> bool:
        with redis.Redis.from_url(url) as connection:
            return Job.fetch(message_id, connection=connection, serializer=JSONSerializer).id == message_id

    with Bridge(registry=contract_registry(), environ=environ) as bridge:
        yield Target("rq", bridge, effects, exists, deduplicates=True, environ=environ)


def wait_for_worker(worker: ChildProcess) -> None:
    """Wait until it says that it is ready."""
    worker.wait_for_line(r"ready\.|Listening on", timeout=40)


@contextmanager
def effects_here(effects: Effects) -> Iterator[None]:
    """Let tasks in this process note their effects there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, EFFECTS_VARIABLE, str(effects.path))
        yield
