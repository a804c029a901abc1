"""The ledger as the processes of a simulated world see it: late, at times not at all, and watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import greenlet
from simulation.scheduler import Actor

from queuebridge.errors import LedgerUnavailable
from queuebridge.ledger import (
    Busy,
    Claim,
    ClaimRequest,
    Due,
    Granted,
    Ledger,
    NewDispatch,
    Recorded,
    Settled,
    Settlement,
    ShadowNote,
    State,
    WriteMark,
)

if TYPE_CHECKING:
    from simulation.world import Process

T = TypeVar("T")


class SimulatedLedger(Ledger):
    """What one process has of the ledger.

    Args:
        process: The process.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._real = process.world.ledger
        self.executions = self._real.executions
        self.stages = self._real.stages

    def _ask(self, what: str, act: Callable[[], T]) -> T:
        world, faults = self._world, self._world.faults
        self._process.step()
        world.wait()
        if world.now < world.ledger_back_at or world.chance(faults.ledger_before):
            world.note("ledger away", self._process.name, what)
            self._trouble()
            raise LedgerUnavailable("It is away.")
        answer = act()
        self._process.step()
        if world.chance(faults.ledger_after):
            world.note("ledger answer lost", self._process.name, what)
            self._trouble()
            raise LedgerUnavailable("Its answer was lost.")
        return answer

    @staticmethod
    def _trouble() -> None:
        actor = greenlet.getcurrent()
        if isinstance(actor, Actor) and actor.run_ is not None:
            actor.run_.trouble = True

    def record(self, dispatches: Sequence[NewDispatch]) -> list[Recorded]:
        def act() -> list[Recorded]:
            recorded = self._real.record(dispatches)
            for dispatch in dispatches:
                self._world.witness.stories[dispatch.dispatch_id].known = True
            return recorded

        return self._ask("record", act)

    def mark(self, marks: Sequence[WriteMark], *, check_in_ms: int | None = None) -> None:
        def act() -> None:
            self._real.mark(marks, check_in_ms=check_in_ms)
            for mark in marks:
                self._world.note("mark", mark.dispatch_id, mark.backend, mark.state.value, check_in_ms)

        self._ask("mark", act)

    def claim(self, request: ClaimRequest, *, grace_ms: int) -> Claim:
        def act() -> Claim:
            answer = self._real.claim(request, grace_ms=grace_ms)
            self._saw_claim(request, answer)
            return answer

        return self._ask("claim", act)

    def _saw_claim(self, request: ClaimRequest, answer: Claim) -> None:
        dispatch_id, witness = request.dispatch_id, self._world.witness
        self._world.note("claim", dispatch_id, self._process.name, request.message_id, answer)
        witness.stories[dispatch_id].known = True
        witness.counts[f"claim {type(answer).__name__.lower()}"] += 1
        actor = greenlet.getcurrent()
        if isinstance(actor, Actor):
            actor.busy = isinstance(answer, Busy)
        if isinstance(answer, Granted):
            run = witness.granted(dispatch_id, answer.token, answer.attempt, answer.now_ms, request.lease_ms)
            if isinstance(actor, Actor):
                run.stalled = self._world.chance(self._world.faults.stalls)
                actor.run_ = run
        elif isinstance(answer, Settled) and answer.first:
            witness.ended(dispatch_id, answer.state)

    def renew(self, dispatch_id: str, token: int, *, lease_ms: int, grace_ms: int) -> bool:
        def act() -> bool:
            renewed = self._real.renew(dispatch_id, token, lease_ms=lease_ms, grace_ms=grace_ms)
            self._world.note("renew", dispatch_id, self._process.name, renewed)
            if renewed:
                self._world.witness.renewed(dispatch_id, token, self._real.now_ms(), lease_ms)
            return renewed

        return self._ask("renew", act)

    def settle(self, dispatch_id: str, token: int, settlement: Settlement) -> bool:
        def act() -> bool:
            taken = self._real.settle(dispatch_id, token, settlement)
            self._world.note("settle", dispatch_id, self._process.name, settlement.state.value, taken)
            self._world.witness.settled(dispatch_id, token, settlement.state, taken=taken, now_ms=self._real.now_ms())
            return taken

        return self._ask("settle", act)

    def release(
        self, dispatch_id: str, token: int, *, retry_in_ms: int, grace_ms: int, error: str, traceback: str | None
    ) -> bool:
        def act() -> bool:
            taken = self._real.release(
                dispatch_id, token, retry_in_ms=retry_in_ms, grace_ms=grace_ms, error=error, traceback=traceback
            )
            self._world.note("release", dispatch_id, self._process.name, retry_in_ms, taken)
            self._world.witness.released(dispatch_id, token, taken=taken, now_ms=self._real.now_ms())
            return taken

        return self._ask("release", act)

    def note_shadow(self, note: ShadowNote) -> None:
        def act() -> None:
            self._real.note_shadow(note)
            self._world.note("shadow", note.dispatch_id, note.problem)

        self._ask("note_shadow", act)

    def cancel(self, job_id: str) -> tuple[int, int]:
        def act() -> tuple[int, int]:
            before = [e.dispatch_id for e in self._real.executions.of_job(job_id) if not e.state.settled]
            answer = self._real.cancel(job_id)
            self._world.note("cancel", job_id, answer)
            for dispatch_id in before:
                execution = self._real.executions.get(dispatch_id)
                if execution is not None and execution.state is State.CANCELLED:
                    self._world.witness.ended(dispatch_id, State.CANCELLED)
            return answer

        return self._ask("cancel", act)

    def withdraw(self, dispatch_id: str) -> bool:
        def act() -> bool:
            gone = self._real.withdraw(dispatch_id)
            self._world.note("withdraw", dispatch_id, gone)
            if gone:
                self._world.witness.withdrawn(dispatch_id)
            return gone

        return self._ask("withdraw", act)

    def take_due(self, limit: int, *, lease_ms: int) -> list[Due]:
        def act() -> list[Due]:
            taken = self._real.take_due(limit, lease_ms=lease_ms)
            for due in taken:
                self._world.note("due", due.execution.dispatch_id, self._process.name, due.execution.state.value)
            return taken

        return self._ask("take_due", act)

    def check_in(self, dispatch_id: str, delay_ms: int | None) -> None:
        def act() -> None:
            self._real.check_in(dispatch_id, delay_ms)
            self._world.note("check in", dispatch_id, delay_ms)

        self._ask("check_in", act)

    def release_held(self) -> int:
        return self._ask("release_held", self._real.release_held)

    def put_payload(self, key: str, body: bytes, *, keep_ms: int) -> None:
        self._ask("put_payload", lambda: self._real.put_payload(key, body, keep_ms=keep_ms))

    def get_payload(self, key: str) -> bytes | None:
        return self._ask("get_payload", lambda: self._real.get_payload(key))

    def purge(self, *, settled_before_ms: int, limit: int) -> int:
        return self._ask("purge", lambda: self._real.purge(settled_before_ms=settled_before_ms, limit=limit))

    def now_ms(self) -> int:
        return self._real.now_ms()

    def ping(self) -> str:
        return self._real.ping()

    def close(self) -> None:
        """Do nothing: the world closes the real one."""
