"""The one place that imports adapters and the application, by name and only when they are used."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from queuebridge.errors import ConfigurationError, MissingExtra

if TYPE_CHECKING:
    from queuebridge.backend import Backend
    from queuebridge.delivery import DeliveryVerifier
    from queuebridge.envelope import Envelope
    from queuebridge.ledger import Ledger
    from queuebridge.registry import TaskRegistry
    from queuebridge.runnable import Runnable
    from queuebridge.runner import Runner
    from queuebridge.settings import Settings

# backend name -> module that defines `create_backend(settings, environ, registry, runner) -> Backend`
BACKEND_MODULES = {
    "qstash": "queuebridge.backends.qstash.backend",
    "celery": "queuebridge.backends.celery.backend",
    "rq": "queuebridge.backends.rq.backend",
    "inline": "queuebridge.backends.inline",
}
# backend name -> module that defines `run_worker(bridge, ...)`
WORKER_MODULES = {
    "celery": "queuebridge.backends.celery.worker",
    "rq": "queuebridge.backends.rq.worker",
}
# scheme of QUEUEBRIDGE_LEDGER -> (package that defines `create_ledger(url) -> Ledger`, the driver it needs besides)
LEDGER_MODULES = {
    "sqlite": ("queuebridge.storage.sql", None),
    "postgresql": ("queuebridge.storage.sql", "psycopg"),
    "postgresql+psycopg": ("queuebridge.storage.sql", "psycopg"),
    "redis": ("queuebridge.storage.redis", None),
    "rediss": ("queuebridge.storage.redis", None),
    "memory": ("queuebridge.storage.memory", None),
}
# The packages among them whose schema has to be upgraded, and the module with `upgrade(url) -> str`.
LEDGER_UPGRADES = {"queuebridge.storage.sql": "queuebridge.storage.sql.upgrade"}
# kind of an envelope that is no task of ours -> module that defines `find(envelope) -> Runnable`
FOREIGN_MODULES = {
    "celery": "queuebridge.backends.celery.receiving",
    "rq": "queuebridge.backends.rq.receiving",
}
VERIFIER_MODULE = "queuebridge.backends.qstash.verification"

# Top-level module of a library -> (the name on the package index, the extra that installs it)
OPTIONAL_LIBRARIES = {
    "qstash": ("qstash", "qstash"),
    "httpx": ("httpx", "qstash"),
    "jwt": ("PyJWT", "qstash"),
    "flask": ("flask", "qstash"),
    "celery": ("celery", "celery"),
    "billiard": ("celery", "celery"),
    "kombu": ("celery", "celery"),
    "rq": ("rq", "rq"),
    "redis": ("redis", "redis"),
    "sqlalchemy": ("SQLAlchemy", "sql"),
    "alembic": ("alembic", "sql"),
    "psycopg": ("psycopg", "sql"),
    "aiohttp": ("aiohttp", "devserver"),
    "cronsim": ("cronsim", "devserver"),
    "click": ("click", "cli"),
    "rich": ("rich", "cli"),
    "gunicorn": ("gunicorn", "cli"),
    "fakeredis": ("fakeredis", "all"),
    "cryptography": ("cryptography", "encryption"),
}
# Adapter -> its extra, where that installs more than the library that happens to be missed first.
_OWN_EXTRAS = {"queuebridge.backends.rq": "rq"}


def load_backend(
    name: str, *, settings: Settings, environ: Mapping[str, str], registry: TaskRegistry, runner: Runner
) -> Backend:
    """Return the backend of this name, configured from the environment.

    Raises:
        ConfigurationError: There is no such backend, or its settings are incomplete.
        MissingExtra: Its library is not installed.
    """
    if name not in BACKEND_MODULES:
        close = difflib.get_close_matches(name, BACKEND_MODULES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigurationError(
            # Not the name itself: it may be an address with a password, pasted into the wrong variable.
            f"QUEUEBRIDGE_BACKEND does not name a backend.{hint} There are: {', '.join(BACKEND_MODULES)}."
        )
    module = import_optional(BACKEND_MODULES[name], feature=f"The {name} backend")
    backend: Backend = module.create_backend(settings, environ, registry, runner)
    return backend


def load_verifier(settings: Settings, environ: Mapping[str, str]) -> DeliveryVerifier:
    """Return the verifier of push deliveries, configured from the environment."""
    module = import_optional(VERIFIER_MODULE, feature="The receiver")
    verifier: DeliveryVerifier = module.create_verifier(settings, environ)
    return verifier


def load_foreign(kind: str) -> Callable[[Envelope], Runnable]:
    """Return what finds out what an envelope of this kind names; the library that the call was written for is needed.

    Raises:
        MissingExtra: It is not installed.
    """
    find: Callable[[Envelope], Runnable] = import_optional(
        FOREIGN_MODULES[kind], feature=f"A call that was written for {kind}"
    ).find
    return find


def load_ledger(url: str) -> Ledger:
    """Return the ledger at an address. Nothing is opened yet.

    Raises:
        ConfigurationError: There is no ledger for such an address. It is not shown: it may have a password.
        MissingExtra: Its library is not installed.
    """
    ledger: Ledger = _import_ledger(url).create_ledger(url)
    return ledger


def upgrade_ledger(url: str) -> str:
    """Bring the schema of the ledger at an address up to date, and return what was done, in words.

    Raises:
        ConfigurationError: There is no ledger for such an address, or its schema is newer than this installation.
        LedgerUnavailable: It cannot be reached; nothing was changed.
    """
    module = _import_ledger(url).__name__
    if module not in LEDGER_UPGRADES:
        return "There is nothing to do: this ledger has no schema."
    import_optional("alembic", feature="The upgrade of the ledger")
    done: str = importlib.import_module(LEDGER_UPGRADES[module]).upgrade(url)
    return done


def _import_ledger(url: str) -> Any:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in LEDGER_MODULES:
        raise ConfigurationError(
            "QUEUEBRIDGE_LEDGER does not name a ledger. It begins with one of: "
            + ", ".join(f"{name}://" for name in LEDGER_MODULES)
            + "."
        )
    module, driver = LEDGER_MODULES[scheme]
    feature = "The ledger named by QUEUEBRIDGE_LEDGER"
    if driver is not None:
        import_optional(driver, feature=feature)
    return import_optional(module, feature=feature)


def import_optional(module: str, *, feature: str) -> Any:
    """Import one of our modules that needs an optional library.

    Args:
        module: The full name of the module.
        feature: What the user wanted, as the subject of a sentence.

    Raises:
        MissingExtra: A library it needs is not installed; names the extra.
    """
    with naming_extra(feature, _OWN_EXTRAS.get(module.rpartition(".")[0])):
        return importlib.import_module(module)


@contextmanager
def naming_extra(feature: str, extra: str | None = None) -> Iterator[None]:
    """Turn the error of an import inside the block, for want of an optional library, into one that says what to do.

    Args:
        feature: What the user wanted, as the subject of a sentence.
        extra: The extra to name; None means the library's own.

    Raises:
        MissingExtra: The library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in OPTIONAL_LIBRARIES:
            raise
        library, own = OPTIONAL_LIBRARIES[missing]
        raise MissingExtra(feature, library, extra or own) from error


def import_attribute(path: str, *, variable: str) -> Any:
    """Return the object that `package.module:attribute` names.

    Args:
        path: The path.
        variable: The setting it comes from, for errors.

    Raises:
        ConfigurationError: The path is malformed, or the module or attribute does not exist. An error inside
            the module is raised as it is.
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for name in (module_name, attribute) for part in name.split(".")):
        # Not the value itself: it may be an address with a password, pasted into the wrong variable.
        raise ConfigurationError(f"{variable} is not of the form package.module:attribute.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(f"{variable}={path!r}: there is no module {error.name!r}.") from error
    target: Any = module
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            raise ConfigurationError(f"{variable}={path!r}: {module_name} has no attribute {attribute!r}.") from None
    return target
