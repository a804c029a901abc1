"""What an enqueue hands to a publisher, and the port of publishers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from queuebridge.backend import Backend, Publication, check_capabilities
from queuebridge.envelope import Envelope
from queuebridge.errors import LedgerRequired
from queuebridge.receipt import Receipt, Write
from queuebridge.stages import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A job that is to be published.

    Attributes:
        envelope: The dispatch, without what concerns one copy only.
        retry: Whether a failed publish may be tried again; None is the backend's own default.
        options: Options of single backends, by backend name.
        parameter_names: The names of the positional parameters of the task.
        stage: The stage of the migration; None without one.
        transaction: The caller's SQLAlchemy session or connection, in which the job is to be recorded.
    """

    envelope: Envelope
    retry: bool | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameter_names: Sequence[str] = ()
    stage: Stage | None = None
    transaction: Any = None


class Publisher(Protocol):
    """Publishes jobs in two steps, so that a batch with one bad member sends nothing."""

    def prepare(self, draft: Draft) -> Any:
        """Check a job, without I/O, and return it in the form that `publish` takes.

        Raises:
            OptionNotSupported, InvalidOption, PayloadTooLarge: As `Backend.check`.
        """

    def publish(self, prepared: Any) -> Receipt:
        """Publish one job; raises as `Bridge.enqueue`."""

    def publish_many(self, prepared: Sequence[Any]) -> list[Receipt | Exception]:
        """Publish several jobs; returns the receipt or the error of each."""

    def close(self) -> None:
        """End threads, if there are any. The publisher may be used again."""


class SinglePublisher:
    """Publishes to one backend, and keeps no record.

    Args:
        backend: The backend.
        counted_by_ledger: As in `Publication`: executors claim the jobs all the same.
    """

    def __init__(self, backend: Backend, *, counted_by_ledger: bool = False) -> None:
        self._backend = backend
        self._counted = counted_by_ledger

    def prepare(self, draft: Draft) -> Publication:
        """Check a job; see `Publisher.prepare`.

        Raises:
            LedgerRequired: The job is to be recorded in a transaction.
        """
        if draft.transaction is not None:
            raise LedgerRequired("Recording a job in your own transaction")
        publication = Publication(
            envelope=draft.envelope,
            retry=draft.retry,
            options=draft.options.get(self._backend.name, {}),
            counted_by_ledger=self._counted,
        )
        check_capabilities(self._backend, publication)
        self._backend.check(publication)
        return publication

    def publish(self, prepared: Publication) -> Receipt:
        """Publish one job; see `Publisher.publish`."""
        return _receipt(prepared, self._backend.publish(prepared))

    def publish_many(self, prepared: Sequence[Publication]) -> list[Receipt | Exception]:
        """Publish several jobs through the backend's batch interface; see `Publisher.publish_many`."""
        results = self._backend.publish_many(prepared)
        return [
            _receipt(publication, result) if isinstance(result, Write) else result
            for publication, result in zip(prepared, results, strict=True)
        ]

    def close(self) -> None:
        """Do nothing; see `Publisher.close`."""


def _receipt(publication: Publication, write: Write) -> Receipt:
    envelope = publication.envelope
    return Receipt(
        job_id=envelope.job_id,
        dispatch_id=envelope.dispatch_id,
        task=envelope.task,
        queue=envelope.queue,
        writes=(write,),
        stage=envelope.stage.value if envelope.stage is not None else None,
    )
