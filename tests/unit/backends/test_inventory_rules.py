"""Each rule of the inventory: a project in which it finds something, and one in which it does not."""

from __future__ import annotations

from typing import Any

import pytest
from inventories import inventory_of, rules_of

from queuebridge.backends.celery.inventory.facts import UNLIMITED, QueueFacts, ScheduleFacts, Seen
from queuebridge.backends.celery.inventory.records import Place, Severity, Verdict
from queuebridge.backends.celery.inventory.rules import APP_RULES, TASK_RULES
from queuebridge.backends.celery.inventory.source.files import Unread

REDIS = {"result_backend": "redis://results"}
KEY = {"ledger_key": True}
PICKLE = {"accept_content": ("json", "application/x-python-serialize")}
ON_REDIS = {"visibility_timeout_seconds": 3600.0}


def seen(longest_ms: int | None = None, largest_bytes: int | None = None, *, cut: bool = False) -> Seen:
    return Seen(dispatches=1, longest_ms=longest_ms, largest_bytes=largest_bytes, cut=cut)


def queues(name: str, exchange_type: str = "direct", **arguments: Any) -> dict[str, Any]:
    facts = QueueFacts(
        name=name,
        exchange=name,
        exchange_type=exchange_type,
        routing_key=name,
        broadcast=exchange_type == "fanout",
        arguments={name.replace("_", "-"): value for name, value in arguments.items()},
    )
    return {"queues": {name: facts}}


def case(source: str = "", **facts: Any) -> dict[str, Any]:
    return {"source": source, **facts}


def option(**options: Any) -> dict[str, Any]:
    return case(task={"options": options})


def setting(**settings: Any) -> dict[str, Any]:
    return case(app={"settings": settings})


def body(code: str, arguments: str = "", imports: str = "", **facts: Any) -> dict[str, Any]:
    return case(f"{imports}\n@app.task\ndef work({arguments}):\n    {code}\n", **facts)


def call(code: str, **facts: Any) -> dict[str, Any]:
    return case(f"from celery import chain, chord, group\ndef caller(value):\n    {code}\n", **facts)


BOUND = {"bound": True}
SCHEDULED = ScheduleFacts(name="nightly", task="shop.work", when="every 60 s")
SIGNAL = "from celery.signals import {0}\n@{0}.connect\ndef prepare(**kwargs): ...\n"

