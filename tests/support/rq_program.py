"""An existing RQ program in one process, with a queue of ours: what it pushes is kept until a test delivers it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import rq
from recording_qstash import RecordingQStash
from rq.job import Job
from rq_tasks import NOTES

from queuebridge import Bridge, get_bridge
from queuebridge.backends.rq import Queue, SimpleWorker, receiving
from queuebridge.backends.rq.claimed_list import claimed_key
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.ledger import Execution
from queuebridge.outcome import Outcome

NAME = "mail"


def work_off(worker: rq.Worker) -> None:
    """Let a worker do in this process what is on its queues, and leave this process as it was."""
    # A worker takes these signals over, and keeps them.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        worker.work(burst=True, logging_level="CRITICAL")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Program:
    """The program.

    Attributes:
        connection: Its Redis.
        queue: Its queue.
        qstash: What stands for QStash.
    """

    def __init__(self, url: str, qstash: RecordingQStash, notes: Path) -> None:
        self.url = url
        self.qstash = qstash
        self.connection = redis.Redis.from_url(url)
        self.queue = Queue(NAME, connection=self.connection)
        self._notes = notes

    @property
    def bridge(self) -> Bridge:
        """The bridge of the process."""
        return get_bridge()

    def pushed(self) -> list[Envelope]:
        """Return what was pushed since the last look."""
        requests, self.qstash.requests[:] = list(self.qstash.requests), []
        bodies: list[bytes] = []
        for request in requests:
            if request.path == "/v2/batch":
                bodies += [message["body"].encode() for message in json.loads(request.body)]
            elif request.method == "POST":
                bodies.append(request.body)
        return [Envelope.decode(body) for body in bodies]

    def deliver(self, envelope: Envelope) -> Outcome:
        """Deliver a push message, as the receiver does."""
        return self.bridge.runner.run(envelope, Delivery(backend="qstash", message_id="m", attempt=1))

    def deliver_all(self) -> list[Outcome]:
        """Deliver what was pushed, and what that pushes."""
        outcomes: list[Outcome] = []
        while envelopes := self.pushed():
            outcomes += [self.deliver(envelope) for envelope in envelopes]
        return outcomes

    def work(self) -> None:
        """Let an RQ worker of ours do what is on the queue."""
        work_off(SimpleWorker([self.queue], connection=self.connection))

    def on_queue(self) -> list[str]:
        """Return the ids of the jobs on RQ's own queue."""
        return [job_id.decode() for job_id in self.connection.lrange(self.queue.key, 0, -1)]

    def for_claims_only(self) -> list[str]:
        """Return the ids of the jobs that only workers with claims take."""
        return [job_id.decode() for job_id in self.connection.lrange(claimed_key(self.queue), 0, -1)]

    def fetch(self, job: Job) -> Job:
        """Return a job as another process sees it."""
        return Job.fetch(job.id, connection=self.connection)

    def notes(self, what: str) -> list[dict[str, Any]]:
        """Return what the functions have noted."""
        lines = self._notes.read_text(encoding="utf-8").splitlines() if self._notes.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["what"] == what]

    def known(self, dispatch_id: str) -> Execution:
        """Return what the ledger knows of a dispatch."""
        assert self.bridge.ledger is not None
        execution = self.bridge.ledger.executions.get(dispatch_id)
        assert execution is not None
        return execution


@contextmanager
def running_program(
    url: str, notes: Path, monkeypatch: pytest.MonkeyPatch, *, stage: str | None, ledger: bool = True, **more: str
) -> Iterator[Program]:
    """Run the program.

    Args:
        url: Its Redis, which is the ledger too.
        notes: Where its functions note what they do.
        monkeypatch: Sets the environment.
        stage: The stage; None without a migration.
        ledger: Whether there is a ledger.
        more: Further variables.
    """
    with RecordingQStash() as qstash:
        environ = {
            "REDIS_URL": url,
            "QSTASH_TOKEN": "t",
            "QSTASH_URL": qstash.url,
            "QUEUEBRIDGE_PUBLIC_URL": "https://jobs.example.com",
            "QUEUEBRIDGE_RQ_MODULES": "rq_tasks",
            NOTES: str(notes),
            **({"QUEUEBRIDGE_LEGACY": "rq", "QUEUEBRIDGE_STAGE": stage} if stage is not None else {}),
            **({"QUEUEBRIDGE_LEDGER": url} if ledger else {}),
            **more,
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        program = Program(url, qstash, notes)
        try:
            yield program
        finally:
            program.connection.close()
            receiving._connection(url).close()
            receiving._connection.cache_clear()
            if any(os.environ.get(name) for name in ("QUEUEBRIDGE_LEGACY", "QUEUEBRIDGE_BACKEND")):
                program.bridge.close()
