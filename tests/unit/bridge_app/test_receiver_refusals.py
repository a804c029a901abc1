"""What the receiver refuses: every row of the protocol's table, with tokens made by another JWT library."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from receiving import (
    CURRENT_KEY,
    DELIVER,
    FOREIGN_KEY,
    MISSING,
    NEXT_KEY,
    PUBLIC_URL,
    ReceiverUnderTest,
    body_claim,
    claims_for,
    envelope,
    hmac_signed,
    raw_token,
    segment,
    sign,
)
from werkzeug.test import TestResponse


def short(value: object) -> str:
    """Return a readable id for a parameter."""
    return repr(value)[:20]


BODY = json.dumps(envelope(job_id="job-1", dispatch_id="d1")).encode()
NOW = int(time.time())
HUGE = 10**400


@pytest.fixture
def receiver() -> ReceiverUnderTest:
    """A receiver that has not run anything yet."""
    return ReceiverUnderTest()


def assert_refused(answer: TestResponse, receiver: ReceiverUnderTest, *, saying: str = "") -> None:
    """Fail unless it is a 401 in JSON without a stack trace, and nothing was executed."""
    assert answer.status_code == 401
    assert answer.mimetype == "application/json"
    said = answer.get_json()
    assert set(said) == {"error"}
    assert saying in said["error"]
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    assert "Upstash-NonRetryable-Error" not in answer.headers
    assert receiver.calls == []


def unsigned_token() -> str:
    return raw_token(b'{"alg":"none","typ":"JWT"}', json.dumps(claims_for(BODY)).encode(), "")


FORGED: dict[str, tuple[Callable[[], str], str]] = {
    "other key": (lambda: sign(claims_for(BODY), FOREIGN_KEY), "fits neither"),
    "none, without signature": (unsigned_token, "HS256"),
    "none, with a signature": (lambda: unsigned_token() + sign(claims_for(BODY)).rpartition(".")[2], "HS256"),
    "HS384 with our key": (lambda: sign(claims_for(BODY), algorithm="HS384"), "HS256"),
    "HS512 with our key": (lambda: sign(claims_for(BODY), algorithm="HS512"), "HS256"),
    "changed claims": (
        lambda: ".".join(
            [
                sign(claims_for(BODY)).split(".")[0],
                segment(json.dumps(claims_for(BODY, exp=NOW + 9999)).encode()),
                sign(claims_for(BODY)).split(".")[2],
            ]
        ),
        "fits neither",
    ),
    "signature cut off": (lambda: sign(claims_for(BODY)).rpartition(".")[0] + ".", "fits neither"),
    "signature shortened": (lambda: sign(claims_for(BODY))[:-4], ""),
    "critical extension": (
        lambda: hmac_signed(b'{"alg":"HS256","crit":["x"],"x":1}', json.dumps(claims_for(BODY)).encode()),
        "not a valid QStash token",
    ),
    "next key, HS512": (lambda: sign(claims_for(BODY), NEXT_KEY, algorithm="HS512"), "HS256"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_token_is_refused(case: str, receiver: ReceiverUnderTest) -> None:
    make, saying = FORGED[case]

    assert_refused(receiver.post(BODY, token=make()), receiver, saying=saying)


WRONG_CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"exp": NOW - 60}, "expired"),
    "not yet valid": ({"nbf": NOW + 10**6}, "not valid yet"),
    "issued in the future": ({"iat": NOW + 10**6}, "not valid yet"),
    "wrong issuer": ({"iss": "upstash"}, "'iss'"),
    "wrong subject": ({"sub": "https://other.example.com/queuebridge/deliver"}, "QUEUEBRIDGE_PUBLIC_URL"),
    "subject of another endpoint": ({"sub": f"{PUBLIC_URL}/queuebridge/failed"}, "QUEUEBRIDGE_PUBLIC_URL"),
    "subject with another query": ({"sub": f"{PUBLIC_URL}{DELIVER}?x=1"}, "QUEUEBRIDGE_PUBLIC_URL"),
    "subject is a prefix": ({"sub": PUBLIC_URL}, "QUEUEBRIDGE_PUBLIC_URL"),
    "subject with another scheme": ({"sub": f"http://jobs.example.com{DELIVER}"}, "QUEUEBRIDGE_PUBLIC_URL"),
    "body of another message": ({"body": body_claim(BODY + b" ")}, "not the one that was signed"),
    "body in standard base64": ({"body": "+/" + body_claim(BODY)[2:]}, "not the one that was signed"),
    "body of padding only": ({"body": "="}, "not the one that was signed"),
    "lone surrogate in body": ({"body": "\ud800"}, ""),
    "lone surrogate in subject": ({"sub": "\ud800"}, ""),
    "non-ASCII body": ({"body": "é" * 43}, "not the one that was signed"),
}


@pytest.mark.parametrize("case", WRONG_CLAIMS)
def test_wrong_claim_is_refused(case: str, receiver: ReceiverUnderTest) -> None:
    changes, saying = WRONG_CLAIMS[case]

    assert_refused(receiver.post(BODY, token=sign(claims_for(BODY, **changes))), receiver, saying=saying)


@pytest.mark.parametrize("claim", ["iss", "sub", "exp", "nbf", "body"])
def test_missing_claim_is_refused(claim: str, receiver: ReceiverUnderTest) -> None:
    missing: dict[str, Any] = {claim: MISSING}

    assert_refused(receiver.post(BODY, token=sign(claims_for(BODY, **missing))), receiver)


@pytest.mark.parametrize("value", [None, [], {}, "", True, False, [1], HUGE, -HUGE, "x" * 5000], ids=short)
@pytest.mark.parametrize("claim", ["iss", "sub", "body"])
def test_text_claim_of_another_type_is_refused(claim: str, value: Any, receiver: ReceiverUnderTest) -> None:
    assert_refused(receiver.post(BODY, token=sign(claims_for(BODY, **{claim: value}))), receiver)


TIMES: list[Any] = [None, [], {}, "", True, [1], "1900000000", "soon", -HUGE, float("nan")]


@pytest.mark.parametrize("value", TIMES, ids=short)
@pytest.mark.parametrize("claim", ["exp", "nbf"])
def test_time_claim_of_another_type_is_refused(claim: str, value: Any, receiver: ReceiverUnderTest) -> None:
    # What is far in the past is a valid nbf.
    if (claim, value) == ("nbf", -HUGE):
        value = HUGE

    assert_refused(receiver.post(BODY, token=sign(claims_for(BODY, **{claim: value}))), receiver)


@pytest.mark.parametrize("value", [None, [], "now", float("inf")], ids=short)
def test_issue_time_of_another_type_is_refused(value: Any, receiver: ReceiverUnderTest) -> None:
    assert_refused(receiver.post(BODY, token=sign(claims_for(BODY, iat=value))), receiver)


CLAIMS_BYTES = {
    "empty": b"",
    "text": b"hello",
    "list": b"[]",
    "number": b"1",
    "null": b"null",
    "not UTF-8": b'{"iss":"\xff"}',
    "nested deeply": b"[" * 100_000,
    "number of 10000 digits": b'{"exp":' + b"9" * 10_000 + b"}",
    "NaN": b'{"iss":"Upstash","exp":NaN}',
    "infinite": json.dumps(claims_for(BODY)).replace(str(claims_for(BODY)["exp"]), "1e999").encode(),
}


@pytest.mark.parametrize("case", CLAIMS_BYTES)
def test_signed_claims_that_are_no_claims_are_refused(case: str, receiver: ReceiverUnderTest) -> None:
    assert_refused(receiver.post(BODY, token=sign(CLAIMS_BYTES[case])), receiver)


HEADERS = {
    "empty": "",
    "one part": "garbage",
    "two parts": "a.b",
    "three empty parts": "..",
    "three parts of garbage": "a.b.c",
    "four parts": f"{sign(claims_for(BODY))}.x",
    "five parts (encrypted)": "a.b.c.d.e",
    "bearer": f"Bearer {sign(claims_for(BODY))}",
    "two tokens": f"{sign(claims_for(BODY))}, {sign(claims_for(BODY))}",
    "very long": "a" * 1_000_000,
    "very long, three parts": ".".join(["a" * 300_000] * 3),
    "non-ASCII": "é.ü.ß",
    "latin-1 bytes": "\xff\xfe.\xfd.\xfc",
    "control characters": "a\x01.b\x7f.c",
    "header nested deeply": raw_token(b"[" * 100_000, b"{}"),
    "header is a list": raw_token(b"[]", b"{}"),
    "algorithm is a list": raw_token(b'{"alg":["HS256"]}', b"{}"),
    "no algorithm": raw_token(b"{}", b"{}"),
    "unencoded payload": raw_token(b'{"alg":"HS256","b64":false,"crit":["b64"]}', b""),
}


@pytest.mark.parametrize("case", HEADERS)
def test_header_that_is_no_token_is_refused(case: str, receiver: ReceiverUnderTest) -> None:
    assert_refused(receiver.post(BODY, token=HEADERS[case]), receiver)


def test_request_without_signature_is_refused(receiver: ReceiverUnderTest) -> None:
    assert_refused(receiver.post(BODY, token=None), receiver, saying="Upstash-Signature")


def test_unsigned_binary_body_is_refused_before_it_is_parsed(receiver: ReceiverUnderTest) -> None:
    assert_refused(receiver.post(bytes(range(256)), token=None), receiver)


def test_binary_body_with_the_signature_of_another_is_refused(receiver: ReceiverUnderTest) -> None:
    assert_refused(receiver.post(bytes(range(256)), token=sign(claims_for(BODY))), receiver)


@pytest.mark.parametrize("changed", [BODY + b"\n", BODY[:-1], BODY.replace(b"job-1", b"job-2"), b""], ids=short)
def test_changed_body_is_refused(changed: bytes, receiver: ReceiverUnderTest) -> None:
    assert_refused(receiver.post(changed, token=sign(claims_for(BODY))), receiver, saying="not the one that was signed")


@pytest.mark.parametrize("path", ["/queuebridge/tasks/record", "/queuebridge/tasks/nobody", "/queuebridge/failed"])
def test_every_endpoint_refuses_what_is_not_signed_for_it(path: str, receiver: ReceiverUnderTest) -> None:
    assert_refused(receiver.post(b"{}", path=path, token=None), receiver)
    assert_refused(receiver.post(b"{}", path=path, token=sign(claims_for(b"{}"))), receiver)


def test_error_of_the_current_key_is_not_masked_by_the_next_one(receiver: ReceiverUnderTest) -> None:
    answer = receiver.post(BODY, token=sign(claims_for(BODY, exp=NOW - 60)))

    assert_refused(answer, receiver, saying="expired")


def test_refusal_is_logged_once_in_one_short_line(
    receiver: ReceiverUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        receiver.post(BODY, token=sign(claims_for(BODY, sub="https://evil.example\n" + "x" * 100_000)))

    refusals = [record.getMessage() for record in caplog.records]
    assert len(refusals) == 1
    assert "\n" not in refusals[0]
    assert len(refusals[0]) < 1000


def test_password_in_the_public_url_is_not_shown_to_strangers(caplog: pytest.LogCaptureFixture) -> None:
    receiver = ReceiverUnderTest({"QUEUEBRIDGE_PUBLIC_URL": "https://hook:planted-secret@jobs.example.com"})

    answer = receiver.post(BODY, token=sign(claims_for(BODY, sub="https://hook:planted-secret@other.example")))

    assert_refused(answer, receiver)
    assert "planted-secret" not in answer.text + caplog.text
    assert "planted-secret" not in receiver.client.get("/queuebridge/health").text


def test_neither_keys_nor_tokens_are_shown(receiver: ReceiverUnderTest, caplog: pytest.LogCaptureFixture) -> None:
    shown = "".join(receiver.post(BODY, token=make()).text for make, _ in FORGED.values())
    shown += receiver.client.get("/queuebridge/ready").text + receiver.client.get("/queuebridge/health").text

    for key in (CURRENT_KEY, NEXT_KEY):
        assert key not in shown + caplog.text


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_refused_in_json(method: str, receiver: ReceiverUnderTest) -> None:
    answer = receiver.client.open(DELIVER, method=method)

    assert answer.status_code == 405
    assert answer.mimetype == "application/json"
    assert "POST" in answer.headers["Allow"]


def test_body_above_the_limit_is_refused_in_json(receiver: ReceiverUnderTest) -> None:
    receiver.app.config["MAX_CONTENT_LENGTH"] = 10

    answer = receiver.post(BODY)

    assert answer.status_code == 413
    assert answer.mimetype == "application/json"
    assert receiver.calls == []
