"""Workers as the rest of an application sees them: which of them claim jobs, and what only those may take."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import celery
import kombu
from celery import signals
from kombu.common import Broadcast

from queuebridge.backends.celery.endings import settle_terminated, watch_endings
from queuebridge.errors import QueueBridgeError
from queuebridge.failures import redact
from queuebridge.outcome import describe

logger = logging.getLogger(__name__)

_COMMAND = "queuebridge_claims"
_CLAIMS = "queuebridge_claims"
_SUFFIX = ".queuebridge"
_ANSWER_SECONDS = 1.0


def introduce_workers(app: celery.Celery, *, claims: bool | None = None) -> None:
    """Have the workers of an app tell whoever asks whether they claim, and take safety copies if they do.

    Args:
        app: The app.
        claims: Whether they do; None leaves that to the bridge below the app.
    """
    vars(app)[_CLAIMS] = claims
    # The former is sent by every worker, also by one that a program runs; the latter by Celery's command alone, and
    # handlers of it may add queues.
    for signal in (signals.worker_init, signals.celeryd_after_setup):
        signal.connect(_set_up, weak=False, dispatch_uid="queuebridge.introduce_workers")


def claimed_queue(queue: str) -> str:
    """Return the name of the queue beside another one that only workers with claims consume.

    A safety copy goes there: a worker without the bridge that took it would run the job a second time.
    """
    return f"{queue}{_SUFFIX}"


def plain_queue(queue: str) -> str:
    """Return the queue beside which `claimed_queue` is; of any other one the name itself.

    A retry is routed to where its message came from.
    """
    return queue.removesuffix(_SUFFIX)


def safety_queue(app: Any, queue: str) -> kombu.Queue:
    """Return that queue as the app would declare it, which has to be the same in producers and workers.

    It does not become one of the app's queues: programs look at these, and workers may consume all of them.
    """
    name = claimed_queue(queue)
    queues = app.amqp.queues
    made: kombu.Queue = queues[name] if name in queues else copy.copy(queues).add(name)
    return made


def strangers(app: celery.Celery) -> Mapping[str, tuple[str, ...]]:
    """Return the queues of each living worker that takes jobs without claiming them, by the worker's name."""
    claiming = {
        name
        for answer in app.control.broadcast(_COMMAND, reply=True, timeout=_ANSWER_SECONDS) or ()
        for name, said in answer.items()
        if isinstance(said, dict) and said.get("claims") is True
    }
    consumed: Mapping[str, Any] = app.control.inspect(timeout=_ANSWER_SECONDS).active_queues() or {}
    return {
        name: tuple(queue["name"] for queue in queues) for name, queues in consumed.items() if name not in claiming
    }


def note_revoked(sender: Any, request: Any, terminated: bool = False, **_: Any) -> None:
    """Cancel in the ledger what a worker discards, revoked or expired, so that no other copy of it runs.

    One that was ended while it ran does not run again either, when its lease ends.
    """
    forwarding = getattr(sender.app, "queuebridge", None)
    chosen = forwarding.forwarding() if forwarding is not None else None
    if chosen is None or chosen.bridge.ledger is None:
        return
    try:
        # First, so that an execution that was ended before it had its claim cannot get it any more.
        chosen.bridge.cancel(request.id)
        if terminated:
            settle_terminated(request.id, chosen.bridge.ledger)
    except QueueBridgeError as error:
        logger.error("Task %s was discarded, and its other copy may run: %s", request.id, redact(describe(error)))


def _set_up(sender: Any, instance: Any = None, **_: Any) -> None:
    # Only in workers: it is a large part of Celery.
    from celery.worker.control import Panel

    app = (instance or sender).app
    if _CLAIMS not in vars(app):
        return
    # Not by `inspect_command`: it would be listed among the commands that `celery inspect` has.
    Panel.data[_COMMAND] = _answer
    if _claims(app) and vars(app)[_CLAIMS] is None:
        signals.task_revoked.connect(note_revoked, weak=False, dispatch_uid="queuebridge.note_revoked")
        watch_endings()
        _consume_safety_queues(app)


def _consume_safety_queues(app: Any) -> None:
    queues = app.amqp.queues
    plain = [
        name
        for name, queue in queues.consume_from.items()
        if not isinstance(queue, Broadcast) and not name.endswith(_SUFFIX)
    ]
    if queues.consume_from is queues:  # Celery before 5.7
        queues.select(list(queues))
    for name in plain:
        safety = safety_queue(app, name)
        queues.consume_from[safety.name] = safety


def _answer(state: Any, **_: Any) -> dict[str, bool]:
    # A process may run workers of several apps.
    return {"claims": _CLAIMS in vars(state.app) and _claims(state.app)}


def _claims(app: Any) -> bool:
    said = vars(app)[_CLAIMS]
    if said is not None:
        return bool(said)
    chosen = app.queuebridge.forwarding()
    return chosen is not None and chosen.bridge.runner.claims is not None
