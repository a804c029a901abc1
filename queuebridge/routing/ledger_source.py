"""Stages from the ledger: followed by a thread, so that an enqueue never waits for them."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from queuebridge.errors import ConfigurationError, QueueBridgeError
from queuebridge.failures import redact
from queuebridge.ledger.stage_store import Revision, StageStore
from queuebridge.routing.codec import from_json
from queuebridge.routing.rules import StageRule, StageSettings
from queuebridge.stages import Stage

logger = logging.getLogger(__name__)

# A change is seen within 5 s, also in a child that was forked just before the poll that would have seen it.
POLL_SECONDS = 2.0
# A process that has not reported for so long is taken for dead.
ALIVE_MS = 30_000
# What a child has inherited is used at once if it is no older, in polls, than a living parent lets it become.
_FRESH_POLLS = 1.25

_BEGINNING = StageSettings(default=StageRule(stage=Stage.LEGACY))


def new_process_id() -> str:
    """Return an id for this process: host, process id, and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What the last answer of the ledger was, and when it came in monotonic seconds."""

    settings: StageSettings
    revision: int
    at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Poller:
    """The thread that follows the ledger in one process."""

    pid: int
    process_id: str
    stop: threading.Event


class LedgerSource:
    """Settings that live in the ledger, and change without a deploy.

    The first use reads them. From then on a thread asks for them every 2 s, and reports which revision this process
    goes by; nobody else waits for the ledger. While it cannot be reached, or holds a revision that this version cannot
    read, the last known settings stay in force, and that is logged once. A forked child goes by what it inherited, and
    starts a thread of its own at first use, under an id of its own; it reports from its first poll on, so that one
    which lives for a single job leaves no trace.

    Args:
        store: The ledger's stages.
        kind: What this process does: `producer`, `receiver`, `worker` or `reconcile`.
        process_id: Makes the id under which a process reports; called once in each.
        poll_seconds: How often the thread asks.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: StageStore,
        *,
        kind: str,
        process_id: Callable[[], str] = new_process_id,
        poll_seconds: float = POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._kind = kind
        self._process_id = process_id
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._known: _Known | None = None
        self._poller: _Poller | None = None
        self._trouble: str | None = None
        # One for each process: a lock that another thread holds during a fork stays locked in the child for ever.
        self._locks: dict[int, threading.Lock] = {}

    def settings(self) -> StageSettings:
        """Return the settings in force.

        Raises:
            LedgerUnavailable: They were never read, and the ledger cannot be reached.
            ConfigurationError: They were never read, and this version cannot read them, or the ledger's schema.
        """
        return self._following().settings

    def revision(self) -> int:
        """Return the number of the revision in force, 0 if there is none yet. Raises as `settings`."""
        return self._following().revision

    def refresh(self) -> None:
        """Ask the ledger now, as the thread does from time to time. Never raises; what is wrong is logged once."""
        poller = self._poller
        if poller is not None and poller.pid == os.getpid():
            self._follow(poller)

    def close(self) -> None:
        """Stop the thread, and tell the ledger that this process has ended. The next use begins anew."""
        with self._lock():
            poller, self._poller, self._known = self._poller, None, None
        # A parent's thread and its report are none of a child's business.
        if poller is None or poller.pid != os.getpid():
            return
        poller.stop.set()
        try:
            self._store.forget_process(poller.process_id)
        except QueueBridgeError as error:
            logger.debug("The end of this process could not be reported: %s", redact(str(error)))

    def _following(self) -> _Known:
        known, poller = self._known, self._poller
        if known is not None and poller is not None and poller.pid == os.getpid():
            return known
        with self._lock():
            known, poller = self._known, self._poller
            if known is None or poller is None or poller.pid != os.getpid():
                known = self._begin(known)
            return known

    def _begin(self, inherited: _Known | None) -> _Known:
        poller = _Poller(pid=os.getpid(), process_id=self._process_id(), stop=threading.Event())
        if inherited is None:
            known = self._ask(poller, None)
            if not known.revision:
                logger.warning(
                    "The ledger has no stage settings yet: every task is in stage legacy. Set the first ones with "
                    "`queuebridge stage set STAGE --reason ...`."
                )
            self._known, self._poller = known, poller
        else:
            self._poller = poller
            age = self._clock() - inherited.at
            # If the parent could not reach the ledger either, its children need not wait to find that out.
            if age > _FRESH_POLLS * self._poll_seconds and self._trouble is None:
                self._follow(poller)
            known = self._known or inherited
        threading.Thread(
            target=_poll,
            args=(weakref.ref(self), poller, self._poll_seconds),
            name="queuebridge-stages",
            daemon=True,
        ).start()
        return known

    def _follow(self, poller: _Poller) -> None:
        try:
            known = self._ask(poller, self._known)
        except QueueBridgeError as error:
            self._note_trouble(redact(str(error)))
        except Exception as error:  # noqa: BLE001 - whatever the store's library does, the thread must live on
            self._note_trouble(redact(f"{type(error).__name__}: {error}"))
        else:
            if self._trouble is not None:
                logger.info("The stage settings can be read from the ledger again.")
            self._trouble = None
            self._known = known

    def _ask(self, poller: _Poller, known: _Known | None) -> _Known:
        number = known.revision if known is not None else 0
        at = self._clock()
        latest = self._report(poller, number)
        if latest is None:
            return _Known(settings=_BEGINNING, revision=0, at=at)
        if known is not None and latest.number == number:
            return _Known(settings=known.settings, revision=number, at=at)
        changed = _Known(settings=_settings_of(latest), revision=latest.number, at=at)
        # In force before it is reported: `queuebridge status` must not say so too early.
        self._known = changed
        logger.info("Revision %d of the stage settings is in force.", latest.number)
        self._report(poller, latest.number)
        return changed

    def _report(self, poller: _Poller, number: int) -> Revision | None:
        latest = self._store.report_process(poller.process_id, self._kind, number)
        if poller.stop.is_set():
            # Closed meanwhile: the report may have come after the farewell.
            self._store.forget_process(poller.process_id)
        return latest

    def _note_trouble(self, reason: str) -> None:
        if reason != self._trouble:
            number = self._known.revision if self._known is not None else 0
            logger.error("Revision %d of the stage settings stays in force: %s", number, reason)
        self._trouble = reason

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())


def _settings_of(revision: Revision) -> StageSettings:
    try:
        return from_json(revision.settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"Revision {revision.number} in the ledger: {error}") from None


def _poll(source: weakref.ref[LedgerSource], poller: _Poller, seconds: float) -> None:
    # By a weak reference: a source that nobody uses any more ends its thread.
    while not poller.stop.wait(seconds):
        target = source()
        if target is None:
            return
        target._follow(poller)
        del target
