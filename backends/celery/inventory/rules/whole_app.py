"""Rules about the app as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from queuebridge.backends.celery.inventory.records import Severity
from queuebridge.backends.celery.inventory.rules.table import AppSubject, Hit, RuleTable

TABLE: RuleTable[AppSubject] = RuleTable()

# Signals that only a worker, or a part of it that push lacks, sends.
_OF_WORKERS = (
    *("celeryd_init", "celeryd_after_setup", "import_modules", "worker_init", "worker_before_create_process"),
    *("worker_process_init", "worker_process_shutdown", "worker_ready", "worker_shutdown", "worker_shutting_down"),
    *("heartbeat_sent", "eventlet_pool_started", "eventlet_pool_preshutdown", "eventlet_pool_postshutdown"),
    *("eventlet_pool_apply", "setup_logging", "after_setup_logger", "after_setup_task_logger", "user_preload_options"),
)
_LOST = ("task_revoked", "task_rejected", "task_unknown")


@TABLE.add(
    "always-eager",
    Severity.DECISION,
    why="Every task runs in the process that calls it: nothing is published, so that there is nothing to move.",
    do="Run the inventory with the settings of production.",
)
def always_eager(subject: AppSubject) -> Iterator[Hit]:
    """Find eager apps."""
    if subject.app.settings.get("task_always_eager"):
        yield Hit("task_always_eager=True")


@TABLE.add(
    "protocol-1",
    Severity.NOTE,
    why="Stages that write to push send protocol 2, which workers of Celery 3 do not read.",
    do="Nothing, if all workers have Celery 4 or newer.",
)
def protocol_1(subject: AppSubject) -> Iterator[Hit]:
    """Find the old protocol."""
    if subject.app.settings.get("task_protocol") == 1:
        yield Hit("task_protocol=1")


@TABLE.add(
    "worker-signals",
    Severity.DECISION,
    why="A receiver is no worker and does not send these signals: what they prepare is missing there.",
    do="Prepare it in the receiver too (application factory, gunicorn's post_fork), or at first use.",
)
def worker_signals(subject: AppSubject) -> Iterator[Hit]:
    """Find signals of workers."""
    for use in subject.used("signal"):
        if use.detail in _OF_WORKERS:
            yield Hit(use.detail, (use.place,))


@TABLE.add(
    "lost-signals",
    Severity.DECISION,
    why="Consumers of workers send these signals. On push they are not sent, or not in every case.",
    do="Use task_prerun and task_postrun, or the ledger: `queuebridge jobs`.",
)
def lost_signals(subject: AppSubject) -> Iterator[Hit]:
    """Find signals that nothing sends on push."""
    for use in subject.used("signal"):
        if use.detail in _LOST:
            yield Hit(use.detail, (use.place,))


@TABLE.add(
    "task-signals",
    Severity.NOTE,
    why="Celery's own tracer sends them on the receiver too, and publishing sends its own as before.",
    do="Nothing. See that their handlers are imported by the receiver.",
)
def task_signals(subject: AppSubject) -> Iterator[Hit]:
    """Find signals that work on push."""
    for use in subject.used("signal"):
        if use.detail not in _OF_WORKERS and use.detail not in _LOST:
            yield Hit(use.detail, (use.place,))


@TABLE.add(
    "remote-control",
    Severity.DECISION,
    why="Remote control speaks to workers: on push nobody answers, and nothing ends a job that is under way.",
    do="`queuebridge status`, `jobs` and `report` to look, `queuebridge jobs cancel` for jobs that have not begun.",
)
def remote_control(subject: AppSubject) -> Iterator[Hit]:
    """Find remote control."""
    for use in subject.used("control"):
        yield Hit(use.detail, (use.place,))
    for use in subject.used("terminate"):
        yield Hit(f"{use.detail} with terminate", (use.place,))


@TABLE.add(
    "revoking",
    Severity.NOTE,
    why="With a ledger a bridged app keeps a revoked job from starting on push too. Without one that is refused where "
    "jobs are pushed.",
    do="Nothing with a ledger.",
)
def revoking(subject: AppSubject) -> Iterator[Hit]:
    """Find jobs that are revoked by their ids."""
    for use in subject.used("revoke"):
        yield Hit(use.detail, (use.place,))


@TABLE.add(
    "events",
    Severity.NOTE,
    why="Monitors such as flower live on the events of workers. Receivers send none.",
    do="Watch `queuebridge report` and `queuebridge jobs` in their place.",
)
def events(subject: AppSubject) -> Iterator[Hit]:
    """Find events."""
    for name in ("worker_send_task_events", "task_send_sent_event"):
        if subject.app.settings.get(name):
            yield Hit(f"{name}=True")
    for use in subject.used("events"):
        yield Hit(use.detail, (use.place,))


@TABLE.add(
    "own-worker",
    Severity.DECISION,
    why="Parts of a worker (bootsteps, a worker of one's own) do not exist in a receiver.",
    do="Move what they do into a process of its own.",
)
def own_worker(subject: AppSubject) -> Iterator[Hit]:
    """Find parts of workers."""
    for use in subject.used("steps", "worker"):
        yield Hit(use.detail, (use.place,))


@TABLE.add(
    "worker-pool",
    Severity.DECISION,
    why="Tasks written for greenlets may count on many running in one process.",
    do="Run the receiver with gunicorn's gevent or eventlet worker, or with enough threads.",
)
def worker_pool(subject: AppSubject) -> Iterator[Hit]:
    """Find pools of greenlets."""
    if str(subject.app.settings.get("worker_pool")) in ("gevent", "eventlet"):
        yield Hit(f"worker_pool={subject.app.settings['worker_pool']}")


@TABLE.add(
    "worker-recycling",
    Severity.NOTE,
    why="Workers are replaced after so many jobs or so much memory, often because a task leaks.",
    do="gunicorn's --max-requests does the same for the receiver.",
)
def worker_recycling(subject: AppSubject) -> Iterator[Hit]:
    """Find workers that are replaced now and then."""
    for name in ("worker_max_tasks_per_child", "worker_max_memory_per_child"):
        if subject.app.settings.get(name):
            yield Hit(f"{name}={subject.app.settings[name]}")


@TABLE.add(
    "worker-direct",
    Severity.DECISION,
    why="A queue for each worker addresses one process. On push no receiver has an address of its own.",
    do="Leave tasks that are sent to such a queue in stage legacy.",
)
def worker_direct(subject: AppSubject) -> Iterator[Hit]:
    """Find queues of single workers."""
    if subject.app.settings.get("worker_direct"):
        yield Hit("worker_direct=True")


@TABLE.add(
    "own-sending",
    Severity.BLOCKER,
    why="The bridge replaces this function, through which every message passes, and refuses an app that has its own.",
    do="Move what it does into the signal before_task_publish, a router, or apply_async of a base class.",
)
def own_sending(subject: AppSubject) -> Iterator[Hit]:
    """Find a function of one's own that sends messages."""
    if subject.app.own_sending:
        yield Hit(f"send_task_message of {subject.app.custom.get('amqp_cls')}")


