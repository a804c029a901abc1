"""Options of an enqueue: what they mean in time, and which are impossible."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

from queuebridge import EnqueueOptions, InvalidOption

NOW = 1_715_350_500.25
NOON = datetime(2024, 5, 10, 12, tzinfo=timezone.utc)
NOON_MS = 1_715_342_400_000


class NoOffset(tzinfo):
    """A time zone that does not know its offset, which makes a datetime naive all the same."""

    def utcoffset(self, when: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"countdown": 0}, None),
        ({"countdown": timedelta(0)}, None),
        ({"countdown": 10}, 1_715_350_510_250),
        ({"countdown": 1.5}, 1_715_350_501_750),
        ({"countdown": timedelta(minutes=1)}, 1_715_350_560_250),
        ({"eta": NOON}, NOON_MS),
        ({"eta": NOON.astimezone(timezone(timedelta(hours=5)))}, NOON_MS),
        ({"eta": datetime(1950, 1, 1, tzinfo=timezone.utc)}, 0),
    ],
    ids=str,
)
def test_start_in_unix_milliseconds(options: dict[str, Any], expected: int | None) -> None:
    assert EnqueueOptions(**options).not_before_ms(NOW) == expected


def test_start_is_rounded_up_so_that_no_job_starts_early() -> None:
    assert EnqueueOptions(countdown=0.0001).not_before_ms(1.0) == 1001


@pytest.mark.parametrize(
    ("expires", "expected"),
    [
        (None, None),
        (10, 1_715_350_510_250),
        (0, 1_715_350_500_250),
        (timedelta(hours=1), 1_715_354_100_250),
        (NOON, NOON_MS),
    ],
    ids=str,
)
def test_expiry_in_unix_milliseconds(expires: Any, expected: int | None) -> None:
    assert EnqueueOptions(expires=expires).expires_at_ms(NOW) == expected


BAD_SECONDS = [math.nan, math.inf, -math.inf, True, "10", [], 1e300, timedelta.max]


@pytest.mark.parametrize("value", [*BAD_SECONDS, -1, -0.001, timedelta(seconds=-1)], ids=repr)
def test_impossible_countdown_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOption, match="Invalid option countdown"):
        EnqueueOptions(countdown=value).not_before_ms(NOW)


@pytest.mark.parametrize("value", BAD_SECONDS, ids=repr)
def test_impossible_expiry_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOption, match="Invalid option expires"):
        EnqueueOptions(expires=value).expires_at_ms(NOW)


@pytest.mark.parametrize("value", ["2024-05-10", 5, NOON.date()], ids=repr)
def test_eta_that_is_no_datetime_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOption, match=r"Invalid option eta.*is not a datetime"):
        EnqueueOptions(eta=value).not_before_ms(NOW)


@pytest.mark.parametrize("naive", [NOON.replace(tzinfo=None), NOON.replace(tzinfo=NoOffset())], ids=repr)
@pytest.mark.parametrize("option", ["eta", "expires"])
def test_time_without_a_zone_is_refused(option: str, naive: datetime) -> None:
    options = EnqueueOptions(**{option: naive})

    with pytest.raises(InvalidOption, match=f"Invalid option {option}.*has no time zone"):
        (options.not_before_ms if option == "eta" else options.expires_at_ms)(NOW)


def test_countdown_and_eta_exclude_each_other() -> None:
    with pytest.raises(InvalidOption, match="give one of them"):
        EnqueueOptions(countdown=1, eta=NOON)


def test_task_id_and_idempotency_key_exclude_each_other() -> None:
    with pytest.raises(InvalidOption, match="cannot be combined with idempotency_key"):
        EnqueueOptions(task_id="a", idempotency_key="b")


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("queue", "", "it is empty"),
        ("queue", 5, "int is not text"),
        ("queue", "\ud800", "UTF-8"),
        ("idempotency_key", "", "every job would be the same one"),
        ("idempotency_key", 5, "int is not text"),
        ("idempotency_key", "\ud800", "UTF-8"),
        ("priority", "high", "is not an integer"),
        ("priority", True, "is not an integer"),
        ("priority", 1.0, "is not an integer"),
        ("retry", 1, "neither True nor False"),
        ("retry", "no", "neither True nor False"),
        ("headers", {"a": 1}, "'a': names and values must be text"),
        ("headers", {1: "a"}, "1: names and values must be text"),
        ("headers", {"a": "\ud800"}, "UTF-8"),
        ("headers", ["a"], "list is not a mapping"),
        ("metadata", ["a"], "list is not a mapping"),
        ("options", {"sqs": {}}, "'sqs' is no backend; there are qstash, celery, rq, inline"),
        ("options", ["qstash"], "list is not a mapping"),
        ("options", {"qstash": "label"}, "str is not a mapping"),
    ],
)
def test_impossible_value_is_refused(option: str, value: Any, problem: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        EnqueueOptions(**{option: value})

    assert str(caught.value).startswith(f"Invalid option {option}")
    assert problem in str(caught.value)


def test_value_of_a_header_is_not_shown() -> None:
    with pytest.raises(InvalidOption) as caught:
        EnqueueOptions(headers={"token": b"hunter2"})  # type: ignore[dict-item]

    assert "hunter2" not in str(caught.value)


def test_metadata_becomes_json() -> None:
    options = EnqueueOptions(metadata={"user_id": 1, "at": NOON, "tags": ("a",), "ratio": math.inf})

    assert options.json_metadata() == {
        "user_id": 1,
        "at": "2024-05-10T12:00:00Z",
        "tags": ["a"],
        "ratio": "Infinity",
    }


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"a": object()}, "it has no JSON form"),
        ({"a": "\ud800"}, "it has no JSON form"),
        ({"a": b"\xff"}, "it has no JSON form"),
        ({1: "a"}, "its keys must be text"),
    ],
)
def test_metadata_that_is_no_json_is_refused(metadata: Any, problem: str) -> None:
    with pytest.raises(InvalidOption, match=f"Invalid option metadata: {problem}"):
        EnqueueOptions(metadata=metadata).json_metadata()


def test_endless_metadata_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless

    with pytest.raises(InvalidOption, match="it has no JSON form"):
        EnqueueOptions(metadata=endless).json_metadata()


def test_options_cannot_be_changed() -> None:
    options = EnqueueOptions()

    with pytest.raises(AttributeError):
        options.queue = "other"  # type: ignore[misc]
