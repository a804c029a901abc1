"""The demo's input: real files."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

from queuebridge.errors import ConfigurationError


def choose_files(folder: Path | None, limit: int) -> list[Path]:
    """Return up to `limit` readable files below `folder`, in a stable order.

    Args:
        folder: Where to look; None means the source files of Python's standard library.
        limit: The most files to return.

    Raises:
        ConfigurationError: There is no such folder, or no file in it.
    """
    if folder is None:
        library = Path(sysconfig.get_path("stdlib"))
        found = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    elif not folder.is_dir():
        raise ConfigurationError(f"--input {folder}: there is no such folder.")
    else:
        found = sorted(path for path in folder.rglob("*") if path.is_file())
    chosen = [path.resolve() for path in found if _readable(path)][:limit]
    if not chosen:
        raise ConfigurationError(f"--input {folder}: there is no file to read.")
    return chosen


def expected_measure(path: Path) -> dict[str, str | int]:
    """Return what the task has to find out about a file, computed here, without the task's code."""
    digest = hashlib.sha256()
    size = lines = 0
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(65536), b""):
            digest.update(block)
            size += len(block)
            lines += block.count(b"\n")
    return {"sha256": digest.hexdigest(), "lines": lines, "bytes": size}


def _readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False
