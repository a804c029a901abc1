"""A migration in real processes that are killed at random, and the account that is made of it at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from chaos_tasks import EFFECTS_VARIABLE, identity, is_stopped
from private_ledgers import PrivateLedger
from processes import POLL_SECONDS, SUPPORT, ChildProcess, Spawner, free_port, wait_until

from queuebridge.backends.qstash.protocol import DEFAULT_DEV_USER
from queuebridge.ledger import DeliveryOutcome, Execution, ExecutionFilter, Ledger, State, WriteState
from queuebridge.loading import load_ledger
from queuebridge.stages import Side

# Short, so that what has to wait for the end of a lease or of a hold-back does not wait long; long enough for a
# process that is not killed to renew its lease on a busy machine, and over a restart of the ledger.
TIMES = {
    "QUEUEBRIDGE_LEASE_SECONDS": "5",
    "QUEUEBRIDGE_HEDGE_SECONDS": "1",
    "QUEUEBRIDGE_GRACE_SECONDS": "2",
    "QUEUEBRIDGE_RECONCILE_SECONDS": "0.5",
    "QUEUEBRIDGE_CELERY_VISIBILITY_TIMEOUT_SECONDS": "30",
    "QUEUEBRIDGE_PUBLISH_TIMEOUT_SECONDS": "2",
}
# The waits of the embedded server before retries are divided by this.
TIME_SCALE = "4"
# Reconcile looks after 30 s whether a recorded job was published; the rest is for the work.
DRAIN_SECONDS = 100
# A process that is to be killed has up to this time for work.
WORK_SECONDS = 3.0
HEALTH = "/queuebridge/health"
QUEUEBRIDGE = [sys.executable, "-m", "queuebridge"]


class Chaos:
    """All processes of one migration.

    Args:
        spawn: Starts them.
        folder: Where their files are.
        ledger: The ledger's server; started here.
        environ: What chooses the old backend and the stage.
        per_second: How many jobs are enqueued.
        seed: Of everything random.
    """

    def __init__(
        self,
        spawn: Spawner,
        folder: Path,
        ledger: PrivateLedger,
        environ: dict[str, str],
        *,
        per_second: float,
        seed: int,
    ) -> None:
        print(f"seed {seed}")
        self.chance = random.Random(seed)
        self.server = ledger
        self.killed: dict[str, float] = {}
        self.history: list[str] = []
        self._spawn = spawn
        self._per_second = per_second
        self._effects = folder / "effects.jsonl"
        self._receipts = folder / "receipts.jsonl"
        self._messages = folder / "messages.db"
        self._port, self._receiver_port = free_port(), free_port()
        self._producers = 0
        self._children: dict[str, ChildProcess] = {}
        self._begun = time.monotonic()
        self.environ = {
            **TIMES,
            **environ,
            "QUEUEBRIDGE_LEDGER": ledger.url,
            "QUEUEBRIDGE_TASKS": "chaos_tasks",
            EFFECTS_VARIABLE: str(self._effects),
            "QSTASH_URL": f"http://127.0.0.1:{self._port}",
            "QSTASH_TOKEN": DEFAULT_DEV_USER.token,
            "QSTASH_CURRENT_SIGNING_KEY": DEFAULT_DEV_USER.current_signing_key,
            "QSTASH_NEXT_SIGNING_KEY": DEFAULT_DEV_USER.next_signing_key,
            "QUEUEBRIDGE_PUBLIC_URL": f"http://127.0.0.1:{self._receiver_port}",
        }

    def start(self, *stage: str) -> None:
        """Start everything; `stage` is the first revision, if the stages come from the ledger."""
        self.server.start()
        self.command("ledger", "upgrade")
        if stage:
            self.command("stage", "set", *stage, "--yes", "--reason", "begin")
        for start in (self.start_qstash, self.start_receiver, self.start_worker):
            start()
        for child in self._children.values():
            self._await(child)
        self.start_producer()

    def start_qstash(self) -> None:
        """Start the embedded server over its file."""
        more = ["--port", str(self._port), "--db", str(self._messages), "--time-scale", TIME_SCALE]
        self._start("qstash", [*QUEUEBRIDGE, "devserver", *more])

    def start_receiver(self) -> None:
        """Start the receiver."""
        more = ["--port", str(self._receiver_port), "--workers", "2", "--threads", "2"]
        self._start("receiver", [*QUEUEBRIDGE, "receiver", *more])

    def start_worker(self) -> None:
        """Start the worker of the old backend, which reconciles too."""
        concurrency = ["-c", "2"] if self.environ["QUEUEBRIDGE_LEGACY"] == "celery" else []
        self._start("worker", [*QUEUEBRIDGE, "worker", *concurrency])

    def start_producer(self) -> None:
        """Start a producer, which goes on with tags of its own."""
        self._producers += 1
        name = f"producer{self._producers}"
        seed = str(self.chance.getrandbits(32))
        program = [sys.executable, str(SUPPORT / "chaos_producer.py")]
        self._start("producer", [*program, name, seed, str(self._per_second), str(self._receipts)])

    def storm(self, seconds: float, actions: Sequence[Callable[[], None]], *, pause: float = 0.5) -> None:
        """Do random ones of the actions at random moments, each at least once."""
        due = list(actions)
        self.chance.shuffle(due)
        deadline = time.monotonic() + seconds
        while due or time.monotonic() < deadline:
            time.sleep(self.chance.uniform(0.2, 2 * pause))
            act = due.pop() if due else self.chance.choice(actions)
            act()

    def kill_receiver(self) -> None:
        """Kill the receiver with its workers, and start another one."""
        self._kill("receiver")
        self.start_receiver()

    def kill_worker(self) -> None:
        """Kill the worker with all its children, reconcile included, and start another one."""
        self._kill("worker")
        self.start_worker()

    def kill_executor(self) -> None:
        """Wait for the next effect, and kill the process alone that had it."""
        seen = len(read_lines(self._effects))
        deadline = time.monotonic() + WORK_SECONDS
        while time.monotonic() < deadline:
            last = next((line for line in read_lines(self._effects)[seen:] if line["event"] == "effect"), None)
            if last is not None:
                break
            time.sleep(POLL_SECONDS)
        else:
            return
        pid = int(last["process"].partition(":")[0])
        # The processes at the head are what the other kills are for.
        with suppress(OSError):
            if identity(pid) == last["process"] and pid not in {child.pid for child in self._children.values()}:
                self._note(f"kill executor {last['process']}")
                self._freeze(pid)
                os.kill(pid, signal.SIGKILL)

    def kill_producer(self) -> None:
        """Kill the producer, and start another one."""
        self._kill("producer")
        self.start_producer()

    def kill_qstash(self) -> None:
        """Kill the embedded server, leave it dead for a moment, and start it again over the same file."""
        self._kill("qstash")
        time.sleep(self.chance.uniform(0, 1.5))
        self.start_qstash()

    def crash_ledger(self) -> None:
        """Crash the ledger's server and start it again."""
        self._note("crash ledger")
        self.server.crash()
        time.sleep(self.chance.uniform(0, 1))
        self.server.start()
        self._note("ledger is back")

    def command(self, *arguments: str) -> None:
        """Run `queuebridge ...` to its end."""
        self._note(" ".join(arguments))
        child = self._spawn([*QUEUEBRIDGE, *arguments], env=self.environ, name=arguments[0])
        assert child.wait(60) == 0, child.report()

    def accepted_in(self, stage: str) -> int:
        """Return how many jobs were accepted in a stage so far."""
        return sum(line.get("stage") == stage for line in read_lines(self._receipts))

    def drain(self) -> None:
        """Stop producing, and wait until nothing is left to be done.

        Raises:
            AssertionError: It does not come to an end.
        """
        producer = self._children.pop("producer")
        self._await(producer)
        assert producer.terminate() == 0, producer.report()
        self._note("drain")
        for child in self._children.values():
            self._await(child)
        with closing(load_ledger(self.server.url)) as ledger:
            try:
                wait_until(lambda: not self._open(ledger), DRAIN_SECONDS, what="all jobs to end")
                wait_until(lambda: not self._undelivered(ledger), DRAIN_SECONDS, what="all push copies to arrive")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self._explain(ledger)}") from None

    def check(self) -> dict[str, int]:
        """Check that every accepted job has its effect, and that all further effects are explained by kills.

        Returns:
            Counts, for people.
        """
        receipts = read_lines(self._receipts)
        accepted = {line["tag"]: line for line in receipts if "dispatch_id" in line}
        effects: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in read_lines(self._effects):
            if line["event"] == "effect":
                effects[line["tag"]].append(line)
        with closing(load_ledger(self.server.url)) as ledger:
            executions = {one.dispatch_id: one for one in ledger.executions.scan(ExecutionFilter())}

        assert [tag for tag in accepted if tag not in effects] == [], self.story()
        assert [one for one in executions.values() if one.state is not State.DONE] == [], self.story()
        repeated = [again for lines in effects.values() for again in self._repeated(lines, executions)]
        return {
            "accepted": len(accepted),
            "refused": len(receipts) - len(accepted),
            "unreported": len(set(effects) - {line["tag"] for line in receipts}),
            "killed": len(self.killed),
            "rerun": len(repeated),
            **{f"by {name}": sum(e[-1]["backend"] == name for e in effects.values()) for name in backends(effects)},
        }

    def story(self) -> str:
        """Return what was done to the processes, for the reader of a failed test."""
        return "\n".join(self.history)

    def _repeated(self, lines: list[dict[str, Any]], executions: dict[str, Execution]) -> list[dict[str, Any]]:
        """Return the effects of a job that did not count, each of which must be that of a killed process."""
        shown = f"{json.dumps(lines, indent=1)}\n{self.story()}"
        (dispatch_id,) = {line["dispatch_id"] for line in lines}
        execution = executions[dispatch_id]
        tokens = [line["token"] for line in lines]
        # One after the other, each under a newer token than the one before; the newest of all settled.
        assert tokens == sorted(set(tokens)), shown
        assert tokens[-1] == execution.token, shown
        for line in lines[:-1]:
            assert line["process"] in self.killed, f"Nobody killed {line['process']}:\n{shown}"
            assert line["time"] <= self.killed[line["process"]], shown
        return lines[:-1]

    def _start(self, name: str, arguments: list[str]) -> None:
        self._children[name] = self._spawn(arguments, env=self.environ, name=name)

    def _await(self, child: ChildProcess) -> None:
        """Wait until a process does its work."""
        kind = child.name.partition("-")[0]
        if kind == "qstash":
            child.wait_for_port(self._port, 40)
        elif kind == "receiver":
            # The port is open long before anybody serves it.
            child.wait_until(lambda: is_served(f"{self.environ['QUEUEBRIDGE_PUBLIC_URL']}{HEALTH}"), 40)
        else:
            child.wait_for_line(r"ready\.?$|Listening on", timeout=40)

    def _kill(self, name: str) -> None:
        child = self._children[name]
        # One that is not up yet has nothing to lose.
        self._await(child)
        time.sleep(self.chance.uniform(0, WORK_SECONDS))
        self._note(f"kill {child.name} {child.pid}")
        self._freeze(child.pid, child)
        child.kill()

    def _freeze(self, pid: int, child: ChildProcess | None = None) -> None:
        """Stop processes where they are, and note who they are: nobody is forked, or has an effect, unnoticed."""
        frozen: set[int] = set()
        while True:
            running = {pid, *(child.family() if child is not None else ())} - frozen
            if not running:
                return
            for one in running:
                with suppress(OSError):
                    os.kill(one, signal.SIGSTOP)
                    # Until it is scheduled out it runs on, and may have an effect.
                    wait_until(partial(is_stopped, one), what=f"process {one} to stop")
                    self.killed[identity(one)] = time.time()
            frozen |= running

    def _note(self, what: str) -> None:
        self.history.append(f"{time.monotonic() - self._begun:6.2f} s  {what}")

    def _open(self, ledger: Ledger) -> bool:
        """Return whether there is a job without an effect, or one that has not ended."""
        done = {line["tag"] for line in read_lines(self._effects) if line["event"] == "effect"}
        if any("dispatch_id" in line and line["tag"] not in done for line in read_lines(self._receipts)):
            return True
        unsettled = tuple(state for state in State if not state.settled)
        return bool(ledger.executions.recent(ExecutionFilter(states=unsettled), limit=1))

    def _undelivered(self, ledger: Ledger) -> list[str]:
        """Return the dispatches whose push copy was written, and has not arrived for good yet."""
        written = [
            one.dispatch_id
            for one in ledger.executions.scan(ExecutionFilter())
            if (copy := one.copy(Side.PUSH)) is not None and copy.state is WriteState.WRITTEN
        ]
        return [
            dispatch_id
            for dispatch_id, arrivals in ledger.executions.deliveries(written).items()
            if not any(a.backend == "qstash" and a.outcome is not DeliveryOutcome.BUSY for a in arrivals)
        ]

    def _explain(self, ledger: Ledger) -> str:
        done = {line["tag"] for line in read_lines(self._effects) if line["event"] == "effect"}
        lost = [line for line in read_lines(self._receipts) if "dispatch_id" in line and line["tag"] not in done]
        unsettled = tuple(state for state in State if not state.settled)
        left = ledger.executions.recent(ExecutionFilter(states=unsettled), limit=5)
        deliveries = ledger.executions.deliveries([one.dispatch_id for one in left])
        parts = [f"without effect: {lost}", f"undelivered: {self._undelivered(ledger)}"]
        parts += [f"{one}\n   {deliveries[one.dispatch_id]}" for one in left]
        return "\n".join([*parts, self.story()])


def is_served(url: str) -> bool:
    """Return whether a GET of it is answered."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def backends(effects: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the backends that delivered jobs."""
    return sorted({line["backend"] for lines in effects.values() for line in lines})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON lines that have ended."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()]
