"""What the receiver accepts, and how it compares addresses and times."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from flask import Flask
from receiving import (
    CURRENT_KEY,
    DELIVER,
    MISSING,
    NEXT_KEY,
    PUBLIC_URL,
    ReceiverUnderTest,
    Recorder,
    body_claim,
    claims_for,
    envelope,
    hmac_signed,
    sign,
    verifier,
)
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from bridge_app import create_app, create_blueprint
from queuebridge import Bridge, ConfigurationError, task
from queuebridge.errors import NotAuthentic

BODY = json.dumps(envelope(kwargs={"value": 7})).encode()


@pytest.fixture
def receiver() -> ReceiverUnderTest:
    """A receiver that has not run anything yet."""
    return ReceiverUnderTest()


ACCEPTED: dict[str, dict[str, Any]] = {
    "as QStash signs": {},
    "nbf 0": {"nbf": 0},
    "without iat": {"iat": MISSING},
    "without jti": {"jti": MISSING},
    "jti a number": {"jti": 17},
    "jti a list": {"jti": ["a"]},
    "jti null": {"jti": None},
    "audience": {"aud": "somebody"},
    "audiences": {"aud": ["a", "b"]},
    "audience of another type": {"aud": {"x": 1}},
    "unknown claims": {"region": "EU-CENTRAL-1"},
    "body without padding": {"body": body_claim(BODY).rstrip("=")},
    "body with padding": {"body": body_claim(BODY)},
    "times with fractions": {"exp": 9999999999.5, "nbf": 1.5, "iat": 1.5},
    "subject escaped otherwise": {"sub": f"{PUBLIC_URL}/queuebridge/%64eliver"},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_authentic_delivery_is_executed_once(case: str, receiver: ReceiverUnderTest) -> None:
    answer = receiver.post(BODY, token=sign(claims_for(BODY, **ACCEPTED[case])))

    assert answer.status_code == 200
    assert [call["value"] for call in receiver.calls] == [7]


def test_next_key_is_accepted_with_one_warning(receiver: ReceiverUnderTest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        answers = [receiver.post(BODY, token=sign(claims_for(BODY), NEXT_KEY)) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200] * 3
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "QSTASH_NEXT_SIGNING_KEY" in warnings[0]


def test_one_key_is_enough() -> None:
    receiver = ReceiverUnderTest({"QSTASH_NEXT_SIGNING_KEY": None})

    assert receiver.post(BODY).status_code == 200
    assert receiver.post(BODY, token=sign(claims_for(BODY), NEXT_KEY)).status_code == 401


# One day in 2033, in which no test will run: the verifier must go by its clock alone.
NOW = 2_000_000_000.0


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"exp": NOW - 29}, True),
        ({"exp": NOW - 30}, False),
        ({"exp": NOW - 31}, False),
        ({"nbf": NOW + 30}, True),
        ({"nbf": NOW + 31}, False),
        ({"iat": NOW + 30}, True),
        ({"iat": NOW + 31}, False),
    ],
    ids=str,
)
def test_clock_tolerance_is_honoured_up_to_its_limit(changes: dict[str, Any], accepted: bool) -> None:
    tested = verifier(clock_tolerance_seconds=30, clock=lambda: NOW)
    headers = {"Upstash-Signature": sign(claims_for(BODY, now=NOW, **changes))}

    if accepted:
        assert tested.verify(headers, BODY, DELIVER).backend == "qstash"
    else:
        with pytest.raises(NotAuthentic):
            tested.verify(headers, BODY, DELIVER)


@pytest.mark.parametrize(("tolerance", "status"), [("0", 401), ("100", 200)])
def test_clock_tolerance_is_a_setting(tolerance: str, status: int) -> None:
    receiver = ReceiverUnderTest({"QUEUEBRIDGE_CLOCK_TOLERANCE_SECONDS": tolerance})
    expired = claims_for(BODY)
    expired["exp"] = expired["iat"] - 50

    assert receiver.post(BODY, token=sign(expired)).status_code == status


# Addresses


def test_host_header_is_not_trusted(receiver: ReceiverUnderTest) -> None:
    token = sign(claims_for(BODY, sub=f"https://evil.example{DELIVER}"))

    answer = receiver.post(
        BODY,
        token=token,
        headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"},
        base_url="https://evil.example",
    )

    assert answer.status_code == 401
    assert receiver.calls == []


def test_delivery_through_a_proxy_that_changes_host_and_scheme_is_accepted(receiver: ReceiverUnderTest) -> None:
    assert receiver.post(BODY, base_url="http://10.0.0.7:8000").status_code == 200


def test_every_public_url_is_accepted() -> None:
    receiver = ReceiverUnderTest({"QUEUEBRIDGE_PUBLIC_URL": "https://new.example.com, https://old.example.com/"})

    for host in ("new", "old"):
        token = sign(claims_for(BODY, sub=f"https://{host}.example.com{DELIVER}"))
        assert receiver.post(BODY, token=token).status_code == 200
    assert receiver.post(BODY).status_code == 401


def test_path_of_the_public_url_that_a_proxy_strips_is_part_of_the_subject() -> None:
    receiver = ReceiverUnderTest({"QUEUEBRIDGE_PUBLIC_URL": f"{PUBLIC_URL}/backend"})

    good = sign(claims_for(BODY, sub=f"{PUBLIC_URL}/backend{DELIVER}"))

    assert receiver.post(BODY, token=good).status_code == 200
    assert receiver.post(BODY).status_code == 401


@pytest.mark.parametrize("mount", ["/mount", "/queue", "/my app"])
def test_mount_point_is_part_of_the_public_url(mount: str) -> None:
    recorder = Recorder()
    environ = {
        "QUEUEBRIDGE_BACKEND": "inline",
        "QUEUEBRIDGE_PUBLIC_URL": PUBLIC_URL + "/mounted",
        "QSTASH_CURRENT_SIGNING_KEY": CURRENT_KEY,
    }
    app = create_app(Bridge(registry=recorder.registry, environ=environ), environ=environ)
    client = Client(DispatcherMiddleware(Flask("outer"), {mount: app}))
    token = sign(claims_for(BODY, sub=f"{PUBLIC_URL}/mounted{DELIVER}"))

    answer = client.post(mount + DELIVER, data=BODY, headers={"Upstash-Signature": token})

    assert answer.status_code == 200
    assert len(recorder.calls) == 1


@pytest.mark.parametrize("raw", ["REQUEST_URI", "RAW_URI"])
def test_prefix_that_a_middleware_strips_does_not_disturb(raw: str, receiver: ReceiverUnderTest) -> None:
    # gunicorn, uWSGI and waitress report the request line beside the path that middlewares have worked on.
    answer = receiver.post(
        BODY, environ_overrides={raw: f"/queue{DELIVER}", "SCRIPT_NAME": "/queue", "PATH_INFO": DELIVER}
    )
    behind_proxy = receiver.post(BODY, environ_overrides={raw: DELIVER, "SCRIPT_NAME": "/queue", "PATH_INFO": DELIVER})
    absolute = receiver.post(BODY, environ_overrides={raw: f"http://10.0.0.7{DELIVER}"})

    assert [answer.status_code, behind_proxy.status_code, absolute.status_code] == [200, 200, 200]


@pytest.mark.parametrize("query", ["x=1", "x=a%20b&y=%2F", "x=größe", "a+b"])
def test_query_string_is_part_of_the_subject(query: str, receiver: ReceiverUnderTest) -> None:
    signed = sign(claims_for(BODY, sub=f"{PUBLIC_URL}{DELIVER}?{query}"))

    assert receiver.post(BODY, path=f"{DELIVER}?{query}", token=signed).status_code == 200
    assert receiver.post(BODY, path=DELIVER, token=signed).status_code == 401
    assert receiver.post(BODY, path=f"{DELIVER}?{query}&z=1", token=signed).status_code == 401


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("mail.send", "mail.send"),
        ("mail send", "mail%20send"),
        ("größe", "gr%C3%B6%C3%9Fe"),
        ("a/b", "a/b"),
        ("a/b", "a%2Fb"),
        ("50%", "50%25"),
        ("a:b@c+d", "a:b@c+d"),
        ("a:b@c+d", "a%3Ab%40c%2Bd"),
    ],
)
def test_task_name_may_be_escaped_in_the_path(name: str, escaped: str) -> None:
    receiver = ReceiverUnderTest()
    called = []
    task(name=name, registry=receiver.recorder.registry)(lambda: called.append(1))

    answer = receiver.post(b"{}", path=f"/queuebridge/tasks/{escaped}")

    assert answer.status_code == 200
    assert called == [1]


def test_paths_that_differ_in_undecodable_bytes_are_different() -> None:
    tested = verifier()
    headers = {"Upstash-Signature": sign(claims_for(b"{}", sub=f"{PUBLIC_URL}/queuebridge/tasks/%FF"))}

    assert tested.verify(headers, b"{}", "/queuebridge/tasks/%FF").attempt == 1
    with pytest.raises(NotAuthentic):
        tested.verify(headers, b"{}", "/queuebridge/tasks/%FE")


# Configuration


def test_without_keys_everything_is_refused_and_the_variable_named() -> None:
    receiver = ReceiverUnderTest({"QSTASH_CURRENT_SIGNING_KEY": None, "QSTASH_NEXT_SIGNING_KEY": " "})

    for token in (None, sign(claims_for(BODY))):
        answer = receiver.post(BODY, token=token)
        assert answer.status_code == 401
        assert "QSTASH_CURRENT_SIGNING_KEY" in answer.get_json()["error"]
    assert receiver.calls == []


def test_token_signed_with_an_empty_key_is_refused_without_keys() -> None:
    receiver = ReceiverUnderTest({"QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": ""})

    claims = json.dumps(claims_for(BODY)).encode()

    assert receiver.post(BODY, token=hmac_signed(b'{"alg":"HS256"}', claims, key="")).status_code == 401
    assert receiver.calls == []


def test_without_public_url_everything_is_refused_and_the_variable_named() -> None:
    receiver = ReceiverUnderTest({"QUEUEBRIDGE_PUBLIC_URL": None})

    answer = receiver.post(BODY)

    assert answer.status_code == 401
    assert "QUEUEBRIDGE_PUBLIC_URL" in answer.get_json()["error"]
    assert receiver.calls == []


def test_missing_configuration_is_logged_when_the_receiver_is_made(caplog: pytest.LogCaptureFixture) -> None:
    unset = ("QUEUEBRIDGE_PUBLIC_URL", "QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY")
    ReceiverUnderTest(dict.fromkeys(unset))

    assert "QUEUEBRIDGE_PUBLIC_URL" in caplog.text
    assert "QSTASH_CURRENT_SIGNING_KEY" in caplog.text


def test_insecure_switch_works_in_development_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    receiver = ReceiverUnderTest({"QUEUEBRIDGE_INSECURE_SKIP_VERIFICATION": "1"})

    assert receiver.post(BODY, token=None).status_code == 200
    assert len(receiver.calls) == 1
    assert "NOT verified" in caplog.text


@pytest.mark.parametrize("variable", ["QUEUEBRIDGE_ENV", "FLASK_ENV", "VERCEL_ENV"])
def test_insecure_switch_is_refused_in_production(variable: str) -> None:
    with pytest.raises(ConfigurationError, match="QUEUEBRIDGE_INSECURE_SKIP_VERIFICATION"):
        ReceiverUnderTest({"QUEUEBRIDGE_INSECURE_SKIP_VERIFICATION": "1", variable: "production"})


DEVELOPMENT_KEYS = [
    "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
    "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
    "sig_7GFR4YaDshFcqsxWRZpRB161jguD",
]


@pytest.mark.parametrize("key", DEVELOPMENT_KEYS)
@pytest.mark.parametrize("variable", ["QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY"])
def test_development_keys_are_refused_in_production_only(variable: str, key: str) -> None:
    assert ReceiverUnderTest({variable: key}).post(BODY, token=sign(claims_for(BODY), key)).status_code == 200
    with pytest.raises(ConfigurationError, match="development server") as caught:
        ReceiverUnderTest({variable: key, "QUEUEBRIDGE_ENV": "production"})
    assert key not in str(caught.value)


def test_impossible_setting_is_named_without_its_value() -> None:
    with pytest.raises(ConfigurationError, match="QUEUEBRIDGE_CLOCK_TOLERANCE_SECONDS") as caught:
        ReceiverUnderTest({"QUEUEBRIDGE_CLOCK_TOLERANCE_SECONDS": "planted-secret"})
    assert "planted-secret" not in str(caught.value)


# In the user's own application


class Csrf:
    """As much of Flask-WTF's CSRFProtect as matters here: it refuses POSTs to blueprints that are not exempt."""

    def __init__(self) -> None:
        self.exempted: set[str] = set()

    def init_app(self, app: Flask) -> None:
        app.extensions["csrf"] = self

        @app.before_request
        def protect() -> tuple[str, int] | None:
            from flask import request

            if request.method != "POST" or request.blueprint in self.exempted:
                return None
            return "CSRF token missing", 400

    def exempt(self, blueprint: Any) -> Any:
        self.exempted.add(blueprint.name)
        return blueprint


