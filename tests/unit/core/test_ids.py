"""Ids that every transport accepts."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuebridge import InvalidOption
from queuebridge.ids import PORTABLE_ID, check_job_id, job_id_for_key, new_dispatch_id, new_job_id


def test_job_id_is_a_uuid_as_celery_makes_it() -> None:
    made = new_job_id()

    assert (str(uuid.UUID(made)), uuid.UUID(made).version) == (made, 4)


def test_dispatch_id_is_32_hexadecimal_digits() -> None:
    assert len(bytes.fromhex(new_dispatch_id())) == 16


def test_ids_differ() -> None:
    assert len({new_job_id() for _ in range(1000)} | {new_dispatch_id() for _ in range(1000)}) == 2000


def test_id_of_a_key_never_changes() -> None:
    # Jobs in flight over a deployment depend on it.
    assert job_id_for_key("shop.mail", "order 17") == "key-eed1d960729dfbad8c48ff5ca6d8a2a88934bd81"


def test_same_key_of_another_task_is_another_job() -> None:
    assert job_id_for_key("a", "k") != job_id_for_key("b", "k")


def test_task_and_key_are_not_confused_at_their_border() -> None:
    assert job_id_for_key("a:b", "c") != job_id_for_key("a", "b:c")


@given(st.text(), st.text())
def test_id_of_every_key_is_portable(task: str, key: str) -> None:
    assert PORTABLE_ID.fullmatch(job_id_for_key(task, key))


@pytest.mark.parametrize("job_id", ["a", "A-b_9", "x" * 200])
def test_portable_id_is_accepted(job_id: str) -> None:
    assert check_job_id(job_id) == job_id


@pytest.mark.parametrize("job_id", ["", "a b", "a:b", "a/b", "ä", "a\n", "x" * 201, 5, None, b"a"])
def test_other_id_is_refused(job_id: object) -> None:
    with pytest.raises(InvalidOption, match="task_id") as caught:
        check_job_id(job_id)  # type: ignore[arg-type]

    assert caught.value.option == "task_id"
