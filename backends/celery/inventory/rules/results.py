"""Rules about results and canvas."""

from __future__ import annotations

from collections.abc import Iterator

from queuebridge.backends.celery.inventory.records import Place, Severity
from queuebridge.backends.celery.inventory.rules.table import Hit, RuleTable, TaskSubject, together
from queuebridge.backends.celery.inventory.source.flow import WAITING

TABLE: RuleTable[TaskSubject] = RuleTable()

_CONTROL = ("revoke", "terminate", "revoke_by_stamped_headers")
_LOCAL = ("cache+memory", "file", "in-memory", "memory")


def _needs_results(subject: TaskSubject) -> Iterator[tuple[str, tuple[Place, ...]]]:
    for call in subject.calls:
        for one in call.results:
            if one not in _CONTROL:
                yield f"its result is read (.{one})", (call.place,)
        if "chord" in call.canvas:
            yield "part of a chord", (call.place,)
    for use in subject.used("update_state", "add_to_chord"):
        yield f"self.{use.kind} writes to the result backend", (use.place,)


@TABLE.add(
    "no-result-backend",
    Severity.BLOCKER,
    why="Without a result backend there is nothing to read, today neither.",
    do="Configure a result backend that producers, workers and receivers reach, or do not use the result.",
)
def no_result_backend(subject: TaskSubject) -> Iterator[Hit]:
    """Find results that are used without a result backend."""
    if subject.app.result_backend is None and not subject.task.own_backend:
        for what, where in _needs_results(subject):
            yield Hit(what, where)


@TABLE.add(
    "local-result-backend",
    Severity.BLOCKER,
    why="This result backend is on one machine or in one process; receivers have another.",
    do="Use a result backend that all reach, such as Redis or a database.",
)
def local_result_backend(subject: TaskSubject) -> Iterator[Hit]:
    """Find results that are kept where receivers cannot write."""
    if (subject.app.result_backend or "").partition(":")[0] in _LOCAL and not subject.task.own_backend:
        for what, where in _needs_results(subject):
            yield Hit(f"{what}, in {subject.app.result_backend}", where)


@TABLE.add(
    "rpc-results",
    Severity.DECISION,
    why="Results go over the broker to the process that published the job; chords do not work that way at all.",
    do="Let receivers reach the broker for as long as results are read, or change to Redis or a database.",
)
def rpc_results(subject: TaskSubject) -> Iterator[Hit]:
    """Find results that are sent as messages."""
    if (subject.app.result_backend or "").partition(":")[0] in ("rpc", "amqp"):
        for what, where in _needs_results(subject):
            yield Hit(what, where)


@TABLE.add(
    "results-needed",
    Severity.EDIT,
    why="The receiver writes results where workers do now: it must reach the result backend.",
    do="Give receivers the app's result_backend and network access to it, also after the workers are gone.",
)
def results_needed(subject: TaskSubject) -> Iterator[Hit]:
    """Find results that are used."""
    backend = subject.app.result_backend
    if subject.task.own_backend or (backend is not None and backend.partition(":")[0] not in (*_LOCAL, "rpc", "amqp")):
        for what, where in _needs_results(subject):
            yield Hit(what, where)


@TABLE.add(
    "results-stored",
    Severity.NOTE,
    why="Each result is written to the result backend, and nobody was seen to read it.",
    do="ignore_result=True spares the receiver the connection.",
)
def results_stored(subject: TaskSubject) -> Iterator[Hit]:
    """Find results that are stored and not used."""
    stored = subject.app.result_backend is not None and not subject.task.options.get("ignore_result")
    if stored and not any(True for _ in _needs_results(subject)):
        yield Hit("results are stored", subject.places)


@TABLE.add(
    "waits-in-task",
    Severity.BLOCKER,
    why="It holds a process of the receiver while the other job needs one too: when all wait, none can run.",
    do="Make it a chain, or a chord whose body goes on with the results.",
)
def waits_in_task(subject: TaskSubject) -> Iterator[Hit]:
    """Find bodies that wait for another task."""
    for call in subject.inner_calls:
        for one in call.results:
            if one in WAITING:
                yield Hit(f"waits with .{one}() for {call.text}(...)", (call.place,))
    yield from together(subject.used("join"))


@TABLE.add(
    "canvas",
    Severity.NOTE,
    why="Each part is a job of its own, and goes by the stage of its own task.",
    do="Receivers must know all tasks of it. Move its tasks in one go, or mind that part of it waits for workers.",
)
def canvas(subject: TaskSubject) -> Iterator[Hit]:
    """Find canvas."""
    for call in subject.calls:
        for one in call.canvas:
            yield Hit(one, (call.place,))
    for use in subject.used("replace", "add_to_chord"):
        yield Hit(f"self.{use.kind} in the body", (use.place,))


@TABLE.add(
    "revoke",
    Severity.NOTE,
    why="With a ledger a bridged app keeps a revoked job from starting on push too. Without one that is refused where "
    "jobs are pushed.",
    do="Nothing with a ledger.",
)
def revoke(subject: TaskSubject) -> Iterator[Hit]:
    """Find jobs that are revoked."""
    for call in subject.calls:
        if "revoke" in call.results:
            yield Hit("its jobs are revoked", (call.place,))


@TABLE.add(
    "terminate",
    Severity.DECISION,
    why="Nothing ends a job that is under way on push.",
    do="Let the task look now and then whether it shall go on, or give it a time limit.",
)
def terminate(subject: TaskSubject) -> Iterator[Hit]:
    """Find jobs that are terminated."""
    for call in subject.calls:
        if "terminate" in call.results:
            yield Hit("its jobs are terminated while they run", (call.place,))
