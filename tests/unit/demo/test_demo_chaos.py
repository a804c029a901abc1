"""Kills: planned by a seed, and of whole families."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from queuebridge.demo.chaos import Chaos
from queuebridge.demo.killing import kill_family
from queuebridge.demo.services import Service

# A process with a child in a session of its own, as workers have; it prints the id of the child when that runs.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


class FakeService:
    def __init__(self, name: str, log: list[str]) -> None:
        self._name = name
        self._log = log
        self.running = True

    def start(self) -> None:
        self.running = True
        self._log.append(f"start {self._name}")

    def wait_until_ready(self) -> None:
        if not self.running:
            self.start()

    def kill(self) -> None:
        self.running = False
        self._log.append(f"kill {self._name}")


class World:
    def __init__(self, seed: int = 1) -> None:
        self.now = 0.0
        self.log: list[str] = []
        services: Any = {name: FakeService(name, self.log) for name in ("server", "receiver", "worker")}
        self.services = services
        self.notes: list[str] = []
        self.chaos = Chaos(cast("dict[str, Service]", services), seed, note=self.notes.append, clock=lambda: self.now)

    def run(self, seconds: float) -> list[tuple[float, str]]:
        """Let time pass, and return what happened when."""
        happened = []
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            before = len(self.log)
            self.chaos.act()
            happened += [(round(self.now, 1), what) for what in self.log[before:]]
        return happened


def test_each_planned_service_is_killed_once_and_started_anew() -> None:
    world = World()
    world.chaos.plan(["receiver", "server"], 10)

    happened = [what for _, what in world.run(15)]

    assert sorted(happened) == ["kill receiver", "kill server", "start receiver", "start server"]
    assert len(world.notes) == 2


def test_same_seed_gives_the_same_moments() -> None:
    histories = []
    for seed in (5, 5, 6):
        world = World(seed)
        world.chaos.plan(["receiver", "worker", "server"], 10)
        histories.append(world.run(15))

    assert histories[0] == histories[1] != histories[2]


def test_calm_kills_nothing_more_and_has_everything_running() -> None:
    world = World()
    world.chaos.plan(["server"], 10)
    while "kill server" not in world.log:
        world.run(0.1)
    world.chaos.plan(["receiver"], 10)

    world.chaos.calm()

    assert world.services["server"].running
    assert world.run(20) == []


def test_calm_for_one_service_leaves_the_others_in_danger() -> None:
    world = World()
    world.chaos.plan(["worker", "receiver"], 10)

    world.chaos.calm("worker")

    assert [what for _, what in world.run(15)] == ["kill receiver", "start receiver"]


@pytest.mark.timeout(30)
def test_descendants_in_other_sessions_are_killed_and_known() -> None:
    since = time.time()
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())

        killed = kill_family(parent.pid, since=since)

        assert parent.wait(10) == -9
    assert {process.pid for process in killed} == {parent.pid, child}
    assert all(process.since == since <= process.until for process in killed)
    # Whoever adopted it may take a moment to notice.
    while Path(f"/proc/{child}").exists() and not _is_dead(child):
        time.sleep(0.01)


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
