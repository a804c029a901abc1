"""How far a revision of the stage settings has got: which processes go by it."""

from __future__ import annotations

from dataclasses import dataclass

from queuebridge.ledger.stage_store import ProcessSeen, Revision, StageStore
from queuebridge.routing.codec import from_json
from queuebridge.routing.ledger_source import ALIVE_MS
from queuebridge.routing.rules import StageRule, StageSettings
from queuebridge.stages import Stage

_PAGE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Which of the living processes go by the latest revision.

    A process counts as living for 30 s after its last report; one that cannot reach the ledger for longer is not seen.

    Attributes:
        latest: The latest revision, None if there was never one.
        processes: The living processes, the latest report first.
    """

    latest: Revision | None
    processes: tuple[ProcessSeen, ...]

    @property
    def behind(self) -> tuple[ProcessSeen, ...]:
        """Return the processes that go by an earlier revision."""
        number = self.latest.number if self.latest is not None else 0
        return tuple(process for process in self.processes if process.revision < number)


def reach_of(store: StageStore) -> Reach:
    """Return how far the latest revision has got. Raises LedgerUnavailable without the ledger."""
    # In this order: what the processes report may then be newer than the revision that is spoken of, but not older.
    latest = store.current()
    return Reach(latest=latest, processes=tuple(store.processes(within_ms=ALIVE_MS)))


def stage_since(store: StageStore, rule: StageRule) -> int | None:
    """Return when the jobs that `rule` matches came to its stage, in the store's milliseconds; None if never set.

    Looks at the latest 1000 revisions.
    """
    since: int | None = None
    for revision in store.history(_PAGE):
        if rule.stage not in _stages_at(from_json(revision.settings), rule):
            break
        since = revision.at_ms
    return since


def _stages_at(settings: StageSettings, rule: StageRule) -> tuple[Stage, ...]:
    return next((other.stages for other in settings.all_rules if other.covers(rule)), ())
