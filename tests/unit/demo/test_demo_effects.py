"""The demo's judgement: it must see every loss, every double and every lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from queuebridge.demo.effects import Sent, check_effects, percentile, read_effects
from queuebridge.demo.files import choose_files, expected_measure
from queuebridge.errors import ConfigurationError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.txt"
    file.write_bytes(b"one\ntwo\nthree")
    return file


def effect(source: Path, job_id: str, /, **changes: Any) -> dict[str, Any]:
    content = source.read_bytes()
    return {
        "job_id": job_id,
        "backend": "rq",
        "path": str(source),
        "at": 12.5,
        "sha256": hashlib.sha256(content).hexdigest(),
        "lines": 2,
        "bytes": 13,
        **changes,
    }


def test_jobs_with_one_true_effect_each_are_ok(source: Path) -> None:
    sent = {job_id: Sent(path=source, at=10.0) for job_id in ("a", "b")}

    result = check_effects("rq", sent, [effect(source, "a", at=11.0), effect(source, "b", at=12.0)])

    assert result.ok
    assert (result.jobs, result.executed, result.lost, result.duplicated) == (2, 2, 0, 0)
    assert result.throughput_per_s == pytest.approx(1.0)
    assert result.latency_p50_ms == pytest.approx(1000)
    assert result.latency_p95_ms == pytest.approx(2000)


def test_a_job_without_effect_is_lost(source: Path) -> None:
    sent = {job_id: Sent(path=source, at=10.0) for job_id in ("a", "b")}

    result = check_effects("rq", sent, [effect(source, "a")])

    assert (result.executed, result.lost, result.ok) == (1, 1, False)


def test_every_effect_beyond_the_first_counts_as_duplicated(source: Path) -> None:
    sent = {"a": Sent(path=source, at=10.0)}

    result = check_effects("rq", sent, [effect(source, "a")] * 3)

    assert (result.executed, result.lost, result.duplicated, result.ok) == (1, 0, 2, False)


@pytest.mark.parametrize(
    "changes",
    [{"sha256": "0" * 64}, {"lines": 3}, {"bytes": 12}, {"backend": "celery"}, {"path": "/elsewhere"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_job_whose_effect_lies_is_lost(source: Path, changes: dict[str, Any]) -> None:
    result = check_effects("rq", {"a": Sent(path=source, at=10.0)}, [effect(source, "a", **changes)])

    assert (result.executed, result.lost, result.duplicated, result.ok) == (0, 1, 0, False)


def test_an_effect_of_a_job_that_was_never_accepted_is_one_too_many(source: Path) -> None:
    sent = {"a": Sent(path=source, at=10.0)}

    result = check_effects("rq", sent, [effect(source, "a"), effect(source, "stranger")])

    assert (result.executed, result.lost, result.duplicated, result.ok) == (1, 0, 1, False)


def test_json_form_has_the_documented_keys(source: Path) -> None:
    shown = check_effects("rq", {"a": Sent(path=source, at=10.0)}, [effect(source, "a")]).as_json()

    assert list(shown) == ["name", "jobs", "executed", "lost", "duplicated", "throughput_per_s", "latency_ms"]
    assert list(shown["latency_ms"]) == ["p50", "p95"]


def test_nothing_sent_is_not_ok() -> None:
    assert not check_effects("rq", {}, []).ok


def test_a_line_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "effects.jsonl"
    file.write_text(json.dumps({"job_id": "a"}) + '\n{"job_id": "b')

    assert read_effects(file) == [{"job_id": "a"}]


def test_no_file_means_no_effects(tmp_path: Path) -> None:
    assert read_effects(tmp_path / "missing") == []


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5.0), (0.95, 10.0), (0.0, 1.0), (1.0, 10.0)])
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(1, 11)], share) == expected


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.5) == 0.0


def test_expected_measure_of_a_file_larger_than_one_block(tmp_path: Path) -> None:
    content = b"x\n" * 100_000
    file = tmp_path / "large"
    file.write_bytes(content)

    assert expected_measure(file) == {"sha256": hashlib.sha256(content).hexdigest(), "lines": 100_000, "bytes": 200_000}


def test_default_files_are_sources_of_the_standard_library() -> None:
    files = choose_files(None, 40)

    assert len(files) == 40
    assert {file.suffix for file in files} == {".py"}
    assert not any("site-packages" in file.parts for file in files)


def test_given_folder_may_be_one_of_installed_packages(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages" / "package"
    folder.mkdir(parents=True)
    (folder / "module.py").touch()

    assert [file.name for file in choose_files(folder, 5)] == ["module.py"]


def test_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--input .*nowhere: there is no such folder"):
        choose_files(tmp_path / "nowhere", 5)


def test_folder_without_files_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no file to read"):
        choose_files(tmp_path, 5)
