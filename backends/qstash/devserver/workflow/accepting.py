"""Taking in the messages of workflow runs: starting a run, appending to one (4, 8, 15.1)."""

from __future__ import annotations

import json
from typing import Any

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.errors import bad_request
from queuebridge.backends.qstash.devserver.messages import Accepted, Message, MessageSpec
from queuebridge.backends.qstash.devserver.workflow.part import Role, WorkflowPart, unprocessable

_STEP_ID_HEADER = "upstash-workflow-stepid"


def accept(
    engine: Engine,
    account: Account,
    part: WorkflowPart,
    spec: MessageSpec,
    body: bytes,
    *,
    not_before: float,
    dedup_key: str | None = None,
) -> tuple[Accepted, Message | None]:
    """Stage a message of a run; as `Engine.accept`.

    A second init of a live run and a step that is already known are answered as duplicates: an endpoint
    whose answer was lost executes and submits again.

    Raises:
        Refusal: 400 if the run is not active, 422 for a malformed record.
    """
    run = account.runs.get(part.run_id)
    if part.init:
        if run is not None:
            return Accepted(run.records[run.first].message_id, spec.url, deduplicated=True), None
        accepted, message = engine.accept(account, spec, body, not_before=not_before, dedup_key=dedup_key)
        if message is not None:
            account.runs.begin(message)
        return accepted, message
    if run is None:
        raise bad_request(f"workflow run {part.run_id} is not active: it has ended or was never started")
    key = _call_key(spec) if part.role is Role.TO_CALLBACK else _record_key(body)
    earlier = run.steps.get(key)
    if earlier is not None:
        return Accepted(earlier, spec.url, deduplicated=True), None
    accepted, message = engine.accept(account, spec, body, not_before=not_before, dedup_key=dedup_key)
    if message is not None:
        account.runs.append(run, message, key)
    return accepted, message


def _record_key(body: bytes) -> str:
    try:
        record: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise unprocessable("a step record must be JSON") from None
    step_id = _number(record.get("stepId")) if isinstance(record, dict) else None
    if step_id is None:
        raise unprocessable("a step record must be a JSON object with a whole number as stepId")
    if step_id:
        return f"result:{step_id}"
    target = _number(record.get("targetStep"))
    if not target:
        raise unprocessable("the step record of a plan (stepId 0) needs a targetStep")
    return f"plan:{target}"


def _number(value: object) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1_000_000_000
    return value if whole and isinstance(value, int) else None


def _call_key(spec: MessageSpec) -> str:
    if spec.callback is None or spec.callback.workflow is None:
        raise unprocessable("a toCallback message needs Upstash-Callback and Upstash-Callback-Workflow-RunId")
    if spec.workflow is None or spec.callback.workflow.run_id != spec.workflow.run_id:
        raise unprocessable("Upstash-Callback-Workflow-RunId must name the run of the message")
    for name, value in spec.callback.headers:
        if name.lower() == _STEP_ID_HEADER and value.isascii() and value.isdigit():
            return f"call:{int(value[:18])}"
    raise unprocessable("a toCallback message needs Upstash-Callback-Forward-Upstash-Workflow-StepId")
