"""Type-check all three packages as installed, and typical use of them: `tox run -e types`.

An editable installation would hide `queuebridge.backends` from mypy, and in the project's root mypy would take
the local folder, which has no backends inside, and report success. So an installed wheel is checked, from another
folder, and the number of files is counted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from source import FOLDERS, ROOT, modules

CONSUMER = ROOT / "tests" / "typecheck" / "consumer.py"


def main() -> int:
    """Run mypy and return the exit status."""
    for package in FOLDERS.values():
        spec = find_spec(package)
        if spec is None or spec.origin is None or "site-packages" not in Path(spec.origin).parts:
            print(f"{package} is not installed from a wheel: {spec.origin if spec else 'it is not installed'}.")
            return 2
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mypy", "--config-file", ROOT / "setup.cfg", "--cache-dir", folder),
                *("-p", "queuebridge", "-p", "bridge_app", "-m", CONSUMER.stem),
            ],
            cwd=folder,
            env={**os.environ, "MYPYPATH": str(CONSUMER.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
    print(done.stdout + done.stderr, end="")
    # mypy takes a folder of data inside a package for a package without `__init__`, and counts it too.
    data = [folder for name in FOLDERS for folder in (ROOT / name).rglob("*/") if is_data(folder)]
    expected = len(modules()) + len(data) + 1
    counted = re.search(r"(?:checked|in) (\d+) source files?", done.stdout)
    if counted is None or int(counted.group(1)) != expected:
        print(
            f"There are {expected} files to check: {len(modules())} modules, {len(data)} folders of data, and "
            f"{CONSUMER.name}."
        )
        return 2
    return done.returncode


def is_data(folder: Path) -> bool:
    """Return whether a folder inside a package is no package itself."""
    return folder.is_dir() and folder.name != "__pycache__" and not (folder / "__init__.py").exists()


if __name__ == "__main__":
    sys.exit(main())
