"""Jobs for scripts and notebooks: a client that submits them, and jobs that behave like futures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from jobs.client import drivers, lifecycle
from jobs.client.drivers import Driver
from jobs.client.fetch import Fetched, decrypted, fetch
from jobs.client.home import Home, LocalJob
from jobs.client.pairs import Pair
from jobs.client.run import go_on, ready, start
from jobs.client.session import Session
from jobs.configuration import load
from jobs.options import RetryOptions, SubmitOptions
from jobs.storage.records import JobState, Status, read_state
from nst.errors import ClusterError, InputError
from nst.folders import PASSPHRASE_VARIABLE
from nst.keyring import AskPassphrase
from nst.pictures.picture import to_image

__all__ = ["Client", "Job", "Pair", "Results"]

POLL = 0.5
"""Seconds between two looks at a job that is waited for."""


@dataclass(frozen=True, repr=False)
class Results(Mapping[str, Image]):
    """The pictures of a job by the names of its pairs.

    Attributes:
        pictures: Of the pairs that succeeded.
        failed: Why the others have none, by name.
    """

    pictures: dict[str, Image]
    failed: dict[str, str]

    def __getitem__(self, name: str) -> Image:
        return self.pictures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __repr__(self) -> str:
        return f"<Results: {', '.join(self.pictures) or 'none'}; failed: {len(self.failed)}>"


class Client:
    """Submits jobs to a store and a cluster, and finds them again.

    What is not given is what `nst-batch submit` would take: from the environment, from
    `nst-batch.toml` in the working directory, from that of the user, or its default.

    Example:
        >>> import jobs
        >>> client = jobs.Client()
        >>> job = client.submit("./pairs", quality="low")  # doctest: +SKIP
        >>> job.status()  # doctest: +SKIP
        'running'
        >>> results = job.result(timeout=3600)  # doctest: +SKIP
        >>> results["cat"].show()  # doctest: +SKIP

        On a cluster, and another day:

        >>> client = jobs.Client("s3://bucket/prefix", cluster="http://head:8265")  # doctest: +SKIP
        >>> client.submit("./pairs").id  # doctest: +SKIP
        '0f3c9a6b1d2e'
        >>> client.job("0f3c9a6b1d2e").fetch("./stylized")  # doctest: +SKIP
    """

    def __init__(
        self,
        store: str | Path | None = None,
        cluster: str | None = None,
        cluster_python: str | None = None,
        home: Path | None = None,
        passphrase: str | None = None,
    ) -> None:
        """Say where jobs go; nothing is opened or looked up before it is needed.

        Args:
            store: Folder or `s3://bucket/prefix` for new jobs; None is what is configured, else
                a folder of the user's.
            cluster: Address of a Ray cluster's Jobs API for new jobs; None is what is
                configured, empty runs them here.
            cluster_python: The cluster's interpreter that has this package.
            home: Data directory with keys, circuits and names; None is that of `nst-batch`.
            passphrase: Of the key set, if it has one; None takes it from the environment.
        """
        self.home = Home(home) if home else Home.default()
        self._given = {
            "store": str(store) if store else None,
            "cluster": cluster,
            "cluster_python": cluster_python,
        }
        self._passphrase = passphrase

    def submit(
        self,
        pairs: str | Path | Iterable[Pair],
        quality: str | None = None,
        **options: object,
    ) -> Job:
        """Encrypt pairs, upload them and start a driver; returns when that is done.

        Args:
            pairs: A folder or CSV file in one of the forms that `nst-batch submit` takes, or pairs
                of files.
            quality: Name of a level, or `auto` for the best whose job takes at most `budget`
                seconds.
            options: Fields of `SubmitOptions`; None is not given.

        Raises:
            InputError: if no pair can be used, the job is over the limit, an option or what is
                configured is wrong, or the passphrase is wrong or missing.
            CircuitError: if the model or keys cannot be made.
            StoreError: if the store cannot be written.
            ClusterError: if the cluster does not answer; nothing is submitted then. If it refuses
                the job, that is in the store, and `client.jobs()[-1].retry()` starts it.
            TypeError: if there is no such option.
        """
        given = {**self._given, "quality": quality, **options}
        chosen = load(SubmitOptions, "submit", given)
        url = chosen.fold(chosen.store or str(self.home.store))
        source = Path(pairs) if isinstance(pairs, str | Path) else pairs
        batch = ready(source, chosen, self.home, url)
        batch.require_pairs()
        if excess := batch.excess(chosen.limit):
            raise InputError(f"{excess}: allow them with limit=")
        session = Session.open(self.home, url, self._ask(), create=True)
        local, _ = start(batch, chosen, session)
        return Job(session, local)

    def job(self, job_id: str) -> Job:
        """A job that was submitted from this data directory, by whatever means.

        Raises:
            InputError: if there is none of that id.
            StoreError: if its store does not answer.
        """
        local = self.home.job(job_id)
        return Job(Session.open(self.home, local.store, self._ask()), local)

    def jobs(self) -> list[Job]:
        """All jobs of this data directory, oldest first; see `job` for errors."""
        return [self.job(local.job_id) for local in self.home.jobs()]

    def _ask(self) -> AskPassphrase | None:
        known = self._passphrase or os.environ.get(PASSPHRASE_VARIABLE)
        return (lambda key_id: known) if known else None


class Job:
    """A job, in the manner of `concurrent.futures.Future`; it goes on without this object."""

    def __init__(self, session: Session, local: LocalJob) -> None:
        """Not for direct use: `Client.submit` and `Client.job` make jobs."""
        self._session = session
        self.id, self.quality = local.job_id, local.quality
        self.names = [pair.name for pair in local.pairs]
        """Names of the pairs that were submitted."""
        self.skipped = {skipped.name: skipped.reason for skipped in local.skipped}
        """Why other pairs were not, by name."""
        self._driver: tuple[LocalJob, Driver] | None = None

    def __repr__(self) -> str:
        return f"<Job {self.id}: {len(self.names)} pairs at {self.quality}>"

    def status(self) -> Status:
        """One of submitted, queued, running, succeeded, failed, cancelled.

        `failed` is a job with pairs that failed, or one that stopped before its end.
        """
        return self.progress().status

    def progress(self) -> JobState:
        """How far it is: pairs, core-seconds, times."""
        return read_state(self._session.store, self.id)

    def done(self) -> bool:
        """Whether nothing more will happen by itself: it ended, was cancelled, or has stopped."""
        return self._ended(self.progress())

    def cancelled(self) -> bool:
        """Whether it was stopped by `cancel`."""
        return self.status() == "cancelled"

    def cancel(self) -> bool:
        """Stop it; pairs that are done stay done. False if it had ended before.

        Raises:
            ClusterError: if its driver must be ended and the cluster does not answer.
        """
        if self.progress().finished:
            return self.cancelled()
        return lifecycle.cancel(self._session, self._local).status == "cancelled"

    def result(self, timeout: float | None = None) -> Results:
        """Wait for the end and decrypt the pictures.

        Args:
            timeout: Seconds; None waits for as long as it takes.

        Raises:
            TimeoutError: if it has not ended by then; it goes on.
            CancelledError: if it was cancelled.
            ClusterError: if it has stopped with pairs left; `retry` goes on with them.
            InputError: if the key set's passphrase is wrong or missing.
            CircuitError: if this installation's circuits are not the job's.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        state = self.progress()
        while not self._ended(state):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {self.id} is {state.status} after {timeout} seconds")
            time.sleep(POLL)
            state = self.progress()
        # A driver that has ended in between has written its state.
        state = self.progress()
        if state.status == "cancelled":
            raise CancelledError(f"job {self.id} was cancelled")
        if not state.finished or state.pairs_done + state.pairs_failed < len(self.names):
            reason = state.reason or "its driver is gone"
            raise ClusterError(f"job {self.id} stopped: {reason}; see logs() and retry()")
        _, entries = decrypted(self._session, self._local)
        pictures, failed = {}, {}
        for entry in entries:
            if entry.result is None:
                failed[entry.name] = entry.note
            else:
                pictures[entry.name] = to_image(entry.result)
        return Results(pictures, failed)

    def fetch(self, folder: str | Path, force: bool = False) -> Fetched:
        """Write what is ready as PNG files, with a gallery and a contact sheet.

        Args:
            folder: Where to; created if need be.
            force: Replace pictures that are there.

        Raises:
            InputError: if the folder cannot be written or holds such pictures already, or the key
                set's passphrase is wrong or missing.
            CircuitError: if this installation's circuits are not the job's.
        """
        return fetch(self._session, self._local, Path(folder), force)

    def retry(self, failed: bool = False, **options: object) -> int:
        """Go on with a job that has stopped or was cancelled; returns the number of pairs to do.

        It runs where it ran before unless `cluster` says otherwise.

        Args:
            failed: Whether pairs that failed get another chance.
            options: Other fields of `RetryOptions`; None is what `nst-batch retry` would take.

        Raises:
            InputError: if a driver is at work on it, or what is configured is wrong.
            ClusterError: if its cluster does not answer.
            TypeError: if there is no such option.
        """
        chosen = load(RetryOptions, "retry", {"failed": failed, **options})
        left, _ = go_on(self._session, self._local, chosen)
        return left

    def logs(self) -> str:
        """What its driver has printed."""
        return drivers.driver_of(self._session, self._local).logs()

    def delete(self) -> None:
        """Delete its ciphertexts and records, and what this machine knows of it.

        Raises:
            InputError: if a driver is at work on it.
        """
        lifecycle.delete(self._session, self._local)

    @property
    def _local(self) -> LocalJob:
        """Read afresh: it names the last driver."""
        return self._session.home.job(self.id)

    def _ended(self, state: JobState) -> bool:
        if state.finished:
            return True
        local = self._local
        if self._driver is None or self._driver[0] != local:
            # Kept as long as it is the last one: it does not ask a cluster too often.
            self._driver = (local, drivers.driver_of(self._session, local))
        return not lifecycle.at_work(self._session.store, local, state, self._driver[1])
