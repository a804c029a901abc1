"""A library that is not installed ends in one error that names the extra to install."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import run_python
from requirements import closure, extra_requirements
from source import setup_cfg

from queuebridge.loading import OPTIONAL_LIBRARIES

ENQUEUE = """
from queuebridge import Bridge, task

@task(name="double")
def double(n: int) -> int:
    return 2 * n

Bridge(environ=ENVIRON).enqueue(double, 21)
"""
RECEIVER = "from bridge_app import create_app\ncreate_app(environ=ENVIRON)"
VERIFIER = """
from queuebridge.loading import load_verifier
from queuebridge.settings import Settings
load_verifier(Settings.from_environment(ENVIRON), ENVIRON)
"""

QSTASH = {
    "QSTASH_TOKEN": "token",
    "QSTASH_URL": "http://127.0.0.1:1",
    "QSTASH_CURRENT_SIGNING_KEY": "sig_current_0123456789",
    "QSTASH_NEXT_SIGNING_KEY": "sig_next_0123456789",
    "QUEUEBRIDGE_PUBLIC_URL": "https://jobs.example.com",
}
CELERY = {"CELERY_BROKER_URL": "memory://"}
CELERY_ON_REDIS = {"CELERY_BROKER_URL": "redis://127.0.0.1:1"}
RQ = {"REDIS_URL": "redis://127.0.0.1:1"}

# Imports that fail as if nothing but the base requirements were installed, or all but some libraries.
MASK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MASKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
ALL = sorted({*OPTIONAL_LIBRARIES, "sqlalchemy", "alembic", "multidict", "yarl", "werkzeug"})


def error_of(code: str, masked: list[str], environ: dict[str, str], folder: Path) -> dict[str, str]:
    """Return type, message, library and extra of the error in which a program ends without some libraries."""
    program = f"""
import json
MASKED = {masked!r}
ENVIRON = {environ!r}
{MASK}
try:
    exec({code!r}, {{"__name__": "program", "ENVIRON": ENVIRON}})
except Exception as error:
    print(json.dumps({{
        "type": type(error).__name__,
        "message": str(error),
        "library": getattr(error, "library", ""),
        "extra": getattr(error, "extra", ""),
    }}))
else:
    print(json.dumps({{"type": "none"}}))
"""
    answer: dict[str, str] = json.loads(run_python(program, cwd=folder).splitlines()[-1])
    return answer


@pytest.mark.parametrize(
    ("code", "environ", "extra"),
    [
        pytest.param(ENQUEUE, QSTASH, "qstash", id="enqueue to qstash"),
        pytest.param(ENQUEUE, CELERY, "celery", id="enqueue to celery"),
        pytest.param(ENQUEUE, RQ, "rq", id="enqueue to rq"),
        pytest.param(VERIFIER, QSTASH, "qstash", id="verify deliveries"),
        pytest.param(RECEIVER, QSTASH, "qstash", id="the receiver"),
    ],
)
def test_feature_without_any_extra_names_its_own_extra(
    tmp_path: Path, code: str, environ: dict[str, str], extra: str
) -> None:
    error = error_of(code, ALL, environ, tmp_path)

    assert (error["type"], error["extra"]) == ("MissingExtra", extra), error
    assert f"pip install 'qstash-queuebridge[{extra}]'" in error["message"]


@pytest.mark.parametrize(
    ("masked", "code", "environ", "extra"),
    [
        pytest.param("qstash", ENQUEUE, QSTASH, "qstash", id="qstash"),
        pytest.param("httpx", ENQUEUE, QSTASH, "qstash", id="httpx for qstash"),
        pytest.param("flask", RECEIVER, QSTASH, "qstash", id="flask for the receiver"),
        pytest.param("jwt", RECEIVER, QSTASH, "qstash", id="jwt for the receiver"),
        pytest.param("celery", ENQUEUE, CELERY, "celery", id="celery"),
        pytest.param("kombu", ENQUEUE, CELERY, "celery", id="kombu for celery"),
        pytest.param("redis", ENQUEUE, CELERY_ON_REDIS, "redis", id="redis for celery"),
        pytest.param("rq", ENQUEUE, RQ, "rq", id="rq"),
        pytest.param("redis", ENQUEUE, RQ, "rq", id="redis for rq"),
    ],
)
def test_single_missing_library_is_named_with_its_extra(
    tmp_path: Path, masked: str, code: str, environ: dict[str, str], extra: str
) -> None:
    error = error_of(code, [masked], environ, tmp_path)

    assert (error["type"], error["extra"]) == ("MissingExtra", extra), error
    assert OPTIONAL_LIBRARIES[masked][0] in error["message"]


@pytest.mark.parametrize(
    ("masked", "arguments", "extra"),
    [("aiohttp", ["devserver"], "devserver"), ("rich", ["demo", "--help"], "cli")],
)
def test_command_without_its_library_names_the_extra(
    tmp_path: Path, masked: str, arguments: list[str], extra: str
) -> None:
    program = f"""
MASKED = {[masked]!r}
{MASK}
sys.argv = ["queuebridge", *{arguments!r}]
from queuebridge.__main__ import main
main()
"""

    with pytest.raises(AssertionError, match=r"ended with 3:\n+queuebridge: .*" + rf"\[{extra}\]"):
        run_python(program, cwd=tmp_path)


def test_inline_backend_needs_no_extra(tmp_path: Path) -> None:
    assert error_of(ENQUEUE, ALL, {"QUEUEBRIDGE_BACKEND": "inline"}, tmp_path) == {"type": "none"}


@pytest.mark.parametrize("module", sorted(OPTIONAL_LIBRARIES))
def test_named_extra_installs_the_library(module: str) -> None:
    library, extra = OPTIONAL_LIBRARIES[module]

    assert canonicalize_name(library) in closure(extra_requirements(extra))


def test_every_extra_is_part_of_all() -> None:
    extras = set(setup_cfg()["options.extras_require"]) - {"all", "test"}

    named = next(Requirement(line) for line in extra_requirements("all") if "queuebridge" in line)

    assert named.extras == extras
