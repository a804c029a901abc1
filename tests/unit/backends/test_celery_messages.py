"""Celery messages that we make in less time are the same to the byte."""

from __future__ import annotations

from typing import Any

import celery
import pytest
from celery.app.amqp import AMQP
from celery.utils.saferepr import saferepr
from hypothesis import given
from hypothesis import strategies as st

from queuebridge.backends.celery.amqp import QuickAMQP, plain_repr

VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text("a'\"\\\n", max_size=4)
LONG = st.text("x", min_size=1020, max_size=1030)


@given(
    st.lists(VALUES | LONG, max_size=4)
    | st.lists(VALUES, max_size=4).map(tuple)
    | st.dictionaries(VALUES, VALUES | LONG, max_size=4)
)
def test_representation_is_the_one_of_celery_or_left_to_it(value: Any) -> None:
    assert plain_repr(value, 1024) in (None, saferepr(value, 1024, maxlevels=3))


@pytest.mark.parametrize("value", [[1, 2.5, None, True, "Grüße"], ("a",), {"a": 1, "b": "c"}], ids=repr)
def test_representation_of_plain_values_is_not_left_to_celery(value: Any) -> None:
    assert plain_repr(value, 1024) == repr(value)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, "a"), {"b": 2.5}), ([[1]], {"a": {"b": "c"}}), (("x" * 2000,), {"a": b"x"}), (None, None)],
    ids=["none", "plain", "nested", "long", "left out"],
)
@pytest.mark.parametrize("levels", [3, 1, 0])
def test_message_is_the_one_of_celery(args: Any, kwargs: Any, levels: int) -> None:
    messages = []
    for amqp in (AMQP, QuickAMQP):
        app = celery.Celery("shop", set_as_current=False, changes={"task_repr_maxlevels": levels})
        messages.append(amqp(app).as_task_v2("id", "shop.mail", args, kwargs, shadow="s", origin="here"))

    assert messages[0] == messages[1]
