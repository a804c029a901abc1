"""From publish headers to a `MessageSpec` (protocol section 3.3), for messages and for callbacks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from queuebridge.backends.qstash.devserver.destination import check_destination
from queuebridge.backends.qstash.devserver.errors import (
    COLON_IN_DEDUPLICATION_ID,
    bad_request,
    over_quota,
    unsupported,
)
from queuebridge.backends.qstash.devserver.messages import MessageSpec, canonical_header_name
from queuebridge.backends.qstash.devserver.option_values import (
    READERS,
    check_utf8,
    duration,
    integer,
    is_true,
    read_flow_control,
    workflow_delay,
)
from queuebridge.backends.qstash.devserver.workflow.part import Place, delivered_headers, read_part
from queuebridge.backends.qstash.protocol import PlanLimits

_PREFIX: Final = "upstash-"
_FORWARD: Final = "forward-"
_CALLBACK: Final = "callback-"
_FAILURE_CALLBACK: Final = "failure-callback-"
_RUN_ID: Final = "workflow-runid"
_INIT: Final = "workflow-init"
# All other headers of this prefix are ours to set.
_FORWARDED_OF_OURS: Final = ("upstash-workflow-", "upstash-label")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# Connection handling is between this server and the destination; the rest is set by this server.
_NEVER_FORWARDED: Final = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authenticate",
        "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip


@dataclass(slots=True)
class Directives:
    """What the headers of one publish said, by lower-case option name without the `Upstash-` prefix.

    `forwarded` maps lower-case names to (name in canonical case, value).
    """

    options: dict[str, str] = field(default_factory=dict)
    forwarded: dict[str, tuple[str, str]] = field(default_factory=dict)
    callback: dict[str, str] = field(default_factory=dict)
    failure_callback: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What one publish asks for, ready for the engine but for its body.

    `not_before` is in Unix seconds; `hash_content` asks for content-based deduplication.
    """

    spec: MessageSpec
    not_before: float
    dedup_id: str | None = None
    hash_content: bool = False


def read_directives(
    headers: Iterable[tuple[str, str]],
    parameters: Mapping[str, str],
    *,
    token: str,
    defaults: Iterable[tuple[str, str]] = (),
) -> Directives:
    """Sort the headers of a publish (and its `upstash-` query parameters) into directives.

    A header wins over a parameter, and both over `defaults`, the headers of a URL group. `token` is the
    account's: an `Authorization` header that carries it is never forwarded.

    Raises:
        Refusal: 400 for a value that is not valid UTF-8 or a header name that cannot be sent.
    """
    found = Directives()
    content_type: str | None = None
    plain: list[tuple[str, str]] = []
    plain_defaults: list[tuple[str, str]] = []
    if defaults:
        content_type = _sort_headers(found, defaults, plain_defaults)
        if "content-type" in found.forwarded:  # must give way to the publish's plain one, too
            content_type = found.forwarded.pop("content-type")[1]
    for name, value in parameters.items():
        _sort_option(found, name[len(_PREFIX) :], value)
    own_content_type = _sort_headers(found, headers, plain)
    if own_content_type is not None:
        content_type = own_content_type
    if plain_defaults:
        plain += plain_defaults
    if found.options and is_true(found.options.get("header-forward", "false"), "Upstash-Header-Forward"):
        for name, value in plain:
            lowered = name.lower()
            if lowered == "authorization" and token in value:
                continue
            if lowered not in found.forwarded:
                _forward(found.forwarded, lowered, value)
    if _RUN_ID in found.options:
        found.forwarded.pop("content-type", None)  # of the request that the workflow got, not of the message
    if content_type is not None and "content-type" not in found.forwarded:
        _forward(found.forwarded, "content-type", content_type)
    return found