def own_app(changes: dict[str, str] | None = None, *, csrf_first: bool | None = None) -> ReceiverUnderTest:
    """Return a receiver mounted in a user's application."""
    recorder = Recorder()
    app = Flask("users_app")
    environ = {**ReceiverUnderTest().environ, **(changes or {})}
    blueprint = create_blueprint(Bridge(registry=recorder.registry, environ=environ), environ=environ)
    app.add_url_rule("/own", view_func=lambda: "own", endpoint="own", methods=["POST"])
    if csrf_first is True:
        Csrf().init_app(app)
    app.register_blueprint(blueprint)
    if csrf_first is False:
        Csrf().init_app(app)
    return ReceiverUnderTest(recorder=recorder, app=app)


@pytest.mark.parametrize("csrf_first", [True, False, None], ids=["csrf before", "csrf after", "no csrf"])
def test_blueprint_works_beside_a_request_forgery_check(csrf_first: bool | None) -> None:
    receiver = own_app({"QUEUEBRIDGE_ALIASES": "/api/v1/webhooks/qstash"}, csrf_first=csrf_first)

    assert receiver.post(BODY).status_code == 200
    assert receiver.post(BODY, path="/api/v1/webhooks/qstash").status_code == 200
    assert receiver.client.post("/own").status_code == (200 if csrf_first is None else 400)
    assert len(receiver.calls) == 2


