"""Workflow runs inside the engine: histories, repeats, ends, restarts. The SDK is in the integration tests."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.errors import Refusal
from queuebridge.backends.qstash.devserver.housekeeping import sweep
from queuebridge.backends.qstash.devserver.messages import Accepted, LogState, Message, Phase
from queuebridge.backends.qstash.devserver.options import OptionReader, read_directives
from queuebridge.backends.qstash.devserver.recovery import recover
from queuebridge.backends.qstash.devserver.sqlite_store import SqliteStore
from queuebridge.backends.qstash.devserver.workflow import accepting
from queuebridge.backends.qstash.devserver.workflow.part import Role
from queuebridge.backends.qstash.protocol import PLANS

URL = "http://app/wf"
DAY = 86_400
MakeWorld = Callable[..., Any]


def submit(world: Any, body: Any = b"payload", /, **headers: str) -> tuple[Accepted, Message | None]:
    """Accept a message as publishing does; header names have underscores for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = named.pop("destination", URL)
    now = world.clock.now
    pairs = [(f"Upstash-{name}", value) for name, value in named.items()]
    found = read_directives(pairs, {}, token="token")
    publication = OptionReader(PLANS["payg"]).publication(url, found, now=now)
    spec = publication.spec
    assert spec.workflow is not None
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return accepting.accept(
        world.engine, world.account, spec.workflow, spec, content, not_before=publication.not_before
    )


def begin(world: Any, run_id: str = "wfr_1", **headers: str) -> Message:
    _, message = submit(world, Workflow_RunId=run_id, Workflow_Init="true", Workflow_Url=URL, **headers)
    assert message is not None
    world.engine.release(message)
    return message


def step(world: Any, step_id: int, target: int = 0, run_id: str = "wfr_1", **headers: str) -> Message:
    record = {"stepId": step_id, "targetStep": target} if target else {"stepId": step_id}
    accepted, message = submit(world, record, Workflow_RunId=run_id, Workflow_Url=URL, **headers)
    assert message is not None, accepted
    world.engine.release(message)
    return message


def call(world: Any, step_id: int = 1, **headers: str) -> Message:
    accepted, message = submit(
        world,
        b"question",
        destination="http://third/",
        Workflow_RunId="wfr_1",
        Workflow_CallType="toCallback",
        Callback=URL,
        Callback_Workflow_RunId="wfr_1",
        Callback_Feature_Set="InitialBody",
        Callback_Forward_Upstash_Workflow_StepId=str(step_id),
        **headers,
    )
    assert message is not None, accepted
    world.engine.release(message)
    return message


def history(message: Message) -> list[Any]:
    """Return what a started message delivers: the payload as text, then the step records."""
    assert message.content is not None
    payload, *records = [b64decode(element["body"]) for element in json.loads(message.content.body)]
    return [payload.decode(), *(json.loads(record) for record in records)]


def deliver(world: Any, message: Message, status: int = 200) -> list[Any]:
    """Start everything that is due, a message among it, finish that one, and return its history."""
    world.start()
    assert message.phase is Phase.ACTIVE
    found = history(message)
    world.finish(message, status)
    return found


def test_each_step_is_delivered_with_the_history_up_to_it(world: Any) -> None:
    first = begin(world)
    second = step(world, 1)
    third = step(world, 2)

    assert deliver(world, first) == ["payload"]
    assert deliver(world, second) == ["payload", {"stepId": 1}]
    assert deliver(world, third) == ["payload", {"stepId": 1}, {"stepId": 2}]


def test_retry_delivers_the_same_history_although_the_run_has_gone_on(world: Any) -> None:
    begin(world)
    message = step(world, 1, Retry_Delay="1000")
    before = deliver(world, message, 500)
    step(world, 2)

    world.advance(1)

    assert history(message) == before


def test_parallel_steps_see_their_plans_and_exactly_one_sees_all_results(world: Any) -> None:
    begin(world)
    plans = [step(world, 0, target) for target in (1, 2)]
    asleep = step(world, 0, 3, Delay="60s")
    results = [step(world, target) for target in (2, 1)]

    assert [len(deliver(world, message)) for message in plans] == [2, 3]
    assert [len(deliver(world, message)) for message in results] == [5, 6]
    world.advance(60)
    assert history(asleep)[-1] == {"stepId": 0, "targetStep": 3}
    assert deliver(world, step(world, 3))[-1] == {"stepId": 3}


@pytest.mark.parametrize("record", [{"stepId": 1}, {"stepId": 0, "targetStep": 4}])
def test_repeated_record_is_a_duplicate_whatever_its_result(world: Any, record: dict[str, Any]) -> None:
    begin(world)
    first = step(world, record["stepId"], record.get("targetStep", 0))

    accepted, message = submit(world, {**record, "out": "other"}, Workflow_RunId="wfr_1")

    assert (message, accepted.message_id, accepted.deduplicated) == (None, first.id, True)


def test_repeated_call_is_a_duplicate_until_and_after_its_result(world: Any) -> None:
    begin(world)
    call(world)

    with pytest.raises(AssertionError, match="deduplicated=True"):
        call(world)
    step(world, 1)
    with pytest.raises(AssertionError, match="deduplicated=True"):
        call(world)