def _sort_headers(
    found: Directives, headers: Iterable[tuple[str, str]], plain: list[tuple[str, str]]
) -> str | None:
    """Sort headers in, those that are no option to `plain`; return the `Content-Type`."""
    content_type: str | None = None
    for name, value in headers:
        lowered = name.lower()
        if lowered.startswith(_PREFIX):
            _sort_option(found, lowered[len(_PREFIX) :], value)
        elif lowered == "content-type":
            content_type = value
        else:
            plain.append((name, value))
    return content_type


def _rerooted(settings: Mapping[str, str]) -> Directives:
    """Return the directives of a callback: its settings read as if it had been published with them."""
    found = Directives()
    for name, value in settings.items():
        _sort_option(found, name, value)
    if _RUN_ID in found.options:
        found.forwarded.pop("content-type", None)
    return found


def _sort_option(found: Directives, name: str, value: str) -> None:
    if name.startswith(_FORWARD):
        _forward(found.forwarded, name[len(_FORWARD) :], value)
    elif name.startswith(_CALLBACK):
        found.callback[name[len(_CALLBACK) :]] = value
    elif name.startswith(_FAILURE_CALLBACK):
        found.failure_callback[name[len(_FAILURE_CALLBACK) :]] = value
    elif not name.startswith("telemetry-"):
        found.options[name] = value


def _forward(target: dict[str, tuple[str, str]], lowered: str, value: str) -> None:
    if lowered in _NEVER_FORWARDED or (lowered.startswith(_PREFIX) and not lowered.startswith(_FORWARDED_OF_OURS)):
        return
    if not _TOKEN.fullmatch(lowered):
        raise bad_request(f"invalid forwarded header name {lowered[:60]!r}")
    if not value.isascii():
        check_utf8(lowered, value)
    if "\n" in value or "\r" in value or "\0" in value:  # possible where headers come in JSON
        raise bad_request(f"the value of the forwarded header {lowered[:60]} contains a line break or a NUL")
    target[lowered] = (canonical_header_name(lowered), value)


