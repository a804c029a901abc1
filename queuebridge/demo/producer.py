"""The producer of the migration: a thread that goes on enqueueing, whatever happens meanwhile."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from queuebridge.bridge import Bridge
from queuebridge.demo.steps import STEPS, step_of
from queuebridge.demo.tasks import measure_file
from queuebridge.options import EnqueueOptions
from queuebridge.receipt import Receipt

# Several at once, so that some are under way whatever happens next.
_BURST = 8
_FEWEST_BURSTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """One job that enqueue accepted.

    Attributes:
        receipt: The proof.
        path: The file it reads.
        at: When enqueue was called, in Unix seconds.
        step: The step whose stage it was written by.
    """

    receipt: Receipt
    path: Path
    at: float
    step: int


class Producer:
    """Enqueues one job for each file that it is given, in a thread of its own.

    Args:
        bridge: What it enqueues through.
        effects: Where the jobs leave their effects.
        linger_seconds: As in the task.

    Attributes:
        accepted: The accepted jobs by job id.
        failure: What ended the thread, if anything did: a job that was not accepted, too.
    """

    def __init__(self, bridge: Bridge, effects: Path, *, linger_seconds: float) -> None:
        self._bridge = bridge
        self._effects = effects
        self._linger = linger_seconds
        self._wanted: deque[tuple[int, Path, float]] = deque()
        self._busy = False
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="demo-producer", daemon=True)
        self._counts: Counter[int] = Counter()
        self.accepted: dict[str, Accepted] = {}
        self.failure: BaseException | None = None

    def send(self, step: int, files: Sequence[Path], *, seconds: float = 0.0) -> None:
        """Enqueue these files too, in the background: at once, or in bursts that are spread over a time."""
        burst = max(1, min(_BURST, len(files) // _FEWEST_BURSTS))
        pause = seconds * burst / max(1, len(files))
        with self._news:
            for number, path in enumerate(files, 1):
                self._wanted.append((step, path, pause if number % burst == 0 else 0.0))
            self._news.notify_all()

    @property
    def idle(self) -> bool:
        """Return whether everything that was given has been enqueued. Raises what ended the thread."""
        if self.failure is not None:
            raise self.failure
        with self._news:
            return not self._wanted and not self._busy

    def count(self, step: int) -> int:
        """Return how many jobs of a step were accepted."""
        return self._counts[step]

    def __enter__(self) -> Producer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        with self._news:
            self._news.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with self._news:
                    while not self._wanted and not self._stop.is_set():
                        self._news.wait()
                    if self._stop.is_set():
                        return
                    step, path, pause = self._wanted.popleft()
                    self._busy = True
                self._enqueue(step, path)
                if pause:
                    self._stop.wait(pause)
                with self._news:
                    self._busy = False
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self.failure = error

    def _enqueue(self, step: int, path: Path) -> None:
        at = time.time()
        receipt = self._bridge.apply_async(
            measure_file,
            (path, self._effects, self._linger),
            options=EnqueueOptions(metadata={"demo": STEPS[step].name}),
        )
        belongs_to = step_of(step, receipt.stage)
        self.accepted[receipt.job_id] = Accepted(receipt=receipt, path=path, at=at, step=belongs_to)
        self._counts[belongs_to] += 1