def test_blueprint_leaves_the_errors_of_the_own_application_alone() -> None:
    receiver = own_app()

    assert receiver.client.get("/nothing-here").mimetype == "text/html"
    assert receiver.client.get(DELIVER).status_code == 405


def test_prefix_is_a_setting() -> None:
    receiver = own_app({"QUEUEBRIDGE_PREFIX": "/jobs/push"})

    assert receiver.post(BODY, path="/jobs/push/deliver").status_code == 200
    assert receiver.post(BODY).status_code == 404


@pytest.mark.parametrize("aliases", ["/api/v1/webhooks/qstash", "/a, /b/c"])
def test_aliases_take_envelopes_signed_for_them(aliases: str) -> None:
    receiver = ReceiverUnderTest({"QUEUEBRIDGE_ALIASES": aliases})
    paths = [alias.strip() for alias in aliases.split(",")]

    for path in paths:
        assert receiver.post(BODY, path=path).status_code == 200
        assert receiver.post(BODY, path=path, token=sign(claims_for(BODY))).status_code == 401
    assert len(receiver.calls) == len(paths)


def test_body_that_other_code_looks_at_is_still_verified_and_stays_readable() -> None:
    from flask import request

    receiver = ReceiverUnderTest()
    seen = []
    receiver.app.before_request(lambda: seen.append(request.get_data()) or None)  # type: ignore[func-returns-value]
    receiver.app.after_request(lambda response: seen.append(request.get_json()["kwargs"]) or response)  # type: ignore[func-returns-value]

    assert receiver.post(BODY).status_code == 200
    assert seen == [BODY, {"value": 7}]


def test_body_can_be_read_after_the_receiver() -> None:
    from flask import request

    receiver = ReceiverUnderTest()
    seen = []
    receiver.app.after_request(lambda response: seen.append(request.get_data()) or response)  # type: ignore[func-returns-value]

    receiver.post(BODY)

    assert seen == [BODY]


def test_body_that_a_middleware_consumed_is_refused_with_the_likely_reason() -> None:
    from flask import request

    receiver = ReceiverUnderTest()
    receiver.app.before_request(lambda: request.stream.read() and None)

    answer = receiver.post(BODY)

    assert answer.status_code == 401
    assert "middleware" in answer.get_json()["error"]


def test_two_receivers_live_in_one_process() -> None:
    one, other = ReceiverUnderTest(), ReceiverUnderTest({"QUEUEBRIDGE_PUBLIC_URL": "https://other.example"})

    assert one.post(BODY).status_code == 200
    assert other.post(BODY).status_code == 401
