"""The port that every backend implements, and the check of options against what it can do."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from queuebridge.envelope import Envelope
from queuebridge.errors import InvalidOption, OptionNotSupported
from queuebridge.receipt import Write

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a backend can honour. A missing capability makes the option an error before any I/O.

    Attributes:
        delay: `countdown=` and `eta=`.
        priority: `priority=`.
        deduplication: `idempotency_key=`.
        publish_retry: `retry=` (whether a failed publish is tried again).
        reasons: Per option, why it cannot be honoured and what to do, for the error message.
    """

    delay: bool = False
    priority: bool = False
    deduplication: bool = False
    publish_retry: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """An envelope with what concerns only the act of publishing it.

    Attributes:
        envelope: The dispatch.
        retry: Whether a failed publish may be tried again; None is the backend's own default.
        options: The options addressed to this backend by name (`options={"celery": {...}}`).
        held_until_ms: A later time than the envelope's own before which the transport shall not deliver it.
        delay_seconds: After how long the transport shall deliver it, by its own clock, whatever times are set; None
            goes by those.
        counted_by_ledger: The ledger counts the attempts, so that the transport's retries are for reachability only.
    """

    envelope: Envelope
    retry: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    held_until_ms: int | None = None
    delay_seconds: float | None = None
    counted_by_ledger: bool = False

    @property
    def deliver_at_ms(self) -> int | None:
        """Return before when the transport shall not deliver it, in Unix milliseconds; None for at once."""
        return self.held_until_ms if self.held_until_ms is not None else self.envelope.not_before_ms

    @cached_property
    def body(self) -> bytes:
        """Return the encoded envelope; checked for its size first and sent later, but encoded once."""
        return self.envelope.encode()


class Backend(abc.ABC):
    """An adapter that carries envelopes to executors.

    Implementations are safe to use from several threads. They open connections at the first publish, not
    when they are made.
    """

    name: str
    capabilities: Capabilities

    @abc.abstractmethod
    def check(self, publication: Publication) -> None:
        """Refuse, without any I/O, a publication that this backend cannot honour.

        Called before `publish` and `publish_many`, for every publication, so that a batch with one bad
        member sends nothing.

        Raises:
            OptionNotSupported: An option cannot be honoured.
            InvalidOption: An option of this backend's own has a wrong value.
            PayloadTooLarge: The envelope is too long.
        """

    @abc.abstractmethod
    def publish(self, publication: Publication) -> Write:
        """Hand one dispatch to the transport. When this returns, the transport has it.

        Publishing the same envelope again (same dispatch id and epoch) is a resend of the same write.

        Raises:
            BackendUnavailable: Nothing was accepted; it may be tried again.
            PublishRejected: Nothing was accepted, and a repetition will not help.
            PublishOutcomeUnknown: The transport may have it.
        """

    def publish_many(self, publications: Sequence[Publication]) -> list[Write | Exception]:
        """Hand over several dispatches through the transport's batch interface.

        Returns, in the order given, a Write for each that the transport has and the error for each that it
        has not. It does not stop at the first error, and raises nothing that concerns a single dispatch.
        """
        return [self._publish_or_error(publication) for publication in publications]

    @abc.abstractmethod
    def ping(self) -> str:
        """Reach the transport and return one line about it, without secrets.

        Raises:
            BackendUnavailable: It cannot be reached, or does not answer.
            PublishRejected: It does not accept our credentials.
        """

    def cancel(self, message_ids: Sequence[str]) -> None:  # noqa: ARG002 - for those that can
        """Take messages back that are not delivered yet, as far as the transport can; by default it cannot.

        No promise rests on it: the ledger knows what is cancelled, and every claim asks.

        Raises:
            PublishError: The transport could not be asked.
        """
        return

    def strangers(self) -> Mapping[str, Sequence[str]]:
        """Return the queues of each living worker that takes jobs without claiming them, by the worker's name.

        By default nobody is known.

        Raises:
            PublishError: They could not be asked.
        """
        return {}

    def _publish_or_error(self, publication: Publication) -> Write | Exception:
        try:
            return self.publish(publication)
        except Exception as error:  # noqa: BLE001 - each is reported to the caller, with its job
            return error

    def close(self) -> None:
        """Give up connections. The backend may be used again; it then opens new ones."""
        return


def check_capabilities(backend: Backend, publication: Publication, capabilities: Capabilities | None = None) -> None:
    """Refuse the options that the backend's capabilities rule out.

    Args:
        backend: The backend.
        publication: What it is to carry.
        capabilities: What it can honour with the help of others, instead of its own capabilities.

    Raises:
        OptionNotSupported: With the option, and the reason that the backend states.
    """
    envelope = publication.envelope
    capabilities = capabilities if capabilities is not None else backend.capabilities
    wanted = (
        ("countdown/eta", envelope.not_before_ms is not None, capabilities.delay),
        ("priority", envelope.priority is not None, capabilities.priority),
        ("idempotency_key", envelope.idempotency_key is not None, capabilities.deduplication),
        # False asks for no more than what such a backend does anyway.
        ("retry", publication.retry is True, capabilities.publish_retry),
    )
    for option, used, supported in wanted:
        if used and not supported:
            reason = capabilities.reasons.get(option, "it has no such feature.")
            raise OptionNotSupported(backend.name, option, reason)


def read_options(model: type[Options], backend: str, options: Mapping[str, Any]) -> Options:
    """Return the options addressed to one backend in typed form.

    Args:
        model: What options the backend has.
        backend: Its name.
        options: What the caller gave.

    Raises:
        InvalidOption: One is unknown, or has a wrong value.
    """
    try:
        return model.model_validate(options)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise InvalidOption(f"options[{backend!r}] {where}", f"{problem['msg']}.") from None
