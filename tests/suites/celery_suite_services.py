"""What runs beside Celery's integration tests: Redis, and for the bridge the embedded server and an idle worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from processes import Spawner, free_port
from redis_service import RedisService

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER

HERE = Path(__file__).resolve().parent
# What may not leak from the caller's environment into a run.
_PREFIXES = ("QUEUEBRIDGE_", "QSTASH_", "CELERY_", "REDIS_", "RQ_", "TEST_B")


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to run the tests.

    Attributes:
        name: Its name.
        environment: What the bridge is told, by environment variables; empty for plain Celery.
        ledger: Where its ledger is: `sqlite`, `redis` or nowhere.
        worker: Whether a worker runs tasks.
    """

    name: str
    environment: Mapping[str, str]
    ledger: str = ""
    worker: bool = True


def _migration(name: str, stage: str, ledger: str, *, worker: bool = True) -> Mode:
    environment = {"QUEUEBRIDGE_LEGACY": "celery", "QUEUEBRIDGE_STAGE": stage, "QUEUEBRIDGE_HEDGE_SECONDS": "3"}
    return Mode(name=name, environment=environment, ledger=ledger, worker=worker)


PLAIN = Mode(name="plain", environment={})
LEGACY = Mode(name="legacy", environment={"QUEUEBRIDGE_LEGACY": "celery", "QUEUEBRIDGE_STAGE": "legacy"})
PUSH = Mode(name="push", environment={"QUEUEBRIDGE_BACKEND": "qstash"}, worker=False)
STAGE_PUSH = _migration("stage-push", "push", "sqlite", worker=False)
DUAL = _migration("dual", "dual", "sqlite")
LIVE = _migration("live", "live", "redis")


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without anything that could choose a backend, a broker or a plugin."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_PREFIXES) and name not in ("PYTEST_ADDOPTS", "PYTHONPATH", "PUBLIC_URL", "BASE_URL")
    }


@contextmanager
def services(mode: Mode, source: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Start what a mode needs, and yield the environment variables for the tests.

    Args:
        mode: The mode.
        source: The folder with Celery's tests.
        folder: Where logs go, and a ledger in a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    redis = RedisService.start()
    spawn = Spawner(folder)
    try:
        place = urlsplit(redis.url)
        environment = {
            "REDIS_HOST": str(place.hostname),
            "REDIS_PORT": str(place.port),
            "TEST_BROKER": f"{redis.url}/1",
            # The tests look for some keys of their own in database 0.
            "TEST_BACKEND": f"{redis.url}/0",
            **mode.environment,
        }
        if mode.environment:
            environment.update(_bridge(mode, redis.url, folder, spawn, source, environment))
        yield environment
    finally:
        spawn.close()
        redis.stop()


def _bridge(
    mode: Mode, redis_url: str, folder: Path, spawn: Spawner, source: Path, environment: Mapping[str, str]
) -> dict[str, str]:
    """Start the processes of a bridge; return what the environment needs besides."""
    command = (sys.executable, "-m", "queuebridge")
    server, receiver = free_port(), free_port()
    more = {
        "QSTASH_URL": f"http://127.0.0.1:{server}",
        "QSTASH_TOKEN": DEFAULT_DEV_USER.token,
        "QSTASH_CURRENT_SIGNING_KEY": DEFAULT_DEV_USER.current_signing_key,
        "QSTASH_NEXT_SIGNING_KEY": DEFAULT_DEV_USER.next_signing_key,
        "QUEUEBRIDGE_PUBLIC_URL": f"http://127.0.0.1:{receiver}",
        "CELERY_SUITE_RECEIVER": str(receiver),
    }
    if mode.ledger == "redis":
        more["QUEUEBRIDGE_LEDGER"] = f"{redis_url}/2"
    elif mode.ledger:
        more["QUEUEBRIDGE_LEDGER"] = f"sqlite:///{folder / 'ledger.db'}"
    known = {**environment, **more, "PYTHONPATH": f"{source}:{HERE}"}
    if mode.ledger:
        spawn([*command, "ledger", "upgrade"], env=known, name="upgrade").wait()
    process = spawn([*command, "devserver", "--port", str(server)], env=known, name="server")
    if not mode.worker:
        # Some tests ask workers for signs of life. This one answers, and takes no task of theirs.
        spawn(
            [
                *(sys.executable, "-m", "celery", "-A", "celery_suite_app", "worker", "-Q", "idle", "-P", "solo"),
                *("--loglevel", "INFO", "--without-mingle", "--without-gossip"),
            ],
            env={**known, "CELERY_SUITE_IDLE": "1"},
            name="idle-worker",
        ).wait_for_line("ready")
    process.wait_for_port(server)
    return more
