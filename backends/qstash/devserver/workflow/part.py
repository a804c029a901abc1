"""The part a message plays in a workflow run, and which of its headers are delivered (2.2, 2.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from queuebridge.backends.qstash.devserver.errors import Refusal, bad_request, unsupported

MAX_RUN_ID_LENGTH: Final = 256

# Set by this server, or meant for the connection on which the workflow itself was called: the Python
# SDK forwards the headers of every request it got, with values that are stale by then.
_NEVER_DELIVERED: Final = frozenset({"accept-encoding", "user-agent"})
_VERSION: Final = "upstash-workflow-sdk-version"


class Role(str, Enum):
    """What a workflow message is for, in the spelling of `Upstash-Workflow-CallType`."""

    STEP = "step"
    TO_CALLBACK = "toCallback"  # a request to a third party; its outcome becomes the callback
    FROM_CALLBACK = "fromCallback"
    FAILURE_CALL = "failureCall"


class Place(Enum):
    """Where the headers of a workflow message came from."""

    MESSAGE = "message"
    CALLBACK = "callback"
    FAILURE_CALLBACK = "failure callback"


_ROLES: Final = {Place.CALLBACK: Role.FROM_CALLBACK, Place.FAILURE_CALLBACK: Role.FAILURE_CALL}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowPart:
    """The part of one message. `initial_body` asks for the run's payload as a callback's `sourceBody`."""

    run_id: str
    role: Role = Role.STEP
    init: bool = False
    url: str = ""
    initial_body: bool = False

    def encode(self) -> list[Any]:
        """Return the stored form."""
        return [self.run_id, self.role.value, self.init, self.url, self.initial_body]

    @classmethod
    def decode(cls, data: list[Any]) -> WorkflowPart:
        """Return the part of a stored form."""
        run_id, role, init, url, initial_body = data
        return cls(run_id=run_id, role=Role(role), init=init, url=url, initial_body=initial_body)


def unprocessable(text: str) -> Refusal:
    """Return the refusal of a workflow message that is malformed (422).

    Not 400: the SDKs take that for "the run has ended" and stop silently.
    """
    return Refusal(422, text)


def read_part(options: Mapping[str, str], place: Place) -> WorkflowPart:
    """Return the part that publish options (lower-case, without `Upstash-`) give.

    Raises:
        Refusal: 400 for workflow headers without a run id, 422 for malformed ones, 501 for `ctx.invoke`.
    """
    run_id = options.get("workflow-runid")
    if run_id is None:
        raise bad_request("Upstash-Workflow-Init needs Upstash-Workflow-RunId")
    if not run_id or len(run_id) > MAX_RUN_ID_LENGTH or not run_id.isascii() or not run_id.isprintable():
        raise unprocessable(
            f"Upstash-Workflow-RunId must be 1 to {MAX_RUN_ID_LENGTH} printable ASCII characters, not {run_id[:60]!r}"
        )
    init = options.get("workflow-init", "false").strip().lower()
    if init not in {"true", "false"}:
        raise unprocessable(f"Upstash-Workflow-Init must be true or false, not {init[:40]!r}")
    if options.get("workflow-invoke", "false").strip().lower() == "true":
        raise unsupported("ctx.invoke of Upstash Workflow", 501)
    role = _ROLES.get(place) or _role(options.get("workflow-calltype"))
    starts = init == "true" and place is Place.MESSAGE
    if starts and role is not Role.STEP:
        raise unprocessable(f"Upstash-Workflow-Init: true does not go with the call type {role.value}")
    url = options.get("workflow-url", "")
    if not (url.isascii() and url.isprintable()):
        raise unprocessable(f"Upstash-Workflow-Url must be a URL of printable ASCII characters, not {url[:60]!r}")
    features = {feature.strip().lower() for feature in options.get("feature-set", "").split(",")}
    return WorkflowPart(
        run_id=run_id,
        role=role,
        init=starts,
        url=url,
        initial_body="initialbody" in features,
    )


def delivered_headers(
    forwarded: Mapping[str, tuple[str, str]], part: WorkflowPart
) -> dict[str, tuple[str, str]]:
    """Return those of the forwarded headers (by lower-case name) that a workflow message delivers.

    The version header goes to steps only: on any other delivery the Python SDK would take the body for
    a history.
    """
    return {
        lowered: pair
        for lowered, pair in forwarded.items()
        if lowered not in _NEVER_DELIVERED
        and not lowered.startswith("proxy-")
        and (lowered != _VERSION or part.role is Role.STEP)
    }


def _role(text: str | None) -> Role:
    if text is None or text.lower() == "step":
        return Role.STEP
    if text.lower() == "tocallback":
        return Role.TO_CALLBACK
    raise unprocessable(f"Upstash-Workflow-CallType must be step or toCallback, not {text[:40]!r}")
