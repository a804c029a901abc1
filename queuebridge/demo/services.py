"""The processes of the migration, which may be killed and started anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from queuebridge.demo.attribution import Killed
from queuebridge.demo.killing import kill_family
from queuebridge.demo.steps import RECEIVER, SERVER, WORKER
from queuebridge.demo.world import (
    READY_SECONDS,
    WORKER_READY,
    PushPorts,
    World,
    start_receiver,
    start_server,
    wait_for_receiver,
    wait_for_server,
)
from queuebridge.processes import Child, Processes

# The embedded server waits so much shorter before it tries a delivery again: e^2.5 seconds are too long for a demo.
_TIME_SCALE = 40


class Service:
    """One process that can be killed and started anew.

    Args:
        processes: Where it belongs.
        start: Starts it.
        wait: Waits until it is ready.

    Attributes:
        killed: Every process that was killed, descendants included.
        kills: How often it was killed.
    """

    def __init__(self, processes: Processes, start: Callable[[], Child], wait: Callable[[Child], None]) -> None:
        self._processes = processes
        self._start = start
        self._wait = wait
        self._child: Child | None = None
        self._since = 0.0
        self.killed: list[Killed] = []
        self.kills = 0

    @property
    def running(self) -> bool:
        """Return whether it was started, and not killed or stopped since."""
        return self._child is not None

    def start(self) -> None:
        """Start it, if it does not run."""
        if self._child is None:
            self._since = time.time()
            self._child = self._start()

    def wait_until_ready(self) -> None:
        """Start it, if it does not run, and wait until it is ready.

        Raises:
            ProcessFailed: It ended, or takes too long.
        """
        self.start()
        if self._child is not None:
            self._wait(self._child)

    def kill(self) -> None:
        """End it and all its descendants with SIGKILL."""
        if self._child is None:
            return
        child, self._child = self._child, None
        self.killed += kill_family(child.process.pid, since=self._since)
        self.kills += 1
        self._processes.stop(child)

    def stop(self) -> None:
        """End it gently."""
        if self._child is not None:
            child, self._child = self._child, None
            self._processes.stop(child)


def services_of(world: World, ports: PushPorts, environment: Mapping[str, str], legacy: str) -> dict[str, Service]:
    """Return server, receiver and worker of a migration, not yet started, in the order in which to start them."""
    # What a Celery worker keeps on the broker must be told from the user's after it was killed: it has a name of its
    # own, and does not talk with other workers, which takes queues that nobody can tell whose they are.
    own = ("--hostname", f"{world.queue}@%h", "--without-gossip", "--without-mingle")
    options = ("--concurrency", "2", "--", *own) if legacy == "celery" else ()
    return {
        SERVER: Service(
            world.processes,
            lambda: start_server(world, environment, ports, "--time-scale", str(_TIME_SCALE)),
            lambda child: wait_for_server(child, ports),
        ),
        RECEIVER: Service(
            world.processes,
            lambda: start_receiver(world, environment, ports),
            lambda child: wait_for_receiver(child, ports),
        ),
        WORKER: Service(
            world.processes,
            lambda: world.start("worker", environment, "worker", *options),
            lambda child: child.wait_for_line(WORKER_READY, READY_SECONDS),
        ),
    }
