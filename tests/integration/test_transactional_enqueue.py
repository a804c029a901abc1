"""A job that is enqueued in the caller's own transaction exists exactly if that is committed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from contracts import contract_registry
from processes import Spawner, free_port, wait_until
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, insert, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from queuebridge import Bridge, EnqueueOptions, InvalidOption, Receipt
from queuebridge.errors import LedgerUnavailable
from queuebridge.ledger import ExecutionFilter, State
from queuebridge.storage.sql import SqlLedger, upgrade
from queuebridge.storage.sql.engine import parse_url

# Longer than reconcile waits for the publish of a recorded job.
LATER_MS = 31_000

# The application's own table.
orders = Table("orders", MetaData(), Column("number", Integer, primary_key=True))


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The database of an application, with the ledger in it."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/application.db"
    else:
        url = str(request.getfixturevalue("postgres_url"))
    upgrade(url)
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The application's way to it."""
    made = create_engine(parse_url(database_url))
    if made.dialect.name == "sqlite":
        # As SQLAlchemy advises: else sqlite3 itself decides when a transaction begins, and savepoints do not work.
        event.listen(made, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(made, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    orders.create(made)
    yield made
    made.dispose()


@pytest.fixture
def environ(database_url: str, redis_url: str) -> dict[str, str]:
    """The environment of the application."""
    return {"QUEUEBRIDGE_BACKEND": "rq", "REDIS_URL": redis_url, "QUEUEBRIDGE_LEDGER": database_url}


@pytest.fixture
def bridge(environ: dict[str, str]) -> Iterator[Bridge]:
    """The application's bridge."""
    with Bridge(registry=contract_registry(), environ=environ) as made:
        yield made


def order(number: int, bridge: Bridge, session: Session) -> Receipt:
    """Do what an application does: a row of its own, and a job for it."""
    session.execute(insert(orders).values(number=number))
    return bridge.apply_async("contract.record", [str(number)], options=EnqueueOptions(session=session))


def published(url: str) -> list[str]:
    """Return the ids of the jobs on the queue."""
    with redis.Redis.from_url(url) as client:
        ids: Any = client.lrange("rq:queue:default", 0, -1)
    return [job_id.decode() for job_id in ids]


def recorded(bridge: Bridge) -> list[str]:
    """Return the ids of the jobs in the ledger, as everybody sees them."""
    assert bridge.ledger is not None
    return [one.job_id for one in bridge.ledger.executions.recent(ExecutionFilter(), limit=10)]


def ordered(engine: Engine) -> list[int]:
    """Return the application's rows, as everybody sees them."""
    with engine.connect() as connection:
        return list(connection.scalars(select(orders.c.number)))


def reconcile_later(environ: Mapping[str, str]) -> int:
    """Reconcile when the time for publishing has passed, and return how many jobs were published."""
    ledger = SqlLedger.from_url(environ["QUEUEBRIDGE_LEDGER"], clock_offset_ms=lambda: LATER_MS)
    with Bridge(registry=contract_registry(), environ=environ, ledger=ledger) as bridge:
        return bridge.reconciler().run_once().published


def test_job_of_a_session_is_published_when_it_commits(bridge: Bridge, engine: Engine, redis_url: str) -> None:
    with Session(engine) as session:
        receipt = order(1, bridge, session)
        before = (published(redis_url), recorded(bridge))
        session.commit()

    assert receipt.pending_commit
    assert before == ([], [])
    assert published(redis_url) == recorded(bridge) == [receipt.job_id]
    assert ordered(engine) == [1]


def test_scoped_session_is_the_session_of_its_thread(bridge: Bridge, engine: Engine, redis_url: str) -> None:
    scoped = scoped_session(sessionmaker(engine))
    receipts = []
    for number in (1, 2):
        receipts.append(bridge.apply_async("contract.record", [str(number)], options=EnqueueOptions(session=scoped)))
        scoped.commit()
    scoped.remove()

    assert sorted(published(redis_url)) == sorted(receipt.job_id for receipt in receipts)


def test_job_of_a_session_that_rolls_back_never_existed(
    bridge: Bridge, engine: Engine, redis_url: str, environ: dict[str, str]
) -> None:
    with Session(engine) as session:
        order(1, bridge, session)
        session.rollback()
        # The session goes on: what is committed then brings back nothing.
        session.execute(insert(orders).values(number=2))
        session.commit()

    assert reconcile_later(environ) == 0
    assert (published(redis_url), recorded(bridge), ordered(engine)) == ([], [], [2])


def test_savepoint_that_rolls_back_takes_its_job_along_and_no_other(
    bridge: Bridge, engine: Engine, redis_url: str, environ: dict[str, str]
) -> None:
    with Session(engine) as session:
        kept = order(1, bridge, session)
        savepoint = session.begin_nested()
        order(2, bridge, session)
        savepoint.rollback()
        session.commit()

    assert reconcile_later(environ) == 0
    assert published(redis_url) == recorded(bridge) == [kept.job_id]
    assert ordered(engine) == [1]


def test_job_of_a_released_savepoint_waits_for_the_commit(bridge: Bridge, engine: Engine, redis_url: str) -> None:
    with Session(engine) as session:
        session.execute(insert(orders).values(number=1))
        with session.begin_nested():
            receipt = order(2, bridge, session)
        before = published(redis_url)
        session.commit()

    assert before == []
    assert published(redis_url) == [receipt.job_id]


def test_several_jobs_of_one_transaction_are_published_once_each(
    bridge: Bridge, engine: Engine, redis_url: str, environ: dict[str, str]
) -> None:
    with Session(engine) as session:
        first = [order(number, bridge, session).job_id for number in (1, 2)]
        session.commit()
        second = order(3, bridge, session).job_id
        session.commit()

    assert reconcile_later(environ) == 0
    assert sorted(published(redis_url)) == sorted([*first, second])


def test_job_of_a_connection_is_published_by_reconcile_after_the_commit(
    bridge: Bridge, engine: Engine, redis_url: str
) -> None:
    with engine.connect() as connection:
        connection.execute(insert(orders).values(number=1))
        receipt = bridge.apply_async("contract.record", ["1"], options=EnqueueOptions(connection=connection))
        before = bridge.reconciler().run_once().total if engine.dialect.name != "sqlite" else 0
        connection.commit()

    assert before == 0
    assert recorded(bridge) == [receipt.job_id]
    wait_until(lambda: bridge.reconciler().run_once().published, what="the job to be due")
    assert published(redis_url) == [receipt.job_id]


def test_job_of_a_connection_that_rolls_back_never_existed(
    bridge: Bridge, engine: Engine, redis_url: str, environ: dict[str, str]
) -> None:
    with engine.connect() as connection:
        bridge.apply_async("contract.record", ["1"], options=EnqueueOptions(connection=connection))
        connection.rollback()

    assert reconcile_later(environ) == 0
    assert (published(redis_url), recorded(bridge)) == ([], [])


def test_commit_succeeds_though_no_backend_takes_the_job(
    engine: Engine, redis_url: str, environ: dict[str, str]
) -> None:
    unreachable = {**environ, "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    with Bridge(registry=contract_registry(), environ=unreachable) as bridge, Session(engine) as session:
        receipt = order(1, bridge, session)
        session.commit()
        assert recorded(bridge) == [receipt.job_id]

    assert ordered(engine) == [1]
    assert reconcile_later(environ) == 1
    assert published(redis_url) == [receipt.job_id]


def test_commit_succeeds_though_the_ledger_cannot_be_asked_after_it(
    bridge: Bridge, engine: Engine, redis_url: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(_: str) -> None:
        raise LedgerUnavailable("away")

    assert bridge.ledger is not None
    with Session(engine) as session:
        receipt = order(1, bridge, session)
        monkeypatch.setattr(bridge.ledger.executions, "get", unreachable)
        session.commit()

    assert published(redis_url) == []
    assert reconcile_later(environ) == 1
    assert published(redis_url) == [receipt.job_id]


# An application that dies after its commit, before the job is on the broker.
CRASHING = """
import os, signal, sys
from contracts import contract_registry
from queuebridge import Bridge, EnqueueOptions
from queuebridge.backends.rq.backend import RQBackend
from queuebridge.storage.sql.engine import parse_url
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

RQBackend.publish = RQBackend.publish_many = die
with Bridge(registry=contract_registry()) as bridge, Session(create_engine(parse_url(sys.argv[1]))) as session:
    session.execute(text("INSERT INTO orders VALUES (1)"))
    print(bridge.apply_async("contract.record", ["1"], options=EnqueueOptions(session=session)).job_id, flush=True)
    session.commit()
"""


def test_p1_crash_between_commit_and_publish_is_repaired_by_reconcile(
    engine: Engine, spawn: Spawner, redis_url: str, environ: dict[str, str], bridge: Bridge
) -> None:
    crashed = spawn([sys.executable, "-c", CRASHING, environ["QUEUEBRIDGE_LEDGER"]], env=environ)
    assert crashed.wait() == -signal.SIGKILL
    job_id = crashed.stdout.strip()
    assert (ordered(engine), recorded(bridge), published(redis_url)) == ([1], [job_id], [])

    assert reconcile_later(environ) == 1

    assert published(redis_url) == [job_id]
    assert bridge.ledger is not None
    assert [one.state for one in bridge.ledger.executions.of_job(job_id)] == [State.ACCEPTED]


def test_ledger_in_another_kind_of_store_cannot_take_part(engine: Engine, redis_url: str) -> None:
    environ = {"QUEUEBRIDGE_BACKEND": "rq", "REDIS_URL": redis_url, "QUEUEBRIDGE_LEDGER": redis_url}
    with Bridge(registry=contract_registry(), environ=environ) as bridge, Session(engine) as session:
        with pytest.raises(InvalidOption, match="SQL"):
            order(1, bridge, session)
        session.rollback()

    assert published(redis_url) == []
