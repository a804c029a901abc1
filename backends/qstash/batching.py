"""Divide many jobs into requests of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

from queuebridge.backend import Publication

# One request may carry 100 MB (protocol 3.10); smaller ones fail and are repeated more cheaply.
_BATCH_BYTES = 8_000_000
_BATCH_JOBS = 500


def in_batches(publications: Sequence[Publication]) -> list[Sequence[Publication]]:
    """Return the publications in groups, each small enough for one request."""
    batches = []
    start = size = 0
    for end, publication in enumerate(publications):
        if end > start and (size + len(publication.body) > _BATCH_BYTES or end - start == _BATCH_JOBS):
            batches.append(publications[start:end])
            start, size = end, 0
        size += len(publication.body)
    if publications:
        batches.append(publications[start:])
    return batches
