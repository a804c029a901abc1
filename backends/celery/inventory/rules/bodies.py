"""Rules about what the body of a task does."""

from __future__ import annotations

from collections.abc import Iterator

from queuebridge.backends.celery.inventory.records import Severity
from queuebridge.backends.celery.inventory.rules.table import Hit, RuleTable, TaskSubject, together

TABLE: RuleTable[TaskSubject] = RuleTable()

# What a request says about the worker and the broker.
_OF_THE_WORKER = ("hostname", "delivery_info", "loglevel", "logfile")


@TABLE.add(
    "globals",
    Severity.DECISION,
    why="A global lives in one process: a worker's is not the receiver's, and several threads may share it there.",
    do="Keep state in a database or cache. A cache that every process may fill for itself can stay.",
)
def globals_written(subject: TaskSubject) -> Iterator[Hit]:
    """Find globals that a body changes."""
    for use in subject.used("global"):
        yield Hit(f"changes the global {use.detail}", (use.place,))


@TABLE.add(
    "task-state",
    Severity.NOTE,
    why="The task is one object in each process: what is kept on it is seen by the next job there, in threads at once.",
    do="Fine for connections that may be shared; nothing else should be kept there.",
)
def task_state(subject: TaskSubject) -> Iterator[Hit]:
    """Find attributes of the task that a body sets."""
    for use in subject.used("task_state"):
        yield Hit(f"sets {use.detail}", (use.place,))


@TABLE.add(
    "files",
    Severity.NOTE,
    why="A file on the machine of this job is not there for the next one, which another receiver may run.",
    do="Put what outlives the job into shared storage.",
)
def files(subject: TaskSubject) -> Iterator[Hit]:
    """Find files that a body writes."""
    yield from together(subject.used("file"))


@TABLE.add(
    "processes",
    Severity.DECISION,
    why="A web server may not like children: forks of a process with threads hang, and serverless platforms allow few.",
    do="Check that the receiver's platform allows it, and end every child before the task returns.",
)
def processes(subject: TaskSubject) -> Iterator[Hit]:
    """Find child processes."""
    yield from together(subject.used("process"))


@TABLE.add(
    "threads",
    Severity.DECISION,
    why="What still runs after the task has returned may be frozen or killed with the receiver.",
    do="Wait for every thread before the task returns.",
)
def threads(subject: TaskSubject) -> Iterator[Hit]:
    """Find threads."""
    yield from together(subject.used("thread"))


@TABLE.add(
    "greenlets",
    Severity.DECISION,
    why="The body counts on a worker with a gevent or eventlet pool.",
    do="Run the receiver with gunicorn's worker of that kind, or rewrite that part.",
)
def greenlets(subject: TaskSubject) -> Iterator[Hit]:
    """Find gevent and eventlet."""
    yield from together(subject.used("greenlet"))


@TABLE.add(
    "request-of-worker",
    Severity.DECISION,
    why="On push hostname names the receiver, delivery_info knows no priority, and there are no log files of a worker.",
    do="Use what the job itself carries: id, retries, headers, the arguments.",
)
def request_of_worker(subject: TaskSubject) -> Iterator[Hit]:
    """Find parts of the request that only a worker can fill."""
    for use in subject.used("request"):
        if use.detail in _OF_THE_WORKER:
            yield Hit(f"request.{use.detail}", (use.place,))


@TABLE.add(
    "reject",
    Severity.NOTE,
    why="The job counts as failed, as in a worker. Dead letters of the broker do not get it on push.",
    do="Watch `queuebridge jobs failed` in place of the queue of dead letters, if there is one.",
)
def reject(subject: TaskSubject) -> Iterator[Hit]:
    """Find Reject."""
    yield from together(subject.used("reject"))


@TABLE.add(
    "requeue",
    Severity.NOTE,
    why="The message comes again without limit, as from a broker: after a second, and as a new one. On push each time "
    "costs a message.",
    do="Use self.retry with a countdown and max_retries where a second is too often.",
)
def requeue(subject: TaskSubject) -> Iterator[Hit]:
    """Find Reject with requeue."""
    yield from together(subject.used("requeue"))


@TABLE.add(
    "ignore",
    Severity.NOTE,
    why="The job counts as done, and no state is stored, as in a worker.",
    do="Nothing.",
)
def ignore(subject: TaskSubject) -> Iterator[Hit]:
    """Find Ignore."""
    yield from together(subject.used("ignore"))


@TABLE.add(
    "reads-results",
    Severity.NOTE,
    why="The receiver must reach the result backend to look at other jobs.",
    do="Give it the app's result_backend.",
)
def reads_results(subject: TaskSubject) -> Iterator[Hit]:
    """Find bodies that look at other jobs."""
    yield from together(subject.used("async_result"))