@TABLE.add(
    "custom-amqp",
    Severity.NOTE,
    why="The bridge derives its own class from this part of the app, which goes on working.",
    do="Nothing.",
)
def custom_amqp(subject: AppSubject) -> Iterator[Hit]:
    """Find a message factory of one's own."""
    if "amqp_cls" in subject.app.custom and not subject.app.own_sending:
        yield Hit(f"amqp={subject.app.custom['amqp_cls']}")


@TABLE.add(
    "inherited-priority",
    Severity.EDIT,
    why="Each task passes its priority on, and a stage that writes to push refuses one.",
    do="Unset task_inherit_parent_priority, or drop the priorities themselves.",
)
def inherited_priority(subject: AppSubject) -> Iterator[Hit]:
    """Find inherited priorities."""
    if subject.app.settings.get("task_inherit_parent_priority"):
        yield Hit("task_inherit_parent_priority=True")


@TABLE.add(
    "queue-types",
    Severity.NOTE,
    why="Quorum queues, priorities and native delays are features of the broker: they matter while it is written to.",
    do="Nothing for the move: delays on push wait in QStash.",
)
def queue_types(subject: AppSubject) -> Iterator[Hit]:
    """Find queues with features of the broker."""
    if subject.app.settings.get("task_default_queue_type", "classic") != "classic":
        yield Hit(f"task_default_queue_type={subject.app.settings['task_default_queue_type']}")
    for name, queue in subject.app.queues.items():
        for argument in ("x-queue-type", "x-max-priority"):
            if argument in queue.arguments:
                yield Hit(f"queue {name} with {argument}={queue.arguments[argument]}")


@TABLE.add(
    "schedules-elsewhere",
    Severity.DECISION,
    why="This scheduler keeps its schedules somewhere else, where the inventory does not look.",
    do="List them there, and keep this beat running with the bridged app.",
)
def schedules_elsewhere(subject: AppSubject) -> Iterator[Hit]:
    """Find schedulers of one's own."""
    if "beat_scheduler" in subject.app.settings:
        yield Hit(f"beat_scheduler={subject.app.settings['beat_scheduler']}")


@TABLE.add(
    "schedule-of-unknown",
    Severity.EDIT,
    why="Beat publishes a task that the app does not have. A receiver answers that it does not know it.",
    do="Correct the name, or import the module of the task.",
)
def schedule_of_unknown(subject: AppSubject) -> Iterator[Hit]:
    """Find schedules of tasks that are not there."""
    for entry in subject.app.schedules:
        if entry.task not in subject.task_names and not entry.task.startswith("celery."):
            yield Hit(f"{entry.name} publishes {entry.task}")


@TABLE.add(
    "not-loaded",
    Severity.EDIT,
    why="It is declared as a task, and the app has not loaded its module: a receiver would not know it either.",
    do="Add the module to `include`, `imports` or autodiscover_tasks; or remove it.",
)
def not_loaded(subject: AppSubject) -> Iterator[Hit]:
    """Find tasks in the source that the app does not have."""
    for name, place in subject.not_loaded:
        yield Hit(name, (place,))


@TABLE.add(
    "unread",
    Severity.EDIT,
    why="The inventory does not know what is in this file: calls in it are missing from this report.",
    do="Repair it, or look into it by hand.",
)
def unread(subject: AppSubject) -> Iterator[Hit]:
    """Find files that could not be read."""
    for one in subject.unread:
        yield Hit(one.problem, (one.place,))


@TABLE.add(
    "unresolved",
    Severity.NOTE,
    why="A task is called there, and the source alone does not show which one: its options are not in this report.",
    do="Look at these places by hand.",
)
def unresolved(subject: AppSubject) -> Iterator[Hit]:
    """Find calls of which nobody can say what they call."""
    for call in subject.unresolved:
        yield Hit(f"{call.text}: {call.unresolved}", (call.place,))
