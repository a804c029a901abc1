"""Decide whether a pushed request comes from QStash (protocol section 14).

The SDK's own receiver is not used: it ignores its clock tolerance, lets a missing body claim escape as KeyError,
takes text only, and reports the next key's error for every failure of the current key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import jwt
from pydantic import SecretStr
from pydantic_core import from_json

from queuebridge.backends.qstash.protocol import (
    DEV_USERS,
    HEADER_MESSAGE_ID,
    HEADER_RETRIED,
    HEADER_SIGNATURE,
    SIGNATURE_ISSUER,
)
from queuebridge.backends.qstash.settings import VerificationSettings
from queuebridge.delivery import Delivery
from queuebridge.errors import ConfigurationError, NotAuthentic
from queuebridge.failures import redact
from queuebridge.settings import PUBLIC_URL_VARIABLES, Settings, read_settings

logger = logging.getLogger(__name__)

_jws = jwt.PyJWS(algorithms=["HS256"])
# Refusals are logged: what a stranger sends must not fill the log.
_SHOWN_CHARACTERS = 200
_NO_KEYS = (
    "No signing keys are configured. Copy QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY from the QStash "
    "console (for local development, `queuebridge dev` sets both)."
)
_NO_PUBLIC_URL = (
    "The public address of this receiver is not configured. Set QUEUEBRIDGE_PUBLIC_URL to the address that QStash "
    f"calls, such as https://api.example.com ({', '.join(PUBLIC_URL_VARIABLES[1:])} are understood too)."
)


class SignatureVerifier:
    """Verifies the `Upstash-Signature` of deliveries.

    Args:
        keys: The current signing key, then the next one.
        public_urls: The addresses that QStash may have been told to call, without the path.
        clock_tolerance_seconds: How far `exp`, `nbf` and `iat` may be off.
        clock: The time in Unix seconds.
    """

    def __init__(
        self,
        keys: Iterable[str],
        public_urls: Iterable[str],
        *,
        clock_tolerance_seconds: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = tuple(keys)
        self._public_urls = tuple(url.rstrip("/") for url in public_urls)
        self._tolerance = clock_tolerance_seconds
        self._clock = clock
        self._warned_about_rotation = False

    def problems(self) -> list[str]:
        """Return what is missing in the configuration, in words for an operator."""
        found = []
        if not self._keys:
            found.append(_NO_KEYS)
        if not self._public_urls:
            found.append(_NO_PUBLIC_URL)
        return found

    def verify(self, headers: Mapping[str, str], body: bytes, path: str) -> Delivery:
        """Return the facts of an authentic delivery; see `DeliveryVerifier.verify`."""
        problems = self.problems()
        if problems:
            raise NotAuthentic(" ".join(problems))
        signature = headers.get(HEADER_SIGNATURE)
        if not signature:
            raise NotAuthentic(f"The request has no {HEADER_SIGNATURE} header: it does not come from QStash.")
        claims = self._authentic_claims(signature)
        if claims.get("iss") != SIGNATURE_ISSUER:
            raise NotAuthentic(f"The signature was not issued by {SIGNATURE_ISSUER} (claim 'iss').")
        self._check_times(claims)
        self._check_subject(claims.get("sub"), path)
        _check_body(claims.get("body"), body)
        return _delivery(headers)

    def _authentic_claims(self, signature: str) -> dict[str, Any]:
        for position, key in enumerate(self._keys):
            try:
                payload: bytes = _jws.decode(signature, key, algorithms=["HS256"])
                claims = from_json(payload, allow_inf_nan=False)
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidAlgorithmError:
                raise NotAuthentic("The signature was not made with HS256, which QStash always uses.") from None
            except Exception as error:  # noqa: BLE001 - whatever a hostile token provokes is a refusal
                raise NotAuthentic(f"The signature is not a valid QStash token: {_shown(str(error))}.") from None
            if not isinstance(claims, dict):
                raise NotAuthentic("The signature is not a valid QStash token: its claims are no JSON object.")
            if position and not self._warned_about_rotation:
                self._warned_about_rotation = True
                logger.warning(
                    "A delivery was signed with QSTASH_NEXT_SIGNING_KEY: the keys have been rotated. Update both "
                    "keys from the QStash console before the next rotation."
                )
            return claims
        raise NotAuthentic(
            "The signature fits neither QSTASH_CURRENT_SIGNING_KEY nor QSTASH_NEXT_SIGNING_KEY. If the keys were "
            "rotated, or belong to another region or account than QSTASH_TOKEN, copy both again from the QStash "
            "console."
        )

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        # `iat` is not promised; one in the future still says that a clock is wrong. QStash promises nothing
        # about `aud` and `jti`, so they decide nothing.
        now = self._clock()
        if _time_claim(claims, "exp") <= now - self._tolerance:
            raise NotAuthentic(
                "The signature has expired. If that happens to fresh deliveries, the clock of this machine is wrong."
            )
        for claim in ("nbf", "iat") if "iat" in claims else ("nbf",):
            if _time_claim(claims, claim) > now + self._tolerance:
                raise NotAuthentic(
                    "The signature is not valid yet. If that happens always, the clock of this machine is slow."
                )

    def _check_subject(self, subject: object, path: str) -> None:
        if subject in [f"{base}{path}" for base in self._public_urls]:
            return
        if not isinstance(subject, str) or _unescaped(subject) not in {
            _unescaped(f"{base}{path}") for base in self._public_urls
        }:
            raise NotAuthentic(
                f"The delivery is signed for {_shown(redact(repr(subject)))}, this receiver is "
                f"{_shown(redact(self._public_urls[0] + path))}. Set QUEUEBRIDGE_PUBLIC_URL to the address that "
                "QStash calls (several are separated by commas)."
            )


class NoVerification:
    """Accepts every request. For development only."""

    def problems(self) -> list[str]:
        """Return nothing: there is nothing to configure."""
        return []

    def verify(self, headers: Mapping[str, str], body: bytes, path: str) -> Delivery:  # noqa: ARG002
        """Return the facts that the request claims."""
        return _delivery(headers)


def create_verifier(settings: Settings, environ: Mapping[str, str]) -> SignatureVerifier | NoVerification:
    """Return the verifier, configured from the environment.

    Raises:
        ConfigurationError: A development convenience is switched on in production.
    """
    chosen = read_settings(VerificationSettings, environ)
    if chosen.insecure:
        if settings.production:
            raise ConfigurationError(
                "QUEUEBRIDGE_INSECURE_SKIP_VERIFICATION lets anybody run tasks and is refused in production. Unset "
                "it, and set QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY."
            )
        logger.warning("Deliveries are NOT verified: QUEUEBRIDGE_INSECURE_SKIP_VERIFICATION is set.")
        return NoVerification()
    keys = [key.get_secret_value() for key in (chosen.current_key, chosen.next_key) if isinstance(key, SecretStr)]
    public_keys = {key for user in DEV_USERS for key in (user.current_signing_key, user.next_signing_key)}
    if settings.production and public_keys.intersection(keys):
        raise ConfigurationError(
            "QSTASH_CURRENT_SIGNING_KEY or QSTASH_NEXT_SIGNING_KEY is a key of the development server, which "
            "everybody knows. Copy both keys from the QStash console."
        )
    return SignatureVerifier(keys, settings.public_urls, clock_tolerance_seconds=chosen.clock_tolerance_seconds)


def _time_claim(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise NotAuthentic(f"The signature is not a valid QStash token: its claim {name!r} is missing or no time.")
    return value


def _unescaped(url: str) -> bytes:
    # Both sides decoded: a proxy may change how characters are escaped, which changes no address.
    return unquote_to_bytes(url.encode("utf-8", "surrogatepass"))


def _shown(text: str) -> str:
    return " ".join(text.split())[:_SHOWN_CHARACTERS]


def _check_body(claim: object, body: bytes) -> None:
    digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=")
    signed = claim.encode("utf-8", "surrogatepass") if isinstance(claim, str) else b""
    if not hmac.compare_digest(signed.rstrip(b"="), digest):
        raise NotAuthentic(
            "The body is not the one that was signed. Something between QStash and this receiver changed it, or a "
            "middleware consumed it before the receiver could read it."
        )


def _delivery(headers: Mapping[str, str]) -> Delivery:
    retried = headers.get(HEADER_RETRIED, "0")
    return Delivery(
        backend="qstash",
        message_id=headers.get(HEADER_MESSAGE_ID, ""),
        # The header is not signed: a value that is no number must not be able to fail the job.
        attempt=1 + (int(retried) if retried.isascii() and retried.isdigit() and len(retried) < 7 else 0),
    )