# Rule -> where it finds something, and where it does not.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "serializer-refused": (option(serializer="yaml"), option(serializer="json")),
    "serializer-needs-key": (
        call("work.apply_async(serializer='pickle')", app=PICKLE),
        call("work.apply_async(serializer='pickle')", app=PICKLE, surroundings=KEY),
    ),
    "serializer-not-json": (
        case(task={"options": {"serializer": "pickle"}}, app=PICKLE, surroundings=KEY),
        case(task={"options": {"serializer": "json"}}, app=PICKLE, surroundings=KEY),
    ),
    "arguments-not-json": (
        body("...", "names: set[str]"),
        body("...", "names: list[str], day: 'date', more: dict | None", "from datetime import date"),
    ),
    "arguments-need-pickle": (
        body("...", "names: set", task={"options": {"serializer": "pickle"}}, app=PICKLE),
        body("...", "names: set"),
    ),
    "compression-needs-key": (
        call("work.apply_async(compression='gzip')"),
        call("work.apply_async(compression='gzip')", surroundings=KEY),
    ),
    "compression": (
        case(task={"options": {"compression": "gzip"}}, surroundings=KEY),
        case(surroundings=KEY),
    ),
    "large-arguments": (case(seen=seen(largest_bytes=1_000_001)), case(seen=seen(largest_bytes=1000))),
    "options-unseen": (call("work.apply_async(**value)"), call("work.apply_async(expires=3)")),
    "priority": (call("work.s().set(priority=3).delay()"), call("work.s().set(priority=0).delay(priority=None)")),
    "broker-answers": (call("work.apply_async(mandatory=True)"), call("work.apply_async(mandatory=False)")),
    "broadcast": (
        case(task={"route": {"queue": "all"}}, app=queues("all", "fanout")),
        case(task={"route": {"queue": "all"}}, app=queues("all", "topic")),
    ),
    "exchange": (call("work.apply_async(exchange='partner')"), call("work.apply_async(queue='partner')")),
    "ordered-queue": (
        case(task={"route": {"queue": "one"}}, app=queues("one", x_single_active_consumer=True)),
        case(task={"route": {"queue": "other"}}, app=queues("one", x_single_active_consumer=True)),
    ),
    "dead-letters": (
        case(task={"route": {"queue": "one"}}, app=queues("one", x_dead_letter_exchange="dlx")),
        case(task={"route": {"queue": "one"}}, app=queues("one")),
    ),
    "queue": (call("work.apply_async(queue='mail')"), case(task={"route": {"queue": "celery"}})),
    "route-unknown": (case(task={"route": {"unknown": "KeyError"}}), case()),
    "runs-too-long": (
        case(seen=seen(901_000)),
        case(seen=seen(901_000), surroundings={"push_timeout_seconds": 7200.0}),
    ),
    "limit-beyond-push": (
        option(time_limit=1000),
        case(task={"options": {"time_limit": 1000}}, seen=seen(10_000)),
    ),
    "limit-above-need": (
        case(task={"options": {"time_limit": 1000}}, seen=seen(10_000)),
        case(task={"options": {"time_limit": 800}}, seen=seen(10_000)),
    ),
    "hard-limit": (option(time_limit=10), option(soft_time_limit=10)),
    "soft-limit": (
        body(
            "try: ...\n    except SoftTimeLimitExceeded: ...",
            imports="from celery.exceptions import SoftTimeLimitExceeded",
        ),
        option(time_limit=10),
    ),
    "no-limit": (case(), option(soft_time_limit=10)),
    "rate-limit": (option(rate_limit="10/m"), option(rate_limit=0)),
    "delay-in-hops": (
        call("work.apply_async(countdown=8 * 24 * 3600)"),
        call("work.apply_async(countdown=6 * 24 * 3600)"),
    ),
    "delay-beyond-visibility": (
        call(
            "from datetime import datetime, timedelta\n"
            "    work.apply_async(eta=datetime.now() + timedelta(hours=1, minutes=1))",
            app=ON_REDIS,
        ),
        call("work.apply_async(countdown=60 * 61)"),
    ),
    "run-beyond-visibility": (
        case(task={"options": {"acks_late": True}}, seen=seen(3_700_000), app=ON_REDIS),
        case(seen=seen(3_700_000), app=ON_REDIS),
    ),
    "os-signals": (body("signal.alarm(3)", imports="import signal"), body("signal.alarm(3)", "signal")),
    "no-result-backend": (call("work.delay().get()"), call("work.delay().get()", app=REDIS)),
    "local-result-backend": (
        call("found = work.delay()\n    return found.status", app={"result_backend": "file:///tmp/results"}),
        call("found = work.delay()", app={"result_backend": "file:///tmp/results"}),
    ),
    "rpc-results": (
        call("work.delay().get()", app={"result_backend": "rpc://"}),
        call("work.delay().get()", app=REDIS),
    ),
    "results-needed": (call("chord([work.s(1)])(other.s())", app=REDIS), call("group([work.s(1)])()", app=REDIS)),
    "results-stored": (case(app=REDIS), case(app=REDIS, task={"options": {"ignore_result": True}})),
    "waits-in-task": (body("return other.delay().get()"), body("other.delay()")),
    "canvas": (call("(work.s() | other.s()).delay()"), call("work.delay()")),
    "revoke": (call("work.delay().revoke()"), call("work.delay().status")),
    "terminate": (call("work.delay().revoke(terminate=True)"), call("work.delay().revoke(terminate=False)")),
    "globals": (
        case("SEEN = []\n@app.task\ndef work(): remember(1)\ndef remember(one): SEEN.append(one)\n"),
        case("SEEN = []\n@app.task\ndef work():\n    SEEN = []\n    SEEN.append(1)\n"),
    ),
    "task-state": (body("self.session = 1", "self", task=BOUND), body("thing.session = 1", "thing")),
    "files": (body("open('x', 'w')"), body("open('x')")),
    "processes": (
        body("run(['ls'])", imports="from subprocess import run"),
        body("run(['ls'])", imports="from elsewhere import run"),
    ),
    "threads": (body("t.Thread(target=print).start()", imports="import threading as t"), body("t.Thread()", "t")),
    "greenlets": (body("gevent.spawn(print)", imports="import gevent"), body("gevent.spawn(print)", "gevent")),
    "request-of-worker": (
        body("self.request.hostname", "self", task=BOUND),
        body("self.request.id", "self", task=BOUND),
    ),
    "reject": (
        body("raise Reject('no')", imports="from celery.exceptions import Reject"),
        body("raise Reject('no')", imports="from shop.errors import Reject"),
    ),
    "requeue": (
        body("raise Reject('no', requeue=late)", imports="from celery.exceptions import Reject"),
        body("raise Reject('no', False)", imports="from celery.exceptions import Reject"),
    ),
    "ignore": (
        body("raise Ignore", imports="from celery.exceptions import Ignore"),
        body("raise ValueError"),
    ),
    "reads-results": (
        body("AsyncResult('x')", imports="from celery.result import AsyncResult"),
        body("print('x')"),
    ),
    "acks-early": (case(), option(acks_late=True)),
    "acks-on-failure": (
        option(acks_late=True, acks_on_failure_or_timeout=False),
        option(acks_on_failure_or_timeout=False),
    ),
    "worker-lost": (option(reject_on_worker_lost=True), option(reject_on_worker_lost=None)),
    "retries": (body("raise self.retry()", "self", task=BOUND), body("client.retry()", "client")),
    "endless-retries": (option(max_retries=UNLIMITED), option(max_retries=10)),
    "custom-base": (case(task={"bases": ("shop.Base",)}), case()),
    "custom-request": (case(task={"request": "shop:Request"}), case()),
    "custom-strategy": (case(task={"strategy": "shop:strategy"}), case()),
    "schedule": (
        case(app={"schedules": (SCHEDULED,)}),
        case(app={"schedules": (ScheduleFacts(name="x", task="shop.other", when="every 60 s"),)}),
    ),
    "always-eager": (setting(task_always_eager=True), setting(task_always_eager=False)),
    "protocol-1": (setting(task_protocol=1), setting(task_protocol=2)),
    "worker-signals": (case(SIGNAL.format("worker_process_init")), case(SIGNAL.format("task_prerun"))),
    "lost-signals": (case(SIGNAL.format("task_revoked")), case(SIGNAL.format("task_prerun"))),
    "task-signals": (case(SIGNAL.format("task_prerun")), case(SIGNAL.format("worker_ready"))),
    "remote-control": (call("app.control.inspect().active()"), call("app.control.revoke(value)")),
    "revoking": (call("app.control.revoke(value)"), call("app.control.revoke(value, terminate=True)")),
    "events": (setting(worker_send_task_events=True), setting()),
    "own-worker": (case("app.steps['worker'].add(object)"), case("other.steps['worker'].add(object)")),
    "worker-pool": (setting(worker_pool="gevent"), setting(worker_pool="threads")),
    "worker-recycling": (setting(worker_max_tasks_per_child=10), setting()),
    "worker-direct": (setting(worker_direct=True), setting()),
    "own-sending": (case(app={"own_sending": True}), case(app={"custom": {"amqp_cls": "shop:AMQP"}})),
    "custom-amqp": (case(app={"custom": {"amqp_cls": "shop:AMQP"}}), case(app={"custom": {"task_cls": "shop:Task"}})),
    "inherited-priority": (setting(task_inherit_parent_priority=True), setting()),
    "queue-types": (case(app=queues("one", x_queue_type="quorum")), case(app=queues("one"))),
    "schedules-elsewhere": (setting(beat_scheduler="django_celery_beat.schedulers:DatabaseScheduler"), setting()),
    "schedule-of-unknown": (
        case(app={"schedules": (ScheduleFacts(name="x", task="shop.gone", when="every 60 s"),)}),
        case(app={"schedules": (SCHEDULED,)}),
    ),
    "not-loaded": (
        case("from celery import shared_task\n@shared_task\ndef forgotten(): ...\n"),
        case("from elsewhere import shared_task\n@shared_task\ndef forgotten(): ...\n"),
    ),
    "unread": (case(unread=(Unread(Place("shop/broken.py", 3), "it is not valid Python"),)), case()),
    "unresolved": (call("value.delay(1)"), call("work.delay(1)")),
}

