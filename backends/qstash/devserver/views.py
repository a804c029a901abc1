"""The JSON forms of messages, dead letters, log entries, queues and URL groups (protocol 2.3, 3.8, 4.1, 8, 9.2)."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from typing import Any

from queuebridge.backends.qstash.devserver.callback import header_map, origin_fields
from queuebridge.backends.qstash.devserver.limits import FifoQueue, FlowKey
from queuebridge.backends.qstash.devserver.messages import (
    DeadLetter,
    HeaderPairs,
    LogEntry,
    LogState,
    Message,
    MessageSpec,
    Redaction,
    UrlGroup,
)
from queuebridge.backends.qstash.devserver.schedules import Schedule


def redacted(value: bytes) -> str:
    """Return what is shown in the place of a redacted value."""
    return "REDACTED:" + sha256(value).hexdigest()


def _shown_headers(headers: HeaderPairs, redaction: Redaction | None) -> dict[str, list[str]]:
    shown = header_map(headers)
    if redaction is not None:
        for name, values in shown.items():
            if redaction.all_headers or name.lower() in redaction.headers:
                shown[name] = [redacted(value.encode("utf-8", "surrogateescape")) for value in values]
    return shown


def _shown_body(body: bytes, redaction: Redaction | None) -> dict[str, str]:
    if redaction is not None and redaction.body and body:
        return {"body": redacted(body)}
    return text_or_base64("body", body)


def text_or_base64(name: str, content: bytes) -> dict[str, str]:
    """Return a body under its name, or with `Base64` after the name if it is no text; nothing for an empty one."""
    if not content:
        return {}
    try:
        return {name: content.decode("utf-8")}
    except UnicodeDecodeError:
        return {name + "Base64": b64encode(content).decode("ascii")}


def _spec_fields(spec: MessageSpec, callback_header: str, failure_callback_header: str) -> dict[str, Any]:
    """Return what messages and log entries show alike; absent values are left out."""
    data: dict[str, Any] = {}
    if spec.headers:
        data["header"] = _shown_headers(spec.headers, spec.redaction)
    for name, header_name, callback in (
        ("callback", callback_header, spec.callback),
        ("failureCallback", failure_callback_header, spec.failure_callback),
    ):
        if callback is not None:
            data[name] = callback.url
            data[header_name] = _shown_headers(callback.headers, callback.redaction)
    data.update(origin_fields(spec))
    if spec.workflow is not None:
        data["workflowRunId"] = spec.workflow.run_id
        data["workflowUrl"] = spec.workflow.url
    if spec.queue is not None:
        data["queueName"] = spec.queue
    if spec.labels:
        data["label"] = spec.labels[0]
        data["labels"] = list(spec.labels)
    if spec.flow is not None:
        data["flowControlKey"] = spec.flow.key
        data["period"] = spec.flow.period_seconds
        if spec.flow.parallelism is not None:
            data["parallelism"] = spec.flow.parallelism
        if spec.flow.rate is not None:
            data["rate"] = spec.flow.rate
    return data


def message_view(message: Message) -> dict[str, Any]:
    """Return the message object."""
    spec = message.spec
    data: dict[str, Any] = {
        "messageId": message.id,
        "url": spec.url,
        "method": spec.method,
        "maxRetries": spec.max_retries,
        "notBefore": message.not_before_ms,
        "createdAt": message.created_ms,
        **_spec_fields(spec, "callbackHeader", "failureCallbackHeader"),
    }
    data.update(_shown_body(message.body, spec.redaction))
    if spec.retry_delay is not None:
        data["retryDelayExpression"] = spec.retry_delay
    if spec.caller_ip:
        data["callerIP"] = spec.caller_ip
    return data


def dead_letter_view(letter: DeadLetter) -> dict[str, Any]:
    """Return the entry of the dead letter queue: the message and its last failed attempt."""
    data = message_view(letter.message)
    data["dlqId"] = letter.dlq_id
    data["responseStatus"] = letter.outcome.status
    if letter.outcome.headers:
        data["responseHeader"] = header_map(letter.outcome.headers)
    data.update(text_or_base64("responseBody", letter.outcome.body))
    return data


def log_view(entry: LogEntry, *, two_ls: bool) -> dict[str, Any]:
    """Return the log entry; `two_ls` spells CANCELLED as the OpenAPI document does."""
    message = entry.message
    spec = message.spec
    data: dict[str, Any] = {
        "time": entry.time_ms,
        "messageId": message.id,
        "state": "CANCELLED" if two_ls and entry.state is LogState.CANCELED else entry.state.value,
        "url": spec.url,
        "method": spec.method,
        "maxRetries": spec.max_retries,
        **_spec_fields(spec, "callbackHeaders", "failureCallbackHeaders"),
    }
    if message.body:
        redact = spec.redaction is not None and spec.redaction.body
        data["body"] = redacted(message.body) if redact else b64encode(message.body).decode("ascii")
    if spec.timeout_seconds is not None:
        data["timeout"] = spec.timeout_seconds * 1000
    if spec.retry_delay is not None:
        # Python's client reads the short name, the OpenAPI document has the long one.
        data["retryDelayExpression"] = data["retryDelayExpr"] = spec.retry_delay
    if entry.next_delivery_ms is not None:
        data["nextDeliveryTime"] = entry.next_delivery_ms
    outcome = entry.outcome
    if outcome is not None and entry.state is LogState.ERROR:
        data["error"] = outcome.error or f"the destination answered {outcome.status}"
        if outcome.status:
            data["responseStatus"] = outcome.status
            data["responseHeaders"] = data["responseHeader"] = header_map(outcome.headers)
            if outcome.body:
                data["responseBody"] = b64encode(outcome.body).decode("ascii")
    return data


def schedule_view(schedule: Schedule) -> dict[str, Any]:
    """Return the schedule object (6.1)."""
    definition = schedule.definition
    spec = definition.spec
    data: dict[str, Any] = {
        "scheduleId": schedule.id,
        "cron": definition.cron,
        "destination": definition.destination,
        "createdAt": schedule.created_ms,
        "method": spec.method,
        "retries": spec.max_retries,
        "isPaused": schedule.paused,
        **_spec_fields(spec, "callbackHeader", "failureCallbackHeader"),
        **_shown_body(definition.body, spec.redaction),
    }
    if spec.caller_ip:
        data["callerIP"] = data["callerIp"] = spec.caller_ip
    optional: dict[str, Any] = {
        "delay": definition.delay_seconds or None,
        "timeout": spec.timeout_seconds,
        "retryDelayExpression": spec.retry_delay,
        "lastScheduleTime": schedule.last_ms,
        "nextScheduleTime": None if schedule.next_due is None else int(schedule.next_due * 1000),
        "lastScheduleStates": schedule.states or None,
        "error": schedule.error,
    }
    data.update((name, value) for name, value in optional.items() if value is not None)
    return data


def flow_view(flow: FlowKey, now: float) -> dict[str, Any]:
    """Return the flow-control object (11), with zeros and falses."""
    setting = flow.setting
    return {
        "flowControlKey": setting.key,
        "waitListSize": len(flow.waiting),
        "parallelismMax": setting.parallelism or 0,
        "parallelismCount": flow.active,
        "rateMax": setting.rate or 0,
        "rateCount": flow.count if now < flow.window_end else 0,
        "ratePeriod": setting.period_seconds,
        "ratePeriodStart": int(flow.window_start),
        "isPaused": flow.paused,
        "isPinnedParallelism": flow.pinned_parallelism,
        "isPinnedRate": flow.pinned_rate,
    }


def queue_view(queue: FifoQueue) -> dict[str, Any]:
    """Return the queue object."""
    record = queue.record
    return {
        "name": record.name,
        "parallelism": record.parallelism,
        "paused": record.paused,
        "lag": queue.lag,
        "createdAt": record.created_ms,
        "updatedAt": record.updated_ms,
    }


def group_view(group: UrlGroup) -> dict[str, Any]:
    """Return the URL group object; `headers` are shown if there are any, in the form they are given in."""
    data: dict[str, Any] = {
        "name": group.name,
        "createdAt": group.created_ms,
        "updatedAt": group.updated_ms,
        "endpoints": [
            {"url": url} if name is None else {"url": url, "name": name}
            for url, name in group.endpoints.items()
        ],
    }
    if group.headers:
        data["headers"] = {name: [value] for name, value in group.headers}
    return data
