"""Rules about time: limits, rates, long runs, delays."""

from __future__ import annotations

from collections.abc import Iterator

from queuebridge.backends.celery.inventory.records import Place, Severity
from queuebridge.backends.celery.inventory.rules.table import Hit, RuleTable, TaskSubject, seconds, together

TABLE: RuleTable[TaskSubject] = RuleTable()


def _limits(subject: TaskSubject) -> Iterator[tuple[float, str, tuple[Place, ...]]]:
    for name in ("time_limit", "soft_time_limit"):
        for value, said, where in subject.option(name):
            if isinstance(value, int | float):
                yield float(value), said, where


def _ran_too_long(subject: TaskSubject) -> bool:
    longest = subject.seen.longest_ms if subject.seen is not None else None
    return longest is not None and longest > 1000 * subject.surroundings.push_timeout_seconds


def _is_known_to_be_short(subject: TaskSubject) -> bool:
    return subject.seen is not None and subject.seen.longest_ms is not None and not _ran_too_long(subject)


@TABLE.add(
    "runs-too-long",
    Severity.BLOCKER,
    why="QStash gives up waiting and delivers again, so that such a run would never end well.",
    do="Split the work into shorter tasks, leave it in stage legacy, or use a plan with a longer response time "
    "(--push-timeout).",
)
def runs_too_long(subject: TaskSubject) -> Iterator[Hit]:
    """Find tasks that were seen to run longer than a push may take."""
    if _ran_too_long(subject) and subject.seen is not None:
        longest = (subject.seen.longest_ms or 0) / 1000
        limit = seconds(subject.surroundings.push_timeout_seconds)
        yield Hit(f"a run of {seconds(longest)} was seen, and push waits {limit}", subject.places)


@TABLE.add(
    "limit-beyond-push",
    Severity.DECISION,
    why="The task may run longer than QStash waits, and the ledger has not seen how long it really takes.",
    do="Find out how long it runs. Lower the limit below QStash's, or leave the task in stage legacy.",
)
def limit_beyond_push(subject: TaskSubject) -> Iterator[Hit]:
    """Find time limits above that of push, of tasks whose runs are not known."""
    if _ran_too_long(subject) or _is_known_to_be_short(subject):
        return
    for limit, said, where in _limits(subject):
        if limit > subject.surroundings.push_timeout_seconds:
            yield Hit(said, where)


@TABLE.add(
    "limit-above-need",
    Severity.EDIT,
    why="Runs are short enough, but the limit allows more than QStash waits.",
    do="Lower the limit below QStash's, so that a run that hangs ends before it is delivered again.",
)
def limit_above_need(subject: TaskSubject) -> Iterator[Hit]:
    """Find time limits above that of push, of tasks that are known to be short."""
    if _is_known_to_be_short(subject):
        for limit, said, where in _limits(subject):
            if limit > subject.surroundings.push_timeout_seconds:
                yield Hit(said, where)


@TABLE.add(
    "hard-limit",
    Severity.NOTE,
    why="A worker kills the process of such a run. The receiver raises an error in the task, which code that blocks "
    "outside of Python does not notice.",
    do="Set time-outs on what the task waits for.",
)
def hard_limit(subject: TaskSubject) -> Iterator[Hit]:
    """Find hard time limits."""
    for value, said, where in subject.option("time_limit"):
        if value:
            yield Hit(said, where)


@TABLE.add(
    "soft-limit",
    Severity.NOTE,
    why="In the main thread it comes by an alarm, as in a worker; in another thread between two steps of Python only.",
    do="Nothing with gunicorn's sync workers. With threads, time-outs on what the task waits for.",
)
def soft_limit(subject: TaskSubject) -> Iterator[Hit]:
    """Find soft time limits."""
    for value, said, where in subject.option("soft_time_limit"):
        if value:
            yield Hit(said, where)
    for use in subject.used("soft_limit"):
        yield Hit(f"{use.detail} is caught", (use.place,))


