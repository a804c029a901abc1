"""Which layer may import which: read from the source, so that imports inside functions count too."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

import pytest
from source import Import, Module, below, imports, is_standard, modules

VALIDATION = ("pydantic", "pydantic_core", "typing_extensions")


@dataclass(frozen=True)
class Layer:
    """A part of the code and what it may import besides the standard library and itself."""

    name: str
    packages: tuple[str, ...]
    libraries: tuple[str, ...]
    own: tuple[str, ...] = ()
    without: tuple[str, ...] = field(default=())

    def holds(self, module: str) -> bool:
        """Say whether a module belongs to this layer."""
        return below(module, *self.packages) and not below(module, *self.without)


CORE = Layer(
    "core",
    ("queuebridge",),
    # OpenTelemetry is looked at only in programs that have imported it themselves. tomllib is tomli in Python 3.10.
    (*VALIDATION, "opentelemetry", "tomli", "tomllib"),
    without=(
        "queuebridge.backends",
        "queuebridge.cli",
        "queuebridge.demo",
        "queuebridge.storage",
        "queuebridge.testing",
        "queuebridge.ledger.sealing",
    ),
)
LAYERS = [
    CORE,
    Layer("sealing", ("queuebridge.ledger.sealing",), (*VALIDATION, "cryptography"), ("core",)),
    Layer("inline", ("queuebridge.backends.inline",), VALIDATION, ("core",)),
    Layer(
        "qstash",
        ("queuebridge.backends.qstash",),
        # httpcore is what httpx, which the SDK uses, sends and receives through.
        (*VALIDATION, "qstash", "httpx", "httpcore", "jwt"),
        ("core",),
        without=("queuebridge.backends.qstash.devserver",),
    ),
    Layer(
        "devserver",
        ("queuebridge.backends.qstash.devserver",),
        # multidict and yarl are aiohttp's own header maps and URLs.
        (*VALIDATION, "aiohttp", "cronsim", "multidict", "yarl"),
        ("core", "qstash"),
    ),
    Layer("celery", ("queuebridge.backends.celery",), (*VALIDATION, "billiard", "celery", "kombu", "redis"), ("core",)),
    Layer("rq", ("queuebridge.backends.rq",), (*VALIDATION, "rq", "redis"), ("core",)),
    Layer("storage", ("queuebridge.storage",), VALIDATION, ("core",)),
    Layer("storage.sql", ("queuebridge.storage.sql",), (*VALIDATION, "sqlalchemy", "alembic"), ("core", "storage")),
    Layer("storage.redis", ("queuebridge.storage.redis",), (*VALIDATION, "redis"), ("core", "storage")),
    Layer("backends", ("queuebridge.backends",), (), without=("queuebridge.backends.*",)),
    Layer("receiver", ("bridge_app",), (*VALIDATION, "flask", "werkzeug"), ("core",)),
    # In its own process a test meets the adapters only through what loads them.
    Layer("testing", ("queuebridge.testing",), (*VALIDATION, "pytest"), ("core",)),
    Layer("demo", ("queuebridge.demo",), (*VALIDATION, "redis", "fakeredis"), ("core",)),
    # Flask for the type of the receiver only.
    Layer("cli", ("queuebridge.cli",), (*VALIDATION, "click", "rich", "flask"), ("core", "demo")),
]

# The only places that import by name, and what for.
IMPORT_BY_NAME = {
    "queuebridge.loading": "adapters, when they are chosen",
    "queuebridge.registry": "the user's modules that declare tasks",
}

# Besides modules named `settings`, the only places that touch the environment, and what for.
ENVIRONMENT = {
    "queuebridge.cli.dev": "the environment of child processes; NO_COLOR",
}


def layer_of(module: str) -> Layer:
    """Return the layer of a module: the one with the longest matching package."""
    candidates = [layer for layer in LAYERS if layer.holds(module)]
    assert candidates, f"{module} belongs to no layer: give it one in {__name__}"
    return max(candidates, key=lambda layer: max(len(p) for p in layer.packages if below(module, p)))


def allowed(module: str, target: Import) -> bool:
    """Say whether `module` may import `target`."""
    layer = layer_of(module)
    if is_standard(target.top):
        return True
    if target.top not in ("queuebridge", "bridge_app"):
        return target.top in layer.libraries
    other = layer_of(target.target)
    return other is layer or other.name in layer.own


@pytest.mark.parametrize("module", modules(), ids=str)
def test_module_imports_only_what_its_layer_may(module: Module) -> None:
    wrong = [f"line {found.line}: {found.target}" for found in imports(module) if not allowed(module.name, found)]

    assert not wrong, f"The layer {layer_of(module.name).name!r} may not import that: {wrong}"


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("queuebridge.bridge", "queuebridge.backends.rq.backend"),
        ("queuebridge.bridge", "queuebridge.cli.app"),
        ("queuebridge.bridge", "bridge_app"),
        ("queuebridge.bridge", "flask"),
        ("queuebridge.bridge", "redis.client"),
        ("queuebridge.bridge", "queuebridge.storage.memory"),
        ("queuebridge.storage.memory.ledger", "sqlalchemy"),
        ("queuebridge.storage.memory.ledger", "queuebridge.storage.sql"),
        ("queuebridge.storage.sql.ledger", "redis"),
        ("queuebridge.storage.redis.ledger", "queuebridge.storage.sql"),
        ("queuebridge.backends.rq.backend", "queuebridge.backends.celery.backend"),
        ("queuebridge.backends.rq.backend", "celery"),
        ("queuebridge.backends.celery.worker", "bridge_app.factory"),
        ("queuebridge.backends.qstash.backend", "queuebridge.backends.qstash.devserver.engine"),
        ("queuebridge.backends.qstash.backend", "aiohttp"),
        ("queuebridge.backends.inline", "queuebridge.backends.qstash.protocol"),
        ("queuebridge.backends", "queuebridge.backends.inline"),
        ("bridge_app.receiver", "queuebridge.backends.qstash.verification"),
        ("bridge_app.receiver", "jwt"),
        ("queuebridge.cli.worker", "queuebridge.backends.rq.worker"),
        ("queuebridge.demo.migration", "queuebridge.cli.app"),
        ("queuebridge.demo.migration", "click"),
        ("queuebridge.bridge", "queuebridge.testing.server"),
        ("queuebridge.testing.server", "queuebridge.backends.qstash.devserver.server"),
        ("queuebridge.testing.plugin", "aiohttp"),
    ],
)
def test_layer_rules_forbid(module: str, target: str) -> None:
    assert not allowed(module, Import(target, 1))


def test_imports_inside_functions_and_relative_ones_are_seen() -> None:
    module = next(module for module in modules() if module.name == "queuebridge.backends.qstash.backend")
    seen = {found.target for found in imports(module)}

    assert {"math", "qstash.message", "queuebridge.backends.qstash.transport"} <= seen


def test_adapters_are_never_imported_under_the_name_of_their_folder() -> None:
    wrong = [f"{module}:{found.line}" for module in modules() for found in imports(module) if found.top == "backends"]

    assert not wrong


def test_only_named_modules_import_by_name() -> None:
    found = {module.name for module in modules() if imports_by_name(module)}

    assert found == set(IMPORT_BY_NAME)


def test_only_settings_touch_the_environment() -> None:
    found = {module.name for module in modules() if touches_environment(module.tree)}

    assert {name for name in found if not name.endswith(".settings")} == set(ENVIRONMENT)


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.environ['A']",
        "import os as system\nsystem.environ['A']",
        "from os import environ",
        "from os import getenv as get",
        "import os\nos.getenv('A')",
        "import os\nos.putenv('A', '1')",
    ],
)
def test_every_way_to_touch_the_environment_is_seen(code: str) -> None:
    assert touches_environment(ast.parse(code))


def touches_environment(tree: ast.Module) -> bool:
    """Say whether code names the process's environment."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    system = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "os"
    }
    return any(
        (isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in names for a in node.names))
        or (
            isinstance(node, ast.Attribute)
            and node.attr in names
            and isinstance(node.value, ast.Name)
            and node.value.id in system
        )
        for node in ast.walk(tree)
    )


def imports_by_name(module: Module) -> bool:
    """Say whether a module can import another one whose name is a string."""
    tools = ("importlib", "importlib.util", "importlib.machinery", "runpy", "imp")
    return any(found.target in tools for found in imports(module)) or any(
        isinstance(node, ast.Name) and node.id in ("__import__", "exec", "eval") for node in ast.walk(module.tree)
    )
