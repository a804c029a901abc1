"""`/v2/workflows`: ending and cancelling workflow runs (workflow protocol section 10)."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from aiohttp import web

from queuebridge.backends.qstash.devserver.errors import bad_request, not_found, unsupported
from queuebridge.backends.qstash.devserver.filters import Query
from queuebridge.backends.qstash.devserver.request import ApiRequest, Services, refuse_empty_id, respond

_RUNS: Final = "runs/"


class Workflows:
    """Answers for workflow runs."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._wake = services.wake

    async def answer(self, request: ApiRequest) -> web.Response:
        """Answer a request."""
        if request.method == "DELETE" and request.rest.startswith(_RUNS):
            refuse_empty_id(request)
            return await self._end(request, unquote(request.rest[len(_RUNS) :]))
        raise unsupported(f"{request.method} {request.path[:60]} of Upstash Workflow")

    async def _end(self, request: ApiRequest, run_id: str) -> web.Response:
        """End a run: `cancel=false` says that it has finished, otherwise it is cancelled.

        Finishing is repeated by an endpoint whose answer was lost, so an unknown run is no error there.
        """
        cancel = Query(request.query, frozenset({"cancel"})).text("cancel") or "true"
        if cancel not in {"true", "false"}:
            raise bad_request(f"cancel must be true or false, not {cancel[:40]!r}")
        runs = request.account.runs
        run = runs.get(run_id)
        if run is None and cancel == "true":
            raise not_found(f"workflow run {run_id[:80]} not found")
        if run is not None:
            self._engine.end_run(request.account, run)
        # Also for a run that is gone: the first request may still be waiting for this commit.
        await self._engine.store.commit()
        self._wake()
        return respond({} if cancel == "false" else {"cancelled": 1})
