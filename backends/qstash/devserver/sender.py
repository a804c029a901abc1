"""Signed deliveries over HTTP (protocol section 13.1): one call, one attempt, always an outcome."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from queuebridge.backends.qstash.devserver.messages import Message, Outcome
from queuebridge.backends.qstash.devserver.resolving import Resolver
from queuebridge.backends.qstash.protocol import (
    DEFAULT_REGION,
    DELIVERY_USER_AGENT,
    HEADER_CALLER_IP,
    HEADER_MESSAGE_ID,
    HEADER_REGION,
    HEADER_RETRIED,
    HEADER_SCHEDULE_ID,
    HEADER_SIGNATURE,
    HEADER_TOPIC_NAME,
    PlanLimits,
)
from queuebridge.backends.qstash.signing import sign

logger = logging.getLogger(__name__)

# Shorter than the keep-alive of common receivers (gunicorn 2 s, uvicorn 5 s): sending on a connection
# that the receiver is just closing would count as a failed attempt.
_KEEPALIVE_SECONDS: Final = 1.5
_CONNECT_SECONDS: Final = 30.0
_LARGE_BODY: Final = 512 * 1024


@lru_cache(maxsize=1024)
def _url(text: str) -> URL:
    return URL(text, encoded=True)


@lru_cache(maxsize=64)
def _timeout(seconds: int) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, _CONNECT_SECONDS))


class Sender:
    """Sends attempts over one shared connection pool. Create it inside the running loop; close it.

    Args:
        plan: Bounds timeouts and the length of answers.
        clock: The machine's time in Unix seconds: receivers compare signatures with theirs.
        region: What deliveries say about where they come from.
        resolver: Sends deliveries for some hosts elsewhere; they are signed as if they were not.
    """

    def __init__(
        self,
        *,
        plan: PlanLimits,
        clock: Callable[[], float],
        region: str = DEFAULT_REGION,
        resolver: Resolver | None = None,
    ) -> None:
        self._resolver = resolver
        self._plan = plan
        self._clock = clock
        self._region = region
        self._session = aiohttp.ClientSession(
            # The engine limits parallelism; a second limit here would only hide waiting messages.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
        )

    def timeout_seconds(self, message: Message) -> int:
        """Return how long an attempt waits for its answer."""
        limit = self._plan.max_timeout_seconds
        return limit if message.spec.timeout_seconds is None else min(message.spec.timeout_seconds, limit)

    async def send(self, message: Message, headers: CIMultiDict[str]) -> Outcome:
        """Send a message once and return what came of it; never raises but for cancellation."""
        spec = message.spec
        seconds = self.timeout_seconds(message)
        url = spec.url
        if self._resolver is not None and (place := self._resolver.place_of(url)) is not None:
            url, host = place
            headers.setdefault("Host", host)
        sent = message.sent_body
        try:
            async with self._session.request(
                spec.method,
                _url(url),
                data=io.BytesIO(sent) if len(sent) > _LARGE_BODY else sent,
                headers=headers,
                allow_redirects=False,
                timeout=_timeout(seconds),
            ) as response:
                body = await _read(response, self._plan.max_message_bytes)
                return Outcome(status=response.status, headers=tuple(response.headers.items()), body=body)
        except asyncio.TimeoutError:
            return Outcome(error=f"no answer within {seconds} s", timed_out=True)
        except aiohttp.InvalidURL:
            return Outcome(error="InvalidURL")  # its text would repeat a password in the URL
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Outcome(error=f"{type(error).__name__}: {error}"[:500])
        except Exception as error:
            logger.exception("attempt failed unexpectedly: message=%s", message.id)
            return Outcome(error=type(error).__name__)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def headers(self, message: Message, signing_key: str) -> CIMultiDict[str]:
        """Return the headers of an attempt, signed now."""
        spec = message.spec
        headers: CIMultiDict[str] = CIMultiDict()
        headers["User-Agent"] = DELIVERY_USER_AGENT
        for name, value in spec.headers:
            headers[name] = value
        if message.content is not None:
            for name, value in message.content.headers:
                headers[name] = value
        headers[HEADER_MESSAGE_ID] = message.id
        headers[HEADER_RETRIED] = str(message.retried)
        headers[HEADER_CALLER_IP] = spec.caller_ip
        headers[HEADER_REGION] = self._region
        if spec.topic is not None:
            headers[HEADER_TOPIC_NAME] = spec.topic
        if spec.schedule_id is not None:
            headers[HEADER_SCHEDULE_ID] = spec.schedule_id
        headers[HEADER_SIGNATURE] = sign(
            signing_key, url=spec.url, body=message.sent_body, now=self._clock())
        return headers


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return at most `limit` bytes of the answer; the rest of a longer one is not read."""
    length = response.content_length
    if length is not None and length <= limit:
        return await response.read()
    chunks: list[bytes] = []
    left = limit
    async for chunk in response.content.iter_any():
        chunks.append(chunk[:left])
        left -= len(chunk)
        if left <= 0:
            response.close()
            break
    return b"".join(chunks)
