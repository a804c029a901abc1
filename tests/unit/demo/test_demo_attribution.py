"""Which repeated effects the demo may put down to its own kills. Everything else is the product's fault."""

from __future__ import annotations

from typing import Any

import pytest

from queuebridge.demo.attribution import Killed, Repeats, attribute

NONE_SETTLED: frozenset[int] = frozenset()
KILLED = Killed(pid=10, since=100.0, until=200.0)


def effect(*, pid: int = 10, fence: int | None = 1, at: float = 150.0) -> dict[str, Any]:
    return {"job_id": "a", "pid": pid, "fence": fence, "attempt": 1, "at": at}


AGAIN = effect(pid=11, fence=2, at=160.0)


def test_single_effect_is_no_repetition() -> None:
    assert attribute([effect()], [], frozenset({1})) == Repeats()


def test_no_effect_is_no_repetition() -> None:
    assert attribute([], [KILLED], NONE_SETTLED) == Repeats()


def test_effect_after_that_of_a_killed_process_is_a_rerun() -> None:
    assert attribute([effect(), AGAIN], [KILLED], frozenset({2})) == Repeats(rerun_after_kill=1)


@pytest.mark.parametrize(
    ("first", "settled_by"),
    [
        (effect(pid=12), NONE_SETTLED),
        (effect(at=99.0), NONE_SETTLED),
        (effect(at=201.0), NONE_SETTLED),
        (effect(), frozenset({1})),
        (effect(fence=None), NONE_SETTLED),
        (effect(fence=2), NONE_SETTLED),
        (effect(fence=3), NONE_SETTLED),
    ],
    ids=[
        "process lives",
        "an earlier process of this pid",
        "a later process of this pid",
        "it settled before it was killed",
        "no claim",
        "the same claim",
        "claims in the wrong order",
    ],
)
def test_any_other_repetition_is_a_duplicate(first: dict[str, Any], settled_by: frozenset[int]) -> None:
    assert attribute([first, AGAIN], [KILLED], settled_by) == Repeats(duplicated=1)


def test_repetition_without_a_claim_is_a_duplicate() -> None:
    assert attribute([effect(), effect(pid=11, fence=None)], [KILLED], NONE_SETTLED) == Repeats(duplicated=1)


def test_every_process_before_must_have_been_killed() -> None:
    third = effect(pid=13, fence=3, at=170.0)

    assert attribute([effect(), AGAIN, third], [KILLED], NONE_SETTLED) == Repeats(rerun_after_kill=1, duplicated=1)


def test_job_that_was_hit_twice_is_rerun_twice() -> None:
    third = effect(pid=13, fence=3, at=170.0)
    killed = [KILLED, Killed(pid=11, since=155.0, until=165.0)]

    assert attribute([effect(), AGAIN, third], killed, frozenset({3})) == Repeats(rerun_after_kill=2)
