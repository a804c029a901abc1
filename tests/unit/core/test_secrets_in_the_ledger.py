"""What the ledger keeps of a job that has secrets; and digests, which show that two copies are the same job."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from staging import World, failed

from queuebridge import TaskRegistry, task
from queuebridge.backends.celery.message import HEADER, decode_message, encode_header
from queuebridge.envelope import Envelope, PayloadReference
from queuebridge.errors import ConfigurationError, InvalidOption, MalformedEnvelope
from queuebridge.ledger import State
from queuebridge.ledger.custody import REDACTED, Custody, digest, new_key, referenced
from queuebridge.ledger.settings import DEFAULT_REDACTED, LedgerSettings
from queuebridge.outcome import Status
from queuebridge.settings import read_settings
from queuebridge.stages import Role, Stage

MakeWorld = Callable[..., World]
SECRET = "hunter2-planted"
KEY = {"QUEUEBRIDGE_LEDGER_KEY": new_key()}

# Where in a job a secret may stand; `names` are the positional parameters of the task.
PLACES: dict[str, dict[str, Any]] = {
    "keyword": {"kwargs": {"password": SECRET}},
    "another case of letters": {"kwargs": {"Api_Key": SECRET}},
    "inside an argument": {"kwargs": {"options": {"smtp": [{"token": SECRET}]}}},
    "inside a positional argument": {"args": ["ann", {"secret": SECRET}]},
    "position": {"args": ["ann", SECRET]},
    "metadata": {"metadata": {"token": SECRET}},
    "headers": {"headers": {"Authorization": SECRET}},
    "options of a backend": {"options": {"qstash": {"callback_headers": {"Authorization": SECRET}}}, "version": 2},
}
NAMES = ("to", "password")


def envelope(**fields: Any) -> Envelope:
    values: dict[str, Any] = {
        "job_id": "job-1",
        "dispatch_id": "dispatch-1",
        "task": "mail.send",
        "queue": "default",
        "enqueued_at_ms": 1,
        **fields,
    }
    return Envelope(**values)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stage", [Stage.SHADOW, Stage.DUAL, Stage.LIVE, Stage.RAMPDOWN, Stage.PUSH])
def test_job_with_a_secret_is_refused_before_anything_is_sent_if_there_is_no_key(
    make_world: MakeWorld, place: str, stage: Stage
) -> None:
    world = make_world(stage, names=NAMES)

    with pytest.raises(InvalidOption, match="QUEUEBRIDGE_LEDGER_KEY") as caught:
        world.enqueue(**PLACES[place])

    assert (world.legacy.sent, world.push.sent, world.ledger.calls) == ([], [], [])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("place", PLACES)
def test_secret_is_nowhere_in_the_ledger_nor_in_a_log(
    make_world: MakeWorld, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world = make_world(Stage.DUAL, environ={**KEY, "QUEUEBRIDGE_ON_PUBLISH_ERROR": "spool"}, names=NAMES)
    world.legacy.answer = world.push.answer = failed("celery")
    world.enqueue(**PLACES[place])
    world.legacy.answer = world.push.answer = None
    world.clock.move(1)

    world.reconciler.run_once()
    seen = world.ledger.everything()
    world.deliver(world.legacy.sent[-1], "celery")

    for text in (seen, world.ledger.everything(), caplog.text, repr(world.known())):
        assert SECRET not in text
    # It was published all the same, and in clear: transports are no store of ours.
    assert SECRET in world.legacy.sent[-1].body.decode()


def test_long_arguments_with_a_secret_are_sealed_too(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH, environ=KEY)
    world.push.max_bytes = 1000
    world.enqueue("x" * 2000, kwargs={"password": SECRET})
    seen: list[str] = []
    world.body = seen.append

    assert SECRET not in world.ledger.everything()
    assert SECRET not in world.push.sent[0].body.decode()
    assert world.deliver(world.push.sent[0]).status is Status.DONE
    assert seen == ["x" * 2000]


def test_job_by_reference_that_cannot_be_opened_is_left_to_others(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH, environ=KEY)
    world.push.max_bytes = 1000
    world.enqueue("x" * 2000, kwargs={"password": SECRET})
    right = world.claims._custody
    world.claims._custody = Custody(DEFAULT_REDACTED, new_key())

    wrong = world.deliver(world.push.sent[0])
    world.claims._custody = right

    assert (wrong.status, type(wrong.error)) == (Status.DEFERRED, ConfigurationError)
    assert world.deliver(world.push.sent[0]).status is Status.DONE


@pytest.mark.parametrize("stage", [Stage.LEGACY, Stage.SHADOW])
def test_executor_without_a_key_runs_a_job_with_a_secret_and_keeps_no_body(make_world: MakeWorld, stage: Stage) -> None:
    producer = make_world(stage, environ=KEY, names=NAMES)
    producer.enqueue("ann", SECRET)
    world = make_world(stage, names=NAMES)
    during: list[str] = []
    world.body = lambda to: during.append(world.ledger.everything())

    outcome = world.deliver(producer.legacy.sent[0], "celery")

    assert outcome.status is Status.DONE
    # While it runs: what has ended is forgotten anyway.
    assert [SECRET in text for text in (*during, world.ledger.everything())] == [False, False]


def test_secret_in_a_result_or_in_an_address_of_an_error_is_blanked_out(make_world: MakeWorld) -> None:
    world = make_world(Stage.PUSH)
    world.enqueue()
    world.enqueue(retry={"retries": 0})
    world.body = lambda to: {"token": SECRET, "ok": 1}
    world.deliver(world.push.sent[0])

    def fail(to: str) -> None:
        raise OSError(f"cannot reach redis://user:{SECRET}@host/0 with password={SECRET}")

    world.body = fail
    world.deliver(world.push.sent[1])

    assert json.loads(world.known("dispatch-1").result or "") == {"token": REDACTED, "ok": 1}
    assert world.known("dispatch-2").state is State.FAILED
    assert "OSError" in (world.known("dispatch-2").traceback or "")
    assert SECRET not in world.ledger.everything()


# Custody by itself


def test_people_see_the_arguments_without_the_secrets() -> None:
    shown = Custody(["password"]).payload(
        envelope(args=["ann", SECRET], kwargs={"deep": [{"PassWord": 5}]}, metadata={"user_id": 3}), NAMES
    )

    assert json.loads(shown) == {
        "args": ["ann", REDACTED],
        "kwargs": {"deep": [{"PassWord": REDACTED}]},
        "metadata": {"user_id": 3},
    }


def test_people_see_the_beginning_of_long_arguments() -> None:
    shown = Custody([]).payload(envelope(args=["ü" * 20_000]))

    assert 9_000 < len(json.loads(shown)["cut"]) <= 10_000


def test_job_without_secrets_is_stored_as_it_is() -> None:
    custody = Custody(DEFAULT_REDACTED, new_key())

    assert custody.open(custody.store(envelope(args=["ann"]), b"body")) == b"body"
    assert custody.store(envelope(args=["ann"]), b"body") == b"body"


def test_sealed_job_opens_with_its_key_only() -> None:
    key = new_key()
    sealed = Custody(["password"], key).store(envelope(kwargs={"password": SECRET}), SECRET.encode())

    assert SECRET.encode() not in sealed
    assert Custody([], key).open(sealed) == SECRET.encode()
    for custody, saying in ((Custody([], new_key()), "is not the key"), (Custody([]), "is not set")):
        with pytest.raises(ConfigurationError, match=saying):
            custody.open(sealed)


def test_sealed_job_that_was_tampered_with_does_not_open() -> None:
    custody = Custody(["password"], new_key())
    sealed = bytearray(custody.store(envelope(kwargs={"password": "x"}), b"body"))
    sealed[30] ^= 1

    with pytest.raises(ConfigurationError):
        custody.open(bytes(sealed))


def test_same_job_sealed_twice_looks_different() -> None:
    custody = Custody(["password"], new_key())
    job = envelope(kwargs={"password": "x"})

    assert custody.store(job, b"body") != custody.store(job, b"body")


def test_key_that_is_none_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigurationError, match="queuebridge ledger key") as caught:
        Custody([], "planted-key")
    assert "planted" not in str(caught.value)


def test_names_to_redact_and_the_key_come_from_the_environment() -> None:
    key = new_key()
    settings = read_settings(LedgerSettings, {"QUEUEBRIDGE_REDACT": "iban, pin", "QUEUEBRIDGE_LEDGER_KEY": key})

    assert settings.redact == ("iban", "pin")
    assert settings.key is not None
    assert settings.key.get_secret_value() == key
    assert key not in repr(settings)


def test_times_are_told_to_the_ledger_in_milliseconds() -> None:
    settings = read_settings(LedgerSettings, {"QUEUEBRIDGE_LEASE_SECONDS": "1.5", "QUEUEBRIDGE_GRACE_SECONDS": "0.25"})

    assert (settings.lease_ms, settings.grace_ms) == (1500, 250)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("QUEUEBRIDGE_LEASE_SECONDS", "0.5"),
        ("QUEUEBRIDGE_HEDGE_SECONDS", "-1"),
        ("QUEUEBRIDGE_LEDGER_DOWN", "ignore"),
        ("QUEUEBRIDGE_ON_PUBLISH_ERROR", "drop"),
        ("QUEUEBRIDGE_SHADOW_PERCENT", "101"),
        ("QUEUEBRIDGE_RECONCILE_SECONDS", "0"),
    ],
)
def test_impossible_setting_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        read_settings(LedgerSettings, {variable: value})


# Digests

ARGUMENTS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "nothing": ([], {}),
    "numbers": ([1, 1.0, -0.0, 1e300, 2**60], {"x": 0.1}),
    "text": (["größe", "\u2028", "a\nb", "😀"], {"ключ": "\x00"}),
    "nested": ([[{"b": [None, True], "a": {}}]], {"z": {"y": [1, [2]]}}),
    "order of keys": ([], {"b": 1, "a": {"d": 2, "c": 3}}),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_legacy_and_push_copy_of_a_job_have_one_digest(case: str) -> None:
    registry = TaskRegistry()
    declared = task(name="mail.send", registry=registry)(lambda *args, **kwargs: None)
    args, kwargs = ARGUMENTS[case]
    original = envelope(args=args, kwargs=kwargs)

    pushed = Envelope.decode(original.model_copy(update={"role": Role.SHADOW}).encode())
    # What kombu does to the arguments of a message, and to its headers.
    wire_args, wire_kwargs = kombu_round_trip([original.args, original.kwargs])
    legacy = decode_message(
        declared,
        task_id=original.job_id,
        args=wire_args,
        kwargs=wire_kwargs,
        headers={HEADER: encode_header(original)},
        queue="default",
    )

    assert digest(pushed) == digest(legacy) == digest(original)


def kombu_round_trip(value: Any) -> Any:
    from kombu.serialization import dumps, loads

    content_type, encoding, body = dumps(value, serializer="json")
    return loads(body, content_type, encoding)


def test_order_in_which_a_store_keeps_the_keys_does_not_matter() -> None:
    assert digest(envelope(kwargs={"a": 1, "b": {"c": 2, "d": 3}})) == digest(
        envelope(kwargs={"b": {"d": 3, "c": 2}, "a": 1})
    )


def test_other_arguments_have_another_digest() -> None:
    digests = {
        digest(envelope(**fields))
        for fields in (
            {"args": [1]},
            {"args": ["1"]},
            {"args": [1.0]},
            {"args": [True]},
            {"args": [[1]]},
            {"kwargs": {"a": 1}},
            {"kwargs": {"a": None}},
            {"task": "other"},
            {},
        )
    }

    assert len(digests) == 9


def test_digest_does_not_depend_on_what_concerns_one_copy_only() -> None:
    assert digest(envelope(args=[1], epoch=5, role="safety", stage="dual")) == digest(envelope(args=[1]))


# References


def test_reference_is_replaced_by_the_arguments_it_stands_for() -> None:
    whole = envelope(args=["long"], kwargs={"a": 1})
    short = whole.model_copy(update={"args": [], "kwargs": {}, "payload_ref": _reference(whole.encode()), "epoch": 3})

    found = referenced(Envelope.decode(short.encode()), whole.encode())

    assert (found.args, found.kwargs, found.payload_ref, found.epoch) == (["long"], {"a": 1}, None, 3)
    assert referenced(whole, b"") is whole


@pytest.mark.parametrize("body", [b"", b"{}", envelope(args=["other"]).encode()])
def test_body_that_is_not_the_one_referred_to_is_refused(body: bytes) -> None:
    short = envelope(payload_ref=_reference(envelope(args=["long"]).encode()))

    with pytest.raises(MalformedEnvelope, match="job-1"):
        referenced(short, body)


def _reference(body: bytes) -> PayloadReference:
    return PayloadReference(key="dispatch-1", sha256=hashlib.sha256(body).hexdigest(), size=len(body))
