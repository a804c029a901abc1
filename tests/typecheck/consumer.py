"""Typical use of queuebridge, as mypy sees it. Checked by `tox run -e types`; never run."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

from flask import Blueprint, Flask
from pydantic import BaseModel
from typing_extensions import assert_type

from bridge_app import create_app, create_blueprint
from queuebridge import (
    Bridge,
    Call,
    CurrentJob,
    EnqueueManyError,
    EnqueueOptions,
    InvalidArguments,
    PermanentFailure,
    QueueBridgeError,
    Receipt,
    RetryLater,
    RetryPolicy,
    Task,
    TaskRegistry,
    UnknownTask,
    Write,
    current_job,
    get_bridge,
    set_bridge,
    task,
)


class Colour(enum.Enum):
    """An argument that is an enum."""

    RED = "red"


class Address(BaseModel):
    """An argument that is a model."""

    street: str


@dataclass
class Size:
    """An argument that is a dataclass."""

    width: Decimal


@task
def plain(number: int, *, text: str = "") -> str:
    """Declare a task without parentheses."""
    return text * number


@task(
    name="orders.ship",
    queue="orders",
    retries=5,
    backoff=[1, 10, 60],
    timeout=30,
    aliases=["orders.send"],
    give_up_on=[ValueError],
    options={"qstash": {"flow_control": {"key": "orders", "parallelism": 2}}},
)
def ship(order: uuid.UUID, to: Address, on: date, size: Size, colour: Colour = Colour.RED) -> bool:
    """Declare a task with options and rich arguments."""
    job = current_job()
    assert_type(job, CurrentJob)
    if job.attempt > 3:
        raise PermanentFailure("too often")
    raise RetryLater(f"{order} {to} {on} {size} {colour}", delay_seconds=60)


@task(backoff=2.5)
async def fetch(url: str) -> bytes:
    """Declare a task that is a coroutine function."""
    return url.encode()


def calls(order: uuid.UUID) -> None:
    """Use tasks in each of the ways there are."""
    assert_type(plain(3, text="x"), str)
    assert_type(plain.delay(3, text="x"), Receipt)
    assert_type(
        ship.delay(order, Address(street="x"), date(2024, 1, 1), size=Size(Decimal(1))),
        Receipt,
    )
    receipt = ship.apply_async(
        (order, Address(street="x"), date(2024, 1, 1)),
        {"size": Size(Decimal(1))},
        countdown=timedelta(minutes=5),
        expires=datetime(2030, 1, 1, tzinfo=timezone.utc),
        queue="slow",
        priority=3,
        metadata={"user_id": 7},
        idempotency_key="order-7",
    )
    assert_type(receipt.job_id, str)
    assert_type(receipt.writes, tuple[Write, ...])
    assert_type(receipt.deduplicated, bool)
    # Arguments are checked against the function's own signature.
    plain.delay("three")  # type: ignore[arg-type]
    plain.delay(3, txt="x")  # type: ignore[call-arg]
    plain("three")  # type: ignore[arg-type]


async def calls_from_asyncio() -> None:
    """Use tasks from coroutines."""
    assert_type(await fetch("x"), bytes)
    assert_type(await fetch.aenqueue("x"), Receipt)
    assert_type(await get_bridge().aenqueue(plain, 3), Receipt)
    await fetch.aenqueue(3)  # type: ignore[arg-type]


def bridges(environ: Mapping[str, str]) -> None:
    """Make and use bridges."""
    registry = TaskRegistry()

    @task(name="local", registry=registry, retries=0)
    def local(*numbers: int) -> int:
        return sum(numbers)

    with Bridge("inline", registry=registry, environ=environ) as bridge, bridge.activate():
        assert_type(bridge.enqueue(local, 1, 2), Receipt)
        assert_type(bridge.enqueue("local", 1, 2), Receipt)
        try:
            receipts = bridge.enqueue_many(
                [Call(local, (1,)), Call("local", options=EnqueueOptions(countdown=3)), (local, (1, 2))]
            )
            assert_type(receipts, list[Receipt])
        except EnqueueManyError as error:
            assert_type(error.results, tuple[Receipt | Exception, ...])
        except (UnknownTask, InvalidArguments) as error:
            assert_type(error.retryable, bool)
        except QueueBridgeError:
            raise
    set_bridge(bridge)
    set_bridge(None)
    assert_type(RetryPolicy(retries=3, base=1.5).delay_before_retry(1), float)


def receivers(bridge: Bridge) -> None:
    """Make receivers."""
    app = create_app(bridge, on_failed=lambda failure: print(failure.envelope))
    assert_type(app, Flask)
    assert_type(create_blueprint(), Blueprint)
    app.register_blueprint(create_blueprint(bridge))


def generic(job: Task[[int], str]) -> str:
    """Take a task as an argument, typed."""
    job.delay(3)
    return job(3)
