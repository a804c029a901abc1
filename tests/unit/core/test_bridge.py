"""What one enqueue hands to the backend, and what it gives back."""

from __future__ import annotations

import asyncio
import threading
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest

from queuebridge import (
    BackendUnavailable,
    Bridge,
    EnqueueOptions,
    InvalidArguments,
    InvalidOption,
    OptionNotSupported,
    Receipt,
    RetryPolicy,
    Task,
    TaskRegistry,
    UnknownTask,
    Write,
    task,
)
from queuebridge.backend import Capabilities, Publication
from queuebridge.envelope import Envelope
from queuebridge.ids import job_id_for_key

NOW_MS = 1_715_350_500_000


@pytest.fixture
def send(registry: TaskRegistry) -> Task[..., Any]:
    """A task with nothing but a name."""

    @task(name="mail.send", registry=registry)
    def send(to: str, day: date | None = None) -> None: ...

    return send


def test_receipt_says_what_is_true(bridge: Bridge, recorder: Any, send: Task[..., Any]) -> None:
    receipt = bridge.enqueue(send, "ann")

    assert receipt == Receipt(
        job_id=recorder.envelope.job_id,
        dispatch_id=recorder.envelope.dispatch_id,
        task="mail.send",
        queue="default",
        writes=(Write(backend="celery", message_id="message-1", deduplicated=False),),
    )


def test_envelope_of_a_plain_enqueue(bridge: Bridge, recorder: Any, send: Task[..., Any]) -> None:
    receipt = bridge.enqueue(send, "ann", day=date(2024, 5, 1))

    assert recorder.envelope == Envelope(
        job_id=receipt.job_id,
        dispatch_id=receipt.dispatch_id,
        task="mail.send",
        args=["ann"],
        kwargs={"day": "2024-05-01"},
        queue="default",
        enqueued_at_ms=NOW_MS,
    )


def test_task_may_be_named(bridge: Bridge, recorder: Any, send: Task[..., Any]) -> None:
    bridge.enqueue("mail.send", "ann")

    assert recorder.envelope.task == send.name


def test_job_enqueued_under_a_former_name_has_the_present_one(
    bridge: Bridge, recorder: Any, registry: TaskRegistry
) -> None:
    task(name="new", aliases=["old"], registry=registry)(lambda: None)

    bridge.enqueue("old")

    assert recorder.envelope.task == "new"


def test_parameters_may_be_called_like_ours(bridge: Bridge, recorder: Any, registry: TaskRegistry) -> None:
    @task(name="odd", registry=registry)
    def odd(self: int, task: int, args: int, kwargs: int, options: int) -> None: ...

    values = {"self": 1, "task": 2, "args": 3, "kwargs": 4, "options": 5}
    with bridge.activate():
        bridge.enqueue(odd, **values)
        odd.delay(**values)
        asyncio.run(odd.aenqueue(**values))

    assert [publication.envelope.kwargs for publication in recorder.published] == [values] * 3


def test_task_options_are_the_defaults(recorder: Any, registry: TaskRegistry) -> None:
    declared = task(
        name="full",
        queue="mail",
        retries=5,
        backoff=[1, 2],
        timeout=30,
        priority=3,
        metadata={"team": "a", "area": "x"},
        options={"celery": {"exchange": "e", "compression": "gzip"}, "rq": {"at_front": True}},
        registry=registry,
    )(lambda: None)

    Bridge(recorder, registry=registry, environ={"QUEUEBRIDGE_DEFAULT_QUEUE": "other"}).enqueue(declared)

    envelope = recorder.envelope
    assert (envelope.queue, envelope.timeout_seconds, envelope.priority) == ("mail", 30.0, 3)
    assert envelope.retry == RetryPolicy(retries=5, delays=(1, 2))
    assert envelope.metadata == {"team": "a", "area": "x"}
    assert recorder.published[-1].options == {"exchange": "e", "compression": "gzip"}


def test_enqueue_options_come_before_those_of_the_task(recorder: Any, bridge: Bridge, registry: TaskRegistry) -> None:
    declared = task(
        name="full",
        queue="mail",
        priority=3,
        metadata={"team": "a", "area": "x"},
        options={"celery": {"exchange": "e", "compression": "gzip"}},
        registry=registry,
    )(lambda: None)

    bridge.apply_async(
        declared,
        options=EnqueueOptions(
            queue="fast",
            priority=0,
            metadata={"team": "b"},
            options={"celery": {"exchange": "f"}, "qstash": {"label": "l"}},
        ),
    )

    assert (recorder.envelope.queue, recorder.envelope.priority) == ("fast", 0)
    assert recorder.envelope.metadata == {"team": "b", "area": "x"}
    assert recorder.published[-1].options == {"exchange": "f", "compression": "gzip"}


