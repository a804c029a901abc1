"""RQ jobs become envelopes and jobs again; what cannot be pushed is refused with the reason."""

from __future__ import annotations

import json
from collections import OrderedDict
from datetime import datetime, timezone
from typing import Any

import fakeredis
import pytest
import rq
import rq_tasks
from rq import Callback, Retry
from rq.job import Dependency, Job
from rq.repeat import Repeat
from rq.serializers import JSONSerializer

from queuebridge import InvalidOption
from queuebridge.backends.rq.allowed import AllowList
from queuebridge.backends.rq.calls import check_pushable, envelope_of, job_of, parameter_names, why_not_json
from queuebridge.backends.rq.identity import bound, dispatch_at, dispatch_of, follow_up_of, is_bound, named_by
from queuebridge.envelope import Envelope
from queuebridge.errors import ConfigurationError, MalformedEnvelope, UnknownTask
from queuebridge.ledger.custody import OPAQUE, Custody

ALLOWED = AllowList(["rq_tasks"])
AT = "2026-01-31T10:00:00.000000Z"


@pytest.fixture
def queue() -> rq.Queue:
    """A queue of RQ's own."""
    return rq.Queue("mail", connection=fakeredis.FakeRedis())


def through_the_wire(job: Job) -> Job:
    """Return a job as it arrives."""
    envelope = Envelope.decode(envelope_of(job, "rq-1").encode())
    return job_of(envelope, job.connection, ALLOWED)


# What is JSON


@pytest.mark.parametrize(
    "value", [None, True, 0, -(2**70), 1.5, "text", "ü€😀", [], [1, [None]], {}, {"a": {"b": [1.0]}}], ids=repr
)
def test_json_is_accepted(value: Any) -> None:
    assert why_not_json(value, "x") is None
    assert json.loads(json.dumps(value)) == value


class Text(str):
    """Text of another type."""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ((1, 2), "x is tuple, which JSON does not have: pass a list"),
        ([{"a": (1,)}], "x[0]['a'] is tuple"),
        ({1: "a"}, "x has a key that is int, not text"),
        (float("nan"), "x is not a finite number"),
        ([float("inf")], "x[0] is not a finite number"),
        ("\ud800", "x cannot be written in UTF-8"),
        (b"bytes", "x is bytes"),
        ({1, 2}, "x is set"),
        (datetime.now(timezone.utc), "x is datetime"),
        (Text("a"), "x is Text"),
        (OrderedDict(a=1), "x is OrderedDict"),
        (object(), "x is object"),
    ],
    ids=repr,
)
def test_what_would_not_come_back_as_it_was_is_told_with_its_place(value: Any, problem: str) -> None:
    assert (why_not_json(value, "x") or "").startswith(problem)


def test_refusal_names_the_argument_and_not_its_value(queue: rq.Queue) -> None:
    job = queue.create_job(rq_tasks.add, args=(1, ("planted-secret",)))

    with pytest.raises(InvalidOption, match=r"args\[1\] is tuple") as refusal:
        check_pushable(job, ALLOWED)

    assert "planted-secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "where"),
    [({"kwargs": {"a": b"x"}}, r"kwargs\['a'\]"), ({"meta": {"a": object()}}, r"meta\['a'\]")],
)
def test_keyword_arguments_and_meta_have_to_be_json_too(queue: rq.Queue, options: Any, where: str) -> None:
    with pytest.raises(InvalidOption, match=where):
        check_pushable(queue.create_job(rq_tasks.add, **options), ALLOWED)


def test_method_of_an_object_is_refused(queue: rq.Queue) -> None:
    with pytest.raises(InvalidOption, match="method of an object"):
        check_pushable(queue.create_job(rq_tasks.Adder().add, args=(1,)), ALLOWED)


# Which names are allowed


@pytest.mark.parametrize("name", ["app.jobs.send", "app.jobs.mail.send", "app.jobs.Mailer.send"])
def test_functions_of_listed_modules_and_below_are_allowed(name: str) -> None:
    AllowList(["app.jobs"]).check(name)


@pytest.mark.parametrize(
    "name",
    ["os.system", "app.jobs2.send", "app.send", "eval", "app.jobs", "app.jobs.", "app.jobs. send", "app.jobs.a-b", ""],
)
def test_everything_else_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(ConfigurationError, match="QUEUEBRIDGE_RQ_MODULES"):
        AllowList(["app.jobs"]).check(name)


def test_nothing_is_allowed_without_a_list() -> None:
    with pytest.raises(ConfigurationError, match="there is no list"):
        AllowList([]).check("rq_tasks.add")


def test_refused_module_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", imported.append)

    with pytest.raises(ConfigurationError):
        ALLOWED.find("antigravity.fly")

    assert imported == []


def test_what_an_allowed_module_has_from_elsewhere_is_refused() -> None:
    assert ALLOWED.find("rq_tasks.add") is rq_tasks.add
    with pytest.raises(ConfigurationError, match="defined elsewhere"):
        ALLOWED.find("rq_tasks.get_current_job")
    with pytest.raises((ConfigurationError, UnknownTask)):
        ALLOWED.find("rq_tasks.os.kill")


def test_missing_function_may_be_known_to_a_newer_deployment() -> None:
    with pytest.raises(UnknownTask, match=r"rq_tasks\.missing"):
        ALLOWED.find("rq_tasks.missing")


def test_callbacks_are_held_to_the_list_on_both_ends(queue: rq.Queue) -> None:
    job = queue.create_job(rq_tasks.add, on_success=Callback("os.system"))

    with pytest.raises(ConfigurationError, match=r"os\.system"):
        check_pushable(job, ALLOWED)
    with pytest.raises(ConfigurationError, match=r"os\.system"):
        through_the_wire(job)


