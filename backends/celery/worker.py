"""Run jobs in Celery workers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import celery
from celery.exceptions import Ignore, Reject, Retry

from queuebridge.backends.celery.backend import CeleryBackend
from queuebridge.backends.celery.configured_app import longest_delay
from queuebridge.backends.celery.message import HEADER, decode_message, encode_header, own_headers
from queuebridge.backends.celery.workers import introduce_workers
from queuebridge.bridge import Bridge
from queuebridge.delivery import Delivery
from queuebridge.envelope import Envelope
from queuebridge.errors import ConfigurationError, UnsupportedEnvelope
from queuebridge.ids import new_dispatch_id
from queuebridge.outcome import Outcome, Status
from queuebridge.registry import AnyTask, TaskRegistry
from queuebridge.runner import Runner

logger = logging.getLogger(__name__)

# After how long a message that only a newer deployment understands is looked at again.
_NEWER_DEPLOYMENT_SECONDS = 60.0
# A message that waits in a worker for as long as the visibility timeout is given to another one too.
_OF_VISIBILITY_TIMEOUT = 0.9
# What comes again later, as a message of its own, although nothing was tried.
_PUT_OFF = (Status.BUSY, Status.DEFERRED)


def register_tasks(app: celery.Celery, registry: TaskRegistry, runner: Runner) -> None:
    """Make the workers of `app` run every task of the registry, under its name and its aliases.

    Messages are acknowledged after the run: a job whose worker dies is delivered again.
    """
    for task in registry:
        for name in (task.name, *task.aliases):
            if name not in app.tasks:
                _register(app, name, task, runner)
    if "queuebridge" not in vars(app):
        introduce_workers(app, claims=runner.claims is not None)


def run_worker(bridge: Bridge, *, queues: Sequence[str], concurrency: int | None, extra: Sequence[str] = ()) -> int:
    """Run a Celery worker in this process until it is stopped.

    Args:
        bridge: A bridge whose backend is Celery, with its tasks loaded.
        queues: The queues to consume; empty means the default one and every queue that a task names.
        concurrency: How many jobs at a time; None for Celery's default.
        extra: Further options of `celery worker`.

    Returns:
        The exit status.
    """
    if not isinstance(bridge.worker_backend, CeleryBackend):
        raise ConfigurationError(f"The backend in use is {bridge.worker_backend.name}, which has no Celery worker.")
    app = bridge.worker_backend.app
    register_tasks(app, bridge.registry, bridge.runner)
    default = app.conf.task_default_queue
    named = {task.queue for task in bridge.registry if task.queue} - {bridge.settings.default_queue}
    chosen = [default if queue == bridge.settings.default_queue else queue for queue in queues]
    arguments = ["worker", "--queues", ",".join(chosen or [default, *sorted(named)]), "--loglevel", "INFO"]
    if concurrency is not None:
        arguments += ["--concurrency", str(concurrency)]
    # Celery's command line is loaded by workers only. Not app.worker_main: it forgets the exit status.
    from celery.bin.celery import celery as celery_command

    command: Any = celery_command
    command.params[0].default = app
    try:
        code = command.main(args=[*arguments, *extra], standalone_mode=False)
    except SystemExit as stop:
        code = stop.code
    finally:
        command.params[0].default = None
    return code if isinstance(code, int) else int(code is not None)


def _register(app: celery.Celery, name: str, task: AnyTask, runner: Runner) -> None:
    claimed = runner.claims is not None

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        delivery_info = request.delivery_info or {}
        headers = request.headers or {}
        try:
            envelope = decode_message(
                task,
                task_id=request.id,
                args=args,
                kwargs=kwargs,
                headers=headers,
                queue=str(delivery_info.get("routing_key") or "default"),
            )
        except UnsupportedEnvelope as error:
            unread = {**own_headers(headers), HEADER: headers[HEADER]}
            raise _publish_again(self, error, _NEWER_DEPLOYMENT_SECONDS, unread) from error
        outcome = runner.run(
            envelope,
            Delivery(
                backend="celery",
                message_id=request.id,
                attempt=request.retries + 1,
            ),
        )
        if outcome.status is Status.DONE:
            return outcome.result
        if outcome.status is Status.RETRY or outcome.status in _PUT_OFF:
            again = _publish_again(
                self, outcome.error, outcome.retry_delay_seconds, _headers_again(envelope, outcome, claimed)
            )
            # Of what was put off Celery must not note a retry: the state is that of the execution under way.
            raise again if outcome.status is Status.RETRY else Ignore(outcome.reason)
        if outcome.status in (Status.EXPIRED, Status.DUPLICATE, Status.SHADOWED):
            # Acknowledged, and no state or result of the task is touched.
            raise Ignore(outcome.reason)
        raise outcome.error or RuntimeError(outcome.status.value)

    app.task(
        name=name,
        bind=True,
        acks_late=True,
        reject_on_worker_lost=True,
        # How often is the envelope's business, not the Celery task's.
        max_retries=None,
        typing=False,
        shared=False,
    )(run)


def _headers_again(envelope: Envelope, outcome: Outcome, claimed: bool) -> dict[str, str]:
    if outcome.status is Status.RETRY and not claimed:
        # Without a ledger a retry is a new dispatch. With one, the ledger has released this one for its next attempt.
        envelope = envelope.model_copy(update={"dispatch_id": new_dispatch_id(), "epoch": 0})
    return {**envelope.headers, HEADER: encode_header(envelope)}


def _publish_again(celery_task: Any, error: Exception | None, delay: float | None, headers: dict[str, str]) -> Retry:
    """Publish the message anew, to come after a delay, and return what tells Celery of a retry when it is raised."""
    longest = longest_delay(celery_task.app)
    if delay is not None and longest is not None and delay > longest * _OF_VISIBILITY_TIMEOUT:
        logger.warning(
            "The retry of task %s in %g s is brought forward: a Redis broker would deliver it twice. Raise "
            "QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS (now %g).",
            celery_task.name,
            delay,
            longest,
        )
        delay = longest * _OF_VISIBILITY_TIMEOUT
    try:
        again: Retry = celery_task.retry(exc=error, countdown=delay, headers=headers, throw=False)
    except Reject as rejected:
        # Celery drops the message when the retry could not be published; giving it back keeps the job.
        raise Reject(str(rejected), requeue=True) from rejected
    return again
