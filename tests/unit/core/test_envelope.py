"""The wire form of a dispatch: pinned by golden files, read strictly."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuebridge import Bridge, RetryPolicy, TaskRegistry, task
from queuebridge.envelope import VERSION, Envelope
from queuebridge.errors import MalformedEnvelope, UnsupportedEnvelope
from queuebridge.options import EnqueueOptions

GOLDEN = Path(__file__).parents[2] / "golden" / "envelopes"
MINIMAL = GOLDEN / "v1-minimal.json"
FULL = GOLDEN / "v1-full.json"
NEWEST = GOLDEN / "v2-full.json"

FIELDS: dict[str, Any] = {
    "job_id": "job",
    "dispatch_id": "dispatch",
    "task": "shop.mail",
    "queue": "default",
    "enqueued_at_ms": 1_715_350_500_000,
}


def changed(**changes: Any) -> bytes:
    """Return the minimal golden envelope with other fields."""
    return json.dumps({**json.loads(MINIMAL.read_bytes()), **changes}).encode()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_envelope_is_written_again_byte_for_byte(path: Path) -> None:
    assert Envelope.decode(path.read_bytes()).encode() == path.read_bytes()


def test_every_version_has_golden_files() -> None:
    pinned = {json.loads(path.read_bytes())["version"] for path in GOLDEN.glob("*.json")}

    assert pinned == set(range(1, VERSION + 1))


def test_full_golden_envelope_has_every_field() -> None:
    assert set(json.loads(NEWEST.read_bytes())) == set(Envelope.model_fields)


def test_minimal_envelope_has_the_defaults() -> None:
    assert Envelope.decode(MINIMAL.read_bytes()) == Envelope(
        version=1,
        kind="task",
        job_id="2f1c8a86-5d6f-4b7c-9f3e-0a1b2c3d4e5f",
        dispatch_id="0123456789abcdef0123456789abcdef",
        task="shop.tasks.send_mail",
        args=[],
        kwargs={},
        queue="default",
        enqueued_at_ms=1_715_350_500_000,
        not_before_ms=None,
        expires_at_ms=None,
        timeout_seconds=None,
        retry=RetryPolicy(retries=3, delays=(), base=10.0, cap=3600.0, jitter=True),
        priority=None,
        metadata={},
        headers={},
        idempotency_key=None,
        trace={},
        epoch=0,
    )


def test_full_envelope_is_read_field_by_field() -> None:
    envelope = Envelope.decode(FULL.read_bytes())

    assert envelope.args == [1, 2.5, "Grüße", None, True, ["nested", {"a": "NaN"}]]
    assert envelope.kwargs == {"sent_at": "2024-05-10T14:15:00Z", "body": "_w=="}
    assert (envelope.not_before_ms, envelope.expires_at_ms) == (1_715_350_560_000, 1_715_354_100_001)
    assert envelope.retry == RetryPolicy(retries=5, delays=(1.0, 60.0), base=5.0, cap=600.0, jitter=False)
    assert envelope.metadata == {"user_id": 42, "organization_id": "acme", "tags": ["a"]}
    assert envelope.deduplication_id == "key-9b74c9897bac770ffc029102a200c5de-3"


def test_field_in_a_version_that_does_not_know_it_is_refused() -> None:
    with pytest.raises(MalformedEnvelope, match="options: not known in its version"):
        Envelope.decode(changed(options={}))


def test_envelope_says_the_oldest_version_that_knows_its_fields() -> None:
    # Executors of an earlier deployment go on running what they understand.
    registry = TaskRegistry()
    mail = task(name="mail", registry=registry)(lambda: None)
    policy = {"retry_policy": {"max_retries": 1}}
    bridge = Bridge("inline", registry=registry, environ={})

    plain, special = (
        bridge._prepare(mail, (), {}, EnqueueOptions(options=options)).envelope
        for options in ({}, {"qstash": {"label": "mail"}, "celery": policy})
    )

    assert (plain.version, special.version) == (1, 2)
    # How to publish is no business of whoever publishes it again.
    assert special.options == {"qstash": {"label": "mail"}, "celery": {}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
IDS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=200)
MILLISECONDS = st.integers(0, 2**53)


@given(
    st.builds(
        Envelope,
        job_id=IDS,
        dispatch_id=IDS,
        task=st.text(min_size=1),
        args=st.lists(JSON),
        kwargs=st.dictionaries(st.text(), JSON),
        queue=st.text(min_size=1),
        enqueued_at_ms=MILLISECONDS,
        not_before_ms=st.none() | MILLISECONDS,
        expires_at_ms=st.none() | MILLISECONDS,
        timeout_seconds=st.none() | st.floats(0.001, 1e6),
        retry=st.builds(
            RetryPolicy,
            retries=st.integers(0, 1000),
            delays=st.lists(st.floats(0, 86_400), max_size=5).map(tuple),
            base=st.floats(0, 86_400),
            cap=st.floats(0, 86_400),
            jitter=st.booleans(),
        ),
        priority=st.none() | st.integers(),
        metadata=st.dictionaries(st.text(), JSON),
        headers=st.dictionaries(st.text(), st.text()),
        idempotency_key=st.none() | st.text(min_size=1),
        trace=st.dictionaries(st.text(), st.text()),
        epoch=st.integers(0, 1000),
    )
)
def test_every_envelope_is_read_as_it_was_written(envelope: Envelope) -> None:
    assert Envelope.decode(envelope.encode()) == envelope


def test_version_and_kind_come_first() -> None:
    assert Envelope(**FIELDS).encode().startswith(b'{"version":1,"kind":"task",')


def test_fields_with_their_default_are_left_out() -> None:
    assert set(json.loads(Envelope(**FIELDS).encode())) == {"version", "kind", *FIELDS}


def test_floats_that_json_does_not_know_are_written_as_text() -> None:
    envelope = Envelope(**FIELDS, args=[float("inf"), float("nan")])

    assert json.loads(envelope.encode())["args"] == ["Infinity", "NaN"]


def test_value_without_json_form_is_an_error_of_ours() -> None:
    with pytest.raises(MalformedEnvelope, match="job job has no JSON form"):
        Envelope(**FIELDS, args=["\ud800"]).encode()


def test_unknown_field_is_refused() -> None:
    with pytest.raises(MalformedEnvelope, match="colour: Extra inputs are not permitted"):
        Envelope.decode(changed(colour="red"))


def test_newer_version_is_told_apart_so_that_it_can_be_retried() -> None:
    with pytest.raises(UnsupportedEnvelope, match=r"version 3; .* knows versions 1 to 2") as caught:
        Envelope.decode(changed(version=3, colour="red"))

    assert caught.value.retryable


@pytest.mark.parametrize("version", [0, -1, "1", "2", 1.5, True, None, [2]], ids=repr)
def test_version_that_never_existed_is_malformed(version: object) -> None:
    with pytest.raises(MalformedEnvelope, match="version: "):
        Envelope.decode(changed(version=version))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{}",
        b"\xff\xfe\x00",
        b"\x80\x04\x95",
        "{}".encode("utf-16"),
        b'{"version":1}',
        b"[" * 100_000,
        b'{"args":' * 100_000,
        b'{"version":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"1" * 100_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_bytes_that_are_no_envelope_are_malformed(body: bytes) -> None:
    with pytest.raises(MalformedEnvelope, match="not a valid envelope"):
        Envelope.decode(body)


@given(st.binary())
def test_arbitrary_bytes_are_malformed(body: bytes) -> None:
    with pytest.raises(MalformedEnvelope):
        Envelope.decode(body)


def test_deeply_nested_argument_is_malformed() -> None:
    body = MINIMAL.read_bytes()[:-1] + b',"args":' + b"[" * 5000 + b"]" * 5000 + b"}"

    with pytest.raises(MalformedEnvelope):
        Envelope.decode(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job_id", ""),
        ("job_id", "x" * 201),
        ("dispatch_id", "a:b"),
        ("dispatch_id", "a\n"),
        ("dispatch_id", ""),
        ("task", ""),
        ("queue", ""),
        ("enqueued_at_ms", -1),
        ("enqueued_at_ms", 1.5),
        ("timeout_seconds", 0),
        ("timeout_seconds", "soon"),
        ("epoch", -1),
        ("args", {}),
        ("kwargs", []),
        ("headers", {"a": 1}),
        ("kind", "celery"),
        ("retry", {"retries": -1}),
        ("retry", {"tries": 1}),
        ("retry", {"base": 86_401}),
    ],
)
def test_impossible_value_is_malformed_and_named(field: str, value: object) -> None:
    with pytest.raises(MalformedEnvelope, match=f": {field}"):
        Envelope.decode(changed(**{field: value}))


def test_error_does_not_show_the_body() -> None:
    with pytest.raises(MalformedEnvelope) as caught:
        Envelope.decode(changed(enqueued_at_ms="hunter2"))

    assert "hunter2" not in str(caught.value)


def test_malformed_envelope_is_not_worth_a_retry() -> None:
    assert not MalformedEnvelope.retryable


def test_wanted_republication_has_another_deduplication_id() -> None:
    envelope = Envelope(**FIELDS)

    assert envelope.deduplication_id == "dispatch-0"
    assert envelope.model_copy(update={"epoch": 1}).deduplication_id == "dispatch-1"
