"""What is revoked runs on neither side, or whoever revokes is told why not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from bridged_celery import CeleryWorld, MakeWorld
from celery import states
from celery.app.control import Control

from queuebridge.errors import InvalidOption, LedgerUnavailable, OptionNotSupported
from queuebridge.ledger import State
from queuebridge.outcome import Status
from queuebridge.stages import Stage


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What workers are told: command, arguments, destination."""
    said: list[Any] = []

    def broadcast(
        _: Any,
        command: str,
        arguments: Any = None,
        destination: Any = None,
        connection: Any = None,
        reply: bool = False,
        **__: Any,
    ) -> list[Any] | None:
        said.append((command, dict(arguments or {}), destination))
        return [{"worker@here": {"ok": "flagged"}}] if reply else None

    monkeypatch.setattr(Control, "broadcast", broadcast)
    return said


def send(world: CeleryWorld) -> Any:
    """Send a job."""

    return world.app.send_task("shop.count")


def state_of(world: CeleryWorld, job_id: str) -> State:
    assert world.ledger is not None
    return world.ledger.executions.of_job(job_id)[0].state


REVOKED = {"terminate": False, "signal": "SIGTERM"}


@pytest.mark.parametrize("how", ["revoke", "result", "command line", "keywords"])
def test_every_way_to_revoke_reaches_both_sides(make_world: MakeWorld, told: list[Any], how: str) -> None:
    world = make_world(Stage.DUAL)
    result = send(world)

    if how == "revoke":
        world.app.control.revoke(result.id)
    elif how == "result":
        result.revoke()
    elif how == "command line":
        # As `celery control revoke` does.
        world.app.control.broadcast("revoke", reply=True, arguments={"task_id": [result.id]})
    else:
        world.app.control.broadcast("revoke", task_id=result.id)

    assert len(told) == 1
    assert (state_of(world, result.id), result.state) == (State.CANCELLED, states.REVOKED)


def test_several_are_revoked_at_once(make_world: MakeWorld, told: list[Any]) -> None:
    world = make_world(Stage.LIVE)
    ids = [send(world).id for _ in range(2)]

    answer = world.app.control.revoke(ids, reply=True)

    assert [state_of(world, job_id) for job_id in ids] == [State.CANCELLED] * 2
    assert told == [("revoke", {"task_id": ids, **REVOKED}, None)]
    assert answer == [{"worker@here": {"ok": "flagged"}}]


@pytest.mark.parametrize(("reply", "answer"), [(True, []), (False, None)])
def test_without_workers_nobody_answers(
    make_world: MakeWorld, told: list[Any], reply: bool, answer: list[Any] | None
) -> None:
    world = make_world(backend="qstash")

    @world.app.task(name="shop.count", shared=False)
    def count() -> None: ...

    result = send(world)
    (envelope,) = world.pushed()

    assert world.app.control.revoke(result.id, reply=reply) == answer
    assert (told, world.deliver(envelope).status) == ([], Status.DUPLICATE)


