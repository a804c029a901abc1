"""Reconcile all the time, in a process of its own beside a worker: `python -m queuebridge.reconciling PARENT`.

Not in a thread: workers fork, and a forked child would inherit whatever lock the thread holds at that moment.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from queuebridge.bridge import Bridge
from queuebridge.errors import LedgerUnavailable
from queuebridge.ledger.settings import LedgerSettings
from queuebridge.processes import interrupt_on_signals
from queuebridge.reconcile import Reconciler
from queuebridge.settings import environment_or, read_settings

logger = logging.getLogger(__name__)

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_END_SECONDS = 10.0


def start_reconciling() -> subprocess.Popen[bytes]:
    """Start the process; it ends with this one, however that ends."""
    # Its log goes where ours goes; the new session keeps Ctrl-C from it until the worker has ended.
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", __name__, str(os.getpid())], stdin=subprocess.DEVNULL, start_new_session=True
    )


def stop_reconciling(child: subprocess.Popen[bytes]) -> None:
    """End the process, and wait until it has ended."""
    child.terminate()
    try:
        child.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        # What it has in hand, another one takes over.
        child.kill()
        child.wait()


@contextmanager
def reconciling(bridge: Bridge) -> Iterator[None]:
    """Reconcile while the block runs, if the bridge has a ledger."""
    if bridge.ledger is None:
        yield
        return
    child = start_reconciling()
    try:
        yield
    finally:
        stop_reconciling(child)


def reconcile_on(reconciler: Reconciler, *, pause: float, parent: int | None = None) -> None:
    """Reconcile again and again, whatever goes wrong.

    Args:
        reconciler: What to run.
        pause: Seconds between two looks.
        parent: End when this process, which started us, is gone.
    """
    stop = threading.Event()
    away = False
    while parent is None or os.getppid() == parent:
        try:
            reconciler.run_once()
            if away:
                logger.info("The ledger is back.")
            away = False
        except LedgerUnavailable as error:
            if not away:
                logger.error("The ledger cannot be reached; trying on: %s", error, extra={"event": "ledger_down"})
            away = True
        except Exception:
            # Whatever it is, the jobs that come after must not wait for it.
            logger.exception("Reconciling failed; trying on.")
        stop.wait(pause)


def pause_seconds() -> float:
    """Return how long to wait between two looks, from the environment."""
    return read_settings(LedgerSettings, environment_or(None)).reconcile_seconds


def main() -> None:
    """Reconcile until the parent is gone."""
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    try:
        interrupt_on_signals()
        with Bridge(kind="reconcile") as bridge:
            reconcile_on(bridge.reconciler(), pause=pause_seconds(), parent=int(sys.argv[1]))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