# There and back


def test_all_options_arrive(queue: rq.Queue) -> None:
    job = queue.create_job(
        rq_tasks.add,
        args=(1,),
        kwargs={"b": [2]},
        timeout=77,
        result_ttl=88,
        ttl=99,
        failure_ttl=111,
        description="adds",
        job_id="job-1",
        meta={"user_id": 7},
        retry=Retry(max=3, interval=[1, 2], enqueue_at_front=True),
        repeat=Repeat(times=4, interval=[5, 6]),
        on_success=Callback(rq_tasks.succeeded, timeout=5),
        on_failure=Callback(rq_tasks.failed, timeout=6),
        on_stopped=Callback(rq_tasks.failed),
        depends_on=Dependency(jobs=["other"], allow_failure=True, enqueue_at_front=True),
        group_id="group",
    )
    if hasattr(job, "webhooks"):
        job.webhooks = [rq.Webhook("https://example.com", "failed", headers={"X-A": "b"})]

    arrived = through_the_wire(job)

    # The status is that of the moment, and in Redis.
    apart = {"data": None, "status": None}
    assert {**arrived.to_dict(), **apart} == {**job.to_dict(), **apart}
    assert (arrived.func_name, arrived.args, arrived.kwargs) == (job.func_name, [1], {"b": [2]})
    assert (arrived.meta, arrived.origin, arrived.description) == ({"user_id": 7}, "mail", "adds")
    assert arrived.func is rq_tasks.add


def test_nothing_pickled_travels(queue: rq.Queue) -> None:
    body = envelope_of(queue.create_job(rq_tasks.add, args=(1,)), "rq-1").encode()

    assert b'"data"' not in body
    assert b"rq_tasks.add" in body


def test_serializer_travels_by_name_so_that_results_can_be_read(queue: rq.Queue) -> None:
    queue.serializer = JSONSerializer

    assert through_the_wire(queue.create_job(rq_tasks.add)).serializer is JSONSerializer


class OwnJob(Job):
    """A job class of a program's own, outside the list."""


def test_job_class_outside_the_list_is_refused(queue: rq.Queue) -> None:
    queue.job_class = OwnJob

    with pytest.raises(ConfigurationError, match="OwnJob"):
        check_pushable(queue.create_job(rq_tasks.add), ALLOWED)


def test_description_that_rq_makes_of_the_arguments_is_made_anew_on_arrival(queue: rq.Queue) -> None:
    job = queue.create_job(rq_tasks.add, kwargs={"password": "planted-secret"})
    envelope = envelope_of(job, "rq-1")

    assert "planted-secret" not in json.dumps(envelope.message)
    assert through_the_wire(job).description == job.description


@pytest.mark.skipif(not hasattr(rq, "Webhook"), reason="RQ has no webhooks before version 3")
def test_secret_in_the_headers_of_a_webhook_is_seen_by_the_ledger(queue: rq.Queue) -> None:
    job = queue.create_job(rq_tasks.add)
    job.webhooks = [rq.Webhook("https://example.com", "failed", headers={"token": "planted-secret"})]
    envelope = envelope_of(job, "rq-1")

    with pytest.raises(InvalidOption, match="token"):
        Custody(["token"]).store(envelope, envelope.encode())


def test_call_that_is_not_json_is_opaque_and_only_for_the_ledger(queue: rq.Queue) -> None:
    envelope = envelope_of(queue.create_job(rq_tasks.add, args=({1, 2},)), "rq-1")

    assert OPAQUE in envelope.message
    assert envelope.args == []
    with pytest.raises(MalformedEnvelope, match="not JSON"):
        job_of(envelope, queue.connection, ALLOWED)


@pytest.mark.parametrize("fields", [None, [], {"timeout": {"a": 1}}, {"retry_intervals": "no json"}, {"status": "odd"}])
def test_damaged_envelope_is_malformed(queue: rq.Queue, fields: Any) -> None:
    envelope = envelope_of(queue.create_job(rq_tasks.add), "rq-1")
    damaged = envelope.model_copy(update={"message": {"hash": fields}})

    with pytest.raises(MalformedEnvelope):
        job_of(damaged, queue.connection, ALLOWED)


def test_names_of_parameters_are_known_where_the_function_is(queue: rq.Queue) -> None:
    assert parameter_names(queue.create_job(rq_tasks.add)) == ("a", "b")
    assert parameter_names(queue.create_job("somewhere.else_")) == ()


# Which dispatch a job stands for


def test_job_without_a_field_is_known_by_the_time_on_its_queue() -> None:
    assert dispatch_of("j", None, AT) == dispatch_at("j", AT)
    assert dispatch_at("j", AT) != dispatch_at("j", AT.replace("10", "11"))
    assert dispatch_at("j", AT) != dispatch_at("k", AT)


def test_field_holds_for_its_time_or_for_the_next_one() -> None:
    assert dispatch_of("j", bound("d", AT), AT) == "d"
    assert dispatch_of("j", bound("d", AT), "later") == dispatch_at("j", "later")
    assert dispatch_of("j", bound("d", None), "later") == "d"
    assert (is_bound(bound("d", AT)), is_bound(bound("d", None)), is_bound(None)) == (True, False, False)
    assert (named_by(bound("d", AT)), named_by(bound("d", None)), named_by(None)) == ("d", "d", None)


def test_execution_that_runs_again_publishes_the_same_dispatches() -> None:
    assert follow_up_of("d", "j") == follow_up_of("d", "j")
    assert len({follow_up_of("d", "j"), follow_up_of("d", "k"), follow_up_of("e", "j")}) == 3
