from __future__ import annotations

from typing import Any

import pytest

from queuebridge.backends.qstash.devserver.destination import check_destination, split_query
from queuebridge.backends.qstash.devserver.errors import Refusal
from queuebridge.backends.qstash.devserver.messages import FlowControl, Redaction
from queuebridge.backends.qstash.devserver.options import OptionReader, Publication, read_directives
from queuebridge.backends.qstash.devserver.records import decode_spec, encode_spec
from queuebridge.backends.qstash.devserver.workflow.part import Role, WorkflowPart
from queuebridge.backends.qstash.protocol import PLANS

NOW = 1_800_000_000.0
TOKEN = "the-token"


def read(
    *headers: tuple[str, str], parameters: dict[str, str] | None = None, plan: str = "payg", **fixed: Any
) -> Publication:
    found = read_directives(headers, parameters or {}, token=TOKEN)
    return OptionReader(PLANS[plan]).publication("http://host/x", found, now=NOW, **fixed)


def refusal(*headers: tuple[str, str], plan: str = "payg") -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(*headers, plan=plan)
    return caught.value


def test_publish_without_options_has_the_documented_defaults() -> None:
    publication = read(("Content-Type", "text/plain"), ("User-Agent", "x"), ("Upstash-Telemetry-Sdk", "y"))

    spec = publication.spec
    assert (spec.method, spec.max_retries, publication.not_before) == ("POST", 3, NOW)
    assert spec.headers == (("Content-Type", "text/plain"),)


def test_forwarded_headers_lose_their_prefix_and_get_canonical_names() -> None:
    spec = read(("upstash-forward-x-my-header", "1"), ("UPSTASH-FORWARD-AUTHORIZATION", "Bearer z")).spec

    assert spec.headers == (("X-My-Header", "1"), ("Authorization", "Bearer z"))


def test_forwarded_content_type_wins_over_the_plain_one() -> None:
    spec = read(("Upstash-Forward-content-type", "a/b"), ("Content-Type", "c/d")).spec

    assert spec.headers == (("Content-Type", "a/b"),)


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Transfer-Encoding", "Upstash-Signature"])
def test_headers_of_the_connection_and_of_the_server_are_never_forwarded(name: str) -> None:
    assert read((f"Upstash-Forward-{name}", "x")).spec.headers == ()


def test_header_forward_passes_all_headers_but_the_token() -> None:
    spec = read(
        ("Upstash-Header-Forward", "true"),
        ("Authorization", f"Bearer {TOKEN}"),
        ("X-Hook", "1"),
        ("Host", "localhost"),
    ).spec

    assert spec.headers == (("X-Hook", "1"),)


def test_header_wins_over_a_query_parameter() -> None:
    assert read(("Upstash-Retries", "1"), parameters={"upstash-retries": "5"}).spec.max_retries == 1


def test_query_parameter_configures_like_a_header() -> None:
    publication = read(parameters={"upstash-delay": "100s", "qstash_token": TOKEN})

    assert publication.not_before == NOW + 100


def test_not_before_wins_over_delay() -> None:
    publication = read(("Upstash-Delay", "10s"), ("Upstash-Not-Before", str(int(NOW) + 50)))

    assert publication.not_before == NOW + 50


def test_flow_control_is_read_in_any_order_with_spaces() -> None:
    flow = read(
        ("Upstash-Flow-Control-Key", "k"), ("Upstash-Flow-Control-Value", "period=1m,rate=10 , parallelism=3")
    ).spec.flow

    assert flow == FlowControl(key="k", parallelism=3, rate=10, period_seconds=60)


def test_flow_control_period_is_one_second_by_default() -> None:
    flow = read(("Upstash-Flow-Control-Key", "k"), ("Upstash-Flow-Control-Value", "rate=1")).spec.flow

    assert flow == FlowControl(key="k", rate=1, period_seconds=1)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "period=1m",
        "rate=0",
        "rate=-1",
        "rate=x",
        "burst=3",
        "rate=1, period=8d",
        "rate=1, rate=2",
        "rate",
    ],
)
def test_bad_flow_control_value_is_refused(value: str) -> None:
    refused = refusal(("Upstash-Flow-Control-Key", "k"), ("Upstash-Flow-Control-Value", value))

    assert refused.status == 400


@pytest.mark.parametrize("name", ["Key", "Value"])
def test_flow_control_needs_key_and_value(name: str) -> None:
    assert refusal((f"Upstash-Flow-Control-{name}", "rate=1")).status == 400


def test_labels_are_split_at_commas() -> None:
    assert read(("Upstash-Label", "a, b,,c")).spec.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("value", "redaction"),
    [
        ("body", Redaction(body=True)),
        ("headers", Redaction(all_headers=True)),
        (
            "body, header[Authorization],headers[X-Y]",
            Redaction(body=True, headers=frozenset({"authorization", "x-y"})),
        ),
    ],
)
def test_redacted_fields_are_read_in_all_spellings(value: str, redaction: Redaction) -> None:
    assert read(("Upstash-Redact-Fields", value)).spec.redaction == redaction


