"""What setup.cfg installs, against what is on the disk."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from packaging.requirements import Requirement
from source import FOLDERS, ROOT, packages, setup_cfg, setup_list


def data_files() -> list[Path]:
    """Return the files in the packages that are not Python code."""
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    ]


def test_listed_packages_are_those_on_the_disk() -> None:
    assert sorted(setup_list("options", "packages")) == packages()


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}

    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_folders_are_installed_under_their_names() -> None:
    mapping = dict(line.split(" = ") for line in setup_list("options", "package_dir"))

    assert mapping == {package: folder for folder, package in FOLDERS.items()}


def test_every_data_file_is_installed() -> None:
    section = setup_cfg()["options.package_data"]
    missing = []
    for path in data_files():
        folder = path.relative_to(ROOT).parts[0]
        patterns = section.get(FOLDERS[folder], "").split()
        within = path.relative_to(ROOT / folder).as_posix()
        if not any(fnmatch(within, pattern) for pattern in patterns):
            missing.append(path.relative_to(ROOT).as_posix())

    assert missing == []


def test_both_top_level_packages_say_that_they_are_typed() -> None:
    typed = [path.relative_to(ROOT).as_posix() for path in data_files() if path.name == "py.typed"]

    assert typed == ["queuebridge/py.typed", "bridge_app/py.typed"]


def test_requirements_allow_the_versions_that_are_installed() -> None:
    # A bound that excludes what the tests run against would promise something nobody has tried.
    from importlib.metadata import PackageNotFoundError, version

    lines = [*setup_list("options", "install_requires")]
    for extra in setup_cfg()["options.extras_require"]:
        lines += setup_list("options.extras_require", extra)
    wrong = []
    for requirement in map(Requirement, lines):
        try:
            present = version(requirement.name)
        except PackageNotFoundError:
            continue
        if not requirement.specifier.contains(present, prereleases=True):
            wrong.append(f"{requirement}, but {present} is installed")

    assert wrong == []
