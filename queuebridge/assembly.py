"""Put a bridge together: from settings to backends, ledger, runner and publisher."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from queuebridge.backend import Backend
from queuebridge.errors import ConfigurationError
from queuebridge.loading import load_backend, load_ledger
from queuebridge.parking import Parking
from queuebridge.publishing.draft import Publisher, SinglePublisher
from queuebridge.registry import TaskRegistry
from queuebridge.runner import Runner
from queuebridge.settings import Settings, read_settings
from queuebridge.stages import PUSH_BACKEND, Side, side_of

if TYPE_CHECKING:
    from queuebridge.ledger import Ledger
    from queuebridge.ledger.custody import Custody
    from queuebridge.ledger.settings import LedgerSettings
    from queuebridge.routing import StageSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What there is with a ledger.

    Attributes:
        ledger: The ledger.
        settings: How it is used.
        custody: How jobs are stored.
    """

    ledger: Ledger
    settings: LedgerSettings
    custody: Custody


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a bridge is made of.

    Attributes:
        backends: The backend of each side; without a migration, of the one side that there is.
        runner: Executes deliveries.
        publisher: Publishes jobs.
        stages: Where the stages come from; None without a migration.
        keeping: The ledger and what goes with it; None without one.
        parking: Puts push deliveries off; None if the push backend is not in use.
    """

    backends: Mapping[Side, Backend]
    runner: Runner
    publisher: Publisher
    stages: StageSource | None
    keeping: Keeping | None
    parking: Parking | None


def assemble(
    settings: Settings,
    environ: Mapping[str, str],
    registry: TaskRegistry,
    *,
    backend: Backend | str | None,
    ledger: Ledger | None,
    kind: str,
    clock: Callable[[], float] = time.time,
) -> Parts:
    """Return the parts of a bridge. Connects to nothing.

    Args:
        settings: The settings of the core.
        environ: Where those of adapters, ledger and migration are read from.
        registry: The tasks.
        backend: A backend, or the name of one, instead of the environment's choice; then there is no migration.
        ledger: A ledger instead of the one that the environment names.
        kind: What this process does: `producer`, `receiver`, `worker` or `reconcile`.
        clock: The time in Unix seconds.

    Raises:
        ConfigurationError: The environment selects no backend, or a setting is wrong.
        LedgerRequired: A stage needs a ledger, and there is none.
    """
    keeping = _keeping(settings, environ, ledger)
    runner = _runner(registry, keeping, clock)
    legacy = _legacy(environ) if backend is None else None

    def load(name: str) -> Backend:
        return load_backend(name, settings=settings, environ=environ, registry=registry, runner=runner)

    stages = None
    if legacy is not None:
        from queuebridge.routing import RoutingSettings, create_source

        stages = create_source(
            RoutingSettings.from_environment(environ), keeping.ledger if keeping is not None else None, kind=kind
        )
        backends = {Side.LEGACY: load(legacy), Side.PUSH: load(PUSH_BACKEND)}
    else:
        single = backend if isinstance(backend, Backend) else load(backend or select_backend(settings))
        if keeping is not None and single.name == "inline":
            logger.warning("The inline backend runs jobs at once, and does without the ledger in QUEUEBRIDGE_LEDGER.")
            keeping = None
            runner.claims = None
        backends = {side_of(single.name): single}
    push = backends.get(Side.PUSH)
    return Parts(
        backends=backends,
        runner=runner,
        publisher=_publisher(backends, keeping, environ, migrating=stages is not None, clock=clock),
        stages=stages,
        keeping=keeping,
        parking=Parking(push, counted_by_ledger=keeping is not None, clock=clock) if push is not None else None,
    )


def select_backend(settings: Settings) -> str:
    """Return the name of the backend that the environment selects, where there is no migration.

    QUEUEBRIDGE_BACKEND, else QStash if there is a token, else Celery if there is a broker URL, else RQ if
    there is a Redis URL, else, outside production, QStash on the embedded development server.

    Raises:
        ConfigurationError: Nothing is selected, in production.
    """
    if settings.backend is not None:
        return settings.backend
    if settings.qstash_token_present:
        return "qstash"
    if settings.celery_broker_present:
        return "celery"
    if settings.redis_present:
        return "rq"
    if settings.production:
        raise ConfigurationError(
            "No backend is configured. Set QSTASH_TOKEN for QStash, CELERY_BROKER_URL for Celery or REDIS_URL "
            "for RQ; QUEUEBRIDGE_BACKEND=qstash|celery|rq|inline chooses between them."
        )
    logger.warning(
        "No backend is configured: using the embedded development server, which `queuebridge dev` starts. "
        "Set QSTASH_TOKEN, CELERY_BROKER_URL or REDIS_URL, or QUEUEBRIDGE_BACKEND, to choose one."
    )
    return "qstash"


def _legacy(environ: Mapping[str, str]) -> str | None:
    """Return the old backend of the migration; None if there is no migration."""
    if not any(environ.get(name, "").strip() for name in ("QUEUEBRIDGE_LEGACY", "QUEUEBRIDGE_STAGE")):
        # Looked at first, because most processes have no migration and need not load what belongs to one.
        return None
    from queuebridge.routing import RoutingSettings

    return RoutingSettings.from_environment(environ).legacy


def _keeping(settings: Settings, environ: Mapping[str, str], ledger: Ledger | None) -> Keeping | None:
    if ledger is None:
        if settings.ledger_url is None:
            return None
        ledger = load_ledger(settings.ledger_url.get_secret_value())
    from queuebridge.ledger.custody import Custody
    from queuebridge.ledger.settings import LedgerSettings

    chosen = read_settings(LedgerSettings, environ)
    key = chosen.key.get_secret_value() if chosen.key is not None else None
    return Keeping(ledger=ledger, settings=chosen, custody=Custody(chosen.redact, key))


def _runner(registry: TaskRegistry, keeping: Keeping | None, clock: Callable[[], float]) -> Runner:
    if keeping is None:
        return Runner(registry, clock=clock)
    from queuebridge.claims import Claims

    return Runner(registry, clock=clock, claims=Claims(keeping.ledger, keeping.settings, keeping.custody))


def _publisher(
    backends: Mapping[Side, Backend],
    keeping: Keeping | None,
    environ: Mapping[str, str],
    *,
    migrating: bool,
    clock: Callable[[], float],
) -> Publisher:
    if keeping is None and not migrating:
        return SinglePublisher(next(iter(backends.values())))
    from queuebridge.ledger.settings import LedgerSettings
    from queuebridge.publishing.by_stage import PublisherByStage
    from queuebridge.publishing.staged import StagedPublisher

    chosen = keeping.settings if keeping is not None else read_settings(LedgerSettings, environ)
    ledger, custody = (keeping.ledger, keeping.custody) if keeping is not None else (None, None)
    staged = StagedPublisher(backends, ledger, chosen, custody, clock=clock)
    if not migrating:
        return staged
    return PublisherByStage(staged, backends, has_ledger=ledger is not None)
