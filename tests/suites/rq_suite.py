"""Run RQ's own tests, first as they are, then with our drop-ins in stage `legacy` with a ledger: `tox run -e rq-suite`.

What passes with RQ and not with the drop-ins has to be explained in the table of `docs/move-rq.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import rq

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "move-rq.md"
FILES = (
    "test_queue.py",
    "test_queue_unique.py",
    "test_job.py",
    "test_dependencies.py",
    "test_job_dependency.py",
    "test_callbacks.py",
    "test_retry.py",
    "test_repeat.py",
    "test_decorator.py",
    "test_results.py",
    "test_group.py",
    "test_worker.py",
)
# Without those that wait for workers and timeouts.
QUICK = tuple(name for name in FILES if name != "test_worker.py")


def main() -> int:
    """Run both, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out RQ's tests of its worker")
    parser.add_argument("--source", type=Path, help="an unpacked source distribution of RQ, instead of the one on PyPI")
    parser.add_argument("--report", type=Path, help="where to write the differences")
    chosen = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from redis_service import RedisService

    with tempfile.TemporaryDirectory() as folder:
        tests = _tests(Path(folder), chosen.source)
        server = RedisService.start()
        try:
            port = server.url.rpartition(":")[2]
            files = [
                f"tests/{name}" for name in (QUICK if chosen.quick else FILES) if (tests / "tests" / name).exists()
            ]
            plain = _run(tests, files, port, bridged=False)
            bridged = _run(tests, files, port, bridged=True)
        finally:
            server.stop()
    return _report(plain, bridged, chosen.report)


def _tests(folder: Path, source: Path | None) -> Path:
    """Return a folder with RQ's tests, and without its package: what is tested is what is installed."""
    if source is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "rq"]
        subprocess.run([*command, "--dest", str(folder), f"rq=={rq.__version__}"], check=True)
        (archive,) = folder.glob("rq-*.tar.gz")
        with tarfile.open(archive) as packed:
            if hasattr(tarfile, "data_filter"):
                packed.extractall(folder, filter="data")
            else:
                packed.extractall(folder)
        source = folder / archive.name.removesuffix(".tar.gz")
    tests = folder / "tests-of-rq"
    tests.mkdir()
    (tests / "tests").symlink_to((source / "tests").resolve(), target_is_directory=True)
    (tests / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    ssl_test\n", encoding="utf-8")
    return tests


def _run(tests: Path, files: list[str], port: str, *, bridged: bool) -> dict[str, str]:
    results = tests / f"results-{'bridged' if bridged else 'plain'}.json"
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(ROOT / "tests" / "suites")]),
        "RQ_SUITE_PORT": port,
        "RQ_SUITE_RESULTS": str(results),
    }
    if bridged:
        url = f"redis://127.0.0.1:{port}/1"
        environ |= {
            "RQ_SUITE_BRIDGED": "1",
            "QUEUEBRIDGE_LEGACY": "rq",
            "QUEUEBRIDGE_STAGE": "legacy",
            "QUEUEBRIDGE_LEDGER": url,
            "QUEUEBRIDGE_PUBLIC_URL": "https://jobs.example.com",
            "QSTASH_TOKEN": "t",
            "REDIS_URL": url,
        }
    options = ["-q", "-p", "rq_suite_plugin", "-p", "no:randomly", "-p", "no:cacheprovider", "--timeout", "120"]
    done = subprocess.run(
        [Path(sys.executable).with_name("pytest"), *options, *files],
        cwd=tests,
        env=environ,
        check=False,
        text=True,
        capture_output=True,
    )
    print(f"{'with the drop-ins' if bridged else 'as they are'}: {(done.stdout.strip().splitlines() or ['-'])[-1]}")
    if not results.exists():
        raise SystemExit(f"RQ's tests could not be run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    outcomes: dict[str, str] = json.loads(results.read_text(encoding="utf-8"))
    return outcomes


def explained() -> dict[str, str]:
    """Return the tests that the page explains, with the reasons."""
    rows = re.findall(r"^\| `(test_\w+\.py::[\w:]+)` \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def _report(plain: dict[str, str], bridged: dict[str, str], report: Path | None) -> int:
    reasons = explained()
    passed = [name for name, outcome in plain.items() if outcome == "passed"]
    different = {name: bridged.get(name, "not run") for name in passed if bridged.get(name) != "passed"}
    unexplained = {name: outcome for name, outcome in different.items() if name not in reasons}
    kept = len(passed) - len(different)
    lines = [f"{len(passed)} of RQ's {len(plain)} tests pass here with RQ, {kept} of these with the drop-ins."]
    lines += [f"{'EXPLAINED' if name in reasons else 'UNEXPLAINED'} {name}: {different[name]}" for name in different]
    print("\n".join(lines))
    if report is not None:
        report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if unexplained or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
