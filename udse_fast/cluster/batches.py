"""Recordings put together in batches of like length and about equal work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

BATCHES_PER_WORKER = 16
"""More are less to do again where a worker is lost, and an evener end; fewer are less to keep account of."""
MOST_FILES = 256
"""Of a batch, however short they are."""


class Recording(Protocol):
    """What there is to do: the recording that is read, and the one that is written."""

    @property
    def source(self) -> Path: ...

    @property
    def out(self) -> Path: ...


Job = TypeVar("Job", bound=Recording)


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Those whose result is not there, or older than the recording: results appear whole or not at all."""
    return [job for job in jobs if not _is_finished(job)]


def _is_finished(job: Recording) -> bool:
    try:
        return job.out.stat().st_mtime >= job.source.stat().st_mtime
    except OSError:
        return False


def in_batches(jobs: Sequence[Job], workers: int) -> list[list[Job]]:
    """All jobs, the largest files first; neighbours share a batch until it has its share of the work."""
    sized = sorted(((_bytes(job.source), number) for number, job in enumerate(jobs)), reverse=True)
    share = sum(size for size, _ in sized) / (workers * BATCHES_PER_WORKER)
    batches: list[list[Job]] = []
    filled = 0
    for size, number in sized:
        if not batches or filled + size > share or len(batches[-1]) == MOST_FILES:
            batches.append([])
            filled = 0
        batches[-1].append(jobs[number])
        filled += size
    return batches


def _bytes(path: Path) -> int:
    """Length of a file; 0 of what cannot be looked at, which its worker will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
