"""Whatever strangers send, the receiver neither executes it nor fails."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from receiving import CURRENT_KEY, DELIVER, FOREIGN_KEY, PUBLIC_URL, ReceiverUnderTest, claims_for, envelope, sign

FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
PATHS = st.sampled_from([DELIVER, "/queuebridge/tasks/record", "/queuebridge/failed"])

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
# What a WSGI server may hand over: any byte but control characters, as latin-1.
header_text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=200)
base64ish = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=", max_size=80)


@FUZZ
@given(path=PATHS, token=header_text | st.tuples(base64ish, base64ish, base64ish).map(".".join), body=st.binary())
def test_strange_tokens_are_refused(path: str, token: str, body: bytes) -> None:
    receiver = ReceiverUnderTest()

    answer = receiver.post(body, path=path, token=token)

    assert answer.status_code == 401
    assert answer.mimetype == "application/json"
    assert receiver.calls == []


@FUZZ
@given(
    path=PATHS,
    key=st.sampled_from([CURRENT_KEY, FOREIGN_KEY]),
    claim=st.sampled_from(["iss", "sub", "exp", "nbf", "body"]),
    value=json_values,
)
def test_strange_claims_are_refused(path: str, key: str, claim: str, value: Any) -> None:
    receiver = ReceiverUnderTest()
    body = json.dumps(envelope()).encode()
    claims = claims_for(body, url=PUBLIC_URL + path)
    usual = claims[claim]
    # A number may be a good time after all.
    if value == usual or (claim in ("exp", "nbf") and isinstance(value, int | float)):
        value = [value]

    answer = receiver.post(body, path=path, token=sign({**claims, claim: value}, key))

    assert answer.status_code == 401
    assert receiver.calls == []


@FUZZ
@given(path=PATHS, payload=st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_signed_claims_of_any_shape_are_refused(path: str, payload: bytes) -> None:
    receiver = ReceiverUnderTest()

    answer = receiver.post(b"{}", path=path, token=sign(payload))

    assert answer.status_code == 401
    assert receiver.calls == []


@FUZZ
@given(path=PATHS, body=st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_signed_bodies_of_any_shape_are_no_errors_of_the_receiver(path: str, body: bytes) -> None:
    receiver = ReceiverUnderTest()

    answer = receiver.post(body, path=path)

    assert answer.status_code in (200, 489)
    assert answer.mimetype == "application/json"
    if path == DELIVER:
        assert receiver.calls == []


ENVELOPE_FIELDS = [*envelope(), "args", "kwargs", "retry", "metadata", "headers", "trace", "epoch", "timeout_seconds"]


@FUZZ
@given(field=st.sampled_from(ENVELOPE_FIELDS), value=json_values)
def test_envelope_with_one_strange_field_is_no_error_of_the_receiver(field: str, value: Any) -> None:
    receiver = ReceiverUnderTest()
    # A deadline beyond the year 9999 cannot be told to the task, and one that is over at once ends it: 500, rightly.
    assume(not (field == "timeout_seconds" and isinstance(value, int | float) and (0 < value < 1 or value > 10**9)))

    answer = receiver.deliver(**{field: value})

    # 503 and 404: a newer deployment may know the version or the task.
    assert answer.status_code in (200, 404, 489) or (answer.status_code, field) == (503, "version")
    assert answer.mimetype == "application/json"


@FUZZ
@given(
    headers=st.dictionaries(
        st.sampled_from(["Upstash-Retried", "Upstash-Message-Id", "Content-Type", "Forwarded", "X-Forwarded-Host"]),
        header_text,
    )
)
def test_unsigned_headers_cannot_make_a_delivery_fail(headers: dict[str, str]) -> None:
    receiver = ReceiverUnderTest()
    body = b'{"value": 1}'
    path = "/queuebridge/tasks/record"
    token = sign(claims_for(body, url=PUBLIC_URL + path))

    answer = receiver.client.post(path, data=body, headers={**headers, "Upstash-Signature": token})

    assert answer.status_code == 200
    assert len(receiver.calls) == 1
