"""Get Celery's tests: they are in its source distribution, and in no wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path


def unpack_source(folder: Path) -> Path:
    """Download the source distribution of the Celery that is installed; return the folder with its tests.

    Args:
        folder: An empty folder to work in.
    """
    wanted = f"celery=={version('celery')}"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-binary", "celery", "--dest", folder / "download", wanted),
        ],
        check=True,
        # What pip says has addresses of package indexes, which may have passwords.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (archive,) = (folder / "download").glob("celery-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "source", filter="data")
    (root,) = (folder / "source").iterdir()
    # The tests shall import the one that is installed.
    shutil.rmtree(root / "celery")
    return root
