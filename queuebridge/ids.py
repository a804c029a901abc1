"""Ids of jobs and dispatches."""

from __future__ import annotations

import hashlib
import os
import re

from queuebridge.errors import InvalidOption

# What every transport accepts in every place: QStash forbids ':' in deduplication ids, RQ allows just these.
PORTABLE_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")


def new_job_id() -> str:
    """Return a random job id in the form of a Celery task id (UUID 4, RFC 9562)."""
    # Written out, because it is a fifth of the time that an enqueue costs with the uuid module.
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def new_dispatch_id() -> str:
    """Return a random dispatch id: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def job_id_for_key(task: str, idempotency_key: str) -> str:
    """Return the job id that every enqueue of `task` with this idempotency key shares."""
    digest = hashlib.sha256(f"{len(task)}:{task}:{idempotency_key}".encode()).hexdigest()
    return f"key-{digest[:40]}"


def portable_id(text: str) -> str:
    """Return a text as an id: every character that some transport forbids becomes `_`, and a long one is cut."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text[:200])


def check_job_id(job_id: str) -> str:
    """Return `job_id` unchanged.

    Raises:
        InvalidOption: It is empty, longer than 200 characters, or has other characters than `A-Za-z0-9_-`.
    """
    if not isinstance(job_id, str) or not PORTABLE_ID.fullmatch(job_id):
        raise InvalidOption(
            "task_id", f"{job_id!r} is not 1 to 200 letters, digits, '-' or '_' (what all backends accept)."
        )
    return job_id
