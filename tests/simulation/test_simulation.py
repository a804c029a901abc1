"""P1, P2, P4, P5 and P6 in simulated worlds, where everything goes wrong that may.

Each world follows from one seed, so a failing one can be looked at as often as need be: its whole history is part of
the failure. QUEUEBRIDGE_TEST_SIMULATION_JOBS sets how many jobs are simulated in all.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from ledgers import installed
from simulation.faults import NO_FAULTS
from simulation.reports import explain
from simulation.world import World

from queuebridge.ledger import Ledger

JOBS = 100
# The jobs are spread over so many tests, the last two of which have fresh seeds.
BLOCKS = 20
FRESH = (BLOCKS - 2, BLOCKS - 1)

# Seeds of worlds that broke a promise once, and by what.
REGRESSIONS = {
    1: "a receipt named copies that were not written",
    2: "a receipt named a held copy that the ledger did not have",
    10: "a failed write of reconcile was never tried again",
    15: "a job that the ledger had never seen was given up",
    17: "a refused job whose record was not answered ran",
    1_000_013: "a copy that may run was taken for a resend of a shadow copy",
    16_000_035: "the same, while the ledger was away",
}


def live(seed: int) -> Counter[str]:
    """Return what happened in a world, and fail with its history if a promise was broken."""
    result = World(seed, jobs=JOBS).live()
    if result.violations:
        pytest.fail(explain(World(seed, jobs=JOBS, recorded=True).live(), seed, JOBS), pytrace=False)
    return result.counts


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_job_is_lost_and_none_takes_effect_twice(block: int, simulated_jobs: int) -> None:
    worlds = max(1, simulated_jobs // JOBS // BLOCKS)
    first = secrets.randbits(32) if block in FRESH else 1_000_000 * block
    print(f"seeds {first} to {first + worlds - 1}")

    seen: Counter[str] = Counter()
    for seed in range(first, first + worlds):
        seen += live(seed)

    # Of a few worlds, one may happen to have a hard time.
    assert worlds < 10 or seen["ended done"] > worlds * JOBS / 2, "Most jobs should be done."


@pytest.mark.parametrize("seed", REGRESSIONS, ids=lambda seed: REGRESSIONS[seed].replace(" ", "-"))
def test_worlds_that_broke_a_promise_keep_it(seed: int) -> None:
    live(seed)


def test_the_same_seed_makes_the_same_history() -> None:
    histories = [World(7, jobs=JOBS, recorded=True).live().history for _ in range(2)]

    assert histories[0] == histories[1]


def test_without_faults_every_effect_happens_once() -> None:
    counts = World(3, jobs=JOBS, faults=NO_FAULTS).live().counts

    assert counts["effects"] == counts["ended done"]
    assert counts["extra effects"] == 0


@pytest.mark.skipif(not installed("sqlite"), reason="This version has no SQL ledger.")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(4))
def test_no_job_is_lost_over_sqlite(seed: int, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    sql = import_module("queuebridge.storage.sql")
    sql.upgrade(url)

    def make_ledger(clock: Callable[[], float]) -> Ledger:
        ledger: Ledger = sql.SqlLedger.from_url(url, clock_offset_ms=lambda: int((clock() - time.time()) * 1000))
        return ledger

    # Its clock is moved, not replaced, so that a little real time passes in it.
    world = World(seed, jobs=50, make_ledger=make_ledger, recorded=True, slack_ms=2_000)
    result = world.live()
    world.ledger.close()

    assert not result.violations, explain(result, seed, 50)


@pytest.mark.timeout(120)
def test_everything_that_may_happen_happens() -> None:
    # A world in which nothing goes wrong would prove nothing.
    wanted = {
        *("accepted", "refused", "unsure", "spooled", "held", "deduplicated", "parked", "hopped", "stale"),
        *("claim granted", "claim busy", "claim settled", "given up by the transport", "extra effects"),
        *("released", "published", "redispatched", "failed"),
        *("ended done", "ended failed", "ended expired", "ended cancelled", "ended quarantined"),
        "effect of one that died between effect and settle",
        "effect of one that stalled past its lease",
        "effect of one that could not reach the ledger to settle",
    }

    seen: Counter[str] = Counter()
    for seed in range(5_000, 5_100):
        seen += live(seed)
        if not wanted - seen.keys():
            break

    assert not wanted - seen.keys()
