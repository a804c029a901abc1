"""What an installation brings along, as far as it is installed in this environment."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from source import setup_list


def base_requirements() -> list[str]:
    """Return what the project itself always needs."""
    return setup_list("options", "install_requires")


def extra_requirements(extra: str) -> list[str]:
    """Return what an extra adds."""
    return setup_list("options.extras_require", extra)


def closure(lines: Iterable[str]) -> set[str]:
    """Return the distributions that these requirements bring, directly or not.

    One that is not installed here stands for itself alone.
    """
    seen: set[tuple[str, str]] = set()
    # An empty extra stands for the distribution itself.
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        requirement, asked_by = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": asked_by}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting.extend((Requirement(line), extra) for line in _requires(name))
    return {name for name, _ in seen}


def link(names: Iterable[str], folder: Path) -> None:
    """Make installed distributions importable from another folder, without a download."""
    for name in names:
        present = distribution(name)
        for top in {path.parts[0] for path in present.files or []} - {"..", "__pycache__"}:
            (folder / top).symlink_to(Path(str(present.locate_file(top))))


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []
