"""Jobs for scripts and notebooks: a client that submits them, and jobs that behave like futures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL.Image import Image

from jobs.cli.configured import Standing, standing
from jobs.cli.main import main
from jobs.cli.options import place_of
from jobs.client import drivers, lifecycle
from jobs.client.auto import AUTO, choose
from jobs.client.drivers import PYTHON, Driver, Place
from jobs.client.dry_run import core_hours, records_of_files, records_of_pictures
from jobs.client.fetch import Fetched, decrypted, fetch
from jobs.client.home import Home, JobBook
from jobs.client.pairs import Pair, find_pairs, named_pairs
from jobs.client.pictures import Fit
from jobs.client.preparation import PreparedPair, prepare
from jobs.client.submit import submit
from jobs.client.wording import many
from jobs.execution.forecast import Offer
from jobs.execution.notify import Hook
from jobs.execution.stage_times import read_times
from jobs.storage.records import JobState, Status, read_state
from jobs.storage.s3_address import SCHEME, S3Options
from jobs.storage.store import FIRST_PATIENCE, Store, open_store
from nst.pictures.size import Size
from nst.engines.concrete.circuits import build_level
from nst.engines.concrete.client import AskPassphrase
from nst.errors import ClusterError, InputError
from nst.folders import PASSPHRASE_VARIABLE
from nst.network.integers import IntegerNetwork
from nst.network.levels import QualityLevel, get_level
from nst.engines.concrete.plan import CircuitPlan
from nst.stylize import to_image
from nst.network.weights import load_weights

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
        self._store = str(store) if store else None
        self._cluster, self._cluster_python = cluster, cluster_python
        self._passphrase = passphrase

    def submit(
        self,
        pairs: str | Path | Iterable[Pair],
        quality: str | None = None,
        *,
        grid: bool | None = None,
        fit: Fit | None = None,
        size: tuple[int, int] | None = None,
        actors: int | None = None,
        keep_days: int | None = None,
        limit: float | None = None,
        budget: float | None = None,
        notify_command: str | None = None,
        notify_url: str | None = None,
    ) -> Job:
        """Encrypt pairs and start a job; returns when it is on its way.

        None is what `nst-batch submit` would take: see `Client`.

        Args:
            pairs: A folder or CSV file as `nst-batch submit` takes it, or pairs of files.
            quality: Name of the level; `auto` is the best that `budget` allows.
            grid: Take every content of the folder or file with every style.
            fit: How contents are brought to their size.
            size: Width and height of contents and results in pixels; by default a square of the
                level's size.
            actors: Ray actors; by default one a core here, one a CPU of a cluster.
            keep_days: When the job may be pruned; by default never.
            limit: Core-hours above which nothing is submitted; `math.inf` allows everything.
            budget: With `auto`: seconds there are.
            notify_command: Run on this machine at the end; empty for none. Needs a driver here.
            notify_url: Told at the end; empty for nobody.

        Raises:
            InputError: if no pair can be used, the job is over the limit, an option or what is
                configured is wrong, or the passphrase is wrong or missing.
            CircuitError: if circuits or keys cannot be made.
            StoreError: if the store cannot be written.
            ClusterError: if the cluster does not answer; nothing is submitted then. If it refuses
                the job, that is in the store, and `client.jobs()[-1].retry()` starts it.
        """
        options = _Options("submit")
        place = self._place(options)
        url = self._store or options.of("store")
        if place.cluster and not url:
            raise InputError("a cluster needs a store: s3://bucket/prefix, or a shared folder")
        url = _with_options_of_s3(url or str(self.home.store), options)
        hook = _hook(options, place, notify_command, notify_url)
        actors, quality = options.of("actors", actors), options.of("quality", quality)
        if quality != AUTO:
            get_level(quality)  # before files are looked for
        canvas = Size(*size).checked() if size else options.of("size")
        if isinstance(pairs, str | Path):
            found, skipped = find_pairs(Path(pairs), options.of("grid", grid))
        else:
            found, skipped = named_pairs(pairs), []
        if quality == AUTO:
            budget = options.of("budget", budget)
            quality = self._best(found, place, actors, budget, url.startswith(SCHEME), canvas)
        level, network = _level_and_network(quality)
        prepared, unreadable = prepare(found, network, level.side, options.of("fit", fit), canvas)
        skipped += unreadable
        if not prepared:
            reason = skipped[0].reason if skipped else "there is none"
            raise InputError(f"no pair can be used: {reason}")
        self._require_within(options.of("limit", limit), level, network, prepared, canvas)
        store = open_store(url, FIRST_PATIENCE)
        drivers.require_reachable(place)
        days = options.of("keep-days", keep_days)
        book = submit(
            self.home,
            store,
            level,
            network,
            prepared,
            skipped,
            _silent,
            self._ask(),
            days,
            canvas,
        )
        drivers.start(self.home, store, book, place.actors(actors), place, hook)
        return self.job(book.job_id)

    def job(self, job_id: str) -> Job:
        """A job that was submitted from this data directory, by whatever means.

        Raises:
            InputError: if there is none of that id.
            StoreError: if its store does not answer.
        """
        book = self.home.book(job_id)
        return Job(self.home, open_store(book.store, FIRST_PATIENCE), book, self._ask())

    def jobs(self) -> list[Job]:
        """All jobs of this data directory, oldest first; see `job` for errors."""
        return [self.job(book.job_id) for book in self.home.books()]

    def _place(self, options: _Options) -> Place:
        """Where a new job is to run."""
        cluster, python = options["cluster"], options.of("cluster-python", self._cluster_python)
        if self._cluster is not None:
            return Place(self._cluster, python or PYTHON)
        here = options["here"]
        try:
            place = place_of(here.value, cluster.value, python, here.origin, cluster.origin)
        except click.UsageError as error:
            raise InputError(error.message) from error
        return place or Place()

    def _best(
        self,
        pairs: list[Pair],
        place: Place,
        actors: int | None,
        budget: float,
        uploads: bool,
        canvas: Size | None,
    ) -> str:
        """Name of the best level whose job fits a number of seconds."""
        if place.cluster and actors is None:
            raise InputError("how many cores a cluster gives is not known here: give actors=")
        cores, records = place.actors(actors), records_of_files(pairs)
        times, offer = read_times(), Offer(cores)

        def plan_of(level: QualityLevel) -> CircuitPlan:
            return self._plan_of(level, load_weights(level.weights), canvas)

        return choose(records, cores, budget, times, offer, plan_of, uploads).level.name

    def _require_within(
        self,
        limit: float,
        level: QualityLevel,
        network: IntegerNetwork,
        pairs: list[PreparedPair],
        canvas: Size | None,
    ) -> None:
        """Raise InputError if these pairs take more core-hours than `limit`."""
        plan = self._plan_of(level, network, canvas)
        hours = core_hours(plan, read_times(), records_of_pictures(pairs))
        if hours > limit:
            raise InputError(
                f"{many(len(pairs), 'pair')} at {level.name}: about {hours:.3g} core-hours, "
                f"more than the limit of {limit:g}: allow them with limit="
            )

    def _plan_of(
        self, level: QualityLevel, network: IntegerNetwork, canvas: Size | None
    ) -> CircuitPlan:
        """Circuits of a level, compiled if need be."""
        return build_level(level, network, self.home.circuits, canvas)[1]

    def _ask(self) -> AskPassphrase | None:
        known = self._passphrase or os.environ.get(PASSPHRASE_VARIABLE)
        return (lambda key_id: known) if known else None


class Job:
    """A job, in the manner of `concurrent.futures.Future`; it goes on without this object."""

    def __init__(
        self, home: Home, store: Store, book: JobBook, ask: AskPassphrase | None = None
    ) -> None:
        """Not for direct use: `Client.submit` and `Client.job` make jobs."""
        self._home, self._store, self._ask = home, store, ask
        self.id, self.quality = book.job_id, book.quality
        self.names = [pair.name for pair in book.pairs]
        """Names of the pairs that were submitted."""
        self.skipped = {skipped.name: skipped.reason for skipped in book.skipped}
        """Why other pairs were not, by name."""
        self._driver: tuple[JobBook, Driver] | None = None

    def __repr__(self) -> str:
        return f"<Job {self.id}: {len(self.names)} pairs at {self.quality}>"

    def status(self) -> Status:
        """One of submitted, queued, running, succeeded, failed, cancelled.

        `failed` is a job with pairs that failed, or one that stopped before its end.
        """
        return self.progress().status

    def progress(self) -> JobState:
        """How far it is: pairs, PBS, times."""
        return read_state(self._store, self.id)

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
        return lifecycle.cancel(self._home, self._store, self._book).status == "cancelled"

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
        level, network = _level_and_network(self.quality)
        _, entries = decrypted(self._home, self._store, self._book, level, network, self._ask)
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
        level, network = _level_and_network(self.quality)
        out = Path(folder)
        return fetch(self._home, self._store, self._book, level, network, out, force, self._ask)

    def retry(
        self,
        failed: bool = False,
        actors: int | None = None,
        *,
        notify_command: str | None = None,
        notify_url: str | None = None,
    ) -> int:
        """Go on with a job that has stopped or was cancelled; returns the number of pairs to do.

        It runs where it ran before. None is what `nst-batch retry` would take: see `Client`.

        Args:
            failed: Whether pairs that failed get another chance.
            actors: See `Client.submit`.
            notify_command: See `Client.submit`.
            notify_url: See `Client.submit`.

        Raises:
            InputError: if a driver is at work on it, or what is configured is wrong.
            ClusterError: if its cluster does not answer.
        """
        book, options = self._book, _Options("retry")
        place = Place(book.cluster, book.cluster_python or PYTHON)
        hook = _hook(options, place, notify_command, notify_url)
        left = lifecycle.prepare_retry(self._home, self._store, book, failed)
        if left:
            actors = place.actors(options.of("actors", actors))
            drivers.start(self._home, self._store, book, actors, place, hook)
        return left

    def logs(self) -> str:
        """What its driver has printed."""
        return drivers.driver_of(self._home, self._book).logs()

    def delete(self) -> None:
        """Delete its ciphertexts and records, and what this machine knows of it.

        Raises:
            InputError: if a driver is at work on it.
        """
        lifecycle.delete(self._home, self._store, self._book)

    @property
    def _book(self) -> JobBook:
        """Read afresh: it names the last driver."""
        return self._home.book(self.id)

    def _ended(self, state: JobState) -> bool:
        if state.finished:
            return True
        book = self._book
        if self._driver is None or self._driver[0] != book:
            # Kept as long as it is the last one: it does not ask a cluster too often.
            self._driver = (book, drivers.driver_of(self._home, book))
        return not lifecycle.at_work(self._store, book, state, self._driver[1])


class _Options:
    """What a command of `nst-batch` would take if it were called without flags."""

    def __init__(self, command: str) -> None:
        """Look the files and the environment through.

        Raises:
            InputError: if one of them says what an option does not take.
        """
        with click.Context(main, info_name="nst-batch") as root:
            self._stands = standing(root, (command,), main.commands[command])

    def __getitem__(self, key: str) -> Standing:
        return self._stands[key]

    def of(self, key: str, given: Any = None) -> Any:
        """An option's value: what is given, else what is configured, else its default."""
        return self._stands[key].value if given is None else given


def _hook(options: _Options, place: Place, command: str | None, url: str | None) -> Hook:
    """Whom the driver tells of the end, checked."""
    hook = Hook(
        options.of("notify-command", command) or "",
        options.of("notify-url", url) or "",
        str(Path.cwd()),
    )
    hook.check()
    if hook.command and place.cluster:
        raise InputError(
            "a cluster's driver runs no command of yours: give notify_url=, or notify_command=''"
        )
    return hook


def _with_options_of_s3(url: str, options: _Options) -> str:
    """A store's URL with what is configured for stores in S3; a folder's as it is."""
    if not url.startswith(SCHEME):
        return url
    keys = ("endpoint-url", "region", "profile", "sse", "sse-kms-key-id")
    return S3Options(*(options.of(key) for key in keys)).fold(url)


def _level_and_network(quality: str) -> tuple[QualityLevel, IntegerNetwork]:
    level = get_level(quality)
    return level, load_weights(level.weights)


def _silent(done: int, total: int) -> None:
    """Progress that nobody watches."""