def test_without_workers_a_ledger_that_is_away_is_an_error(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(backend="qstash")
    result = send(world)
    away(world, monkeypatch)

    with pytest.raises(LedgerUnavailable):
        world.app.control.revoke(result.id)


def test_with_workers_a_ledger_that_is_away_leaves_it_to_them(
    make_world: MakeWorld, told: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(Stage.DUAL)
    result = send(world)
    away(world, monkeypatch)

    world.app.control.revoke(result.id)

    assert len(told) == 1
    assert "revoked in workers only" in caplog.text


def away(world: CeleryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(_: str) -> Any:
        raise LedgerUnavailable("no answer")

    monkeypatch.setattr(world.bridge, "cancel", cancel)


def by_stamps(world: CeleryWorld, **options: Any) -> Any:
    return world.app.control.revoke_by_stamped_headers({"tenant": "a"}, **options)


def stamped(world: CeleryWorld, tenant: Any) -> tuple[Any, list[bool]]:
    """Send a job with a stamp, and return it and the list of its executions."""
    ran: list[bool] = []

    @world.app.task(name=f"shop.stamped.{len(world.app.tasks)}", shared=False)
    def work() -> None:
        ran.append(True)

    return work.apply_async(stamped_headers=["tenant"], tenant=tenant), ran


@pytest.mark.parametrize("headers", [{"tenant": "a"}, {"tenant": ["b", "a"]}, ["other=b", "tenant=a"]], ids=repr)
@pytest.mark.parametrize("tenant", ["a", ["c", "a"]])
@pytest.mark.parametrize("stage", [Stage.DUAL, Stage.PUSH])
def test_receiver_hears_of_revoked_stamps(
    make_world: MakeWorld, told: list[Any], stage: Stage, headers: Any, tenant: Any
) -> None:
    world = make_world(stage)
    result, ran = stamped(world, tenant)
    other, other_ran = stamped(world, "z")

    world.app.control.broadcast("revoke_by_stamped_headers", arguments={"headers": headers})
    outcomes = [world.deliver(envelope).status for envelope in world.pushed()]

    assert outcomes == [Status.DONE] * 2
    assert (ran, result.state, state_of(world, result.id)) == ([], states.REVOKED, State.DONE)
    assert (other_ran, other.state) == ([True], states.SUCCESS)
    assert [command for command, *_ in told] == ["revoke_by_stamped_headers"]


@pytest.mark.parametrize(("hours", "runs"), [(0, False), (2.9, False), (3.1, False), (6, True)])
def test_stamps_are_revoked_for_some_hours(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, hours: float, runs: bool
) -> None:
    world = make_world(backend="qstash")
    began = 10_800 * 100_000 + 600
    at(began, monkeypatch)
    by_stamps(world)
    _, ran = stamped(world, "a")

    at(began + hours * 3600, monkeypatch)
    world.deliver(world.pushed()[-1])

    assert bool(ran) is runs


def at(moment: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the time for what is revoked."""
    monkeypatch.setattr("queuebridge.backends.celery.stamps.time", SimpleNamespace(time=lambda: moment))


def test_job_waits_for_a_ledger_that_cannot_say_whether_it_is_revoked(
    make_world: MakeWorld, told: list[Any]
) -> None:
    world = make_world(Stage.PUSH)
    _, ran = stamped(world, "a")
    assert world.ledger is not None
    world.ledger.away = {"get_payload"}

    assert world.deliver(world.pushed()[-1]).status is Status.RETRY
    world.ledger.away = set()
    world.ledger._clock.move(60)
    assert world.deliver(world.pushed()[-1], attempt=2).status is Status.DONE
    assert (ran, told) == ([True], [])


def test_stamps_are_left_to_workers_if_the_ledger_is_away(
    make_world: MakeWorld, told: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(Stage.DUAL)
    assert world.ledger is not None
    world.ledger.away = {"put_payload"}

    by_stamps(world)

    assert len(told) == 1
    assert "in workers only" in caplog.text


def test_without_workers_stamps_are_not_revoked_if_the_ledger_is_away(make_world: MakeWorld) -> None:
    world = make_world(backend="qstash")
    assert world.ledger is not None
    world.ledger.away = {"put_payload"}

    with pytest.raises(LedgerUnavailable):
        by_stamps(world)


@pytest.mark.parametrize("headers", [None, [], "tenant", ["tenant=a", "other"]], ids=repr)
def test_stamps_in_no_known_form_are_refused(make_world: MakeWorld, told: list[Any], headers: Any) -> None:
    world = make_world(Stage.DUAL)

    with pytest.raises(InvalidOption, match="tenant=acme"):
        world.app.control.broadcast("revoke_by_stamped_headers", arguments={"headers": headers})

    assert told == []


PUSHING = (
    {"stage": Stage.RAMPDOWN},
    {"stage": Stage.PUSH},
    {"backend": "qstash"},
    {"stage": Stage.LEGACY, "QUEUEBRIDGE_STAGE_RULES": "mail.*=push"},
)
NOT_PUSHING = (
    {"stage": Stage.LEGACY},
    {"stage": Stage.SHADOW},
    {"stage": Stage.SHADOW, "QUEUEBRIDGE_STAGE_RULES": "mail.*=legacy"},
)


def revoke(world: CeleryWorld, command: str, **options: Any) -> Any:
    if command == "revoke":
        return world.app.control.revoke("a", **options)
    return by_stamps(world, **options)


@pytest.mark.parametrize("command", ["revoke", "revoke_by_stamped_headers"])
@pytest.mark.parametrize("where", PUSHING, ids=str)
def test_revoking_what_is_pushed_is_refused_without_a_ledger(
    make_world: MakeWorld, told: list[Any], where: dict[str, Any], command: str
) -> None:
    world = make_world(**where, with_ledger=False)

    with pytest.raises(OptionNotSupported, match=f"{command}.*QUEUEBRIDGE_LEDGER"):
        revoke(world, command)

    assert told == []


@pytest.mark.parametrize("command", ["revoke", "revoke_by_stamped_headers"])
@pytest.mark.parametrize("where", NOT_PUSHING, ids=str)
def test_without_a_ledger_workers_are_told_where_only_they_run_jobs(
    make_world: MakeWorld, told: list[Any], where: dict[str, Any], command: str
) -> None:
    revoke(make_world(**where, with_ledger=False), command)

    assert [said for said, *_ in told] == [command]


@pytest.mark.parametrize("command", ["revoke", "revoke_by_stamped_headers"])
def test_workers_that_are_named_are_told_without_a_ledger(
    make_world: MakeWorld, told: list[Any], command: str
) -> None:
    revoke(make_world(Stage.PUSH, with_ledger=False), command, destination=["worker@here"])

    ((said, _, destination),) = told
    assert (said, destination) == (command, ["worker@here"])


def test_naming_workers_does_not_help_where_there_are_none(make_world: MakeWorld) -> None:
    world = make_world(backend="qstash", with_ledger=False)

    with pytest.raises(OptionNotSupported):
        revoke(world, "revoke", destination=["worker@here"])


def test_other_commands_and_apps_that_the_environment_leaves_alone_are_celerys(
    make_world: MakeWorld, told: list[Any]
) -> None:
    world = make_world(backend="qstash")
    assert world.app.control.ping(timeout=0.1) == [{"worker@here": {"ok": "flagged"}}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.app.queuebridge, "forwarding", lambda: None)
        by_stamps(world)

    assert [command for command, *_ in told] == ["ping", "revoke_by_stamped_headers"]
