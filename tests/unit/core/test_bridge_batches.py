"""Several jobs at once: all are checked before the first is sent, and the answer is honest about each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from queuebridge import (
    BackendUnavailable,
    Bridge,
    Call,
    EnqueueManyError,
    EnqueueOptions,
    InvalidArguments,
    InvalidOption,
    OptionNotSupported,
    PublishRejected,
    Receipt,
    Task,
    TaskRegistry,
    UnknownTask,
    Write,
    task,
)
from queuebridge.backend import Capabilities, Publication


@pytest.fixture
def send(registry: TaskRegistry) -> Task[..., Any]:
    """A task with one argument."""

    @task(name="mail.send", registry=registry)
    def send(to: str, times: int = 1) -> None: ...

    return send


def test_receipts_come_in_the_order_of_the_calls(bridge: Bridge, recorder: Any, send: Any) -> None:
    receipts = bridge.enqueue_many([(send, ["ann"]), ("mail.send", ["bob"]), Call(send, ["cid"], {"times": 2})])

    published = [publication.envelope for publication in recorder.published]
    assert [receipt.job_id for receipt in receipts] == [envelope.job_id for envelope in published]
    assert [(envelope.args, envelope.kwargs) for envelope in published] == [
        (["ann"], {}),
        (["bob"], {}),
        (["cid"], {"times": 2}),
    ]


def test_batch_interface_of_the_backend_is_used(recorder: Any, registry: TaskRegistry, send: Any) -> None:
    batches: list[int] = []

    def publish_many(publications: Sequence[Publication]) -> list[Write]:
        batches.append(len(publications))
        return [Write(backend="celery", message_id=p.envelope.args[0]) for p in publications]

    recorder.publish_many = publish_many

    receipts = Bridge(recorder, registry=registry, environ={}).enqueue_many((send, [name]) for name in "abc")

    assert (batches, [receipt.message_id for receipt in receipts]) == ([3], ["a", "b", "c"])


def test_each_call_has_its_own_options(bridge: Bridge, recorder: Any, send: Any) -> None:
    bridge.enqueue_many([Call(send, ["ann"], options=EnqueueOptions(queue="fast")), Call(send, ["bob"])])

    assert [publication.envelope.queue for publication in recorder.published] == ["fast", "default"]


def test_call_needs_no_arguments(bridge: Bridge, recorder: Any, registry: TaskRegistry) -> None:
    declared = task(name="none", registry=registry)(lambda: None)

    bridge.enqueue_many([Call(declared)])

    assert recorder.envelope.args == []


def test_nothing_to_do_asks_nobody(bridge: Bridge, recorder: Any) -> None:
    assert bridge.enqueue_many([]) == []
    assert recorder.calls == []


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (("mail.send", [5]), InvalidArguments),
        (("nothing", []), UnknownTask),
        (("mail.send", "ann"), TypeError),
        (Call("mail.send", ["ann"], options=EnqueueOptions(expires=0)), InvalidOption),
    ],
    ids=str,
)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_one_wrong_call_sends_nothing(
    bridge: Bridge, recorder: Any, send: Any, bad: Any, error: type[Exception], position: int
) -> None:
    calls: list[Any] = [(send, ["ann"]), (send, ["bob"])]
    calls.insert(position, bad)

    with pytest.raises(error):
        bridge.enqueue_many(calls)

    assert recorder.published == []
    assert "publish" not in recorder.calls


def test_one_call_that_the_backend_refuses_sends_nothing(bridge: Bridge, recorder: Any, send: Any) -> None:
    recorder.refused_by_check["bob"] = InvalidOption("label", "no")

    with pytest.raises(InvalidOption):
        bridge.enqueue_many([(send, ["ann"]), (send, ["bob"])])

    assert recorder.published == []


def test_one_option_that_the_backend_cannot_honour_sends_nothing(
    make_recorder: Any, registry: TaskRegistry, send: Any
) -> None:
    recorder = make_recorder(Capabilities())

    with pytest.raises(OptionNotSupported):
        Bridge(recorder, registry=registry, environ={}).enqueue_many(
            [Call(send, ["ann"]), Call(send, ["bob"], options=EnqueueOptions(priority=1))]
        )

    assert recorder.published == []


def test_partial_failure_tells_about_each_job(bridge: Bridge, recorder: Any, send: Any) -> None:
    error = BackendUnavailable("celery", "away.")
    recorder.errors["bob"] = error

    with pytest.raises(EnqueueManyError) as caught:
        bridge.enqueue_many([(send, [name]) for name in ("ann", "bob", "cid")])

    first, second, third = caught.value.results
    assert isinstance(first, Receipt)
    assert isinstance(third, Receipt)
    assert second is error
    assert [first.job_id, third.job_id] == [publication.envelope.job_id for publication in recorder.published]


def test_partial_failure_in_words(bridge: Bridge, recorder: Any, send: Any) -> None:
    recorder.errors["bob"] = BackendUnavailable("celery", "away.")

    with pytest.raises(EnqueueManyError, match=r"1 of 2 jobs were not accepted; the first: celery: away\. The attr"):
        bridge.enqueue_many([(send, ["ann"]), (send, ["bob"])])


def test_default_batch_goes_on_after_an_error(recorder: Any, bridge: Bridge, send: Any) -> None:
    recorder.errors["ann"] = PublishRejected("celery", "no.")

    with pytest.raises(EnqueueManyError):
        bridge.enqueue_many([(send, ["ann"]), (send, ["bob"])])

    assert [publication.envelope.args for publication in recorder.published] == [["bob"]]


def test_wish_to_end_the_process_ends_the_default_batch(recorder: Any, bridge: Bridge, send: Any) -> None:
    def publish(publication: Publication) -> Write:
        raise KeyboardInterrupt

    recorder.publish = publish

    with pytest.raises(KeyboardInterrupt):
        bridge.enqueue_many([(send, ["ann"]), (send, ["bob"])])


def test_same_key_twice_in_a_batch_is_one_job(bridge: Bridge, send: Any) -> None:
    options = EnqueueOptions(idempotency_key="k")

    first, second = bridge.enqueue_many([Call(send, ["ann"], options=options), Call(send, ["ann"], options=options)])

    assert (first.job_id, first.dispatch_id) == (second.job_id, second.dispatch_id)
