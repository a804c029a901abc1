"""Sign deliveries with another JWT library than the receiver's, and make receivers to send them to."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from joserfc import jws
from joserfc.jwk import OctKey
from werkzeug.test import TestResponse

from bridge_app import create_app
from queuebridge import Bridge, TaskRegistry, current_job, task
from queuebridge.backends.qstash.verification import SignatureVerifier
from queuebridge.ids import new_dispatch_id, new_job_id

PUBLIC_URL = "https://jobs.example.com"
CURRENT_KEY = "sig_CurrentCurrentCurrentCurrent"
NEXT_KEY = "sig_NextNextNextNextNextNextNext"
FOREIGN_KEY = "sig_ForeignForeignForeignForeign"
DELIVER = "/queuebridge/deliver"

# As a deployment has it: only the test of the switch itself turns verification off.
ENVIRON: Mapping[str, str] = {
    "QUEUEBRIDGE_BACKEND": "inline",
    "QUEUEBRIDGE_PUBLIC_URL": PUBLIC_URL,
    "QSTASH_CURRENT_SIGNING_KEY": CURRENT_KEY,
    "QSTASH_NEXT_SIGNING_KEY": NEXT_KEY,
}
MISSING = object()


def body_claim(body: bytes) -> str:
    """Return the padded hash that QStash puts into the token."""
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode()


def claims_for(
    body: bytes, /, *, url: str = PUBLIC_URL + DELIVER, now: float | None = None, **changes: Any
) -> dict[str, Any]:
    """Return the claims of a delivery as QStash makes them; `changes` set single ones, or leave out MISSING ones."""
    issued = int(time.time() if now is None else now)
    claims: dict[str, Any] = {
        "iss": "Upstash",
        "sub": url,
        "exp": issued + 300,
        "nbf": issued,
        "iat": issued,
        "jti": "jwt_test",
        "body": body_claim(body),
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not MISSING}


def sign(
    claims: Mapping[str, Any] | bytes,
    key: str = CURRENT_KEY,
    *,
    algorithm: str = "HS256",
    header: Mapping[str, Any] | None = None,
) -> str:
    """Return a token made by joserfc; bytes are signed as they are."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jws.serialize_compact(
        {"alg": algorithm, "typ": "JWT", **(header or {})},
        payload,
        OctKey.import_key(key),
        algorithms=[algorithm],
    )


def segment(content: bytes) -> str:
    """Return one base64 part of a token, for tokens that no library would make."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def raw_token(header: bytes, claims: bytes, signature: str = "x") -> str:
    """Return a token that no library would make."""
    return f"{segment(header)}.{segment(claims)}.{signature}"


def hmac_signed(header: bytes, claims: bytes, key: str = CURRENT_KEY) -> str:
    """Return such a token with a good signature."""
    signed = f"{segment(header)}.{segment(claims)}"
    return f"{signed}.{segment(hmac.digest(key.encode(), signed.encode(), 'sha256'))}"


def envelope(task_name: str = "record", /, **changes: Any) -> dict[str, Any]:
    """Return the JSON content of an envelope; `changes` set single fields, or leave out MISSING ones."""
    content: dict[str, Any] = {
        "version": 1,
        "kind": "task",
        "job_id": new_job_id(),
        "dispatch_id": new_dispatch_id(),
        "task": task_name,
        "queue": "default",
        "enqueued_at_ms": int(time.time() * 1000),
        **changes,
    }
    return {name: value for name, value in content.items() if value is not MISSING}


@dataclass
class Recorder:
    """A registry whose task `record` writes down each call of it."""

    registry: TaskRegistry = field(default_factory=TaskRegistry)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        def record(value: Any = None) -> Any:
            job = current_job()
            self.calls.append({"value": value, "job_id": job.job_id, "attempt": job.attempt, "job": job})
            return value

        task(name="record", registry=self.registry)(record)


class ReceiverUnderTest:
    """A receiver with one recording task, and calls to it that are signed unless said otherwise.

    Args:
        changes: Environment variables beside those of ENVIRON; None removes one.
        recorder: The tasks.
        app: The application that the receiver is part of; default one of its own.
        more: Further arguments of `create_app`.
    """

    def __init__(
        self,
        changes: Mapping[str, str | None] | None = None,
        *,
        recorder: Recorder | None = None,
        app: Flask | None = None,
        **more: Any,
    ) -> None:
        self.recorder = recorder or Recorder()
        self.environ = {name: value for name, value in {**ENVIRON, **(changes or {})}.items() if value is not None}
        self.app = app or create_app(
            Bridge(registry=self.recorder.registry, environ=self.environ), environ=self.environ, **more
        )
        self.client: FlaskClient = self.app.test_client()

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What the task was called with."""
        return self.recorder.calls

    def post(
        self,
        body: bytes,
        *,
        path: str = DELIVER,
        token: object = MISSING,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        **more: Any,
    ) -> TestResponse:
        """Send a delivery; without `token` it is signed for this path, with None it has no signature."""
        if token is MISSING:
            token = sign(claims_for(body, url=PUBLIC_URL + path))
        sent = [("Content-Type", "application/json"), ("Upstash-Message-Id", "msg_1"), *_pairs(headers)]
        if token is not None:
            sent.append(("Upstash-Signature", str(token)))
        return self.client.post(path, data=body, headers=sent, **more)

    def deliver(self, task_name: str = "record", /, **changes: Any) -> TestResponse:
        """Send an authentic envelope."""
        return self.post(json.dumps(envelope(task_name, **changes)).encode())


def verifier(**changes: Any) -> SignatureVerifier:
    """Return a verifier with the keys and the address of this module."""
    arguments: dict[str, Any] = {"keys": [CURRENT_KEY, NEXT_KEY], "public_urls": [PUBLIC_URL], **changes}
    return SignatureVerifier(arguments.pop("keys"), arguments.pop("public_urls"), **arguments)


def _pairs(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(headers.items() if isinstance(headers, Mapping) else headers)
