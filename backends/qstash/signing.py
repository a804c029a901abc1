"""The `Upstash-Signature` of a delivery: an HS256 JWT over the destination URL and the body's hash.

Written with `hmac` instead of a JWT library: the token has one fixed header and one algorithm, and
the server makes one per attempt.
"""

from __future__ import annotations

import hmac
import json
import os
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Final

from queuebridge.backends.qstash.protocol import SIGNATURE_ISSUER, SIGNATURE_LIFETIME_SECONDS

_HEADER: Final = urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")


def body_hash(body: bytes) -> str:
    """Return the `body` claim: the URL-safe base64 of the body's SHA-256, with its padding."""
    return urlsafe_b64encode(sha256(body).digest()).decode()


def sign(key: str, *, url: str, body: bytes, now: float, token_id: str | None = None) -> str:
    """Return the signature of one attempt.

    Args:
        key: the whole current signing key, `sig_...`; its ASCII bytes are the HMAC secret.
        url: the destination exactly as it will be called (the `sub` claim).
        body: the raw bytes that will be sent.
        now: Unix seconds; the token is valid from its floor for five minutes.
        token_id: the `jti` claim; a random one by default.
    """
    issued_at = int(now)
    claims = {
        "iss": SIGNATURE_ISSUER,
        "sub": url,
        "exp": issued_at + SIGNATURE_LIFETIME_SECONDS,
        "nbf": issued_at,
        "iat": issued_at,
        "jti": token_id or f"jwt_{os.urandom(14).hex()}",
        "body": body_hash(body),
    }
    payload = urlsafe_b64encode(json.dumps(claims, separators=(",", ":")).encode()).rstrip(b"=")
    signed = _HEADER + b"." + payload
    mac = urlsafe_b64encode(hmac.digest(key.encode("ascii"), signed, "sha256")).rstrip(b"=")
    return (signed + b"." + mac).decode("ascii")
