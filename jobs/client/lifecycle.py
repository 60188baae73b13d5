"""What a user does to a job that is submitted: cancel, retry, delete."""

from __future__ import annotations

import time

from jobs.client.drivers import Driver, driver_of
from jobs.client.home import LocalJob
from jobs.client.session import Session
from jobs.client.submit import upload_shared
from jobs.execution.launch import require_reachable
from jobs.options import Target
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


def uploaded(store: Store, local: LocalJob) -> bool:
    """Whether a job got into its store as a whole."""
    return store.exists(layout.job(local.job_id))


def at_work(store: Store, local: LocalJob, state: JobState, driver: Driver) -> bool:
    """Whether a job's driver still runs, as far as can be told.

    A driver of this machine is asked for; of another one, the sign of life in the store tells, and
    the cluster if it answers.
    """
    if state.finished or state.status == "submitted":
        return False
    return driver.alive() and not (local.cluster and state.stale(store.clock()))


def cancel(session: Session, local: LocalJob, patience: float = PATIENCE) -> JobState:
    """Stop a job; pairs that are done stay done. Returns its last state.

    The driver gets a wish and so many seconds, then it is ended from outside.

    Raises:
        ClusterError: if that is needed and the cluster does not answer.
        StoreError: if the store does not answer.
    """
    store = session.store
    state = read_state(store, local.job_id, len(local.pairs))
    if state.finished:
        return state
    wish = Cancellation(asked=store.clock())
    store.create(layout.cancellation(local.job_id), wish.model_dump_json().encode())
    driver = driver_of(session, local)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and at_work(store, local, state, driver):
        time.sleep(POLL)
        state = read_state(store, local.job_id, len(local.pairs))
    if not state.finished:
        try:
            driver.stop()
        except ClusterError:
            # A cluster that is gone has no driver either.
            if not state.stale(store.clock()):
                raise
        state = read_state(store, local.job_id, len(local.pairs))
    if not state.finished:
        state.status, state.pairs_running = "cancelled", []
        write_record(store, layout.state(local.job_id), state)
    return state


def prepare_retry(session: Session, local: LocalJob, failed_too: bool, target: Target) -> int:
    """Make a job ready for another driver; returns how many pairs it will find to do.

    Nothing is changed before the target is known to answer. A model and evaluation keys that are
    missing or damaged in the store are uploaded again.

    Args:
        session: Where the job is.
        local: Which job.
        failed_too: Whether pairs that failed get another chance.
        target: Where the driver is to run.

    Raises:
        InputError: if a driver is at work, or the job never got into the store as a whole.
        ClusterError: if the cluster does not answer.
    """
    require_idle(session, local, "wait for it, or cancel it first")
    store = session.store
    if not uploaded(store, local):
        raise InputError(
            f"job {local.job_id} was not uploaded to its end; nst-batch delete {local.job_id}, "
            "and submit the pairs again"
        )
    job = read_job(store, local.job_id, len(local.pairs))
    marks = read_marks(store, job)
    failed = [p for p, end in marks.ended.items() if end.status == "failed"] if failed_too else []
    left = len(job.pairs) - len(marks.ended) + len(failed)
    if not left:
        return 0
    if not local.offer:
        require_reachable(target)
    upload_shared(session, local, mend=True)
    if failed:
        # First: what it says of them is not what their next markers will say.
        store.delete(layout.pair_ends(local.job_id))
    for pair_id in failed:
        store.delete(layout.pair_end(local.job_id, pair_id))
    if marks.cancelled:
        store.delete(layout.cancellation(local.job_id))
    if marks.complete:
        store.delete(layout.job_end(local.job_id))
    return left


def delete(session: Session, local: LocalJob) -> int:
    """Delete a job from its store and from this machine; returns the number of objects.

    Model and evaluation keys go with the last job of the store that uses them, a key set for this
    job alone also from this machine.

    Raises:
        InputError: if a driver is at work on it.
        StoreError: if something cannot be deleted; what is left can be deleted again.
    """
    require_idle(session, local, "cancel it first")
    store = session.store
    store.delete(layout.queued(local.job_id))
    count = store.delete_prefix(layout.whole_job(local.job_id))
    models, keys = _used_by_others(store, local.job_id)
    if models is not None and local.model_id not in models:
        count += store.delete_prefix(layout.model(local.model_id))
    own = session.ring.remove_own(local.key_id, local.job_id)
    if own or (keys is not None and local.key_id not in keys):
        count += store.delete_prefix(layout.keys(local.key_id))
    session.home.forget(local.job_id)
    return count


def require_idle(session: Session, local: LocalJob, advice: str) -> None:
    """Raise InputError if a driver is at work on a job."""
    state = read_state(session.store, local.job_id, len(local.pairs))
    if at_work(session.store, local, state, driver_of(session, local)):
        raise InputError(f"job {local.job_id} is {state.status}; {advice}")


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
