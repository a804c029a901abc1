"""`/v2/schedules`: messages made by the clock (protocol section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from aiohttp import web

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.cron import CronError, parse_cron
from queuebridge.backends.qstash.devserver.destination import NAME, check_name, split_query
from queuebridge.backends.qstash.devserver.errors import bad_request, not_found, over_quota
from queuebridge.backends.qstash.devserver.filters import Query
from queuebridge.backends.qstash.devserver.groups import resolve
from queuebridge.backends.qstash.devserver.options import Directives, OptionReader, read_directives
from queuebridge.backends.qstash.devserver.publishing import content_hash, read_body
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, refuse_empty_id, respond
from queuebridge.backends.qstash.devserver.schedules import (
    Definition,
    Schedule,
    new_schedule_id,
)
from queuebridge.backends.qstash.devserver.store import StoreError
from queuebridge.backends.qstash.devserver.views import schedule_view

_NO_FILTERS: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class _Creation:
    schedule_id: str
    definition: Definition
    dedup_key: str | None


class SchedulesResource:
    """Answers for schedules."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._schedules = services.engine.schedules
        self._wake = services.wake
        self._plan = services.engine.settings.plan
        self._reader = OptionReader(self._plan)

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        account, method, rest = request.account, request.method, request.rest
        name, _, verb = rest.partition("/")
        # A destination is never taken for an id: that of a URL has a colon, and a group's name stands alone.
        if method in {"PATCH", "POST"} and verb in {"pause", "resume"} and NAME.fullmatch(unquote(name)):
            return await self._set_paused(_schedule(account, unquote(name)), paused=verb == "pause")
        if method == "POST":
            return await self._create(request)
        if method == "GET":
            Query(request.query, _NO_FILTERS)
            if rest:
                return respond(schedule_view(_schedule(account, unquote(rest))))
            schedules = sorted(account.schedules.values(), key=lambda found: (found.created_ms, found.id))
            return respond([schedule_view(schedule) for schedule in schedules])
        if method == "DELETE" and rest:
            return await self._delete(account, _schedule(account, unquote(rest)))
        if method == "DELETE":
            refuse_empty_id(request)
        raise request.no_route()

    async def _set_paused(self, schedule: Schedule, *, paused: bool) -> web.Response:
        self._schedules.set_paused(schedule, paused=paused)
        await self._engine.store.commit()
        self._wake()
        return respond({"scheduleId": schedule.id, "isPaused": schedule.paused})

    async def _delete(self, account: Account, schedule: Schedule) -> web.Response:
        self._schedules.remove(account, schedule)
        await self._engine.store.commit()
        return respond({"scheduleId": schedule.id})

    async def _create(self, request: ApiRequest) -> web.Response:
        account, target = request.account, request.rest
        parameters, query = split_query(request.query)
        if query:
            target = f"{target}?{query}"
        # The default headers of a URL group are those at the time of the creation.
        defaults = resolve(account, target)[0].headers
        found = read_directives(
            request.http.headers.items(), parameters, token=account.user.token, defaults=defaults
        )
        wanted = await self._wanted(request, target, found)
        now = self._engine.clock()
        if wanted.dedup_key is not None:
            earlier = account.earlier_publish(wanted.dedup_key, now)
            if earlier is not None:
                await self._engine.store.commit()
                return respond({"scheduleId": earlier, "deduplicated": True}, 202)
        await self._put(account, wanted)
        return respond({"scheduleId": wanted.schedule_id})

    async def _wanted(self, request: ApiRequest, target: str, found: Directives) -> _Creation:
        """Return what a request to create a schedule asks for.

        Raises:
            Refusal: 400 for a malformed option or URL, 404 for an unknown URL group, 412 beyond the plan.
        """
        options = found.options
        cron = options.pop("cron", None)
        if cron is None:
            raise bad_request("Upstash-Cron is missing: a schedule needs a cron expression")
        try:
            parse_cron(cron)
        except CronError as error:
            raise bad_request(str(error)) from None
        schedule_id = options.pop("schedule-id", None)
        schedule_id = new_schedule_id() if schedule_id is None else check_name("schedule id", schedule_id)
        queue = options.pop("queue-name", None)
        if queue is not None:
            check_name("queue name", queue)
        if "not-before" in options:
            raise bad_request("Upstash-Not-Before: a schedule's messages can only be delayed, by Upstash-Delay")
        # At the time 0, so that what is left of the time of the first attempt is the delay.
        publication = self._reader.publication(
            target, found, now=0.0, queue=queue, caller_ip=request.http.remote or ""
        )
        if publication.spec.workflow is not None:
            raise bad_request("a schedule starts a workflow by its URL, without Upstash-Workflow headers")
        body = await read_body(request.http, self._plan.max_message_bytes)
        dedup_key = None
        if publication.dedup_id is not None:
            dedup_key = f"schedule-id:{publication.dedup_id}"
        elif publication.hash_content:
            dedup_key = f"schedule-hash:{content_hash(publication, body)}"
        definition = Definition(
            cron=cron.strip(),
            destination=target,
            spec=publication.spec,
            body=body,
            delay_seconds=int(publication.not_before),
        )
        return _Creation(schedule_id, definition, dedup_key)

    async def _put(self, account: Account, wanted: _Creation) -> None:
        """Create or overwrite a schedule; a failed commit undoes it, because the creator will repeat it."""
        replaced = account.schedules.get(wanted.schedule_id)
        previous = None if replaced is None else replaced.definition
        limit = self._plan.max_schedules
        if replaced is None and limit is not None and len(account.schedules) >= limit:
            raise over_quota("maxSchedules", limit)
        store = self._engine.store
        schedule = self._schedules.put(account, wanted.schedule_id, wanted.definition)
        if wanted.dedup_key is not None:
            now = self._engine.clock()
            store.add_deduplication(account.remember_publish(wanted.dedup_key, schedule.id, now))
        try:
            await store.commit()
        except StoreError:
            if previous is None:
                self._schedules.remove(account, schedule)
            else:
                self._schedules.put(account, schedule.id, previous)
            record = account.forget_publish(schedule.id)
            if record is not None:
                store.remove_deduplication(record)
            raise
        self._wake()


def _schedule(account: Account, schedule_id: str) -> Schedule:
    schedule = account.schedules.get(schedule_id)
    if schedule is None:
        raise not_found(f"schedule {schedule_id[:80]} not found")
    return schedule
