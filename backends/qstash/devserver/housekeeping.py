"""Forgetting what is past its time, a bounded number of things at once."""

from __future__ import annotations

from typing import Final

from queuebridge.backends.qstash.devserver.engine import Engine

BATCH: Final = 500


def sweep(engine: Engine) -> bool:
    """Forget finished messages, old publishes, idle flow-control keys, expired dead letters, logs, abandoned runs.

    Returns:
        Whether more may be left, so that the caller should come back soon.
    """
    now = engine.clock()
    plan = engine.settings.plan
    oldest_letter_ms = int((now - plan.dlq_retention_seconds) * 1000)
    oldest_log_ms = int((now - plan.log_retention_seconds) * 1000)
    more = engine.forget_finished(BATCH) == BATCH
    for account in engine.accounts.values():
        abandoned = account.runs.abandoned(now - plan.dlq_retention_seconds, BATCH)
        for run in abandoned:
            engine.end_run(account, run)
        flows = account.forget_idle_flows(now, BATCH)
        publishes = account.take_expired_publishes(now, BATCH)
        for record in publishes:
            engine.store.remove_deduplication(record)
        letters = account.dead_letters_before(oldest_letter_ms, BATCH)
        for letter in letters:
            engine.remove_dead_letter(account, letter)
        logs = account.history.forget_before(oldest_log_ms, BATCH)
        more = more or BATCH in {flows, len(publishes), len(letters), logs, len(abandoned)}
    return more