def test_callback_inherits_the_retries_of_its_message() -> None:
    spec = read(("Upstash-Retries", "7"), ("Upstash-Callback", "https://cb/x")).spec

    assert spec.callback is not None
    assert (spec.callback.url, spec.callback.max_retries, spec.callback.method) == ("https://cb/x", 7, "POST")


def test_callback_is_redacted_as_its_message() -> None:
    spec = read(("Upstash-Callback", "https://cb/x"), ("Upstash-Redact-Fields", "body")).spec

    assert spec.callback is not None
    assert spec.callback.redaction == Redaction(body=True)


def test_callback_options_have_their_own_prefix() -> None:
    spec = read(
        ("Upstash-Failure-Callback", "https://cb/x"),
        ("Upstash-Failure-Callback-Retries", "1"),
        ("Upstash-Failure-Callback-Method", "PUT"),
        ("Upstash-Failure-Callback-Timeout", "5s"),
        ("Upstash-Failure-Callback-Retry-Delay", "1000"),
        ("Upstash-Failure-Callback-Forward-X-Secret", "s"),
    ).spec

    callback = spec.failure_callback
    assert callback is not None
    assert (callback.max_retries, callback.method, callback.timeout_seconds) == (1, "PUT", 5)
    assert callback.retry_delay == "1000"
    assert callback.headers == (("Content-Type", "application/json"), ("X-Secret", "s"))
    assert (spec.callback, spec.max_retries) == (None, 3)


def test_content_based_deduplication_is_read_in_any_case() -> None:
    assert read(("Upstash-Content-Based-Deduplication", "True")).hash_content
    assert not read(("Upstash-Content-Based-Deduplication", "False")).hash_content


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Upstash-Retries", "-1"),
        ("Upstash-Retries", "many"),
        ("Upstash-Delay", "soon"),
        ("Upstash-Not-Before", "tomorrow"),
        ("Upstash-Timeout", "0s"),
        ("Upstash-Method", "BREW"),
        ("Upstash-Retry-Delay", "import os"),
        ("Upstash-Callback", "host/without/scheme"),
        ("Upstash-Redact-Fields", "everything"),
        ("Upstash-Content-Based-Deduplication", "yes"),
        ("Upstash-Deduplication-Id", "a:b"),
        ("Upstash-Cron", "* * * * *"),
        ("Upstash-Queue-Name", "q"),
        ("Upstash-Workflow-Init", "true"),
        ("Upstash-Forward-Bad Name", "x"),
        ("Upstash-Forward-X", "\udcff"),
        ("Upstash-Callback-Delay", "5s"),
    ],
)
def test_bad_option_is_refused_and_named(name: str, value: str) -> None:
    extra = [("Upstash-Callback", "http://cb/")] if name == "Upstash-Callback-Delay" else []

    assert refusal((name, value), *extra).status == 400


def test_colon_in_a_deduplication_id_has_the_known_text() -> None:
    assert refusal(("Upstash-Deduplication-Id", "a:b")).text == "DeduplicationId cannot contain ':'"


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (("Upstash-Delay", "8d"), "quota maxDelay exceeded, current limit: 604800"),
        (("Upstash-Retries", "6"), "quota maxRetries exceeded, current limit: 5"),
    ],
)
def test_option_beyond_the_plan_is_a_quota_error(header: tuple[str, str], text: str) -> None:
    refused = refusal(header, plan="free")

    assert (refused.status, refused.text) == (412, text)


def test_pay_as_you_go_accepts_a_delay_of_ten_days() -> None:
    assert read(("Upstash-Delay", "10d")).not_before == NOW + 864_000


def test_retry_request_overrides_only_what_it_names() -> None:
    spec = read(("Upstash-Retries", "2"), ("Upstash-Label", "a"), ("Upstash-Forward-X", "1")).spec
    found = read_directives([("Upstash-Retries", "0"), ("Content-Type", "of/the-request")], {}, token=TOKEN)

    overridden = OptionReader(PLANS["payg"]).override(spec, found, now=NOW).spec

    assert (overridden.max_retries, overridden.labels, overridden.headers) == (0, ("a",), (("X", "1"),))


def test_our_parameters_are_taken_off_the_destination_and_the_rest_keeps_its_spelling() -> None:
    ours, rest = split_query("b=%20&qstash_token=t%3D&a&UPSTASH-Retries=3&b=2+3")

    assert ours == {"qstash_token": "t=", "upstash-retries": "3"}
    assert rest == "b=%20&a&b=2+3"


@pytest.mark.parametrize("url", ["http://host/a//b", "https://h", "HTTP://127.0.0.1:1/x?y=%2F", "http://[::1]:80/"])
def test_url_destination_is_kept_as_it_is(url: str) -> None:
    assert check_destination(url) == url


