from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from hashlib import sha256

import jwt
import pytest
from qstash import Receiver
from qstash.errors import SignatureError

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER
from queuebridge.backends.qstash.signing import body_hash, sign

KEY = DEFAULT_DEV_USER.current_signing_key
URL = "https://example.com/a//b?x=1"


def claims_of(token: str) -> dict[str, object]:
    claims: dict[str, object] = jwt.decode(
        token,
        KEY,
        algorithms=["HS256"],
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    return claims


def test_token_carries_the_claims_of_the_protocol() -> None:
    token = sign(KEY, url=URL, body=b"hello", now=1_700_000_000.9, token_id="jwt_1")

    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    assert claims_of(token) == {
        "iss": "Upstash",
        "sub": URL,
        "iat": 1_700_000_000,
        "nbf": 1_700_000_000,
        "exp": 1_700_000_300,
        "jti": "jwt_1",
        "body": urlsafe_b64encode(sha256(b"hello").digest()).decode(),
    }


def test_hash_of_an_empty_body_is_the_documented_one() -> None:
    assert body_hash(b"") == "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU="


def test_every_token_has_an_id_of_its_own() -> None:
    tokens = [sign(KEY, url=URL, body=b"", now=1_700_000_000) for _ in range(2)]

    first, second = (claims_of(token)["jti"] for token in tokens)
    assert str(first).startswith("jwt_")
    assert first != second


def test_sdk_receiver_accepts_the_token() -> None:
    receiver = Receiver(current_signing_key=KEY, next_signing_key=DEFAULT_DEV_USER.next_signing_key)

    receiver.verify(signature=sign(KEY, url=URL, body="grüße".encode(), now=time.time()), body="grüße", url=URL)


def test_sdk_receiver_refuses_another_body() -> None:
    receiver = Receiver(current_signing_key=KEY, next_signing_key=DEFAULT_DEV_USER.next_signing_key)

    with pytest.raises(SignatureError):
        receiver.verify(signature=sign(KEY, url=URL, body=b"one", now=time.time()), body="two", url=URL)
