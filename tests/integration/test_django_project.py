"""A Django project with Celery, as Celery's documentation lays it out, and one line more."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from processes import ChildProcess, Spawner, free_port, wait_until

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER

pytest.importorskip("django")

SOURCE = Path(__file__).parents[1] / "support" / "applications" / "django_shop"
ORDERS = ("delay", "delay_on_commit", "apply_async_on_commit", "on_commit")
PACKAGES = ("orders", "orders/management", "orders/management/commands", "orders/migrations")
PYTHON = sys.executable


class Project:
    """The project, its settings, and its processes."""

    def __init__(self, spawn: Spawner, folder: Path, broker: str, stage: str) -> None:
        self._spawn = spawn
        self.folder = folder / "project"
        shutil.copytree(SOURCE, self.folder)
        for package in PACKAGES:
            (self.folder / package / "__init__.py").touch()
        (self.folder / "proj" / "__init__.py").write_text("from .celery import app as celery_app\n")
        self.port, self.receiver_port = free_port(), free_port()
        self.environ = {
            "PYTHONPATH": str(self.folder),
            "DJANGO_SETTINGS_MODULE": "proj.settings",
            "SHOP_DATABASE": str(folder / "shop.db"),
            "SHOP_BROKER": broker,
            "SHOP_RESULTS": broker,
            "QUEUEBRIDGE_LEGACY": "celery",
            "QUEUEBRIDGE_STAGE": stage,
            "QUEUEBRIDGE_LEDGER": f"sqlite:///{folder / 'ledger.db'}",
            "QUEUEBRIDGE_CELERY_APP": "proj:celery_app",
            "QUEUEBRIDGE_PUBLIC_URL": f"http://127.0.0.1:{self.receiver_port}",
            "QSTASH_URL": f"http://127.0.0.1:{self.port}",
            "QSTASH_TOKEN": DEFAULT_DEV_USER.token,
            "QSTASH_CURRENT_SIGNING_KEY": DEFAULT_DEV_USER.current_signing_key,
            "QSTASH_NEXT_SIGNING_KEY": DEFAULT_DEV_USER.next_signing_key,
        }
        self.run("queuebridge", "ledger", "upgrade")
        self.manage("migrate", "--verbosity", "0")

    def start(self, *arguments: str) -> ChildProcess:
        """Start a module of Python."""
        return self._spawn([PYTHON, "-m", *arguments], env=self.environ, name=arguments[0])

    def run(self, *arguments: str) -> None:
        """Run a module of Python to its end."""
        child = self.start(*arguments)
        assert child.wait(40) == 0, child.report()

    def manage(self, *arguments: str) -> str:
        """Run a command of the project, and return what it said."""
        child = self._spawn([PYTHON, str(self.folder / "manage.py"), *arguments], env=self.environ, name=arguments[0])
        assert child.wait(60) == 0, child.report()
        return child.stdout

    def orders(self) -> dict[str, list[object]]:
        """Return how often each order was charged, and by whom."""
        found: dict[str, list[object]] = json.loads(self.manage("show_orders"))
        return found

    def receive(self) -> None:
        """Start what receives pushed jobs, in one thread."""
        self.start("queuebridge", "devserver", "--port", str(self.port)).wait_for_port(self.port)
        arguments = ("--port", str(self.receiver_port), "--workers", "1", "--threads", "1")
        self.start("queuebridge", "receiver", *arguments).wait_for_port(self.receiver_port)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("stage", ["legacy", "push"])
def test_project_calls_its_tasks_in_every_way(spawn: Spawner, tmp_path: Path, redis_url: str, stage: str) -> None:
    project = Project(spawn, tmp_path, redis_url, stage)
    if stage == "push":
        project.receive()
    else:
        worker = project.start("celery", "-A", "proj", "worker", "-c", "1", "-P", "solo", "-l", "INFO")
        worker.wait_for_line(r"ready\.", 40)

    results = json.loads(project.manage("take_orders"))
    wait_until(lambda: all(charged for charged, _ in project.orders().values()), 60, what="all orders")
    orders = project.orders()

    # No connection to the database is left from an earlier task.
    assert results == ["1 False", "1 False"]
    assert set(orders) == set(ORDERS)
    assert [charged for charged, _ in orders.values()] == [1, 1, 1, 1]
    assert {("celery" in str(by)) for _, by in orders.values()} == {stage == "legacy"}