def test_queue_is_the_bridges_when_nobody_names_one(recorder: Any, registry: TaskRegistry, send: Any) -> None:
    Bridge(recorder, registry=registry, environ={"QUEUEBRIDGE_DEFAULT_QUEUE": "other"}).enqueue(send, "ann")

    assert recorder.envelope.queue == "other"


def test_all_options_reach_the_envelope(bridge: Bridge, recorder: Any, send: Any) -> None:
    with bridge.activate():
        receipt = send.apply_async(
            ("ann",),
            {"day": "2024-05-01"},
            countdown=60,
            expires=timedelta(minutes=5),
            queue="fast",
            priority=9,
            task_id="my-id",
            retry=False,
            headers={"X-Request-Id": "r"},
            metadata={"user_id": 1},
            options={"celery": {"exchange": "e"}},
        )

    assert receipt.job_id == "my-id"
    assert recorder.envelope == Envelope(
        job_id="my-id",
        dispatch_id=receipt.dispatch_id,
        task="mail.send",
        args=["ann"],
        kwargs={"day": "2024-05-01"},
        queue="fast",
        enqueued_at_ms=NOW_MS,
        not_before_ms=NOW_MS + 60_000,
        expires_at_ms=NOW_MS + 300_000,
        priority=9,
        headers={"X-Request-Id": "r"},
        metadata={"user_id": 1},
        version=2,
        options={"celery": {"exchange": "e"}},
    )
    assert (recorder.published[-1].retry, recorder.published[-1].options) == (False, {"exchange": "e"})


def test_eta_reaches_the_envelope(bridge: Bridge, recorder: Any, send: Any) -> None:
    bridge.apply_async(send, ["ann"], options=EnqueueOptions(eta=datetime(2024, 6, 1, tzinfo=timezone.utc)))

    assert recorder.envelope.not_before_ms == 1_717_200_000_000


@pytest.mark.parametrize("arguments", [(), (None, None), ([],), ((), {})], ids=repr)
def test_arguments_may_be_left_out_as_in_celery(
    bridge: Bridge, recorder: Any, registry: TaskRegistry, arguments: tuple[Any, ...]
) -> None:
    declared = task(name="none", registry=registry)(lambda: None)

    with bridge.activate():
        declared.apply_async(*arguments)

    assert (recorder.envelope.args, recorder.envelope.kwargs) == ([], {})


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ("ann", None, "args must be a list or tuple of arguments, not str"),
        (b"ann", None, "args must be a list or tuple of arguments, not bytes"),
        ({"ann"}, None, "args must be a list or tuple of arguments, not set"),
        (5, None, "args must be a list or tuple of arguments, not int"),
        ((), "ann", "kwargs must be a mapping of names to arguments, not str"),
        ((), [("to", "ann")], "kwargs must be a mapping of names to arguments, not list"),
    ],
)
def test_arguments_of_the_wrong_shape_are_a_type_error(
    bridge: Bridge, recorder: Any, send: Any, args: Any, kwargs: Any, problem: str
) -> None:
    with pytest.raises(TypeError, match=problem):
        bridge.apply_async(send, args, kwargs)

    assert recorder.calls == []


def test_undecorated_function_is_a_type_error(bridge: Bridge) -> None:
    with pytest.raises(TypeError, match="Not a task, but function: decorate the function with @task"):
        bridge.enqueue(lambda: None)  # type: ignore[arg-type]


def test_unknown_name_is_an_error(bridge: Bridge, recorder: Any) -> None:
    with pytest.raises(UnknownTask):
        bridge.enqueue("nothing")

    assert recorder.calls == []


def test_wrong_argument_reaches_no_backend(bridge: Bridge, recorder: Any, send: Any) -> None:
    with pytest.raises(InvalidArguments):
        bridge.enqueue(send, 5)

    assert recorder.calls == []


def test_check_of_the_backend_comes_before_the_publish(bridge: Bridge, recorder: Any, send: Any) -> None:
    bridge.enqueue(send, "ann")

    assert recorder.calls == ["check", "publish"]


