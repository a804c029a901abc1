"""The embedded server, as tests use it."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from queuebridge.loading import import_optional

_FEATURE = "The embedded server"
_PACKAGE = "queuebridge.backends.qstash"
# Longer than the server itself takes before it says that something takes too long.
_SLACK_SECONDS = 10.0


@dataclass(frozen=True)
class RecordedDelivery:
    """One attempt of the server to deliver a message.

    Attributes:
        message_id: Of the message.
        retried: How many attempts there were before.
        time: When it began, by the server's time in Unix seconds.
        method, url, headers, body: What was sent; `headers` by name in lower case, credentials as `REDACTED`.
        status: Of the answer; None if there was none, and then `error` says why.
        response_headers, response_body: Of the answer.
        error: Why there is no answer.
        fault: The scripted fault, if there was one.
        labels: Of the message.
    """

    message_id: str
    retried: int
    time: float
    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    status: int | None
    response_headers: Mapping[str, str] = field(repr=False)
    response_body: bytes = field(repr=False)
    error: str | None
    fault: str | None
    labels: tuple[str, ...]


class QStashServer:
    """A running embedded server. Made by the fixture `qstash_server`.

    Every method raises RuntimeError, with the server's words, when the server refuses the request.

    Attributes:
        url: Its address, for QSTASH_URL.
        token: Of its first user, for QSTASH_TOKEN.
        current_signing_key, next_signing_key: With which deliveries are signed.
    """

    def __init__(self, url: str) -> None:
        user = import_optional(f"{_PACKAGE}.protocol", feature=_FEATURE).DEFAULT_DEV_USER
        self.url = url
        self.token: str = user.token
        self.current_signing_key: str = user.current_signing_key
        self.next_signing_key: str = user.next_signing_key
        # Never over a proxy that the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @classmethod
    @contextmanager
    def running(
        cls, *, db: Path | None = None, resolve: Mapping[str, str] | None = None, time_scale: float = 1.0
    ) -> Iterator[QStashServer]:
        """Run a server on a free port, in a thread, for the length of a `with` block.

        Args:
            db: The SQLite file that keeps everything; None for memory.
            resolve: Host, perhaps with a port, to the local URL that gets its deliveries.
            time_scale: Divides the waits before retries.

        Raises:
            ConfigurationError: An argument is wrong; says which.
            MissingExtra: aiohttp or PyJWT is not installed.
        """
        devserver = import_optional(f"{_PACKAGE}.devserver", feature=_FEATURE)
        settings = devserver.ServerSettings(
            port=0,
            db_path=db,
            resolve=tuple(devserver.Resolution.parse(f"{host}={url}") for host, url in (resolve or {}).items()),
            engine=devserver.EngineSettings(time_scale=time_scale),
        )
        with devserver.running_server(settings) as url:
            server = cls(url)
            try:
                yield server
            finally:
                server._close_client()

    @cached_property
    def client(self) -> Any:
        """The official client (`qstash.QStash`) for this server."""
        sdk = import_optional("qstash", feature="The client of the embedded server")
        return sdk.QStash(self.token, base_url=self.url)

    @property
    def env(self) -> dict[str, str]:
        """The variables with which clients and receivers use this server."""
        return {
            "QSTASH_URL": self.url,
            "QSTASH_TOKEN": self.token,
            "QSTASH_CURRENT_SIGNING_KEY": self.current_signing_key,
            "QSTASH_NEXT_SIGNING_KEY": self.next_signing_key,
        }

    # Time

    @property
    def now(self) -> float:
        """The server's time in Unix seconds."""
        return float(self._request("GET", "time")["time"])

    def stop(self) -> None:
        """Let the server's time stand still."""
        self._request("POST", "time", {"stop": True})

    def resume(self) -> None:
        """Let the server's time go on from where it stands."""
        self._request("POST", "time", {"resume": True})

    def advance(self, by: str | float | timedelta, *, timeout: float = 60.0) -> None:
        """Advance the server's time; what is due on the way takes place, in order, before this returns.

        Args:
            by: Such as `"1h30m"`, or seconds.
            timeout: Real seconds that it may take.
        """
        duration = by.total_seconds() if isinstance(by, timedelta) else by
        self._request("POST", "time", {"advance": duration, "timeout": timeout}, timeout)

    def move_to(self, moment: float | datetime, *, timeout: float = 60.0) -> None:
        """Advance the server's time to a moment, in Unix seconds or with a time zone; see `advance`.

        Raises:
            ValueError: `moment` has no time zone.
        """
        if isinstance(moment, datetime):
            if moment.tzinfo is None:
                raise ValueError("the moment has no time zone; write for example datetime(..., tzinfo=timezone.utc)")
            moment = moment.timestamp()
        self._request("POST", "time", {"move_to": moment, "timeout": timeout}, timeout)

    def wait_until_idle(self, *, timeout: float = 10.0) -> None:
        """Wait until nothing is in flight and nothing is due; what waits for a later time does not count.

        Args:
            timeout: Real seconds.
        """
        self._request("POST", "idle", {"timeout": timeout}, timeout)

    # Deliveries

    @property
    def deliveries(self) -> list[RecordedDelivery]:
        """What was sent and answered so far, oldest first."""
        return self.find_deliveries()

    def find_deliveries(self, **filters: str) -> list[RecordedDelivery]:
        """Return the deliveries that match: `url`, `host`, `path`, `label`, `messageId` and the other log filters."""
        found: list[RecordedDelivery] = []
        cursor: str | None = None
        while True:
            page = {"count": "1000", **filters, **({} if cursor is None else {"cursor": cursor})}
            data = self._request("GET", f"deliveries?{urlencode(page)}")
            found += map(_delivery, data["deliveries"])
            cursor = data.get("cursor")
            if cursor is None:
                return found

    def clear_deliveries(self) -> None:
        """Forget what was sent."""
        self._request("DELETE", "deliveries")

    # Faults

    def drop_next(self, count: int = 1, **filters: str) -> None:
        """Let the next deliveries not arrive. Filters of all faults: `url`, `host`, `path`, `label`."""
        self._fault("drop", count, filters)

    def lose_answer_of_next(self, count: int = 1, **filters: str) -> None:
        """Let the next deliveries arrive, and their answers not."""
        self._fault("lose_answer", count, filters)

    def delay_next(self, count: int = 1, *, seconds: float, **filters: str) -> None:
        """Let the next deliveries arrive so many real seconds late."""
        self._fault("delay", count, filters, seconds=seconds)

    def duplicate_next(self, count: int = 1, **filters: str) -> None:
        """Let the next deliveries arrive twice."""
        self._fault("duplicate", count, filters)

    def fail_next(
        self,
        count: int = 1,
        *,
        status: int = 500,
        body: str = "",
        headers: Mapping[str, str] | None = None,
        **filters: str,
    ) -> None:
        """Answer the next deliveries in the place of the receiver."""
        self._fault("error", count, filters, status=status, body=body, headers=dict(headers or {}))

    def clear_faults(self) -> None:
        """Forget the faults that are still to come."""
        self._request("DELETE", "faults")

    def _fault(self, fault: str, count: int, filters: Mapping[str, str], **details: Any) -> None:
        self._request("POST", "faults", {"fault": fault, "count": count, **filters, **details})

    def _request(self, method: str, path: str, data: Any = None, timeout: float = 0.0) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the server speaks http
            f"{self.url}/_queuebridge/{path}",
            method=method,
            data=None if data is None else json.dumps(data).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=timeout + _SLACK_SECONDS) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode("utf-8", "replace")
            with suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["error"]
            raise RuntimeError(f"the embedded server refused that ({error.code}): {text}") from None

    def _close_client(self) -> None:
        client = self.__dict__.pop("client", None)
        # The client has no way to close its connections.
        inner = getattr(getattr(client, "http", None), "_client", None)
        if inner is not None:
            inner.close()


def _delivery(data: dict[str, Any]) -> RecordedDelivery:
    response = data.get("response", {})
    return RecordedDelivery(
        message_id=data["messageId"],
        retried=data["retried"],
        time=data["time"] / 1000,
        method=data["method"],
        url=data["url"],
        headers=_headers(data["header"]),
        body=_body(data),
        status=response.get("status"),
        response_headers=_headers(response.get("header", {})),
        response_body=_body(response),
        error=data.get("error"),
        fault=data.get("fault"),
        labels=tuple(data.get("labels", ())),
    )


def _headers(shown: Mapping[str, list[str]]) -> dict[str, str]:
    return {name.lower(): ", ".join(values) for name, values in shown.items()}


def _body(data: Mapping[str, Any]) -> bytes:
    if "bodyBase64" in data:
        return base64.b64decode(data["bodyBase64"])
    return str(data.get("body", "")).encode()