@pytest.mark.parametrize(
    ("destination", "status", "part"),
    [
        ("", 400, "scheme"),
        ("ftp://host/x", 400, "endpoint has invalid scheme, add http:// or https://"),
        ("localhost:80/x", 400, "endpoint has invalid scheme"),
        ("http://", 400, "host is missing"),
        ("http://host:99999/", 400, "invalid destination url"),
        ("http://host/\udcff", 400, "UTF-8"),
        ("my-group", 404, "url group my-group not found"),
        ("api/llm", 400, "not supported"),
    ],
)
def test_other_destinations_are_refused(destination: str, status: int, part: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_destination(destination)

    assert caught.value.status == status
    assert part in caught.value.text


def test_settings_of_a_callback_are_read_as_if_it_had_been_published_with_them() -> None:
    spec = read(
        ("Upstash-Callback", "http://cb/"),
        ("Upstash-Callback-Retries", "1"),
        ("Upstash-Callback-Failure-Callback", "http://cb/failed"),
        ("Upstash-Callback-Failure-Callback-Forward-X", "1"),
        ("Upstash-Callback-Failure-Callback-Workflow-RunId", "wfr_1"),
        ("Upstash-Callback-Workflow-RunId", "wfr_1"),
        ("Upstash-Callback-Forward-Upstash-Workflow-StepId", "3"),
        ("Upstash-Failure-Callback-Retries", "9"),
    ).spec

    callback = spec.callback
    assert callback is not None
    assert (spec.workflow, spec.failure_callback, callback.max_retries) == (None, None, 1)
    assert callback.workflow == WorkflowPart(run_id="wfr_1", role=Role.FROM_CALLBACK)
    assert callback.headers == (("Content-Type", "application/json"), ("Upstash-Workflow-Stepid", "3"))
    failure = callback.failure_callback
    assert failure is not None
    assert (failure.url, failure.max_retries) == ("http://cb/failed", 1)
    assert failure.workflow == WorkflowPart(run_id="wfr_1", role=Role.FAILURE_CALL)
    assert failure.headers == (("Content-Type", "application/json"), ("X", "1"))
    assert decode_spec(encode_spec(spec)) == spec


@pytest.mark.parametrize(
    "name", ["Callback-Callback", "Failure-Callback-Callback", "Failure-Callback-Failure-Callback"]
)
def test_callback_of_a_callback_is_refused(name: str) -> None:
    urls = [("Upstash-Callback", "http://cb/"), ("Upstash-Failure-Callback", "http://cb/")]

    assert refusal((f"Upstash-{name}", "http://cb/2"), *urls).status == 400


def test_stale_headers_of_an_earlier_request_are_not_delivered_in_a_workflow() -> None:
    stale = {
        "Accept-Encoding": "gzip", "Connection": "close", "Content-Length": "3", "Content-Type": "text/old",
        "Host": "old", "Proxy-Foo": "1", "Transfer-Encoding": "chunked", "Upstash-Message-Id": "msg_old",
        "Upstash-Retried": "2", "Upstash-Signature": "old", "User-Agent": "old",
    }  # fmt: skip
    kept = {"Authorization": "Bearer mine", "Upstash-Label": "l", "Upstash-Workflow-Sdk-Version": "1", "X-User": "u"}
    forwarded = [(f"Upstash-Forward-{name}", value) for name, value in (stale | kept).items()]
    workflow = ("Upstash-Workflow-RunId", "wfr_1")

    spec = read(("Content-Type", "text/new"), workflow, *forwarded).spec
    callback = read(
        ("Upstash-Callback", "http://cb/"),
        ("Upstash-Callback-Workflow-RunId", "wfr_1"),
        *((name.replace("Upstash-", "Upstash-Callback-", 1), value) for name, value in forwarded),
    ).spec.callback

    assert dict(spec.headers) == {"Content-Type": "text/new", **kept}
    assert callback is not None
    del kept["Upstash-Workflow-Sdk-Version"]  # with it, the SDK would read the callback as a history
    assert dict(callback.headers) == {"Content-Type": "application/json", **kept}


@pytest.mark.parametrize(
    ("delay", "seconds"), [("1.5", 1.5), ("90", 90), ("1d10h30m", 124_200), ("2w", 1_209_600), ("1mo1m", 2_592_060)]
)
def test_workflow_sleeps_in_fractions_of_seconds_and_in_long_units(delay: str, seconds: float) -> None:
    workflow = ("Upstash-Workflow-RunId", "wfr_1")

    assert read(("Upstash-Delay", delay), workflow).not_before == NOW + seconds
    assert refusal(("Upstash-Delay", "1.5")).status == 400
    assert refusal(("Upstash-Delay", "1.5x"), workflow).status == 400
