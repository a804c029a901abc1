"""HTTP to QStash: the SDK's calls under a deadline of ours, and its answers as errors of ours.

The SDK repeats a failed request by itself and sleeps after the last failure, which blocks an unreachable publish
for 31.8 s; and its errors carry the status only inside a text.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx
from qstash.http import HttpClient, HttpMethod

from queuebridge.backends.qstash.deadline import ends_at, enforce_deadlines
from queuebridge.errors import BackendUnavailable, PublishError, PublishOutcomeUnknown, PublishRejected
from queuebridge.failures import redact

Answer = TypeVar("Answer")

_BACKEND = "qstash"
_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.2
_SHOWN_CHARACTERS = 300
# The embedded server: never behind a proxy, whatever the environment forgets to exempt.
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Remaining(dict[str, float]):
    """The timeouts of a request, where each phase (connect, write, read) has what is left of the whole."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def get(self, _phase: str, _default: Any = None) -> float:
        return max(0.001, self._deadline - time.monotonic())


class QStashHttp:
    """Connections to QStash. Safe to use from several threads.

    They are those of httpx, which the SDK uses too, without the layer for cookies, redirects and authentication
    that costs a fifth of the time of a publish. Proxies and certificates of the environment are honoured.

    Args:
        token: The QStash token.
        base_url: The address of the API.
    """

    def __init__(self, token: str, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}", "User-Agent": "qstash-queuebridge"}
        self._secret = token
        self._transport = httpx.HTTPTransport(proxy=_proxy_for(base_url))
        self._lock = threading.Lock()
        self._under_way = 0
        self._closed = False
        enforce_deadlines(self._transport)

    def until(self, deadline: float) -> HttpClient:
        """Return a client whose requests end at `deadline`, on the monotonic clock in seconds."""
        return _BoundHttp(self, deadline)

    def send(self, request: httpx.Request, deadline: float) -> httpx.Response:
        """Send one request and return the whole answer.

        Raises:
            httpx.ConnectError: The client was closed before; nothing was sent.
            httpx.HTTPError: No answer came.
        """
        with self._lock:
            if self._closed:
                raise httpx.ConnectError("the connection was closed by this program", request=request)
            self._under_way += 1
        try:
            with ends_at(deadline):
                response = self._transport.handle_request(request)
                try:
                    response.read()
                finally:
                    response.close()
                return response
        finally:
            with self._lock:
                self._under_way -= 1
            self._close_if_idle()

    def readable(self, text: str) -> str:
        """Return a text that came from outside in one line of bounded length, without secrets."""
        return redact(text.replace(self._secret, "***"))[:_SHOWN_CHARACTERS]

    def close(self) -> None:
        """Close the connections, as soon as the requests under way have their answers."""
        with self._lock:
            self._closed = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        with self._lock:
            idle = self._closed and not self._under_way
        if idle:
            # Nothing can get under way any more, and closing twice does no harm.
            self._transport.close()