def test_what_the_check_refuses_is_not_published(bridge: Bridge, recorder: Any, send: Any) -> None:
    recorder.refused_by_check["ann"] = InvalidOption("label", "no")

    with pytest.raises(InvalidOption):
        bridge.enqueue(send, "ann")

    assert recorder.calls == ["check"]


def test_error_of_the_backend_is_raised(bridge: Bridge, recorder: Any, send: Any) -> None:
    recorder.errors["ann"] = BackendUnavailable("celery", "away.")

    with pytest.raises(BackendUnavailable, match=r"celery: away\."):
        bridge.enqueue(send, "ann")


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"countdown": 5}, "countdown/eta"),
        ({"eta": datetime(2030, 1, 1, tzinfo=timezone.utc)}, "countdown/eta"),
        ({"priority": 0}, "priority"),
        ({"idempotency_key": "k"}, "idempotency_key"),
        ({"retry": True}, "retry"),
    ],
    ids=str,
)
def test_missing_capability_is_an_error_before_any_io(
    make_recorder: Any, registry: TaskRegistry, send: Any, options: dict[str, Any], option: str
) -> None:
    recorder = make_recorder(Capabilities(reasons={option: "because."}))
    bridge = Bridge(recorder, registry=registry, environ={})

    with pytest.raises(OptionNotSupported) as caught:
        bridge.apply_async(send, ["ann"], options=EnqueueOptions(**options))

    assert (caught.value.option, str(caught.value)) == (option, f"The celery backend cannot honour {option}: because.")
    assert recorder.calls == []


def test_backend_that_never_repeats_a_publish_may_be_told_not_to(
    make_recorder: Any, registry: TaskRegistry, send: Any
) -> None:
    recorder = make_recorder(Capabilities())

    Bridge(recorder, registry=registry, environ={}).apply_async(send, ["ann"], options=EnqueueOptions(retry=False))

    assert recorder.published[-1].retry is False


def test_missing_capability_without_a_reason_is_still_explained(
    make_recorder: Any, registry: TaskRegistry, send: Any
) -> None:
    bridge = Bridge(make_recorder(Capabilities()), registry=registry, environ={})

    with pytest.raises(OptionNotSupported, match="it has no such feature"):
        bridge.apply_async(send, ["ann"], options=EnqueueOptions(priority=1))


def test_backend_without_capabilities_takes_a_plain_job(make_recorder: Any, registry: TaskRegistry, send: Any) -> None:
    recorder = make_recorder(Capabilities())

    Bridge(recorder, registry=registry, environ={}).enqueue(send, "ann")

    assert recorder.calls == ["check", "publish"]


def test_priority_of_the_task_needs_the_capability_too(make_recorder: Any, registry: TaskRegistry) -> None:
    declared = task(name="p", priority=1, registry=registry)(lambda: None)

    with pytest.raises(OptionNotSupported, match="priority"):
        Bridge(make_recorder(Capabilities()), registry=registry, environ={}).enqueue(declared)


@pytest.mark.parametrize(
    "options",
    [
        {"expires": 0},
        {"expires": -5},
        {"expires": datetime(2024, 5, 10, tzinfo=timezone.utc)},
        {"countdown": 10, "expires": 10},
        {"countdown": 10, "expires": 5},
    ],
    ids=str,
)
def test_job_that_could_never_start_is_refused(bridge: Bridge, send: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="would expire before it may start"):
        bridge.apply_async(send, ["ann"], options=EnqueueOptions(**options))


def test_job_may_expire_just_after_its_start(bridge: Bridge, recorder: Any, send: Any) -> None:
    bridge.apply_async(send, ["ann"], options=EnqueueOptions(countdown=10, expires=10.001))

    assert recorder.envelope.expires_at_ms == recorder.envelope.not_before_ms + 1


def test_impossible_task_id_is_refused(bridge: Bridge, send: Any) -> None:
    with pytest.raises(InvalidOption, match="task_id"):
        bridge.apply_async(send, ["ann"], options=EnqueueOptions(task_id="a b"))


