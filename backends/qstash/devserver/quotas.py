"""Limits on how much a user may ask for: messages in a day, other requests in a second (protocol 2.6)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.errors import Refusal
from queuebridge.backends.qstash.devserver.messages import Document

KIND: Final = "usage"
_DAY_SECONDS: Final = 86_400


class DailyQuota:
    """How many messages a user may publish and enqueue in a day of UTC, by the plan; survives a restart."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.limit = engine.settings.plan.max_messages_per_day

    def check(self, account: Account, wanted: int) -> None:
        """Refuse messages beyond the limit: all of them, if there is not room for all.

        Raises:
            Refusal: 429, with `RateLimit-*` headers.
        """
        if self.limit is None or not wanted:
            return
        today = self._today()
        left = max(self.limit - _published(account, today), 0)
        if wanted > left:
            headers = _headers("", limit=self.limit, left=left, reset=(today + 1) * _DAY_SECONDS)
            raise Refusal(429, f"quota maxMessagesPerDay exceeded, current limit: {self.limit}", headers)

    def count(self, account: Account, messages: int) -> None:
        """Stage the count of messages that were taken in; a negative number takes them back."""
        if self.limit is None or not messages:
            return
        today = self._today()
        account.usage = (today, max(_published(account, today) + messages, 0))
        data = {"day": today, "published": account.usage[1]}
        self._engine.store.put_document(
            Document(account=account.user.name, kind=KIND, key="day", data=data)
        )

    def _today(self) -> int:
        return int(self._engine.clock() // _DAY_SECONDS)


class BurstQuota:
    """How many requests, but for publishes, a user may make in a second of the machine's clock."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._made: dict[str, tuple[int, int]] = {}  # by user: the second, and the requests in it

    def take(self, account: Account) -> None:
        """Count one request.

        Raises:
            Refusal: 429, with `Burst-RateLimit-*` headers.
        """
        now = int(self._clock())
        second, made = self._made.get(account.user.name, (now, 0))
        if second != now:
            made = 0
        if made >= self._limit:
            headers = _headers("Burst-", limit=self._limit, left=0, reset=now + 1)
            raise Refusal(429, f"more than {self._limit} requests in one second", headers)
        self._made[account.user.name] = (now, made + 1)


def restore_usage(engine: Engine, document: Document) -> None:
    """Take back how much a user has published on the day that was last counted."""
    data = document.data
    engine.accounts[document.account].usage = (data["day"], data["published"])


def _published(account: Account, today: int) -> int:
    day, published = account.usage
    return published if day == today else 0


def _headers(prefix: str, *, limit: int, left: int, reset: int) -> dict[str, str]:
    return {
        f"{prefix}RateLimit-Limit": str(limit),
        f"{prefix}RateLimit-Remaining": str(left),
        f"{prefix}RateLimit-Reset": str(reset),
    }