class OptionReader:
    """Turns directives into specs under one plan's limits. Stateless but for those."""

    def __init__(self, plan: PlanLimits) -> None:
        self._plan = plan

    def publication(self, url: str, found: Directives, *, now: float, **fixed: Any) -> Publication:
        """Return what a publish asks for.

        Args:
            url: the destination, already checked.
            found: the directives of its headers.
            now: Unix seconds.
            fixed: fields of the spec that no header decides: `queue`, `caller_ip`.

        Raises:
            Refusal: 400 for a malformed option, 412 for one beyond the plan.
        """
        options = found.options
        if not options and not found.callback and not found.failure_callback:
            headers = tuple(found.forwarded.values())
            return Publication(spec=MessageSpec(url=url, headers=headers, **fixed), not_before=now)
        _refuse_schedule_options(options)
        spec = self._spec(MessageSpec(url=url, **fixed), found)
        dedup_id = options.get("deduplication-id") or None
        if dedup_id is not None:
            check_utf8("Upstash-Deduplication-Id", dedup_id)
            if ":" in dedup_id:
                raise bad_request(COLON_IN_DEDUPLICATION_ID)
        hash_content = is_true(
            options.get("content-based-deduplication", "false"), "Upstash-Content-Based-Deduplication"
        )
        return Publication(
            spec=spec,
            not_before=self._not_before(options, now),
            dedup_id=dedup_id,
            hash_content=hash_content,
        )

    def override(self, spec: MessageSpec, found: Directives, *, now: float) -> Publication:
        """Return a stored spec with the options of a retry request laid over it (protocol 8).

        Raises:
            Refusal: as `publication`.
        """
        options = found.options
        _refuse_schedule_options(options)
        if "deduplication-id" in options or "content-based-deduplication" in options:
            raise bad_request("the retry of a dead letter cannot be deduplicated: the entry is gone after the first")
        if _RUN_ID in options or _INIT in options:
            raise bad_request("the retry of a dead letter cannot become part of a workflow run")
        found.forwarded.pop("content-type", None)  # of the retry request, not of the message
        return Publication(spec=self._spec(spec, found), not_before=self._not_before(options, now))

    def _spec(self, base: MessageSpec, found: Directives, place: Place = Place.MESSAGE) -> MessageSpec:
        changes = self._common(found.options)
        forwarded = found.forwarded
        options = found.options
        if _RUN_ID in options or _INIT in options:
            changes["workflow"] = part = read_part(options, place)
            forwarded = delivered_headers(forwarded, part)
        if forwarded:
            kept = {name.lower(): (name, value) for name, value in base.headers}
            changes["headers"] = tuple((kept | forwarded).values())
        spec = replace(base, **changes) if changes else base
        callback, failure = base.callback, base.failure_callback
        if callback is not None or "callback" in options:
            callback = self._callback(spec, Place.CALLBACK, options, found.callback)
        if failure is not None or "failure-callback" in options:
            failure = self._callback(spec, Place.FAILURE_CALLBACK, options, found.failure_callback)
        if callback is None and failure is None:
            return spec
        return replace(spec, callback=callback, failure_callback=failure)

    def _callback(
        self, spec: MessageSpec, place: Place, options: Mapping[str, str], settings: Mapping[str, str]
    ) -> MessageSpec | None:
        """Return the callback or failure callback; its retries are by default those of the message.

        A callback may have a failure callback, as those of workflow steps do, but no callback.
        """
        if place is Place.CALLBACK:
            name, base = "callback", spec.callback
        else:
            name, base = "failure-callback", spec.failure_callback
        url = options.get(name)
        if not url:
            if base is None:
                return None
            url = base.url
        else:
            _check_callback_url(name, url)
        if "delay" in settings or "not-before" in settings:
            raise bad_request(f"Upstash-{canonical_header_name(name)}-Delay: callbacks cannot be delayed")
        if "callback" in settings or (place is Place.FAILURE_CALLBACK and "failure-callback" in settings):
            raise unsupported("a callback of a callback", 400)
        if base is None:
            base = MessageSpec(
                url=url,
                headers=(("Content-Type", "application/json"),),
                max_retries=spec.max_retries,
                caller_ip=spec.caller_ip,
                # A callback repeats the message, and must not show what is redacted there.
                redaction=spec.redaction,
            )
        elif base.url != url:
            base = replace(base, url=url)
        return self._spec(base, _rerooted(settings), place) if settings else base

    def _common(self, options: Mapping[str, str]) -> dict[str, Any]:
        """Return the spec's fields that these options give."""
        changes: dict[str, Any] = {}
        for name, (field_name, read) in READERS.items():
            value = options.get(name)
            if value is not None:
                changes[field_name] = read(value)
        if changes.get("max_retries", 0) > self._plan.max_retries:
            raise over_quota("maxRetries", self._plan.max_retries)
        flow = read_flow_control(options.get("flow-control-key"), options.get("flow-control-value"))
        if flow is not None:
            changes["flow"] = flow
        return changes

    def _not_before(self, options: Mapping[str, str], now: float) -> float:
        moment = now
        if "not-before" in options:
            moment = integer("Upstash-Not-Before", options["not-before"])
        elif "delay" in options:
            read = workflow_delay if _RUN_ID in options else duration
            moment = now + read("Upstash-Delay", options["delay"])
        limit = self._plan.max_delay_seconds
        if limit is not None and moment - now > limit:
            raise over_quota("maxDelay", limit)
        return moment


def _refuse_schedule_options(options: Mapping[str, str]) -> None:
    if "cron" in options:
        raise bad_request("Upstash-Cron: a schedule is created with POST /v2/schedules/{destination}")
    if "queue-name" in options or "schedule-id" in options:
        raise bad_request("Upstash-Queue-Name and Upstash-Schedule-Id belong to a schedule, not to a publish")


def _check_callback_url(name: str, url: str) -> None:
    if not url.lower().startswith(("http://", "https://")):
        raise bad_request(
            f"invalid Upstash-{canonical_header_name(name)}: endpoint has invalid scheme, "
            "add http:// or https://"
        )
    check_destination(url)
