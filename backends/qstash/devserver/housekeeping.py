"""Forgetting what is past its time, a bounded number of things at once."""

from __future__ import annotations

from typing import Final

from queuebridge.backends.qstash.devserver.engine import Engine

BATCH: Final = 500


def sweep(engine: Engine) -> bool:
    """Forget finished messages, old publishes, idle flow-control keys, expired dead letters, abandoned runs.

    Returns:
        Whether more may be left, so that the caller should come back soon.
    """
    now = engine.clock()
    retention_ms = engine.settings.plan.dlq_retention_seconds * 1000
    more = engine.forget_finished(BATCH) == BATCH
    for account in engine.accounts.values():
        abandoned = account.runs.abandoned(now - engine.settings.plan.dlq_retention_seconds, BATCH)
        for run in abandoned:
            engine.end_run(account, run)
        flows = account.forget_idle_flows(now, BATCH)
        publishes = account.take_expired_publishes(now, BATCH)
        for record in publishes:
            engine.store.remove_deduplication(record)
        letters = account.dead_letters_before(int(now * 1000) - retention_ms, BATCH)
        for letter in letters:
            engine.remove_dead_letter(account, letter)
        more = more or BATCH in {flows, len(publishes), len(letters), len(abandoned)}
    return more
