"""What every backend does when its server is missing, silent or unwilling, and what it refuses before asking one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

import pytest
from contracts import contract_registry
from recording_qstash import Answer, RecordingQStash, at_most, raw_server, silent
from relays import Relay

from queuebridge import (
    BackendUnavailable,
    Bridge,
    Call,
    ConfigurationError,
    EnqueueManyError,
    EnqueueOptions,
    InvalidOption,
    OptionNotSupported,
    PublishError,
    PublishOutcomeUnknown,
    PublishRejected,
    Receipt,
    TaskRegistry,
    task,
)

REMOTE = ("qstash", "celery-redis", "celery-rabbitmq", "rq")
# Needs no encoding in an address; with an encoding, clients show either form.
SECRET = "planted-secret"
TIMEOUT = 0.5


def environ_for(target: str, place: str, *, path: str = "0", user: str = "") -> dict[str, str]:
    """Return the environment that selects this backend on the server at `place` (host:port)."""
    common = {
        "QUEUEBRIDGE_BACKEND": target.partition("-")[0],
        "QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS": str(TIMEOUT),
        "QUEUEBRIDGE_PUBLIC_URL": "https://jobs.example.com",
    }
    account = f"{user}:{quote(SECRET)}@" if user else ""
    addresses = {
        "qstash": {"QSTASH_URL": f"http://{place}", "QSTASH_TOKEN": SECRET},
        "celery-redis": {"CELERY_BROKER_URL": f"redis://{account}{place}/{path}"},
        "celery-rabbitmq": {"CELERY_BROKER_URL": f"amqp://{account}{place}/{path}"},
        "rq": {"REDIS_URL": f"redis://{account}{place}/{path}"},
    }
    return {**common, **addresses[target]}


def bridge_for(environ: Mapping[str, str]) -> Bridge:
    return Bridge(registry=contract_registry(), environ=environ)


@pytest.fixture
def everything_said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """Collect what errors say; at the end, no secret may be in it, in a log or in the output."""
    said: list[str] = []
    with caplog.at_level(logging.DEBUG):
        yield said
    out, err = capfd.readouterr()
    assert said
    assert SECRET not in "".join([*said, caplog.text, out, err])


@contextmanager
def failing(
    kind: type[PublishError] | tuple[type[PublishError], ...], said: list[str]
) -> Iterator[pytest.ExceptionInfo[PublishError]]:
    """Expect an error and keep what it says, its causes included."""
    with pytest.raises(kind) as caught:
        yield caught
    error: BaseException | None = caught.value
    while error is not None:
        said.append(f"{error!r} {error}")
        error = error.__cause__


@pytest.mark.parametrize("target", REMOTE)
def test_unreachable_server_is_reported_in_time(
    target: str, free_port: Callable[[], int], everything_said: list[str]
) -> None:
    environ = environ_for(target, f"127.0.0.1:{free_port()}", user="user")
    with bridge_for(environ) as bridge:
        for options in (EnqueueOptions(), EnqueueOptions(countdown=5)):
            with at_most(3), failing(BackendUnavailable, everything_said):
                bridge.apply_async("contract.record", ["x"], options=options)
        with at_most(3), failing(BackendUnavailable, everything_said):
            bridge.backend.ping()
        with at_most(3), pytest.raises(EnqueueManyError) as caught:
            bridge.enqueue_many([Call("contract.record", [str(number)]) for number in range(20)])

    assert [type(result) for result in caught.value.results] == [BackendUnavailable] * 20


@pytest.mark.parametrize("target", REMOTE)
def test_silent_server_leaves_the_outcome_unknown_in_time(target: str, everything_said: list[str]) -> None:
    with raw_server(silent) as place, bridge_for(environ_for(target, place, user="user")) as bridge:
        with at_most(TIMEOUT + 2), failing(PublishOutcomeUnknown, everything_said):
            bridge.apply_async("contract.record", ["x"], options=EnqueueOptions(task_id="job-1"))
        with at_most(TIMEOUT + 2), pytest.raises(EnqueueManyError) as caught:
            bridge.enqueue_many([Call("contract.record", [str(number)]) for number in range(20)])
        with at_most(TIMEOUT + 2), failing(BackendUnavailable, everything_said) as ping:
            bridge.backend.ping()

    assert "job-1" in everything_said[0]
    # A ping carries no job that could have been accepted.
    assert "may or may not" not in str(ping.value)
    kinds = {type(result) for result in caught.value.results}
    assert PublishOutcomeUnknown in kinds
    assert kinds <= {PublishOutcomeUnknown, BackendUnavailable}


@pytest.mark.parametrize("target", REMOTE)
def test_backend_recovers_when_its_server_comes_up(
    target: str, request: pytest.FixtureRequest, free_port: Callable[[], int]
) -> None:
    if target == "qstash":
        down = f"127.0.0.1:{free_port()}"
        with bridge_for(environ_for(target, down)) as bridge:
            with pytest.raises(BackendUnavailable):
                bridge.enqueue("contract.record", "x")
            with RecordingQStash(port=int(down.rpartition(":")[2])):
                assert isinstance(bridge.enqueue("contract.record", "x"), Receipt)
        return
    url = urlsplit(request.getfixturevalue("rabbitmq_url" if target == "celery-rabbitmq" else "redis_url"))
    port = free_port()
    account = url.netloc.rpartition("@")[0]
    with Relay(port, url.hostname or "", url.port or 5672) as relay:
        environ = environ_for(target, f"127.0.0.1:{port}", path=url.path.removeprefix("/"))
        variable = "REDIS_URL" if target == "rq" else "CELERY_BROKER_URL"
        if account:
            environ[variable] = environ[variable].replace("://", f"://{account}@", 1)
        with bridge_for({**environ, "QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS": "5"}) as bridge:
            bridge.enqueue("contract.record", "x")
            relay.cut()
            with pytest.raises(PublishError):
                bridge.apply_async("contract.record", ["x"], options=no_retry(target))
            relay.mend()
            assert isinstance(bridge.enqueue("contract.record", "x"), Receipt)


def no_retry(target: str) -> EnqueueOptions:
    """Return options that keep a backend from trying again, where that is a choice."""
    return EnqueueOptions() if target == "rq" else EnqueueOptions(retry=False)


@pytest.mark.parametrize("target", REMOTE)
def test_wrong_credentials_are_a_refusal(
    target: str, request: pytest.FixtureRequest, everything_said: list[str]
) -> None:
    if target == "qstash":
        refusal = Answer(401, {"error": f"unable to authenticate: invalid token {SECRET}"})
        with RecordingQStash(otherwise=lambda _: refusal) as server:
            check_refused(environ_for(target, server.url.removeprefix("http://")), everything_said)
        return
    url = urlsplit(request.getfixturevalue("rabbitmq_url" if target == "celery-rabbitmq" else "redis_url"))
    place = f"{url.hostname}:{url.port or 5672}"
    check_refused(environ_for(target, place, path=url.path.removeprefix("/"), user="nobody"), everything_said)


def check_refused(environ: Mapping[str, str], said: list[str]) -> None:
    with bridge_for({**environ, "QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS": "5"}) as bridge:
        with at_most(5), failing(PublishRejected, said):
            bridge.enqueue("contract.record", "x")
        with at_most(5), failing(PublishRejected, said):
            bridge.backend.ping()
        with at_most(5), pytest.raises(EnqueueManyError) as caught:
            bridge.enqueue_many([Call("contract.record", ["x"])])
    assert [type(result) for result in caught.value.results] == [PublishRejected]


UNSUPPORTED: dict[str, list[tuple[str, EnqueueOptions]]] = {
    "inline": [
        ("countdown/eta", EnqueueOptions(countdown=1)),
        ("priority", EnqueueOptions(priority=1)),
        ("idempotency_key", EnqueueOptions(idempotency_key="k")),
    ],
    "qstash": [
        ("priority", EnqueueOptions(priority=1)),
        ("countdown/eta", EnqueueOptions(countdown=1, options={"qstash": {"queue": "q"}})),
    ],
    "celery-redis": [
        ("idempotency_key", EnqueueOptions(idempotency_key="k")),
        ("countdown/eta", EnqueueOptions(countdown=10**6)),
    ],
    "celery-rabbitmq": [("idempotency_key", EnqueueOptions(idempotency_key="k"))],
    "rq": [("priority", EnqueueOptions(priority=1)), ("retry", EnqueueOptions(retry=True))],
}


@pytest.mark.parametrize(
    ("target", "option", "options"),
    [(target, option, options) for target, rows in UNSUPPORTED.items() for option, options in rows],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_option_is_refused_before_any_contact(
    target: str, option: str, options: EnqueueOptions, free_port: Callable[[], int]
) -> None:
    place = f"127.0.0.1:{free_port()}"
    environ = {"QUEUEBRIDGE_BACKEND": "inline"} if target == "inline" else environ_for(target, place)
    with bridge_for(environ) as bridge:
        with pytest.raises(OptionNotSupported, match=option) as caught:
            bridge.apply_async("contract.record", ["x"], options=options)
        with pytest.raises(OptionNotSupported, match=option):
            bridge.enqueue_many([Call("contract.record", ["x"]), Call("contract.record", ["x"], options=options)])

    # It says why, or what to do instead.
    assert len(str(caught.value)) > 60
    assert caught.value.backend == bridge.backend.name


@pytest.mark.parametrize("target", ["inline", *REMOTE])
def test_unknown_option_of_the_backend_is_refused_before_any_contact(target: str, free_port: Callable[[], int]) -> None:
    place = f"127.0.0.1:{free_port()}"
    environ = {"QUEUEBRIDGE_BACKEND": "inline"} if target == "inline" else environ_for(target, place)
    with bridge_for(environ) as bridge:
        options = EnqueueOptions(options={bridge.backend.name: {"no_such_option": 1}})
        with pytest.raises(InvalidOption, match="no_such_option"):
            bridge.apply_async("contract.record", ["x"], options=options)


IMPOSSIBLE: list[tuple[str, str, dict[str, object]]] = [
    ("celery-redis", "compression", {"compression": "no such"}),
    ("celery-redis", "retry_policy.max_retry", {"retry_policy": {"max_retry": 1}}),
    ("celery-redis", "retry_policy.errback", {"retry_policy": {"errback": print}}),
    ("celery-redis", "retry_policy.interval_max", {"retry_policy": {"interval_max": "long"}}),
    ("rq", "meta", {"meta": {"value": object()}}),
]


@pytest.mark.parametrize(("target", "option", "given"), IMPOSSIBLE, ids=[option for _, option, _ in IMPOSSIBLE])
def test_impossible_option_of_the_backend_is_refused_before_any_contact(
    target: str, option: str, given: dict[str, object], free_port: Callable[[], int]
) -> None:
    with bridge_for(environ_for(target, f"127.0.0.1:{free_port()}")) as bridge:
        wrong = Call("contract.record", ["x"], options=EnqueueOptions(options={bridge.backend.name: given}))

        with pytest.raises(InvalidOption, match=option):
            bridge.enqueue_many([Call("contract.record", ["x"]), wrong])


def test_two_priorities_for_celery_are_refused_because_one_would_be_dropped(free_port: Callable[[], int]) -> None:
    options = EnqueueOptions(priority=3, options={"celery": {"priority": 9}})

    with (
        bridge_for(environ_for("celery-redis", f"127.0.0.1:{free_port()}")) as bridge,
        pytest.raises(InvalidOption, match="not both"),
    ):
        bridge.apply_async("contract.record", ["x"], options=options)


@pytest.mark.parametrize("target", REMOTE)
def test_options_for_another_backend_do_not_concern_this_one(target: str, free_port: Callable[[], int]) -> None:
    others = {name: {"no_such_option": 1} for name in ("qstash", "celery", "rq") if not target.startswith(name)}
    with bridge_for(environ_for(target, f"127.0.0.1:{free_port()}")) as bridge, pytest.raises(BackendUnavailable):
        bridge.apply_async("contract.record", ["x"], options=EnqueueOptions(options=others))


@pytest.mark.parametrize(
    ("backend", "variable", "address"),
    [
        ("rq", "REDIS_URL", "planted-secret"),
        ("rq", "RQ_REDIS_URL", "redis://:planted-secret@127.0.0.1:port/0"),
        ("rq", "REDIS_URL", "redis://:planted-secret@127.0.0.1/0?no_such=1"),
        ("celery", "CELERY_BROKER_URL", "ftp://:planted-secret@127.0.0.1"),
        ("celery", "CELERY_BROKER_URL", "redis://:planted-secret@127.0.0.1:port/0"),
    ],
)
def test_address_that_is_none_names_its_variable(backend: str, variable: str, address: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{variable} is not the address of a") as caught:
        Bridge(backend, environ={variable: address})

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("target", REMOTE)
def test_making_a_bridge_contacts_nobody(target: str) -> None:
    contacts: list[object] = []
    with raw_server(lambda connection, _: contacts.append(connection)) as place:
        bridge = bridge_for(environ_for(target, place))
        bridge.close()
        repr(bridge.backend)

    assert contacts == []


def test_job_that_may_outlast_the_visibility_timeout_of_redis_is_refused() -> None:
    registry = TaskRegistry()
    slow = task(name="slow", timeout=3600, registry=registry)(lambda: None)
    environ = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}

    with Bridge("celery", registry=registry, environ=environ) as bridge, pytest.raises(OptionNotSupported) as caught:
        bridge.enqueue(slow)

    assert caught.value.option == "timeout"
    assert "QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS" in str(caught.value)
