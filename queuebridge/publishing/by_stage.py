"""Publish as the library alone would where a stage does no more than that, and by the stage's plan elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from queuebridge.backend import Backend
from queuebridge.publishing.draft import Draft, Publisher, SinglePublisher
from queuebridge.publishing.staged import StagedPublisher
from queuebridge.receipt import Receipt
from queuebridge.stages import Side

_Prepared: TypeAlias = tuple[Publisher, Any]


class PublisherByStage:
    """Chooses a publisher for each job.

    Args:
        staged: Publishes by the plan of a stage.
        backends: The backend of each side.
        has_ledger: Whether there is a ledger, in which executors claim even what was not recorded.
    """

    def __init__(self, staged: StagedPublisher, backends: Mapping[Side, Backend], *, has_ledger: bool) -> None:
        self._staged = staged
        self._alone = {
            side: SinglePublisher(backend, counted_by_ledger=has_ledger) for side, backend in backends.items()
        }

    def prepare(self, draft: Draft) -> _Prepared:
        """Check a job; see `Publisher.prepare`."""
        publisher = self._publisher(draft)
        return publisher, publisher.prepare(draft)

    def publish(self, prepared: _Prepared) -> Receipt:
        """Publish one job; see `Publisher.publish`."""
        publisher, one = prepared
        return publisher.publish(one)

    def publish_many(self, prepared: Sequence[_Prepared]) -> list[Receipt | Exception]:
        """Publish several jobs, those of one publisher together; see `Publisher.publish_many`."""
        places: dict[int, list[int]] = {}
        for place, (publisher, _) in enumerate(prepared):
            places.setdefault(id(publisher), []).append(place)
        answers: dict[int, Receipt | Exception] = {}
        for together in places.values():
            publisher = prepared[together[0]][0]
            results = publisher.publish_many([prepared[place][1] for place in together])
            answers.update(zip(together, results, strict=True))
        return [answers[place] for place in range(len(prepared))]

    def close(self) -> None:
        """End the threads."""
        self._staged.close()

    def _publisher(self, draft: Draft) -> Publisher:
        plan = draft.stage.plan if draft.stage is not None else None
        if plan is None or draft.transaction is not None or len(plan.copies) > 1 or plan.fallback is not None:
            return self._staged
        return self._staged if self._staged.wants_record(draft) else self._alone[plan.preferred]
