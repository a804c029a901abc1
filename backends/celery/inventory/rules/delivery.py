"""Rules about delivery: acknowledgement, retries, schedules, classes of one's own."""

from __future__ import annotations

from collections.abc import Iterator

from queuebridge.backends.celery.inventory.facts import UNLIMITED
from queuebridge.backends.celery.inventory.records import Severity
from queuebridge.backends.celery.inventory.rules.table import Hit, RuleTable, TaskSubject

TABLE: RuleTable[TaskSubject] = RuleTable()


@TABLE.add(
    "acks-early",
    Severity.NOTE,
    why="A worker acknowledges the job before it runs, and loses it if it dies. Push acknowledges after the run: a job "
    "whose process died runs again.",
    do="Make the task repeatable. A ledger keeps all but such runs from happening twice.",
)
def acks_early(subject: TaskSubject) -> Iterator[Hit]:
    """Find tasks that are acknowledged before they run."""
    if not subject.task.options.get("acks_late"):
        yield Hit("acks_late is not set", subject.places)


@TABLE.add(
    "acks-on-failure",
    Severity.DECISION,
    why="A job that fails is given back to the broker. On push a failed job is settled as failed.",
    do="Use autoretry_for or self.retry for what shall run again.",
)
def acks_on_failure(subject: TaskSubject) -> Iterator[Hit]:
    """Find tasks that are not acknowledged when they fail."""
    for name in ("acks_on_failure_or_timeout", "acks_on_failure", "acks_on_timeout"):
        if subject.task.options.get(name) is False and subject.task.options.get("acks_late"):
            yield Hit(f"{name}=False", subject.places)


@TABLE.add(
    "worker-lost",
    Severity.NOTE,
    why="Push behaves like that too: a job whose process died is delivered again. A ledger gives up after the last "
    "attempt.",
    do="Nothing.",
)
def worker_lost(subject: TaskSubject) -> Iterator[Hit]:
    """Find tasks that are delivered again when their worker dies."""
    for name in ("reject_on_worker_lost", "retry_on_worker_lost"):
        if subject.task.options.get(name):
            yield Hit(f"{name}=True", subject.places)


@TABLE.add(
    "retries",
    Severity.NOTE,
    why="A retry is a new message under the same id, written by the stage of that moment.",
    do="Nothing. Each retry is a message of your QStash plan.",
)
def retries(subject: TaskSubject) -> Iterator[Hit]:
    """Find retries."""
    for use in subject.used("retry"):
        yield Hit("self.retry", (use.place,))
    if subject.task.options.get("autoretry_for"):
        yield Hit(f"autoretry_for={', '.join(map(str, subject.task.options['autoretry_for']))}", subject.places)


@TABLE.add(
    "endless-retries",
    Severity.DECISION,
    why="A job that never succeeds is published for ever, which a plan that counts messages makes dear.",
    do="Set max_retries to a number.",
)
def endless_retries(subject: TaskSubject) -> Iterator[Hit]:
    """Find retries without an end."""
    if subject.task.options.get("max_retries") == UNLIMITED:
        yield Hit("max_retries=None", subject.places)


@TABLE.add(
    "custom-base",
    Severity.NOTE,
    why="Its hooks run on the receiver, as in a worker, because Celery's own tracer runs the task.",
    do="Look whether its hooks count on a worker process, such as a connection made in worker_process_init.",
)
def custom_base(subject: TaskSubject) -> Iterator[Hit]:
    """Find base classes of one's own."""
    for base in subject.task.bases:
        yield Hit(base, subject.places)


@TABLE.add(
    "custom-request",
    Severity.DECISION,
    why="The receiver uses it, but has no pool of processes and no broker: its hooks for time-outs and lost workers "
    "are not called, and acknowledging or rejecting has no effect.",
    do="Move what these hooks do into signals or a base class.",
)
def custom_request(subject: TaskSubject) -> Iterator[Hit]:
    """Find request classes of one's own."""
    if subject.task.request is not None:
        yield Hit(f"Request={subject.task.request}", subject.places)


@TABLE.add(
    "custom-strategy",
    Severity.DECISION,
    why="The strategy decides in the worker's consumer what becomes of a message. Push has no consumer.",
    do="Move what it does into the task, or leave the task in stage legacy.",
)
def custom_strategy(subject: TaskSubject) -> Iterator[Hit]:
    """Find execution strategies of one's own."""
    if subject.task.strategy is not None:
        yield Hit(f"Strategy={subject.task.strategy}", subject.places)


@TABLE.add(
    "schedule",
    Severity.NOTE,
    why="Beat publishes it by the stage of the task, as any producer. A beat inside a worker (-B) ends with it.",
    do="Run beat as a process of its own with the bridged app, or replace it by a schedule of QStash.",
)
def schedule(subject: TaskSubject) -> Iterator[Hit]:
    """Find schedules."""
    for entry in subject.schedules:
        yield Hit(f"{entry.name}: {entry.when}")
