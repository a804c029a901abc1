"""What every test gets: a clean environment, real services, child processes."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import hypothesis
import pytest
from postgres_service import PostgresService
from processes import Spawner
from processes import free_port as find_free_port
from rabbitmq_service import RabbitService
from redis_service import RedisService
from services import Service, provide

import queuebridge

SERVICES_VARIABLE = "QUEUEBRIDGE_TEST_SERVICES"
_SERVICES: tuple[type[Service], ...] = (RedisService, RabbitService, PostgresService)
_SERVICE_FIXTURES = ("redis_url", "rabbitmq_url", "postgres_url")

# Whatever could choose a backend, point to a broker or tell production from development.
_SCRUBBED = re.compile(
    r"(QUEUEBRIDGE_|QSTASH_|CELERY_|RQ_|RENDER|VERCEL|RAILWAY).*|(REDIS|BASE|API|PUBLIC)_URL|"
    r"APP_ENV|ENVIRONMENT|ENV|FLASK_ENV"
)

_PROCESS = os.getpid()
_settings = pytest.StashKey[dict[str, str]]()
_spawner = pytest.StashKey[Spawner]()

# How fast this machine is today is no property of the code.
hypothesis.settings.register_profile("queuebridge", deadline=None)
hypothesis.settings.load_profile("queuebridge")


def pytest_configure(config: pytest.Config) -> None:
    """Read the variables that are meant for the tests, before any test removes them."""
    names = (SERVICES_VARIABLE, *(service.variable for service in _SERVICES))
    config.stash[_settings] = {name: os.environ[name] for name in names if os.environ.get(name)}
    if config.stash[_settings].get(SERVICES_VARIABLE, "required") != "required":
        raise pytest.UsageError(f"{SERVICES_VARIABLE} is either unset or 'required'.")
    signal.signal(signal.SIGTERM, _end_in_order)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell has what it runs in the background ignore it, and so would every child of ours.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not loaded by its entry point when coverage is measured, which has to see our modules being imported.
    if not config.pluginmanager.has_plugin("queuebridge"):
        config.pluginmanager.import_plugin("queuebridge.testing.plugin")


def _end_in_order(number: int, frame: FrameType | None) -> None:
    """End the run with all its fixtures when it is told to stop, so that no child process is left behind."""
    # A forked child has this handler too, and nothing to tear down.
    if os.getpid() != _PROCESS:
        os._exit(128 + number)
    pytest.exit("stopped by SIGTERM", returncode=128 + number)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the developer's own settings from the test, and forget the process's bridge afterwards."""
    for name in list(os.environ):
        if _SCRUBBED.fullmatch(name):
            monkeypatch.delenv(name)
    yield
    queuebridge.set_bridge(None)


@pytest.fixture(scope="session", autouse=True)
def _one_copy_of_every_adapter() -> Iterator[None]:
    """Fail the run if the adapters were imported under a second name, with second copies of their classes."""
    yield
    copies = sorted(name for name in sys.modules if name.partition(".")[0] == "backends")
    assert not copies, f"Imported as top-level modules, not as queuebridge.backends: {copies}"


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[Service]:
    """A real Redis."""
    yield from _provide(RedisService, request.config)


@pytest.fixture(scope="session")
def rabbitmq_server(request: pytest.FixtureRequest) -> Iterator[Service]:
    """A real RabbitMQ."""
    yield from _provide(RabbitService, request.config)


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[Service]:
    """A real PostgreSQL."""
    yield from _provide(PostgresService, request.config)


def _provide(kind: type[Service], config: pytest.Config) -> Iterator[Service]:
    settings = config.stash[_settings]
    return provide(kind, settings.get(kind.variable), required=SERVICES_VARIABLE in settings)


@pytest.fixture
def redis_url(redis_server: Service) -> Iterator[str]:
    """The URL of an empty Redis database that belongs to this test."""
    with redis_server.fresh() as url:
        yield url


@pytest.fixture
def rabbitmq_url(rabbitmq_server: Service) -> Iterator[str]:
    """The URL of an empty RabbitMQ virtual host that belongs to this test."""
    with rabbitmq_server.fresh() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: Service) -> Iterator[str]:
    """The URL of an empty PostgreSQL database that belongs to this test."""
    with postgres_server.fresh() as url:
        yield url


@pytest.fixture
def spawn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spawner]:
    """Start child processes: `spawn(args, env=..., name=...)`. They end with the test."""
    # Set up first, torn down last: the children must be gone before their database is emptied.
    for name in _SERVICE_FIXTURES:
        if name in request.fixturenames:
            request.getfixturevalue(name)
    folder = tmp_path / "processes"
    folder.mkdir()
    spawner = Spawner(folder)
    request.node.stash[_spawner] = spawner
    yield spawner
    spawner.close()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that finds a free TCP port."""
    return find_free_port


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the output of child processes when a test fails."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed and _spawner in item.stash:
        report.sections.extend(item.stash[_spawner].reports())
    return report  # type: ignore[return-value]
