"""Reconcile again and again: in this process, or in one that accompanies a worker."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from queuebridge.bridge import Bridge
from queuebridge.errors import LedgerUnavailable, QueueBridgeError
from queuebridge.failures import redact
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.outcome import describe
from queuebridge.processes import interrupt_on_signals
from queuebridge.settings import environment_or, read_settings
from queuebridge.stages import Side
from queuebridge.strangers import rules_with_two_copies, unclaiming_workers

logger = logging.getLogger(__name__)

_STOP_SECONDS = 10.0
# Not the command line: that needs libraries which a worker may do without.
_PROGRAM = "from queuebridge.reconciling import main; main({parent})"


def reconcile_until_stopped(bridge: Bridge, *, every: float | None = None, parent: int | None = None) -> None:
    """Reconcile until this process is asked to end, and tell at first of workers that do not claim.

    Only for the main thread.

    Args:
        bridge: The bridge.
        every: Seconds between two looks; None is QUEUEBRIDGE_RECONCILE_SECONDS.
        parent: Stop when the process with this id is no longer the one that started us.

    Raises:
        LedgerRequired: The bridge has no ledger.
    """
    reconciler = bridge.reconciler()
    pause = every or read_settings(LedgerSettings, environment_or(None)).reconcile_seconds
    interrupt_on_signals()
    stop = threading.Event()
    away = asked = False
    with suppress(KeyboardInterrupt):
        while parent is None or os.getppid() == parent:
            try:
                reconciler.run_once()
                if away:
                    logger.info("The ledger is back.")
                away = False
                if not asked:
                    asked = True
                    _tell_of_strangers(bridge)
            except LedgerUnavailable as error:
                if not away:
                    logger.error("The ledger cannot be reached; trying on: %s", error, extra={"event": "ledger_down"})
                away = True
            except Exception:
                # Whatever it is, the jobs that come after must not wait for it.
                logger.exception("Reconciling failed; trying on.")
            stop.wait(pause)


def _tell_of_strangers(bridge: Bridge) -> None:
    """Log an error if workers do not claim although they have to.

    Where the environment or a file sets the stage, nobody else could have found them.
    """
    try:
        rules = rules_with_two_copies(bridge)
        problem = unclaiming_workers(bridge.backends[Side.LEGACY], rules) if rules else None
    except Exception as error:  # noqa: BLE001 - not all brokers can ask; that must not keep jobs waiting
        logger.warning("The workers could not be asked whether they claim: %s", redact(describe(error)))
        return
    if problem is not None:
        stages = ", ".join(sorted({rule.stage.value for rule in rules}))
        logger.error("In stage %s, %s", stages, problem, extra={"event": "unclaiming_workers"})


def main(parent: int) -> None:
    """Be the process that accompanies a worker.

    Args:
        parent: The id of the worker's process.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with Bridge(kind="reconcile") as bridge:
            reconcile_until_stopped(bridge, parent=parent)
    except QueueBridgeError as error:
        logger.error("Nobody reconciles beside this worker: %s", error)
        sys.exit(1)


class Companion:
    """The process that reconciles beside a worker, at most one for each process.

    Not a thread: workers fork, and a forked child would inherit whatever lock the thread holds at that moment. It ends
    with the process that started it, however that ends.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    @property
    def started(self) -> bool:
        """Whether this process has started it, and not stopped it since."""
        return self._child is not None and self._owner == os.getpid()

    @property
    def running(self) -> bool:
        """Whether this process has started it and it has not ended."""
        return self._child is not None and self._owner == os.getpid() and self._child.poll() is None

    def start(self, variables: Mapping[str, str]) -> bool:
        """Start it, if it does not run; return whether it was started.

        Args:
            variables: What its environment has besides that of this process.
        """
        parent = os.getpid()
        if self._child is not None and self._owner == parent:
            return False
        # Its log goes where ours goes; the new session keeps Ctrl-C from it until the worker has ended.
        self._child = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-c", _PROGRAM.format(parent=parent)],
            env={**environment_or(None), **variables},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._owner = parent
        return True

    def stop(self) -> None:
        """End it, if this process has started it."""
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.terminate()
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


companion = Companion()


@contextmanager
def reconciling(bridge: Bridge) -> Iterator[None]:
    """Reconcile in a process of its own while the block runs, if the bridge has a ledger."""
    started = bridge.ledger is not None and companion.start({})
    try:
        yield
    finally:
        if started:
            companion.stop()
