"""Errors carry what callers need, and survive a trip between processes."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import Any

import pytest

from queuebridge import InvalidOption, Receipt, RetryLater, TaskTimeout, Write, errors

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "MissingExtra": ("The rq backend", "rq", "rq"),
    "UnknownTask": ("mail",),
    "InvalidArguments": ("mail", ["a: wrong", "b: wrong"]),
    "InvalidOption": ("eta", "wrong."),
    "OptionNotSupported": ("rq", "priority", "no."),
    "PayloadTooLarge": ("qstash", 5, 4),
    "UnsupportedEnvelope": (2, 1),
    "PublishError": ("rq", "away."),
    "BackendUnavailable": ("rq", "away."),
    "PublishRejected": ("rq", "no."),
    "PublishOutcomeUnknown": ("rq", "no answer.", "job-1"),
    "EnqueueManyError": (
        [
            Receipt(job_id="j", dispatch_id="d", task="t", queue="q", writes=(Write(backend="rq", message_id="m"),)),
            ValueError("x"),
        ],
    ),
    "TaskTimeout": (2.5,),
    "AllWritesFailed": ({"celery": errors.BackendUnavailable("celery", "away.")},),
    "RevisionConflict": (3, 4),
    "StageRefused": ("dual -> live", ["Too few jobs."]),
}
CLASSES = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.QueueBridgeError)
]


def example(kind: type[errors.QueueBridgeError]) -> errors.QueueBridgeError:
    return kind(*ARGUMENTS.get(kind.__name__, ("it is wrong",)))


def facts(error: Exception) -> tuple[object, ...]:
    return type(error), error.args, str(error), repr(vars(error))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_error_can_be_pickled(kind: type[errors.QueueBridgeError]) -> None:
    error = example(kind)

    assert facts(pickle.loads(pickle.dumps(error))) == facts(error)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_error_can_be_copied(kind: type[errors.QueueBridgeError]) -> None:
    error = example(kind)

    assert facts(copy.copy(error)) == facts(error)


def test_retryable_errors_are_those_that_may_pass() -> None:
    assert {kind.__name__ for kind in CLASSES if kind.retryable} == {
        "AllWritesFailed",
        "BackendUnavailable",
        "LedgerUnavailable",
        "PublishOutcomeUnknown",
        "UnknownTask",
        "UnsupportedEnvelope",
    }


def test_missing_extra_says_what_to_install() -> None:
    assert "pip install 'qstash-queuebridge[rq]'" in str(example(errors.MissingExtra))


def test_list_of_problems_is_kept_and_shown() -> None:
    error = errors.InvalidArguments("mail", ["a: wrong", "b: wrong"])

    assert (error.task, error.problems) == ("mail", ("a: wrong", "b: wrong"))
    assert str(error) == "Invalid arguments for task 'mail': a: wrong; b: wrong"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "timeout."), (2.5, "timeout of 2.5 s."), (60.0, "timeout of 60 s.")]
)
def test_timeout_says_how_long(seconds: float | None, text: str) -> None:
    assert str(TaskTimeout(seconds)) == f"The task ran past its {text}"


@pytest.mark.parametrize("delay", [-1, -0.1, math.nan, math.inf])
def test_impossible_delay_is_refused(delay: float) -> None:
    with pytest.raises(InvalidOption, match="delay_seconds"):
        RetryLater(delay_seconds=delay)


def test_retry_later_has_a_reason_of_its_own() -> None:
    assert (str(RetryLater()), RetryLater().delay_seconds) == ("The task asked to be retried.", None)
