"""What can be done to a flow-control key (protocol section 11), and how that is stored.

Only what no message would bring back is stored: that a key is paused, and its pinned limits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from queuebridge.backends.qstash.devserver.account import Account
from queuebridge.backends.qstash.devserver.engine import Engine
from queuebridge.backends.qstash.devserver.limits import FlowKey
from queuebridge.backends.qstash.devserver.messages import Document, FlowControl
from queuebridge.backends.qstash.protocol import DEFAULT_FLOW_PERIOD_SECONDS

KIND: Final = "flow"


class FlowControlCommands:
    """Changes of keys. Each is staged in the store; callers commit, and wake the driver."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def key(self, account: Account, name: str) -> FlowKey:
        """Return a key, made without limits if no message brought it yet."""
        flow = account.flows.get(name)
        if flow is None:
            flow = account.flows[name] = FlowKey(FlowControl(key=name), self._engine.clock())
        return flow

    def set_paused(self, account: Account, flow: FlowKey, *, paused: bool) -> None:
        """Hold back a key's messages, or let them go on; the rate window runs on meanwhile."""
        flow.paused = paused
        self._changed(account, flow)

    def pin(
        self, account: Account, flow: FlowKey, *, parallelism: int | None, rate: int | None, period: int | None
    ) -> None:
        """Fix limits against what messages bring, and restart the rate window; None leaves one as it is.

        Args:
            account: whose key it is.
            flow: the key.
            parallelism: calls at once.
            rate: calls in a period.
            period: seconds, for a rate; by default one.
        """
        if parallelism is not None:
            flow.setting = replace(flow.setting, parallelism=parallelism)
            flow.pinned_parallelism = True
        if rate is not None:
            seconds = DEFAULT_FLOW_PERIOD_SECONDS if period is None else period
            flow.setting = replace(flow.setting, rate=rate, period_seconds=seconds)
            flow.pinned_rate = True
        self.reset_rate(account, flow)

    def unpin(self, account: Account, flow: FlowKey, *, parallelism: bool, rate: bool) -> None:
        """Let the next message replace limits again; until then they stay as they are."""
        flow.pinned_parallelism = flow.pinned_parallelism and not parallelism
        flow.pinned_rate = flow.pinned_rate and not rate
        self._changed(account, flow)

    def reset_rate(self, account: Account, flow: FlowKey) -> None:
        """Begin a rate window now, with no call in it."""
        flow.restart_window(self._engine.clock())
        self._changed(account, flow)

    def _changed(self, account: Account, flow: FlowKey) -> None:
        flow.used_at = self._engine.clock()
        if flow.kept:
            self._engine.store.put_document(encode(account.user.name, flow))
        else:
            self._engine.store.remove_document(account.user.name, KIND, flow.setting.key)
        account.list_flow(flow)


def encode(account: str, flow: FlowKey) -> Document:
    """Return the document of a paused or pinned key."""
    setting = flow.setting
    data: dict[str, Any] = {"paused": flow.paused}
    if flow.pinned_parallelism:
        data["parallelism"] = setting.parallelism
    if flow.pinned_rate:
        data["rate"], data["period"] = setting.rate, setting.period_seconds
    return Document(account=account, kind=KIND, key=setting.key, data=data)


def decode(document: Document, now: float) -> FlowKey:
    """Return the key of its document, with nothing counted yet."""
    data = document.data
    setting = FlowControl(
        key=document.key,
        parallelism=data.get("parallelism"),
        rate=data.get("rate"),
        period_seconds=data.get("period", DEFAULT_FLOW_PERIOD_SECONDS),
    )
    flow = FlowKey(setting, now)
    flow.paused = data["paused"]
    flow.pinned_parallelism = "parallelism" in data
    flow.pinned_rate = "rate" in data
    return flow
