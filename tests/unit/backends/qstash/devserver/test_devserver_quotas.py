from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from queuebridge.backends.qstash.devserver.errors import Refusal
from queuebridge.backends.qstash.devserver.publishing import Publisher
from queuebridge.backends.qstash.devserver.quotas import BurstQuota, DailyQuota
from queuebridge.backends.qstash.devserver.recovery import recover
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services
from queuebridge.backends.qstash.devserver.sqlite_store import SqliteStore
from queuebridge.backends.qstash.devserver.store import MemoryStore, StoreError
from queuebridge.backends.qstash.protocol import DEFAULT_PLAN, DEV_USERS, PLANS
from queuebridge.cli.devserver import QUOTAS

MakeWorld = Callable[..., Any]
DAY = 86_400


def test_daily_quota_takes_what_fits_and_nothing_of_what_does_not(make_world: MakeWorld) -> None:
    world = make_world(plan=PLANS["free"])
    quota = DailyQuota(world.engine)
    quota.count(world.account, 990)

    quota.check(world.account, 10)
    with pytest.raises(Refusal) as refused:
        quota.check(world.account, 11)

    assert (refused.value.status, refused.value.text) == (429, "quota maxMessagesPerDay exceeded, current limit: 1000")
    assert refused.value.headers == {
        "RateLimit-Limit": "1000",
        "RateLimit-Remaining": "10",
        "RateLimit-Reset": str((world.clock.now // DAY + 1) * DAY).removesuffix(".0"),
    }


def test_daily_quota_is_that_of_one_user_and_one_day(make_world: MakeWorld) -> None:
    world = make_world(plan=PLANS["free"])
    quota = DailyQuota(world.engine)
    quota.count(world.account, 1000)
    other = world.engine.accounts[DEV_USERS[1].name]

    quota.check(other, 1000)
    quota.check(world.account, 0)
    with pytest.raises(Refusal):
        quota.check(world.account, 1)
    world.clock.now += DAY
    quota.check(world.account, 1000)


def test_daily_quota_takes_messages_back_that_were_not_stored(make_world: MakeWorld) -> None:
    world = make_world(plan=PLANS["free"])
    quota = DailyQuota(world.engine)
    quota.count(world.account, 1000)

    quota.count(world.account, -1)

    quota.check(world.account, 1)


def test_plan_without_a_daily_limit_counts_nothing(world: Any) -> None:
    quota = DailyQuota(world.engine)

    quota.count(world.account, 10**9)
    quota.check(world.account, 10**9)

    assert world.account.usage == (0, 0)


def test_daily_quota_survives_a_restart(make_world: MakeWorld, tmp_path: Path) -> None:
    async def run(*, first: bool) -> None:
        store = SqliteStore(tmp_path / "db")
        recovered = await store.load()
        try:
            world = make_world(store, plan=PLANS["free"])
            recover(world.engine, recovered)
            quota = DailyQuota(world.engine)
            if first:
                quota.count(world.account, 999)
                await store.commit()
            quota.check(world.account, 1)
            with pytest.raises(Refusal):
                quota.check(world.account, 2)
        finally:
            await store.close()

    asyncio.run(run(first=True))
    asyncio.run(run(first=False))


def test_burst_quota_counts_each_second_and_each_user_on_its_own(world: Any) -> None:
    now = [100.9]
    quota = BurstQuota(2, clock=lambda: now[0])
    other = world.engine.accounts[DEV_USERS[1].name]
    quota.take(world.account)
    quota.take(world.account)

    with pytest.raises(Refusal) as refused:
        quota.take(world.account)
    quota.take(other)
    now[0] = 101.0
    quota.take(world.account)

    assert refused.value.status == 429
    assert refused.value.headers == {
        "Burst-RateLimit-Limit": "2",
        "Burst-RateLimit-Remaining": "0",
        "Burst-RateLimit-Reset": "101",
    }


def test_command_offers_every_plan() -> None:
    assert tuple(PLANS) == QUOTAS
    assert DEFAULT_PLAN in QUOTAS


class _FullDisk(MemoryStore):
    async def commit(self) -> None:
        raise StoreError("disk full")


class _Http:
    """As much of an HTTP request as a publish reads."""

    headers: ClassVar[dict[str, str]] = {}
    remote = "127.0.0.1"
    content_length = 0

    async def read(self) -> bytes:
        return b""


def test_publish_that_could_not_be_stored_needs_no_room_in_the_day(make_world: MakeWorld) -> None:
    world = make_world(_FullDisk(), plan=PLANS["free"])
    publisher = Publisher(Services(world.engine, lambda: None))
    http: Any = _Http()
    target = "http://host/x"
    request = ApiRequest(http, world.account, "POST", f"/v2/publish/{target}", target, "")

    with pytest.raises(StoreError):
        asyncio.run(publisher.publish(request))

    assert world.account.usage[1] == 0
    DailyQuota(world.engine).check(world.account, 1000)