def _proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for this address."""
    parsed = httpx.URL(url)
    if parsed.host in _LOOPBACK or proxy_bypass(parsed.host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parsed.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


class _BoundHttp(HttpClient):
    def __init__(self, http: QStashHttp, deadline: float) -> None:
        # The parent's constructor would open connections of its own.
        self._http = http
        self._deadline = deadline

    def request(
        self,
        *,
        path: str,
        method: HttpMethod,
        headers: dict[str, str] | None = None,
        body: str | bytes | None = None,
        params: dict[str, str] | None = None,
        parse_response: bool = True,
        base_url: str | None = None,
        token: str | None = None,
    ) -> Any:
        """Send one request and return the parsed answer.

        Raises:
            httpx.HTTPError: No answer came.
            BackendUnavailable, PublishRejected: QStash answered with an error.
        """
        request = httpx.Request(
            method,
            (base_url or self._http.base_url) + path,
            params=params,
            headers={**self._http.headers, **({"Authorization": token} if token else {}), **(headers or {})},
            content=body,
            extensions={"timeout": _Remaining(self._deadline)},
        )
        response = self._http.send(request, self._deadline)
        if not response.is_success:
            raise _refusal(response, self._http)
        return json.loads(response.content) if parse_response else response.text


def with_retries(send: Callable[[float], Answer], *, timeout: float, retry: bool, job_id: str) -> Answer:
    """Call `send` with a deadline until it succeeds, the deadline comes, or it fails for good.

    A repetition is safe: each message carries a deduplication id.

    Args:
        send: Does one attempt; gets the deadline on the monotonic clock.
        timeout: Seconds in all.
        retry: Whether to try more than once.
        job_id: For the error that says the outcome is not known.

    Raises:
        BackendUnavailable: No attempt reached QStash, or it is overloaded.
        PublishRejected: QStash refused.
        PublishOutcomeUnknown: An attempt was sent, and no answer came.
    """
    deadline = time.monotonic() + timeout
    unclear: str | None = None
    failure: PublishError = BackendUnavailable(_BACKEND, "it was not tried.")
    for attempt in range(_ATTEMPTS if retry else 1):
        try:
            return send(deadline)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
            failure = BackendUnavailable(_BACKEND, f"it cannot be reached ({_text(error)}).")
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise PublishRejected(_BACKEND, f"QSTASH_URL is not an http(s) address ({_text(error)}).") from None
        except httpx.HTTPError as error:
            unclear = f"no answer came ({_text(error)})."
            failure = PublishOutcomeUnknown(_BACKEND, unclear, job_id)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PublishOutcomeUnknown(
                _BACKEND, "it answered something that is no QStash answer; check QSTASH_URL.", job_id
            ) from None
        except BackendUnavailable as error:
            failure = error
        except PublishRejected as error:
            if unclear is None:
                raise
            failure = error
            break
        except UnclearAnswer as error:
            unclear = str(error)
            failure = PublishOutcomeUnknown(_BACKEND, unclear, job_id)
        pause = _FIRST_PAUSE_SECONDS * 2**attempt * (0.5 + random.random() / 2)  # noqa: S311 - spreads load
        if attempt + 1 == _ATTEMPTS or not retry or time.monotonic() + pause >= deadline:
            break
        time.sleep(pause)
    if unclear is not None:
        # What an earlier attempt may have achieved is not undone by a later one that was refused.
        raise PublishOutcomeUnknown(_BACKEND, unclear, job_id)
    raise failure


class UnclearAnswer(Exception):
    """An answer that leaves open whether the message was accepted."""


def _refusal(response: httpx.Response, http: QStashHttp) -> Exception:
    status = response.status_code
    said = http.readable(_error_text(response))
    if status == 401:
        return PublishRejected(
            _BACKEND,
            f"QSTASH_TOKEN is not accepted by {redact(http.base_url)} ({said}). Copy the token from the QStash "
            "console; each region has its own token and address (QSTASH_URL).",
        )
    if status == 429:
        return BackendUnavailable(_BACKEND, f"a rate or daily limit of the plan is reached ({said}).")
    if status == 503:
        return BackendUnavailable(_BACKEND, f"it is overloaded or in maintenance ({said}).")
    # These say that it, or a server in front of it, failed or gave up waiting, not that nothing was done.
    if status >= 500 or status == 408:
        return UnclearAnswer(f"it answered with status {status} ({said}).")
    hint = ""
    if "maxRetries" in said:
        hint = " Lower retries= of the task: the plan does not allow that many."
    elif "maxDelay" in said:
        hint = " The plan does not allow delays that long."
    elif "loopback" in said or "destination" in said:
        hint = " QUEUEBRIDGE_PUBLIC_URL must be an address that QStash can reach from the internet."
    elif status < 400 or status in (404, 405):
        hint = " Is QSTASH_URL the address of the QStash API?"
    return PublishRejected(_BACKEND, f"it refused the job with status {status} ({said}).{hint}")


def _error_text(response: httpx.Response) -> str:
    try:
        said = json.loads(response.content)["error"]
    except (ValueError, KeyError, TypeError):
        said = response.text
    return " ".join(str(said).split()) or response.reason_phrase or "no reason given"


def _text(error: Exception) -> str:
    return redact(str(error)) or type(error).__name__
