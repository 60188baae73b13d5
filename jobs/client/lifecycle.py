"""What a user does to a job that is submitted: cancel, retry, delete."""

from __future__ import annotations

import time

from jobs.client.drivers import Driver, Place, driver_of, require_reachable
from jobs.client.home import JobBook
from jobs.client.session import Session
from jobs.client.submit import upload_shared
from jobs.storage import layout
from jobs.storage.records import (
    Cancellation,
    JobState,
    read_job,
    read_marks,
    read_state,
    write_record,
)
from jobs.storage.store import Store
from nst.errors import ClusterError, InputError, StoreContentError

PATIENCE = 30.0
"""Seconds for a driver to see that its job is cancelled and to stop."""
POLL = 0.5


def uploaded(store: Store, book: JobBook) -> bool:
    """Whether a job got into its store as a whole."""
    return store.exists(layout.job(book.job_id))


def at_work(store: Store, book: JobBook, state: JobState, driver: Driver) -> bool:
    """Whether a job's driver still runs, as far as can be told.

    A driver of this machine is asked for; of another one, the sign of life in the store tells, and
    the cluster if it answers.
    """
    if state.finished or state.status == "submitted":
        return False
    return driver.alive() and not (book.cluster and state.stale(store.clock()))


def cancel(session: Session, book: JobBook, patience: float = PATIENCE) -> JobState:
    """Stop a job; pairs that are done stay done. Returns its last state.

    The driver gets a wish and so many seconds, then it is ended from outside.

    Raises:
        ClusterError: if that is needed and the cluster does not answer.
        StoreError: if the store does not answer.
    """
    store = session.store
    state = read_state(store, book.job_id, len(book.pairs))
    if state.finished:
        return state
    wish = Cancellation(asked=store.clock())
    store.create(layout.cancellation(book.job_id), wish.model_dump_json().encode())
    driver = driver_of(session.home, book)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and at_work(store, book, state, driver):
        time.sleep(POLL)
        state = read_state(store, book.job_id, len(book.pairs))
    if not state.finished:
        try:
            driver.stop()
        except ClusterError:
            # A cluster that is gone has no driver either.
            if not state.stale(store.clock()):
                raise
        state = read_state(store, book.job_id, len(book.pairs))
    if not state.finished:
        state.status, state.pairs_running = "cancelled", []
        write_record(store, layout.state(book.job_id), state)
    return state


def prepare_retry(session: Session, book: JobBook, failed_too: bool, place: Place) -> int:
    """Make a job ready for another driver; returns how many pairs it will find to do.

    Nothing is changed before the place is known to answer. A model and evaluation keys that are
    missing or damaged in the store are uploaded again.

    Args:
        session: Where the job is.
        book: Which job.
        failed_too: Whether pairs that failed get another chance.
        place: Where the driver is to run.

    Raises:
        InputError: if a driver is at work, or the job never got into the store as a whole.
        ClusterError: if the cluster does not answer.
    """
    require_idle(session, book, "wait for it, or cancel it first")
    store = session.store
    if not uploaded(store, book):
        raise InputError(
            f"job {book.job_id} was not uploaded to its end; nst-batch delete {book.job_id}, "
            "and submit the pairs again"
        )
    job = read_job(store, book.job_id, len(book.pairs))
    marks = read_marks(store, job)
    failed = [p for p, end in marks.ended.items() if end.status == "failed"] if failed_too else []
    left = len(job.pairs) - len(marks.ended) + len(failed)
    if not left:
        return 0
    require_reachable(place)
    upload_shared(session, book, mend=True)
    for pair_id in failed:
        store.delete(layout.pair_end(book.job_id, pair_id))
    if marks.cancelled:
        store.delete(layout.cancellation(book.job_id))
    if marks.complete:
        store.delete(layout.job_end(book.job_id))
    return left


def delete(session: Session, book: JobBook) -> int:
    """Delete a job from its store and from this machine; returns the number of objects.

    Model and evaluation keys go with the last job of the store that uses them.

    Raises:
        InputError: if a driver is at work on it.
        StoreError: if something cannot be deleted; what is left can be deleted again.
    """
    require_idle(session, book, "cancel it first")
    store = session.store
    count = store.delete_prefix(layout.whole_job(book.job_id))
    models, keys = _used_by_others(store, book.job_id)
    if models is not None and book.model_id not in models:
        count += store.delete_prefix(layout.model(book.model_id))
    if keys is not None and book.key_id not in keys:
        count += store.delete_prefix(layout.keys(book.key_id))
    session.home.forget(book.job_id)
    return count


def require_idle(session: Session, book: JobBook, advice: str) -> None:
    """Raise InputError if a driver is at work on a job."""
    state = read_state(session.store, book.job_id, len(book.pairs))
    if at_work(session.store, book, state, driver_of(session.home, book)):
        raise InputError(f"job {book.job_id} is {state.status}; {advice}")


def _used_by_others(store: Store, job_id: str) -> tuple[set[str] | None, set[str] | None]:
    """Models and key sets of all other jobs; None if a record does not tell."""
    models, keys = set(), set()
    for other in store.children(layout.JOBS):
        if other == job_id:
            continue
        try:
            job = read_job(store, other)
        except StoreContentError:
            # Not submitted yet, deleted meanwhile, or of another version, whose model is not known.
            if store.exists(layout.job(other)):
                return None, None
            continue
        models.add(job.model_id)
        keys.add(job.key_id)
    return models, keys
