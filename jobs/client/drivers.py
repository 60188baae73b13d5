"""Drivers of jobs as the client sees them: a process of this machine, or a job of a Ray cluster."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Protocol

from jobs.client.home import Home, LocalJob
from jobs.client.session import Session
from jobs.execution.launch import Launch, jobs_api
from jobs.execution.loading import ModelPin
from jobs.options import Target
from jobs.service.queue import dequeue, enqueue, is_queued
from jobs.storage import layout
from jobs.storage.records import JobState, write_record
from jobs.storage.store import Store
from nst.engines.base import PLAN_FILE
from nst.engines.cache import ModelCache
from nst.errors import CircuitError, ClusterError, InputError

STOP_SECONDS = 10.0
"""For a driver to end by itself before it is killed."""
ASK_EVERY = 5.0
"""Seconds between two questions to a cluster whether a driver runs."""


class Driver(Protocol):
    """The driver that was started last for a job."""

    def alive(self) -> bool:
        """Whether it runs, or may run for all that is known."""
        ...

    def logs(self) -> str:
        """What it has printed."""
        ...

    def stop(self) -> None:
        """End it, if it runs."""
        ...


def start(
    session: Session, local: LocalJob, target: Target, actors: int, notify_url: str = ""
) -> Driver:
    """Start a driver for a job, or ask its service to; its state says `queued` from here on.

    Args:
        session: Where the job is; what tells of its driver is saved with it here.
        local: The job.
        target: Where.
        actors: How many actors; on a cluster, 0 is one per CPU.
        notify_url: Where the driver posts the end; empty for nowhere.

    Raises:
        CircuitError: if this machine does not have the job's model.
        ClusterError: if a cluster does not answer or refuses.
        StoreError: if the state cannot be written.
    """
    store = session.store
    if local.offer:
        enqueue(store, local.job_id, local.key_id, len(local.pairs))
        return driver_of(session, local)
    state = JobState(status="queued", pairs_total=len(local.pairs), heartbeat=store.clock())
    write_record(store, layout.state(local.job_id), state)
    try:
        if target.cluster:
            _start_on_cluster(session.home, local, target, actors, notify_url)
        else:
            start_here(session.home, local, actors, notify_url)
    except Exception:
        store.delete(layout.state(local.job_id))
        raise
    return driver_of(session, session.home.job(local.job_id))


def driver_of(session: Session, local: LocalJob) -> Driver:
    """The driver that was started last for a job."""
    if local.offer:
        return ServedJob(session.store, local)
    return ClusterDriver(local) if local.cluster else LocalDriver(session.home, local)


def start_here(
    home: Home, local: LocalJob, actors: int, notify_url: str = ""
) -> subprocess.Popen[bytes]:
    """Start a job's driver on this machine."""
    launch = Launch(local.store, local.job_id, pin_of(home, local), actors, notify_url)
    with home.driver_log(local.job_id).open("ab") as output:
        process = launch.here(output)
    changed = {"driver_pid": process.pid, "cluster": "", "cluster_python": "", "submission": ""}
    home.save_job(local.model_copy(update=changed))
    return process


def _start_on_cluster(
    home: Home, local: LocalJob, target: Target, actors: int, notify_url: str
) -> None:
    launch = Launch(local.store, local.job_id, pin_of(home, local), actors, notify_url)
    changed = {
        "driver_pid": 0,
        "cluster": target.cluster,
        "cluster_python": target.python,
        "submission": launch.on_cluster(target),
    }
    home.save_job(local.model_copy(update=changed))


def pin_of(home: Home, local: LocalJob) -> ModelPin:
    """What a driver may load for a job, out of the user's own models.

    Raises:
        CircuitError: if the model is missing or damaged here: a store's is not trusted.
    """
    try:
        published = ModelCache(home.models).open(local.model_id)
    except CircuitError as error:
        raise CircuitError(
            f"{error}, and a driver loads no other than this machine's own; submit the pairs again"
        ) from error
    plan, bundle = (
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (published.folder / PLAN_FILE, published.server_bundle)
    )
    folder = str(published.folder.absolute())
    return ModelPin(local.model_id, local.key_id, plan, bundle, folder)


class LocalDriver:
    """A process of this machine."""

    def __init__(self, home: Home, local: LocalJob) -> None:
        self.pid, self.job_id = local.driver_pid, local.job_id
        self.log = home.driver_log(local.job_id)

    def alive(self) -> bool:
        """See `Driver`; a process that has ended but is not yet collected does not run."""
        process = Path(f"/proc/{self.pid}")
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except (OSError, IndexError):
            return False
        # Another process may have got its number since.
        return self.pid > 0 and state != "Z" and self.job_id.encode() in arguments

    def logs(self) -> str:
        """See `Driver`."""
        try:
            return self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise InputError(f"cannot read {self.log} ({error.strerror})") from error

    def stop(self) -> None:
        """See `Driver`; its actors end with it."""
        deadline = time.monotonic() + STOP_SECONDS
        while self.alive():
            late = time.monotonic() > deadline
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.5)


class ClusterDriver:
    """A job of a Ray cluster, through its Jobs API."""

    def __init__(self, local: LocalJob) -> None:
        self.address, self.submission = local.cluster, local.submission
        self._asked, self._alive = -ASK_EVERY, True

    def alive(self) -> bool:
        """See `Driver`; asks every few seconds, and a cluster that is silent may have it."""
        if time.monotonic() - self._asked > ASK_EVERY:
            self._asked = time.monotonic()
            with contextlib.suppress(ClusterError), jobs_api(self.address) as client:
                self._alive = not client.get_job_status(self.submission).is_terminal()
        return self._alive

    def logs(self) -> str:
        """See `Driver`; raises ClusterError if the cluster does not answer."""
        with jobs_api(self.address) as client:
            return str(client.get_job_logs(self.submission))

    def stop(self) -> None:
        """See `Driver`; raises ClusterError if the cluster does not answer."""
        with jobs_api(self.address) as client:
            client.stop_job(self.submission)


class ServedJob:
    """Whatever driver a service gives to a job: the customer sees the queue and nothing of it."""

    def __init__(self, store: Store, local: LocalJob) -> None:
        self._store, self._job_id = store, local.job_id

    def alive(self) -> bool:
        """See `Driver`: a service has it, or will."""
        return is_queued(self._store, self._job_id)

    def logs(self) -> str:
        """See `Driver`: the service keeps them."""
        return f"job {self._job_id} is a service's, which keeps its log\n"

    def stop(self) -> None:
        """See `Driver`."""
        dequeue(self._store, self._job_id)
