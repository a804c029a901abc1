from __future__ import annotations

from datetime import datetime, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuebridge.backends.qstash.devserver.cron import CronError, parse_cron

NEW_YORK = "America/New_York"


def times(expression: str, after: str, count: int, zone: str = "UTC") -> list[str]:
    """The next times an expression matches, as the clocks of a zone show them."""
    moment = datetime.fromisoformat(after).timestamp()
    found = []
    for _ in range(count):
        moment = parse_cron(expression)(moment)
        found.append(datetime.fromtimestamp(moment, ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M %z"))
    return found


def minutes(expression: str, after: str, count: int) -> list[str]:
    return [text.removesuffix(" +0000") for text in times(expression, f"{after}+00:00", count)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * *", ["2026-01-01 00:01", "2026-01-01 00:02"]),
        ("  0 12 * * *  ", ["2026-01-01 12:00", "2026-01-02 12:00"]),
        ("*/20 0 * * *", ["2026-01-01 00:20", "2026-01-01 00:40"]),
        ("5/30 0 * * *", ["2026-01-01 00:05", "2026-01-01 00:35"]),
        ("10-20/10,50 0 * * *", ["2026-01-01 00:10", "2026-01-01 00:20", "2026-01-01 00:50"]),
        ("0 0 1 FEB-apr ?", ["2026-02-01 00:00", "2026-03-01 00:00", "2026-04-01 00:00", "2027-02-01 00:00"]),
        ("0 0 * * sun", ["2026-01-04 00:00"]),
        ("0 0 * * 0", ["2026-01-04 00:00"]),
        ("0 0 31 * *", ["2026-01-31 00:00", "2026-03-31 00:00"]),
        ("0 0 29 2 *", ["2028-02-29 00:00", "2032-02-29 00:00"]),
        ("@hourly", ["2026-01-01 01:00"]),
        ("@daily", ["2026-01-02 00:00"]),
        ("@midnight", ["2026-01-02 00:00"]),
        ("@weekly", ["2026-01-04 00:00"]),
        ("@monthly", ["2026-02-01 00:00"]),
        ("@yearly", ["2027-01-01 00:00"]),
        ("@annually", ["2027-01-01 00:00"]),
        ("@every 1h30m", ["2026-01-01 01:30", "2026-01-01 03:00"]),
    ],
)
def test_expression_matches_as_robfig_s_standard_parser_has_it(expression: str, expected: list[str]) -> None:
    assert minutes(expression, "2026-01-01 00:00", len(expected)) == expected


def test_day_of_month_or_weekday_is_enough_when_both_are_restricted() -> None:
    expected = ["2026-01-05 00:00", "2026-01-12 00:00", "2026-01-13 00:00", "2026-01-19 00:00"]

    assert minutes("0 0 13 * MON", "2026-01-01 00:00", 4) == expected


@pytest.mark.parametrize("star", ["*", "?", "*/1", "*,1"])
def test_star_for_a_day_does_not_widen_the_other_one(star: str) -> None:
    assert minutes(f"0 0 {star} * MON", "2026-01-01 00:00", 2) == ["2026-01-05 00:00", "2026-01-12 00:00"]
    assert minutes("0 0 13 * " + star.replace(",1", ",2"), "2026-01-01 00:00", 1) == ["2026-01-13 00:00"]


def test_star_with_a_step_is_a_restriction() -> None:
    expected = ["2026-01-05 00:00", "2026-01-11 00:00", "2026-01-12 00:00"]

    assert minutes("0 0 */10 * MON", "2026-01-01 00:00", 3) == expected


@pytest.mark.parametrize("prefix", ["CRON_TZ", "TZ"])
def test_time_zone_comes_before_the_expression(prefix: str) -> None:
    assert times(f"{prefix}=Asia/Tokyo 0 9 * * *", "2026-01-01T00:00+00:00", 1) == ["2026-01-02 00:00 +0000"]
    assert times(f"{prefix}=Asia/Kolkata @daily", "2026-01-01T00:00+00:00", 1) == ["2026-01-01 18:30 +0000"]
    assert times(f"{prefix}=UTC 0 9 * * *", "2026-01-01T00:00+00:00", 1) == ["2026-01-01 09:00 +0000"]


def in_new_york(expression: str, after: str, count: int) -> list[str]:
    return times(f"CRON_TZ={NEW_YORK} {expression}", after, count, NEW_YORK)


@pytest.mark.parametrize("expression", ["30 2 * * *", "0,30 2 * * *", "*/15 2 * * *", "0 2,3 * * *"])
def test_fixed_time_that_the_clocks_skip_is_due_once_right_after(expression: str) -> None:
    found = in_new_york(expression, "2026-03-07T23:00-05:00", 2)

    assert found[0] == "2026-03-08 03:00 -0400"
    assert found[1].startswith("2026-03-09 02:")


def test_fixed_time_that_comes_twice_is_due_the_first_time_only() -> None:
    expected = ["2026-11-01 01:30 -0400", "2026-11-02 01:30 -0500"]

    assert in_new_york("30 1 * * *", "2026-10-31T12:00-04:00", 2) == expected


@pytest.mark.parametrize("after", ["2026-11-01T01:30-04:00", "2026-11-01T01:10-05:00", "2026-11-01T01:50-05:00"])
def test_next_time_is_never_before_the_second_of_two_equal_hours(after: str) -> None:
    assert in_new_york("30 1 * * *", after, 1) == ["2026-11-02 01:30 -0500"]


def test_hourly_job_is_due_in_both_equal_hours_and_in_none_that_is_skipped() -> None:
    autumn = ["2026-11-01 00:30 -0400", "2026-11-01 01:30 -0400", "2026-11-01 01:30 -0500", "2026-11-01 02:30 -0500"]

    assert in_new_york("30 * * * *", "2026-11-01T00:00-04:00", 4) == autumn
    spring = ["2026-03-08 01:30 -0500", "2026-03-08 03:30 -0400"]
    assert in_new_york("30 * * * *", "2026-03-08T01:00-05:00", 2) == spring


def test_midnight_that_the_clocks_skip_is_made_up_for() -> None:
    expression = "CRON_TZ=America/Sao_Paulo 0 0 * * *"
    expected = ["2018-11-04 01:00 -0200", "2018-11-05 00:00 -0200"]

    assert times(expression, "2018-11-03T12:00-03:00", 2, "America/Sao_Paulo") == expected


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("", "empty spec string"),
        ("  ", "empty spec string"),
        ("TZ=UTC", "expected exactly 5 fields, found 0: []"),
        ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
        ("0 * * * * *", "expected exactly 5 fields, found 6: [0 * * * * *]"),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("* * * * 7", "end of range (7) above maximum (6): 7"),
        ("5-3 * * * *", "beginning of range (5) beyond end of range (3): 5-3"),
        ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
        ("1/2/3 * * * *", "too many slashes: 1/2/3"),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("a * * * *", 'failed to parse int from a: strconv.Atoi: parsing "a": invalid syntax'),
        ("\u0663 * * * *", "failed to parse int from \u0663"),
        ("jan * * * *", "failed to parse int from jan"),
        ("* * L * *", "failed to parse int from L"),
        ("* * * * MON#1", "failed to parse int from MON#1"),
        (", * * * *", "a field names no value"),
        ("9" * 400 + " * * * *", "failed to parse int"),
        ("0," * 300 + "0 * * * *", "longer than 500 characters"),
        ("@fortnightly", "unrecognized descriptor: @fortnightly"),
        ("@every soon", "failed to parse duration @every soon"),
        ("@every 1s", "the interval must be between a minute and a year"),
        ("@every " + "9" * 400 + "h", "failed to parse duration"),
        ("CRON_TZ=Mars/Olympus * * * * *", "provided bad location Mars/Olympus: unknown time zone Mars/Olympus"),
        ("TZ=../etc/passwd * * * * *", "provided bad location"),
        ("TZ=America * * * * *", "provided bad location America"),
        ("TZ=\udcff * * * * *", "provided bad location"),
        ("TZ=a\0b * * * * *", "provided bad location"),
        ("0 0 30 2 *", "no date matches"),
        ("0 0 31 4,6 ?", "no date matches"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_reason(expression: str, error: str) -> None:
    with pytest.raises(CronError) as caught:
        parse_cron(expression)

    assert str(caught.value).startswith("Invalid cron expression ")
    assert error in str(caught.value)


@given(st.text(alphabet="0123456789*/,-?@LW# \tTZ=CRON_jan\udcff", max_size=40))
def test_any_text_is_an_expression_or_a_cron_error(text: str) -> None:
    try:
        following = parse_cron(text)
    except CronError:
        return
    assert following(1_800_000_000.5) > 1_800_000_000.5


FIELD = st.sampled_from(["*", "0", "*/7", "1-5", "2,9", "30"])


@given(
    minute=FIELD,
    hour=st.sampled_from(["*", "1", "2", "*/5", "0-3"]),
    day=st.sampled_from(["*", "1", "*/9", "8"]),
    weekday=st.sampled_from(["*", "0", "1-5", "?"]),
    zone=st.sampled_from(["Europe/Berlin", NEW_YORK, "Australia/Lord_Howe", "Africa/Cairo", "UTC"]),
    start=st.integers(1_700_000_000, 1_900_000_000),
)
def test_times_strictly_increase_are_whole_minutes_and_match(
    minute: str, hour: str, day: str, weekday: str, zone: str, start: int
) -> None:
    following = parse_cron(f"CRON_TZ={zone} {minute} {hour} {day} * {weekday}")
    found = [float(start)]
    for _ in range(20):
        found.append(following(found[-1]))

    assert all(earlier < later for earlier, later in pairwise(found))
    assert all(moment % 60 == 0 for moment in found[1:])
    if zone == "UTC" and minute == "30":
        assert {datetime.fromtimestamp(moment, timezone.utc).minute for moment in found[1:]} == {30}
