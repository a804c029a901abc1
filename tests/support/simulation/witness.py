"""What really happens in a simulated world, seen from outside: every job, every execution, every effect."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from queuebridge.ledger import State
from queuebridge.stages import Stage


@dataclass(kw_only=True, slots=True)
class Job:
    """One job that somebody wants done, and how its body behaves.

    Attributes:
        number: Which one it is.
        task: Its task.
        user: Its routing key.
        job_id, dispatch_id: Jobs under one idempotency key share them.
        seconds: How long its body takes.
        fails: How many attempts raise, before the effect.
        permanent: Whether the first failure is the last.
        poison: Whether its body kills every executor.
        padding: How long its arguments are.
        key: Its idempotency key.
        delay, expires: In seconds, None without.
    """

    number: int
    task: str
    user: str
    job_id: str
    dispatch_id: str
    seconds: float
    fails: int = 0
    permanent: bool = False
    poison: bool = False
    padding: int = 0
    key: str | None = None
    delay: float | None = None
    expires: float | None = None


@dataclass(kw_only=True, slots=True)
class Run:
    """One execution: a claim that was granted, and what came of it. Times are the store's.

    Attributes:
        token, attempt: As granted.
        until_ms: When its lease ends.
        effect: Whether the effect happened.
        stalled: The executor stands still and does not renew.
        trouble: It could not reach the ledger while it ran.
        died: Its executor died.
        stale: Its settlement or release was refused.
        gave_up: It could not tell the ledger how it ended.
        released: It failed, and is to be tried again.
        settled: How it settled the dispatch.
    """

    token: int
    attempt: int
    until_ms: int
    effect: bool = False
    stalled: bool = False
    trouble: bool = False
    died: bool = False
    stale: bool = False
    gave_up: bool = False
    released: bool = False
    settled: State | None = None

    @property
    def excuse(self) -> str | None:
        """Return why its effect may not be the only one."""
        if self.died:
            return "died between effect and settle"
        if self.stale and self.stalled:
            return "stalled past its lease"
        if self.stale and self.trouble:
            return "lost its lease while the ledger was away"
        return "could not reach the ledger to settle" if self.gave_up else None


@dataclass(kw_only=True, slots=True)
class Story:
    """Everything about one dispatch.

    Attributes:
        jobs: The enqueues that made it; several under one idempotency key.
        stages: The stages by which it was written.
        accepted: Enqueue returned for it.
        refused: Enqueue said that it was not accepted.
        unsure: Enqueue did not know, or its process died.
        lied: A backend has taken a message and said that it had not.
        spooled: Enqueue said that the ledger keeps it.
        taken: How many messages, other than shadow copies, each backend has taken.
        runs: Its executions, by token.
        ended: How it was settled.
        cancels: Whether somebody tried to cancel it.
        known: The ledger knows it.
    """

    jobs: list[Job] = field(default_factory=list)
    stages: set[Stage] = field(default_factory=set)
    accepted: bool = False
    refused: bool = False
    unsure: bool = False
    lied: bool = False
    spooled: bool = False
    taken: Counter[str] = field(default_factory=Counter)
    runs: dict[int, Run] = field(default_factory=dict)
    ended: State | None = None
    cancels: bool = False
    known: bool = False

    @property
    def last(self) -> Run | None:
        """Return the execution that was granted last."""
        return next(reversed(self.runs.values()), None)


class Witness:
    """Keeps the story of every dispatch, and says at the end what was promised and not kept.

    Args:
        note: Writes a line into the history of the world.
        slack_ms: By how much the store's time may differ from what is seen of it.
    """

    def __init__(self, note: Callable[..., None], *, slack_ms: int = 0) -> None:
        self.stories: defaultdict[str, Story] = defaultdict(Story)
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self._note = note
        self._slack_ms = slack_ms

    def blame(self, promise: str, dispatch_id: str, what: str) -> None:
        """Write down that a promise was broken."""
        self.violations.append(f"{promise} {dispatch_id}: {what}")
        self._note("VIOLATION", promise, dispatch_id, what)

    def granted(self, dispatch_id: str, token: int, attempt: int, now_ms: int, lease_ms: int) -> Run:
        """See a claim granted."""
        story = self.stories[dispatch_id]
        story.known = True
        last = story.last
        if story.ended is not None:
            self.blame("P2", dispatch_id, f"granted after it was settled as {story.ended.value}")
        if last is not None and last.token >= token:
            self.blame("P2", dispatch_id, f"the token went from {last.token} to {token}")
        if last is not None and not last.released and now_ms < last.until_ms - self._slack_ms:
            self.blame("P2", dispatch_id, f"granted while attempt {last.attempt} held a valid claim")
        run = story.runs[token] = Run(token=token, attempt=attempt, until_ms=now_ms + lease_ms)
        self.counts["executions"] += 1
        return run

    def renewed(self, dispatch_id: str, token: int, now_ms: int, lease_ms: int) -> None:
        """See a claim renewed."""
        story = self.stories[dispatch_id]
        if story.last is None or story.last.token != token:
            self.blame("P2", dispatch_id, "a stale claim was renewed")
        else:
            story.last.until_ms = now_ms + lease_ms

    def effect(self, dispatch_id: str, run: Run) -> None:
        """See the effect of a job."""
        if run.effect:
            self.blame("P2", dispatch_id, "two effects in one execution")
        run.effect = True
        self.counts["effects"] += 1

    def settled(self, dispatch_id: str, token: int, state: State, *, taken: bool, now_ms: int) -> None:
        """See a settlement, and whether the ledger took it."""
        story = self.stories[dispatch_id]
        run = story.runs[token]
        if not taken:
            self._stale(dispatch_id, run, now_ms)
        elif story.ended is None and story.last is run:
            story.ended = run.settled = state
        elif story.ended is not state or run.settled is not state:
            self.blame("P2", dispatch_id, f"settled as {state.value} by attempt {run.attempt}, which may not")

    def released(self, dispatch_id: str, token: int, *, taken: bool, now_ms: int) -> None:
        """See a failed attempt released."""
        story = self.stories[dispatch_id]
        run = story.runs[token]
        if not taken:
            self._stale(dispatch_id, run, now_ms)
        elif story.ended is not None or story.last is not run:
            self.blame("P2", dispatch_id, f"released by attempt {run.attempt}, which may not")
        else:
            run.released = True

    def _stale(self, dispatch_id: str, run: Run, now_ms: int) -> None:
        run.stale = True
        self.counts["stale"] += 1
        if now_ms < run.until_ms - self._slack_ms:
            self.blame("P2", dispatch_id, f"attempt {run.attempt} was called stale while its claim was valid")

    def ended(self, dispatch_id: str, state: State) -> None:
        """See a dispatch end otherwise than by an execution."""
        story = self.stories[dispatch_id]
        if story.ended is not None:
            self.blame("P2", dispatch_id, f"ended as {state.value} after {story.ended.value}")
        story.known = True
        story.ended = state

    def withdrawn(self, dispatch_id: str) -> None:
        """See a dispatch forgotten."""
        self.stories[dispatch_id].known = False

    def open(self) -> list[str]:
        """Return the dispatches that still have to end."""
        return [dispatch_id for dispatch_id, story in self.stories.items() if self._must_end(story)]

    def _must_end(self, story: Story) -> bool:
        if story.ended is not None:
            return False
        if story.accepted or story.runs or story.taken.total():
            return True
        # Nobody has it, and enqueue did say so or did not know.
        return story.known and not story.refused and not story.unsure

    def check(self, state_of: Callable[[str], Any]) -> None:
        """Say which promises were not kept, now that the world is quiet.

        Args:
            state_of: Returns what the ledger knows of a dispatch, None for nothing.
        """
        for dispatch_id, story in self.stories.items():
            execution = state_of(dispatch_id)
            known = execution.state if execution is not None else None
            if story.ended is not known and (story.ended is not None or (known is not None and known.settled)):
                self.blame("P2", dispatch_id, f"ended as {story.ended}, but the ledger says {known}")
            if self._must_end(story):
                self.blame("P1", dispatch_id, f"has not ended; the ledger says {known}")
            if story.refused and not (story.accepted or story.unsure or story.lied) and story.runs:
                self.blame("P6", dispatch_id, "enqueue said that it was not accepted, and it ran")
            self._check_end(dispatch_id, story)
            self._check_effects(dispatch_id, story)

    def _check_end(self, dispatch_id: str, story: Story) -> None:
        job, last, ended = story.jobs[0], story.last, story.ended
        self.counts[f"ended {ended.value if ended else 'never'}"] += 1
        retries = RETRIES[job.task]
        allowed = True
        if ended is State.DONE:
            allowed = last is not None and last.effect and last.settled is ended
        elif ended is State.FAILED:
            final = job.permanent or (last is not None and last.attempt > retries)
            allowed = last is not None and job.fails > 0 and final and last.settled is ended
        elif ended is State.EXPIRED:
            allowed = any(one.expires is not None for one in story.jobs)
        elif ended is State.CANCELLED:
            allowed = story.cancels
        elif ended is State.QUARANTINED:
            allowed = len(story.runs) > retries and last is not None and not last.released and last.settled is None
        if not allowed:
            self.blame("P1", dispatch_id, f"ended as {ended}, for no reason")

    def _check_effects(self, dispatch_id: str, story: Story) -> None:
        effects = [run for run in story.runs.values() if run.effect]
        rerun = [run for run in effects if run.settled is not State.DONE]
        if len(effects) - len(rerun) > 1:
            self.blame("P2", dispatch_id, "two executions with an effect settled it")
        for run in rerun:
            if run.excuse is None:
                self.blame("P2", dispatch_id, f"the effect of attempt {run.attempt} was not settled, for no reason")
            else:
                self.counts[f"effect of one that {run.excuse}"] += 1
        self.counts["extra effects"] += max(0, len(effects) - 1)


# How often a task is tried again, by name.
RETRIES = {"mail.send": 3, "image.resize": 1, "report.build": 5}