def test_same_key_is_the_same_job_and_the_same_dispatch(bridge: Bridge, recorder: Any, send: Any) -> None:
    options = EnqueueOptions(idempotency_key="order 17")

    receipts = [bridge.apply_async(send, [name], options=options) for name in ("ann", "bob")]

    job_id = job_id_for_key("mail.send", "order 17")
    assert [(receipt.job_id, receipt.dispatch_id) for receipt in receipts] == [(job_id, job_id)] * 2
    assert recorder.envelope.idempotency_key == "order 17"
    assert recorder.envelope.deduplication_id == f"{job_id}-0"


def test_same_task_id_is_the_same_job_and_another_dispatch(bridge: Bridge, send: Any) -> None:
    options = EnqueueOptions(task_id="my-id")

    first, second = (bridge.apply_async(send, ["ann"], options=options) for _ in range(2))

    assert (first.job_id, second.job_id) == ("my-id", "my-id")
    assert first.dispatch_id != second.dispatch_id


def test_ids_are_new_for_every_enqueue(bridge: Bridge, send: Any) -> None:
    receipts = [bridge.enqueue(send, "ann") for _ in range(100)]

    assert len({receipt.job_id for receipt in receipts} | {receipt.dispatch_id for receipt in receipts}) == 200


def test_asyncio_enqueue_does_not_block_the_event_loop(recorder: Any, registry: TaskRegistry, send: Any) -> None:
    published = threading.Event()
    ticked = threading.Event()
    publish = recorder.publish

    def slow(publication: Publication) -> Write:
        # Goes on only when the event loop has run something else meanwhile.
        assert ticked.wait(30)
        published.set()
        return publish(publication)  # type: ignore[no-any-return]

    recorder.publish = slow
    bridge = Bridge(recorder, registry=registry, environ={})

    async def main() -> Receipt:
        pending = asyncio.create_task(bridge.aenqueue(send, "ann"))
        await asyncio.sleep(0)
        assert not published.is_set()
        ticked.set()
        return await pending

    assert asyncio.run(main()).task == "mail.send"


def test_asyncio_enqueue_takes_options(bridge: Bridge, recorder: Any, send: Any) -> None:
    asyncio.run(bridge.aapply_async(send, ["ann"], options=EnqueueOptions(queue="fast")))

    assert recorder.envelope.queue == "fast"


def test_asyncio_enqueue_raises_what_enqueue_raises(bridge: Bridge, send: Any) -> None:
    with pytest.raises(InvalidArguments):
        asyncio.run(bridge.aenqueue(send, 5))


def test_enqueue_is_safe_from_several_threads(bridge: Bridge, recorder: Any, send: Any) -> None:
    barrier = threading.Barrier(4)
    receipts: list[Receipt] = []

    def enqueue() -> None:
        barrier.wait()
        receipts.extend(bridge.enqueue(send, "ann") for _ in range(50))

    threads = [threading.Thread(target=enqueue) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {receipt.job_id for receipt in receipts} == {p.envelope.job_id for p in recorder.published}
    assert len(recorder.published) == 200


def test_leaving_a_bridge_closes_its_backend(bridge: Bridge, recorder: Any) -> None:
    with bridge as entered:
        assert entered is bridge
        assert recorder.calls == []

    assert recorder.calls == ["close"]


def test_making_a_bridge_connects_to_nothing(recorder: Any, registry: TaskRegistry) -> None:
    Bridge(recorder, registry=registry, environ={})

    assert recorder.calls == []


@pytest.mark.parametrize(("flags", "expected"), [((True,), True), ((False,), False), ((True, False), False)])
def test_receipt_is_deduplicated_if_no_backend_took_a_new_job(flags: tuple[bool, ...], expected: bool) -> None:
    writes = tuple(Write(backend=f"b{i}", message_id=f"m{i}", deduplicated=flag) for i, flag in enumerate(flags))
    receipt = Receipt(job_id="j", dispatch_id="d", task="t", queue="q", writes=writes)

    assert receipt.deduplicated is expected


def test_receipt_answers_like_a_result_of_celery_or_rq() -> None:
    writes = (Write(backend="rq", message_id="m0"), Write(backend="qstash", message_id="m1"))
    receipt = Receipt(job_id="j", dispatch_id="d", task="t", queue="q", writes=writes)

    assert (receipt.id, receipt.backend, receipt.message_id) == ("j", "rq", "m0")


def test_body_of_a_publication_is_encoded_once(bridge: Bridge, recorder: Any, send: Any) -> None:
    bridge.enqueue(send, "ann")
    publication = recorder.published[-1]

    assert publication.body is publication.body
    assert publication.body == publication.envelope.encode()
