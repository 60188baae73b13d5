"""How much of a store is ever taken in: whatever answers there, a client's memory is bounded."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from nst.errors import StoreContentError

SMALL_BYTES = 64 << 10
"""A record that does not grow with its job."""
PAIR_BYTES = 512
"""What a pair adds to a record of its job, at most."""
TRACE_BYTES, TASK_BYTES = 64 << 20, 400
"""The trace of a job's tasks where their number is not known, and what a task adds to it."""
JOB_BYTES = 16 << 20
"""A record of a job whose number of pairs is not known."""
MODEL_BYTES = 64 << 20
"""A model's plan or server bundle: its client has said what is in it, not how large it is."""
MOST_KEYS = 2_000_000
"""Keys of one listing, where nothing smaller is known."""
MARKS = 16
"""Markers of a job besides those of its pairs, with room for others."""


def require_size(store: str, key: str, size: int, limit: int | None) -> None:
    """Raise StoreContentError if a blob is larger than it can be."""
    if limit is not None and size > limit:
        raise StoreContentError(
            f"store {store}: {key} is larger than the {limit:,} bytes that it can have; "
            "it is damaged: submit the job again"
        )


def all_of(found: Iterable[str], store: str, prefix: str, limit: int) -> list[str]:
    """What a listing finds, sorted; raises StoreContentError if it has more than `limit`."""
    names = list(islice(found, limit + 1))
    if len(names) > limit:
        raise StoreContentError(
            f"store {store}: {prefix} lists more than {limit:,} names; is it one of nst-batch?"
        )
    return sorted(names)