RULES = {rule.name: rule for rule in (*TASK_RULES, *APP_RULES)}


@pytest.mark.parametrize("name", RULES)
def test_rule_finds_what_it_is_about_and_nothing_else(name: str) -> None:
    with_it, without = CASES[name]

    assert name in rules_of(inventory_of(**with_it))
    assert name not in rules_of(inventory_of(**without))


def test_every_rule_has_a_case_and_a_name_of_its_own() -> None:
    assert list(CASES) == list(RULES)
    assert len(RULES) == len(TASK_RULES) + len(APP_RULES)


@pytest.mark.parametrize("name", RULES)
def test_texts_of_rules_are_sentences(name: str) -> None:
    rule = RULES[name]

    assert all(text.endswith(".") and "  " not in text for text in (rule.why, rule.do))
    assert (rule.find.__doc__ or "").startswith("Find ")


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (option(acks_late=True), Verdict.READY),
        (option(priority=3), Verdict.EDITS),
        (option(priority=3, max_retries=UNLIMITED), Verdict.DECISION),
        (option(priority=3, max_retries=UNLIMITED, serializer="yaml"), Verdict.BLOCKED),
    ],
)
def test_verdict_is_that_of_the_worst_finding(facts: dict[str, Any], verdict: Verdict) -> None:
    (task,) = inventory_of(**facts).tasks

    assert task.verdict is verdict
    assert [finding.severity.rank for finding in task.findings] == sorted(
        (finding.severity.rank for finding in task.findings), reverse=True
    )


def test_same_finding_at_several_places_is_one_finding() -> None:
    (task,) = inventory_of(**call("work.apply_async(priority=3)\n    work.apply_async(priority=3)")).tasks

    (finding,) = [finding for finding in task.findings if finding.rule == "priority"]
    assert finding.severity is Severity.EDIT
    assert [str(place) for place in finding.where] == ["shop.py:4", "shop.py:5"]


def test_delay_of_a_retry_is_a_delay() -> None:
    facts = body("raise self.retry(countdown=2 * 3600)", "self", task=BOUND, app=ON_REDIS)

    assert rules_of(inventory_of(**facts))["delay-beyond-visibility"] == [
        "self.retry: 2 h, visibility timeout 60 min"
    ]


def test_models_are_arguments_of_tasks_with_pydantic() -> None:
    source = "from pydantic import BaseModel\nclass Order(BaseModel): ...\n@app.task\ndef work(order: Order): ...\n"

    assert "arguments-not-json" in rules_of(inventory_of(source))
    assert "arguments-not-json" not in rules_of(inventory_of(source, task={"pydantic": True}))