def test_call_is_a_plain_request_and_its_callback_has_no_history(world: Any) -> None:
    begin(world)
    message = call(world)
    world.start()
    assert message.content is None

    world.finish(message, 201, body=b"answer")

    (callback,) = [found for found in world.start() if found.spec.workflow.role is Role.FROM_CALLBACK]
    body = json.loads(callback.body)
    assert (body["status"], b64decode(body["body"]), b64decode(body["sourceBody"])) == (201, b"answer", b"payload")
    assert (body["workflowRunId"], body["url"]) == ("wfr_1", "http://third/")
    assert callback.content is not None
    assert callback.content.body == callback.body
    assert ("Upstash-Workflow-RunId", "wfr_1") in callback.content.headers
    assert ("Upstash-Workflow-Stepid", "1") in callback.spec.headers


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ({"status": 500}, 500),
        ({"status": 0, "error": "no answer", "timed_out": True}, 504),
        ({"status": 0, "error": "refused"}, 502),
        ({"status": 489, "headers": (("Upstash-NonRetryable-Error", "true"),)}, 489),
    ],
)
def test_only_the_final_failure_of_a_call_is_told(world: Any, outcome: dict[str, Any], told: int) -> None:
    begin(world)
    message = call(world, Retries="1", Retry_Delay="1000")
    world.start()
    world.finish(message, **outcome)
    if told != 489:
        assert not [found for found in world.start() if found.spec.url == URL]
        world.advance(1)
        world.finish(message, **outcome)

    (callback,) = world.start()

    body = json.loads(callback.body)
    assert (body["status"], body["body"]) == (told, "")
    assert body["retried"] == body["maxRetries"] == 1
    assert world.account.dead_letters == {}
    assert world.states(message)[-1] is LogState.DELIVERED


def test_failure_callback_of_a_step_has_the_payload_and_ends_the_run(world: Any) -> None:
    failure = {"Workflow_RunId": "wfr_1", "Feature_Set": "InitialBody"}
    begin(world, Failure_Callback=URL, **{f"Failure_Callback_{name}": value for name, value in failure.items()})
    waiting = step(world, 0, 5, Delay="60s")
    # It names no failure callback of its own.
    message = step(world, 1, Retries="0")
    world.start()

    world.finish(message, 500, body=b"why")

    (callback,) = world.start()
    body = json.loads(callback.body)
    assert {"status", "header", "body", "url", "sourceBody", "workflowRunId", "dlqId"} <= set(body)
    assert (b64decode(body["body"]), b64decode(body["sourceBody"]), body["url"]) == (b"why", b"payload", URL)
    assert callback.spec.workflow.role is Role.FAILURE_CALL
    assert world.account.runs.get("wfr_1") is None
    assert waiting.phase is Phase.CANCELED
    world.finish(callback)
    assert world.states(callback)[-1] is LogState.DELIVERED


def test_delivery_whose_run_has_ended_counts_as_delivered(world: Any) -> None:
    begin(world)
    message = step(world, 1)
    world.start()
    world.engine.end_run(world.account, world.account.runs.get("wfr_1"))

    world.finish(message, 500)

    assert message.phase is Phase.DELIVERED
    assert world.account.dead_letters == {}


def test_result_of_a_call_is_dropped_when_the_run_has_ended(world: Any) -> None:
    begin(world)
    message = call(world)
    world.start()
    world.engine.end_run(world.account, world.account.runs.get("wfr_1"))

    world.finish(message, 200)

    assert world.start() == []


def test_second_run_of_an_id_knows_nothing_of_the_first(world: Any) -> None:
    old = begin(world)
    world.start()
    world.engine.end_run(world.account, world.account.runs.get("wfr_1"))
    new = begin(world)

    world.finish(old, 500)

    assert old.phase is Phase.DELIVERED
    assert world.account.runs.get("wfr_1").first == new.seq
    assert deliver(world, new) == ["payload"]


def test_what_could_not_be_stored_leaves_no_trace(world: Any) -> None:
    begin(world)
    _, message = submit(world, {"stepId": 1}, Workflow_RunId="wfr_1")
    world.engine.discard(message)
    again = step(world, 1)
    assert deliver(world, again) == ["payload", {"stepId": 1}]

    _, init = submit(world, Workflow_RunId="wfr_2", Workflow_Init="true")
    world.engine.discard(init)
    assert world.account.runs.get("wfr_2") is None


