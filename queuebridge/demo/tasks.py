"""The demo's one task: read a file, and leave an effect that can be counted."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from queuebridge.context import current_job
from queuebridge.task import task


# More retries than the demo has kills: a job must not be given up because it was hit again and again.
@task(name="queuebridge.demo.measure_file", retries=20, backoff=1.0)
def measure_file(path: Path, effects: Path, linger_seconds: float = 0.0) -> dict[str, str | int]:
    """Compute digest, lines and bytes of a file, and append them to the file of effects.

    Args:
        path: The file.
        effects: Where to append the effect.
        linger_seconds: How long to wait before the effect, and again after it, so that kills hit both.
    """
    content = path.read_bytes()
    measured: dict[str, str | int] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "lines": content.count(b"\n"),
        "bytes": len(content),
    }
    job = current_job()
    time.sleep(linger_seconds)
    effect = {
        "job_id": job.job_id,
        "backend": job.backend,
        "path": str(path),
        "pid": os.getpid(),
        "attempt": job.attempt,
        "fence": job.fence,
        "at": time.time(),
        **measured,
    }
    # One write to a file opened for appending: neither a kill nor another process can tear or merge lines.
    descriptor = os.open(effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{json.dumps(effect)}\n".encode())
    finally:
        os.close(descriptor)
    time.sleep(linger_seconds)
    return measured
