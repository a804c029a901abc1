"""Scripts of faults: what is accepted, and which delivery takes which."""

from __future__ import annotations

from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.admin.faults import Faults
from queuebridge.backends.qstash.devserver.errors import Refusal
from queuebridge.backends.qstash.protocol import DEV_USERS

USER, OTHER = (user.name for user in DEV_USERS[:2])


def test_script_is_used_as_often_as_it_says_and_is_then_gone(world: Any) -> None:
    faults = Faults()
    faults.add(USER, {"fault": "drop", "count": 2})
    message = world.publish()

    taken = [faults.take(message) for _ in range(3)]

    assert [script and script.fault for script in taken] == ["drop", "drop", None]
    assert not faults
    assert faults.of(USER) == []


def test_first_script_that_matches_is_used(world: Any) -> None:
    faults = Faults()
    for data in (
        {"fault": "error", "url": "http://host/other"},
        {"fault": "drop", "host": "host", "path": "/x"},
        {"fault": "duplicate"},
    ):
        faults.add(USER, data)
    message = world.publish("http://host/x")

    assert [script.fault for script in (faults.take(message), faults.take(message)) if script] == ["drop", "duplicate"]
    assert [script.view() for script in faults.of(USER)] == [
        {"id": "1", "fault": "error", "url": "http://host/other", "count": 1, "remaining": 1}
    ]


def test_label_is_one_of_the_message(world: Any) -> None:
    faults = Faults()
    faults.add(USER, {"fault": "drop", "label": "b"})

    assert faults.take(world.publish()) is None
    assert faults.take(world.publish(labels=("a", "b"))) is not None


def test_scripts_of_another_user_are_left_alone(world: Any) -> None:
    faults = Faults()
    faults.add(OTHER, {"fault": "drop"})

    assert faults.take(world.publish()) is None
    assert faults.clear(USER) == 0
    assert faults.clear(OTHER) == 1


def test_answer_of_an_error_is_what_was_said() -> None:
    said = {"fault": "error", "status": 429, "headers": {"Retry-After": "5"}, "body": "später"}

    outcome = Faults().add(USER, said).outcome

    assert outcome is not None
    assert (outcome.status, outcome.headers, outcome.body.decode()) == (429, (("Retry-After", "5"),), "später")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "must be a JSON object"),
        ([], "must be a JSON object"),
        ({}, "fault must be one of drop, lose_answer, delay, duplicate, error"),
        ({"fault": ["drop"]}, "fault must be one of"),
        ({"fault": "drop", "counts": 2}, "unknown field 'counts' of the fault 'drop'; known: fault, count, url"),
        ({"fault": "drop", "seconds": 2}, "unknown field 'seconds'"),
        ({"fault": "drop", "count": 0}, "count must be a whole number between 1 and"),
        ({"fault": "drop", "count": True}, "count must be"),
        ({"fault": "drop", "count": 1.5}, "count must be"),
        ({"fault": "drop", "url": ""}, "url must be a string that is not empty"),
        ({"fault": "drop", "label": 1}, "label must be a string"),
        ({"fault": "drop", "label": "\ud800"}, "surrogate"),
        ({"fault": "delay"}, "seconds must be a number above 0"),
        ({"fault": "delay", "seconds": float("nan")}, "seconds must be"),
        ({"fault": "delay", "seconds": 10**400}, "seconds must be"),
        ({"fault": "error", "status": 204}, "must not be 2xx"),
        ({"fault": "error", "status": 600}, "status must be a whole number between 300 and 599"),
        ({"fault": "error", "headers": {"a": 1}}, "headers must be an object of strings"),
        ({"fault": "error", "headers": {"\udc00": "1"}}, "surrogate"),
        ({"fault": "error", "headers": {str(number): "x" * 100 for number in range(200)}}, "too long"),
        ({"fault": "drop", "label": "x" * 20_000}, "too long"),
        ({"fault": "error", "body": "\ud800"}, "surrogate"),
        ({"fault": "error", "body": {}}, "body must be a string"),
        ({"fault": "error", "body": "x" * (1024 * 1024 + 1)}, "body must be a string of at most"),
    ],
)
def test_anything_else_is_refused_with_the_reason(data: Any, problem: str) -> None:
    with pytest.raises(Refusal) as caught:
        Faults().add(USER, data)

    assert caught.value.status == 400
    assert problem in caught.value.text


def test_number_of_scripts_is_bounded() -> None:
    faults = Faults()
    for _ in range(100):
        faults.add(USER, {"fault": "drop"})

    with pytest.raises(Refusal, match="412"):
        faults.add(USER, {"fault": "drop"})

    faults.add(OTHER, {"fault": "drop"})
