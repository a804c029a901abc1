"""Rules about where messages go: priorities, queues, exchanges."""

from __future__ import annotations

from collections.abc import Iterator

from queuebridge.backends.celery.inventory.facts import QueueFacts
from queuebridge.backends.celery.inventory.records import Place, Severity
from queuebridge.backends.celery.inventory.rules.table import Hit, RuleTable, TaskSubject

TABLE: RuleTable[TaskSubject] = RuleTable()


def _queues(subject: TaskSubject) -> Iterator[tuple[str, QueueFacts | None, tuple[Place, ...]]]:
    default = str(subject.app.settings.get("task_default_queue", "celery"))
    for name, _, where in subject.option("queue"):
        if name != default:
            yield str(name), subject.app.queues.get(str(name)), where


@TABLE.add(
    "priority",
    Severity.EDIT,
    why="QStash has no priorities: a stage that writes to push refuses the option.",
    do="Drop it. Where it keeps bulk work from blocking the rest, limit the bulk: "
    "options={'qstash': {'flow_control': {'key': ..., 'parallelism': ...}}}.",
)
def priority(subject: TaskSubject) -> Iterator[Hit]:
    """Find priorities. 0 is what a broker takes for none."""
    for value, said, where in subject.option("priority"):
        if value != 0:
            yield Hit(said, where)


@TABLE.add(
    "broker-answers",
    Severity.EDIT,
    why="It asks the broker for an answer on the producer's own connection. A stage that writes to push refuses it.",
    do="Drop it.",
)
def broker_answers(subject: TaskSubject) -> Iterator[Hit]:
    """Find options that ask the broker for an answer."""
    for name in ("mandatory", "immediate"):
        for value, said, where in subject.option(name):
            if value:
                yield Hit(said, where)


@TABLE.add(
    "broadcast",
    Severity.BLOCKER,
    why="Each worker takes such a message; push delivers a message to one receiver.",
    do="Leave the task in stage legacy, or replace the broadcast, for example by a version number that processes read.",
)
def broadcast(subject: TaskSubject) -> Iterator[Hit]:
    """Find queues that every worker reads."""
    for name, queue, where in _queues(subject):
        if queue is not None and queue.broadcast:
            yield Hit(f"broadcast queue {name}", where)


@TABLE.add(
    "exchange",
    Severity.DECISION,
    why="Push knows no exchanges: whoever else is bound to this one no longer gets the message.",
    do="If only Celery workers read it, drop the option or name the queue instead; else leave the task in stage "
    "legacy.",
)
def exchange(subject: TaskSubject) -> Iterator[Hit]:
    """Find exchanges and routing keys."""
    for name in ("exchange", "routing_key"):
        for value, said, where in subject.option(name):
            if value:
                yield Hit(said, where)


@TABLE.add(
    "ordered-queue",
    Severity.DECISION,
    why="One consumer at a time keeps the jobs of this queue in order; push and two backends at a time keep none.",
    do="Leave the task in stage legacy, or make it independent of the order.",
)
def ordered_queue(subject: TaskSubject) -> Iterator[Hit]:
    """Find queues with a single active consumer."""
    for name, queue, where in _queues(subject):
        if queue is not None and queue.arguments.get("x-single-active-consumer"):
            yield Hit(f"queue {name} with x-single-active-consumer", where)


@TABLE.add(
    "dead-letters",
    Severity.DECISION,
    why="A job that fails on push goes to QStash's dead letter queue, not to the one of the broker.",
    do="Watch `queuebridge jobs failed` and the dead letter queue of QStash, and move what reads the old one.",
)
def dead_letters(subject: TaskSubject) -> Iterator[Hit]:
    """Find queues with a dead letter exchange."""
    for name, queue, where in _queues(subject):
        if queue is not None and queue.arguments.get("x-dead-letter-exchange"):
            yield Hit(f"queue {name} with x-dead-letter-exchange", where)


@TABLE.add(
    "queue",
    Severity.NOTE,
    why="A queue separates work between workers. On push it is a label: receivers take everything.",
    do="Stage rules can name the queue. To limit how much runs at a time, use flow control.",
)
def queue(subject: TaskSubject) -> Iterator[Hit]:
    """Find queues other than the default one."""
    for name, _, where in _queues(subject):
        yield Hit(f"queue {name}", where)


@TABLE.add(
    "route-unknown",
    Severity.DECISION,
    why="A router that wants more than the name of the task could not be asked where it goes.",
    do="Look whether it sets a priority, an exchange or a routing key.",
)
def route_unknown(subject: TaskSubject) -> Iterator[Hit]:
    """Find tasks whose route could not be told."""
    if "unknown" in subject.task.route:
        yield Hit(f"task_routes ended with {subject.task.route['unknown']}")