def test_run_of_which_nothing_is_left_is_forgotten_after_a_week(world: Any) -> None:
    deliver(world, begin(world))
    deliver(world, begin(world, "wfr_2"))
    world.clock.now += 6 * DAY
    sweep(world.engine)
    deliver(world, step(world, 1, run_id="wfr_2"))

    step(world, 2, run_id="wfr_2", Delay="30d")
    deliver(world, begin(world, "wfr_3"))
    world.clock.now += 2 * DAY
    sweep(world.engine)
    assert [run.id for run in world.account.runs] == ["wfr_2", "wfr_3"]
    world.clock.now += 8 * DAY
    sweep(world.engine)

    assert [run.id for run in world.account.runs] == ["wfr_2"]


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain"])
def test_history_is_never_delivered_as_a_form(world: Any, content_type: str) -> None:
    found = read_directives(
        [("Content-Type", content_type), ("Upstash-Workflow-RunId", "wfr_1"), ("Upstash-Workflow-Init", "true")],
        {},
        token="token",
    )
    spec = OptionReader(PLANS["payg"]).publication(URL, found, now=world.clock.now).spec
    assert spec.workflow is not None
    _, message = accepting.accept(world.engine, world.account, spec.workflow, spec, b"", not_before=0)
    assert message is not None
    world.engine.release(message)
    world.start()

    assert history(message) == [""]
    is_form = content_type != "text/plain"
    assert message.content is not None
    assert (("Content-Type", "application/json") in message.content.headers) is is_form


@pytest.mark.parametrize(
    ("headers", "status", "part"),
    [
        ({"Workflow_RunId": "wfr_other"}, 400, "wfr_other is not active"),
        ({"Workflow_RunId": ""}, 422, "RunId"),
        ({"Workflow_RunId": "x" * 300}, 422, "RunId"),
        ({"Workflow_RunId": "wfr_1", "Workflow_Init": "yes"}, 422, "Init"),
        ({"Workflow_RunId": "wfr_1", "Workflow_CallType": "fromCallback"}, 422, "CallType"),
        ({"Workflow_RunId": "wfr_1", "Workflow_CallType": "toCallback"}, 422, "Upstash-Callback"),
        ({"Workflow_RunId": "wfr_2", "Workflow_Init": "true", "Workflow_CallType": "toCallback"}, 422, "call type"),
        ({"Workflow_RunId": "wfr_2", "Workflow_Init": "true", "Workflow_Invoke": "true"}, 501, "invoke"),
        ({"Workflow_RunId": "wfr_1"}, 422, "JSON"),
        ({"Workflow_RunId": "wfr_1", "Workflow_Url": "http://h/\nX: 1"}, 422, "Workflow-Url"),
    ],
)
def test_unacceptable_message_of_a_run_is_refused(
    world: Any, headers: dict[str, str], status: int, part: str
) -> None:
    begin(world)

    with pytest.raises(Refusal, match=part) as caught:
        submit(world, **headers)

    assert caught.value.status == status
    assert len(world.account.messages) == 1


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, {"stepId": -1}, {"stepId": 1.5}, {"stepId": 10**30}])
def test_record_that_is_none_is_refused(world: Any, body: Any) -> None:
    begin(world)

    with pytest.raises(Refusal) as caught:
        submit(world, body, Workflow_RunId="wfr_1")

    assert caught.value.status == 422


def in_store(path: Path, action: Callable[[Any], Awaitable[None]], make_world: MakeWorld) -> None:
    """Open the store, take over what it holds, run an action on the world, and close it."""

    async def main() -> None:
        store = SqliteStore(path)
        recovered = await store.load()
        world = make_world(store)
        recover(world.engine, recovered)
        try:
            await action(world)
            await store.commit()
        finally:
            await store.close()

    asyncio.run(main())


def test_run_goes_on_after_a_restart_and_leaves_nothing_when_it_ends(tmp_path: Path, make_world: MakeWorld) -> None:
    async def before(world: Any) -> None:
        deliver(world, begin(world, Failure_Callback="http://failed/first"))
        step(world, 1, Failure_Callback="http://failed/")
        call(world, 2)
        world.start()

    async def after(world: Any) -> None:
        started = {message.spec.url: message for message in world.start()}
        assert history(started[URL]) == ["payload", {"stepId": 1}]
        run = world.account.runs.get("wfr_1")
        assert (run.failure.url, run.steps.keys()) == ("http://failed/", {"init", "result:1", "call:2"})
        accepted, message = submit(world, {"stepId": 1}, Workflow_RunId="wfr_1")
        assert (message, accepted.deduplicated) == (None, True)
        world.finish(started["http://third/"])
        assert deliver(world, step(world, 2)) == ["payload", {"stepId": 1}, {"stepId": 2}]
        world.engine.end_run(world.account, run)

    async def at_the_end(world: Any) -> None:
        assert list(world.account.runs) == []
        assert world.account.messages == {}

    for action in (before, after, at_the_end):
        in_store(tmp_path / "db", action, make_world)


def test_run_without_messages_can_be_appended_to_after_a_restart_for_a_week(
    tmp_path: Path, make_world: MakeWorld
) -> None:
    async def before(world: Any) -> None:
        deliver(world, begin(world))
        deliver(world, step(world, 1))
        deliver(world, begin(world, "wfr_2"))

    async def after(world: Any) -> None:
        assert deliver(world, step(world, 2)) == ["payload", {"stepId": 1}, {"stepId": 2}]
        world.clock.now += 8 * DAY
        sweep(world.engine)
        assert list(world.account.runs) == []

    for action in (before, after):
        in_store(tmp_path / "db", action, make_world)
