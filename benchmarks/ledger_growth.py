"""Does a SQL ledger stay as fast when millions of dispatches have ended? Times beside those of a small ledger.

    python benchmarks/ledger_growth.py URL [ROWS ...]

URL is an empty database, `sqlite:///...` or `postgresql://...`. ROWS are numbers of settled dispatches in ascending
order, by default 1000, 100000 and 1000000. Prints in milliseconds the median and the fastest tenth, which a busy
machine disturbs less, and the ratios of both to those of the smallest ledger.
"""

from __future__ import annotations

import argparse
import statistics
import time
import uuid
from collections.abc import Callable

from sqlalchemy import create_engine, text

from queuebridge.ledger import ClaimRequest, Copy, Granted, NewDispatch, Settlement, State
from queuebridge.stages import Role, Side
from queuebridge.storage.sql import SqlLedger, upgrade
from queuebridge.storage.sql.engine import parse_url

ROUNDS = 200
DUE = 20
PURGED = 20
HOUR_MS = 3_600_000

NUMBERS = {
    "sqlite": "WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)",
    "postgresql": "WITH numbers(n) AS (SELECT generate_series(CAST(:first AS bigint), CAST(:last AS bigint)))",
}
DISPATCHES = """
INSERT INTO queuebridge_dispatches (
    dispatch_id, job_id, task, queue, stage, state, attempts, max_attempts, epoch, token, owner, deadline_ms,
    enqueued_at_ms, accepted_at_ms, started_at_ms, finished_at_ms, executed_by, stale_settles, settled_by, first_side,
    push_backend, push_role, push_state, push_message_id, payload, result)
{numbers} SELECT
    'settled-' || n, 'job-' || n, 'task-' || (n % 20), 'default', 'push',
    CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'done' END, 1, 3, 0, n, 'host:1:worker', :now + n,
    :now + n, :now + n, :now + n, :now + n, 'qstash', 0, n, 'push',
    'qstash', 'preferred', 'written', 'msg-' || n, '{{"user": 1234, "report": "monthly"}}', '"ok"'
FROM numbers
"""
DELIVERIES = """
INSERT INTO queuebridge_deliveries (dispatch_id, backend, message_id, at_ms, lag_ms, outcome, attempt)
{numbers} SELECT 'settled-' || n, 'qstash', 'msg-' || n, :now + n, 5, 'granted', 1 FROM numbers
"""


def seed(url: str, first: int, last: int, now_ms: int) -> None:
    """Add settled dispatches, numbered from `first` to `last`, with a delivery each."""
    engine = create_engine(parse_url(url))
    numbers = NUMBERS[engine.dialect.name]
    with engine.begin() as connection:
        for statement in (DISPATCHES, DELIVERIES):
            values = {"first": first, "last": last, "now": now_ms}
            connection.execute(text(statement.format(numbers=numbers)), values)
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("ANALYZE")
            # No work of the seeding shall be left to the commits that are measured.
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            connection.exec_driver_sql("VACUUM ANALYZE")
            connection.exec_driver_sql("CHECKPOINT")
    engine.dispose()


def times_ms(act: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the median duration of an act, and the longest of the fastest tenth."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000, statistics.quantiles(times, n=10)[0] * 1000


def new_dispatch(now_ms: int, check_in_ms: int) -> NewDispatch:
    """Return an ordinary dispatch."""
    return NewDispatch(
        dispatch_id=uuid.uuid4().hex,
        job_id=uuid.uuid4().hex,
        task="task-1",
        queue="default",
        stage="push",
        copies=(Copy(side=Side.PUSH, backend="qstash", role=Role.PREFERRED),),
        body=b"x" * 300,
        payload="{}",
        enqueued_at_ms=now_ms,
        max_attempts=3,
        check_in_ms=check_in_ms,
        deadline_in_ms=HOUR_MS,
    )


def claim_request(dispatch: NewDispatch) -> ClaimRequest:
    """Return the delivery of a dispatch."""
    return ClaimRequest(
        dispatch_id=dispatch.dispatch_id,
        job_id=dispatch.job_id,
        task=dispatch.task,
        queue=dispatch.queue,
        stage=dispatch.stage,
        backend="qstash",
        message_id=dispatch.dispatch_id,
        side=Side.PUSH,
        role=Role.PREFERRED,
        owner="host:1:benchmark",
        lease_ms=HOUR_MS,
        enqueued_at_ms=dispatch.enqueued_at_ms,
        max_attempts=3,
        body=b"",
        payload="{}",
        deadline_in_ms=HOUR_MS,
    )


def measure(ledger: SqlLedger) -> dict[str, tuple[float, float]]:
    """Return the times of the ledger's operations, as it is now."""
    now_ms = ledger.now_ms()
    waiting = [new_dispatch(now_ms, HOUR_MS) for _ in range(ROUNDS)]
    ledger.record(waiting)
    due = [new_dispatch(now_ms, 0) for _ in range(DUE)]
    ledger.record(due)
    queue = iter(waiting)

    def claim_and_settle() -> None:
        dispatch = next(queue)
        claim = ledger.claim(claim_request(dispatch), grace_ms=1000)
        assert isinstance(claim, Granted)
        assert ledger.settle(dispatch.dispatch_id, claim.token, Settlement(state=State.DONE, result="1"))

    figures = {
        "record": times_ms(lambda: ledger.record([new_dispatch(now_ms, HOUR_MS)])),
        "claim+settle": times_ms(claim_and_settle),
        f"take_due of {DUE}": times_ms(lambda: ledger.take_due(DUE, lease_ms=0), 50),
        f"purge of {PURGED}": times_ms(lambda: ledger.purge(settled_before_ms=now_ms, limit=PURGED), 20),
    }
    for dispatch in due:
        ledger.check_in(dispatch.dispatch_id, HOUR_MS)
    return figures


def main() -> None:
    """Measure at each size, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="an empty database")
    parser.add_argument("rows", type=int, nargs="*", default=[1_000, 100_000, 1_000_000])
    options = parser.parse_args()
    upgrade(options.url)
    ledger = SqlLedger.from_url(options.url)
    # Long ago, so that all of them may be purged.
    start_ms = ledger.now_ms() - 1000 * HOUR_MS
    first: dict[str, tuple[float, float]] = {}
    present = 0
    for rows in options.rows:
        seed(options.url, present + 1, rows, start_ms)
        present = rows
        figures = measure(ledger)
        first = first or figures
        print(f"{rows:>9} settled rows")
        for name, (median, fast) in figures.items():
            median_ratio, fast_ratio = median / first[name][0], fast / first[name][1]
            print(f"    {name:<16} {median:8.2f} ms  x{median_ratio:.2f}   fastest {fast:8.2f} ms  x{fast_ratio:.2f}")
    ledger.close()


if __name__ == "__main__":
    main()
