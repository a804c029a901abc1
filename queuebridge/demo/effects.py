"""What the jobs really did, read from the effects they left."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from queuebridge.demo.files import expected_measure


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One job that enqueue accepted.

    Attributes:
        path: The file it reads.
        at: When enqueue was called, in Unix seconds.
    """

    path: Path
    at: float


@dataclass(frozen=True, kw_only=True)
class BackendResult:
    """What became of the jobs of one backend.

    Attributes:
        name: The backend.
        jobs: How many were accepted.
        executed: How many left their effect, and it is true.
        lost: How many left none, or none that is true.
        duplicated: How many effects there are beyond the first of each job, those of jobs never accepted included.
        throughput_per_s: Jobs per second, from the first enqueue to the last effect.
        latency_p50_ms, latency_p95_ms: From enqueue to effect.
    """

    name: str
    jobs: int
    executed: int
    lost: int
    duplicated: int
    throughput_per_s: float
    latency_p50_ms: float
    latency_p95_ms: float

    @property
    def ok(self) -> bool:
        """Return whether every job took effect once, and rightly."""
        return self.jobs > 0 and not (self.lost or self.duplicated)

    def as_json(self) -> dict[str, Any]:
        """Return the result as the demo's JSON output has it."""
        return {
            "name": self.name,
            "jobs": self.jobs,
            "executed": self.executed,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "throughput_per_s": round(self.throughput_per_s, 1),
            "latency_ms": {"p50": round(self.latency_p50_ms, 1), "p95": round(self.latency_p95_ms, 1)},
        }


def read_effects(file: Path) -> list[dict[str, Any]]:
    """Return all effects so far; none if no job has left one yet."""
    try:
        lines = file.read_text().split("\n")
    except FileNotFoundError:
        return []
    # The last part is empty, or a line that is being written.
    return [json.loads(line) for line in lines[:-1]]


def check_effects(backend: str, sent: Mapping[str, Sent], effects: Sequence[Mapping[str, Any]]) -> BackendResult:
    """Compare the effects with the jobs that were accepted.

    Args:
        backend: The backend that was to run them.
        sent: The accepted jobs by job id.
        effects: All effects that were found.
    """
    left = {effect["job_id"] for effect in effects}
    first: dict[str, float] = {}
    for effect in effects:
        job = sent.get(effect["job_id"])
        if job is None or effect["backend"] != backend or not is_true(effect, job.path):
            continue
        first[effect["job_id"]] = min(effect["at"], first.get(effect["job_id"], effect["at"]))
    executed = len(first)
    latencies = sorted((at - sent[job_id].at) * 1000 for job_id, at in first.items())
    elapsed = max(first.values()) - min(job.at for job in sent.values()) if first else 0.0
    return BackendResult(
        name=backend,
        jobs=len(sent),
        executed=executed,
        lost=len(sent) - executed,
        duplicated=len(effects) - len(left.intersection(sent)),
        throughput_per_s=executed / elapsed if elapsed > 0 else 0.0,
        latency_p50_ms=percentile(latencies, 0.50),
        latency_p95_ms=percentile(latencies, 0.95),
    )


def is_true(effect: Mapping[str, Any], path: Path) -> bool:
    """Return whether an effect says of a file what is so."""
    return effect["path"] == str(path) and all(effect[key] == value for key, value in expected_measure(path).items())


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of ascending values; 0 if there are none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
