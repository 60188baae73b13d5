"""Jobs that are kept for a number of days, and what deletes them then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from jobs.client.home import Home, JobBook
from jobs.client.lifecycle import delete
from jobs.storage.store import Store
from nst.errors import NstBatchError


def expired(book: JobBook, now: datetime) -> bool:
    """Whether a job's time is over."""
    return bool(book.keep_until) and datetime.fromisoformat(book.keep_until) <= now


@dataclass
class Pruned:
    """What `prune` did: by job id, the objects it deleted, or why the job is still there."""

    deleted: dict[str, int] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def prune(home: Home, open_store: Callable[[str], Store], now: datetime | None = None) -> Pruned:
    """Delete this user's jobs whose time is over; one that cannot be deleted stops no other."""
    moment, report = now or datetime.now(UTC), Pruned()
    for book in home.books():
        if expired(book, moment):
            try:
                report.deleted[book.job_id] = delete(home, open_store(book.store), book)
            except NstBatchError as error:
                report.left[book.job_id] = str(error)
    return report
