"""Jobs that wait for a service: one marker each in their customer's store."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.storage import layout
from jobs.storage.records import Id, JobState, Seconds, StoreRecord, read_record, write_record
from jobs.storage.store import Store, names_below
from nst.errors import StoreContentError
from nst.parsing import is_id

MOST_WAITING = 10_000
"""Jobs of a customer; one who queues more is refused until some have ended."""


class Queued(StoreRecord):
    """When a job was queued, by its store's clock, and its key set."""

    queued: Seconds
    key_id: Id


def enqueue(store: Store, job_id: str, key_id: str, pairs: int) -> None:
    """Ask a service to run a job that is in its store; its state says `queued` from here on.

    Args:
        store: The customer's.
        job_id: The job.
        key_id: Its key set.
        pairs: How many it has.

    Raises:
        StoreError: if the store cannot be written.
    """
    now = store.clock()
    state = JobState(status="queued", pairs_total=pairs, heartbeat=now)
    write_record(store, layout.state(job_id), state)
    write_record(store, layout.queued(job_id), Queued(queued=now, key_id=key_id))


def is_queued(store: Store, job_id: str) -> bool:
    """Whether a job waits for a service or has one at work."""
    return store.exists(layout.queued(job_id))


def dequeue(store: Store, job_id: str) -> None:
    """Take a job out of the queue; that it is not there is no error."""
    store.delete(layout.queued(job_id))


@dataclass(frozen=True)
class Waiting:
    """A job in the queue: its id and key set, and since when by its store's clock."""

    job_id: str
    key_id: str
    since: float


def waiting(store: Store, known: dict[str, Waiting]) -> list[Waiting]:
    """Jobs in a customer's queue, the oldest first; what is no marker of ours is left out.

    Args:
        store: The customer's.
        known: Markers that have been read already, by job; brought up to date.

    Raises:
        StoreContentError: if there are more than `MOST_WAITING`.
        StoreError: if the store does not answer.
    """
    names = names_below(store, layout.QUEUE, MOST_WAITING)
    ids = {i for i in (name.removesuffix(".json") for name in names) if is_id(i)}
    for gone in set(known) - ids:
        del known[gone]
    for job_id in ids - set(known):
        try:
            marker = read_record(store, layout.queued(job_id), Queued)
        except StoreContentError:
            continue
        known[job_id] = Waiting(job_id, marker.key_id, marker.queued)
    return sorted(known.values(), key=lambda each: (each.since, each.job_id))
