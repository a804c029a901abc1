"""What the messages of workflow runs deliver, and what their outcomes mean (5, 8.4, 11.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from queuebridge.backends.qstash.devserver.messages import Content, HeaderPairs, Message, MessageSpec, Outcome
from queuebridge.backends.qstash.devserver.workflow.part import Role
from queuebridge.backends.qstash.devserver.workflow.runs import Run

_GATEWAY_TIMEOUT: Final = 504
_BAD_GATEWAY: Final = 502
# Flask and others consume bodies of these types as forms; a history is JSON whatever began the run.
_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")


def content(message: Message, run: Run | None) -> Content | None:
    """Return what is sent for a workflow message, None if that is just the message."""
    part = message.spec.workflow
    if part is None or part.role is Role.TO_CALLBACK:
        return None
    headers = [
        ("Upstash-Workflow-RunId", part.run_id),
        ("Upstash-Workflow-Init", "true" if part.init else "false"),
    ]
    if part.url:
        headers.append(("Upstash-Workflow-Url", part.url))
    body = message.body
    if run is not None:
        headers.append(("Upstash-Workflow-CreatedAt", str(run.created_ms)))
        if part.role is Role.STEP:
            body = run.history(message.seq)
            headers.extend(_json_for_a_form(message.spec.headers))
    return Content(body, tuple(headers))


def _json_for_a_form(headers: HeaderPairs) -> HeaderPairs:
    is_form = any(name == "Content-Type" and value.lower().startswith(_FORMS) for name, value in headers)
    return (("Content-Type", "application/json"),) if is_form else ()


def callback_fields(source: Message, run: Run, callback: MessageSpec) -> dict[str, Any]:
    """Return what the callback of a run's message says besides, and instead of, the usual fields.

    `body` and `sourceBody` are defaults, see `callback_body`: the SDKs need both to be there.
    """
    data: dict[str, Any] = {"workflowRunId": run.id, "workflowCreatedAt": run.created_ms, "workflowUrl": run.url}
    if callback.workflow is not None and callback.workflow.initial_body:
        data["sourceBody"] = run.payload
    if source.spec.workflow is not None and source.spec.workflow.role is Role.TO_CALLBACK:
        # Only the final outcome is told, and any other number would make the SDKs wait for more.
        data["retried"] = source.spec.max_retries
    return data


def settle(message: Message, run: Run | None, outcome: Outcome) -> tuple[bool, Outcome]:
    """Say whether an attempt of a workflow message was the last, and what its outcome counts as.

    An endpoint ends its run before it answers the last delivery, whatever the answer is then. The
    failure of a third party is a result like any other, once its retries are used up; the workflow
    needs a status for it even where there was no answer.
    """
    part = message.spec.workflow
    if outcome.delivered or part is None or (run is None and part.role is not Role.FAILURE_CALL):
        return True, outcome
    may_follow = message.retried < message.spec.max_retries and outcome.retryable
    if part.role is not Role.TO_CALLBACK or may_follow or message.cancel_requested:
        return False, outcome
    if outcome.status:
        return True, outcome
    return True, replace(outcome, status=_GATEWAY_TIMEOUT if outcome.timed_out else _BAD_GATEWAY)