@TABLE.add(
    "no-limit",
    Severity.NOTE,
    why="Without a limit a run that hangs holds a process of the receiver until QStash gives up.",
    do="Set a soft_time_limit.",
)
def no_limit(subject: TaskSubject) -> Iterator[Hit]:
    """Find tasks without any limit."""
    if not any(True for name in ("time_limit", "soft_time_limit") for _ in subject.option(name)):
        yield Hit("no time limit", subject.places)


@TABLE.add(
    "rate-limit",
    Severity.EDIT,
    why="Workers enforce it, each for itself. On push nobody does: jobs arrive as fast as QStash sends them.",
    do="options={'qstash': {'flow_control': {'key': ..., 'rate': ..., 'period': ...}}}, which holds for all receivers "
    "together.",
)
def rate_limit(subject: TaskSubject) -> Iterator[Hit]:
    """Find rate limits."""
    for value, said, where in subject.option("rate_limit"):
        if value:
            yield Hit(said, where)


def _delays(subject: TaskSubject) -> Iterator[tuple[float, str, tuple[Place, ...]]]:
    for name in ("countdown", "eta"):
        for value, said, where in subject.option(name):
            if isinstance(value, int | float):
                yield float(value), said, where
    for name in ("default_retry_delay", "retry_backoff_max"):
        value = subject.task.options.get(name)
        if isinstance(value, int | float):
            yield float(value), f"{name}={value}", subject.places
    for use in subject.used("retry_delay"):
        yield float(use.detail), "self.retry", (use.place,)


@TABLE.add(
    "delay-in-hops",
    Severity.NOTE,
    why="It is longer than one message may be delayed, so that it goes in several hops.",
    do="Nothing. Each hop is a message of your plan.",
)
def delay_in_hops(subject: TaskSubject) -> Iterator[Hit]:
    """Find delays above that of one push message."""
    for delay, said, where in _delays(subject):
        if delay > subject.surroundings.push_max_delay_seconds:
            yield Hit(f"{said}: {seconds(delay)}", where)


@TABLE.add(
    "delay-beyond-visibility",
    Severity.EDIT,
    why="A defect of today: a Redis broker gives a message that waits longer than its visibility timeout to a second "
    "worker, and the job runs several times.",
    do="Raise visibility_timeout in broker_transport_options above the longest delay, until the task is on push.",
)
def delay_beyond_visibility(subject: TaskSubject) -> Iterator[Hit]:
    """Find delays above the visibility timeout."""
    visible = subject.app.visibility_timeout_seconds
    for delay, said, where in _delays(subject):
        if visible is not None and delay > visible:
            yield Hit(f"{said}: {seconds(delay)}, visibility timeout {seconds(visible)}", where)


@TABLE.add(
    "run-beyond-visibility",
    Severity.NOTE,
    why="A defect of today: with acks_late a Redis broker gives a job that runs longer than its visibility timeout to "
    "a second worker.",
    do="Raise visibility_timeout, or move the task: with a ledger the second run is refused.",
)
def run_beyond_visibility(subject: TaskSubject) -> Iterator[Hit]:
    """Find runs above the visibility timeout."""
    visible = subject.app.visibility_timeout_seconds
    longest = subject.seen.longest_ms if subject.seen is not None else None
    if visible is None or longest is None or not subject.task.options.get("acks_late"):
        return
    if longest > 1000 * visible:
        yield Hit(f"a run of {seconds(longest / 1000)} was seen", subject.places)


@TABLE.add(
    "os-signals",
    Severity.DECISION,
    why="Signal handlers can be set in the main thread only, and belong to the web server there.",
    do="Use time limits of the task in place of alarms, or a receiver with one thread for each process.",
)
def os_signals(subject: TaskSubject) -> Iterator[Hit]:
    """Find handlers of operating system signals."""
    yield from together(subject.used("signal"))
