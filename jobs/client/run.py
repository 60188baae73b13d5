"""The way of a job from a user's pairs to its driver, for the command line and for Python alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.client import drivers, lifecycle
from jobs.client.auto import Choice, choose
from jobs.client.drivers import Driver
from jobs.client.dry_run import core_hours, records_of_files, records_of_pictures
from jobs.client.home import Home, LocalJob
from jobs.client.offered import Service
from jobs.client.pairs import Pair, Skipped, find_contents, find_pairs, named_pairs
from jobs.client.preparation import PreparedPair, prepare, readable
from jobs.client.session import Session
from jobs.client.styles import LibraryStyle, open_style, picture_of, require_usable
from jobs.client.submit import Progress, submit
from jobs.client.wording import many
from jobs.execution.forecast import Offer
from jobs.execution.launch import require_reachable
from jobs.execution.notify import require_url
from jobs.execution.sharing import sharing
from jobs.options import (
    AUTO,
    PYTHON,
    BudgetOptions,
    BuildOptions,
    ModelOptions,
    RetryOptions,
    StyleOptions,
    SubmitOptions,
    Target,
)
from jobs.storage.records import PairRecord
from jobs.storage.store import address_of
from nst.engines.rates import Rates
from nst.errors import InputError
from nst.model import Model
from nst.network.levels import DEFAULT_ENGINE, SECURITY, QualityLevel, levels_of

Working = Callable[[str], None]
"""Told what is being done."""


def silent(what: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Batch:
    """Pairs that are ready to be submitted.

    Attributes:
        model: What they were prepared for.
        pairs: Those that can be used; none of a plan, which decodes no picture.
        records: The same as the job will have them.
        skipped: The others, with their reasons.
        choice: Why it is that level, if it was chosen.
        style: Of the library, if all pairs have that.
    """

    model: Model
    pairs: list[PreparedPair]
    records: list[PairRecord]
    skipped: list[Skipped]
    choice: Choice | None = None
    style: LibraryStyle | None = None

    def require_pairs(self) -> None:
        """Raise InputError if no pair can be used."""
        if not self.records:
            reason = self.skipped[0].reason if self.skipped else "there is none"
            raise InputError(f"no pair can be used: {reason}")

    def excess(self, limit: float) -> str:
        """What the job would take, if that is more core-hours than a limit; else nothing."""
        hours = core_hours(self.model, self.records)
        if hours <= limit:
            return ""
        what = f"{many(len(self.records), 'pair')} at {named(self.model)}"
        return f"{what}: about {hours:.3g} core-hours, more than the limit of {limit:g}"


def ready(
    source: Path | Iterable[Pair],
    options: SubmitOptions,
    home: Home,
    url: str,
    working: Working = silent,
    planned: bool = False,
) -> Batch:
    """Find pairs, choose the model, read and prepare the pictures.

    Args:
        source: A folder or CSV file, or pairs.
        options: Everything else.
        home: Where models are kept.
        url: The store that the job is for.
        working: Told what is being done.
        planned: Whether the job is only planned; see `readable`.

    Raises:
        InputError: if options contradict each other, or a file or a level cannot be used.
        CircuitError: if the model cannot be built.
    """
    if options.cluster and not options.store:
        raise InputError(
            "a cluster needs a store that it reaches: s3://bucket/prefix, or a shared folder"
        )
    if options.notify_url:
        require_url(options.notify_url)
    if options.model:
        _require_served(options)
    style = None
    if options.style:
        _require_one_style(options)
        style = open_style(home, options.style)
    if style and isinstance(source, Path):
        pairs, skipped = find_contents(source, picture_of(home, style.name))
    elif isinstance(source, Path):
        pairs, skipped = find_pairs(source, options.grid)
    else:
        pairs, skipped = named_pairs(source), []
    choice = None
    if options.quality == AUTO:
        cores, records = cores_of(options), records_of_files(pairs)
        remote = address_of(url).remote
        choice = best_level(records, options, cores, Offer(cores), home, remote, working)
        options = replace(options, quality=choice.level.name)
    if options.model:
        working(f"looking for model {options.model}")
    model = chosen_model(options, home, url)
    if style:
        require_usable(style, model, address_of(url).url)
    working(f"reading {many(len(pairs), 'pair')}")
    if planned:
        found, unreadable = readable(pairs)
        records = sharing(records_of_files(found), model.plan.pairs_per_result)
        return Batch(model, [], records, [*skipped, *unreadable], choice, style)
    prepared, unreadable = prepare(pairs, model, options.fit, home.scratch())
    records = records_of_pictures(prepared, model.plan.pairs_per_result)
    return Batch(model, prepared, records, [*skipped, *unreadable], choice, style)


def _require_one_style(options: SubmitOptions) -> None:
    """Raise InputError if options contradict that a style of the library is used."""
    for given, what in (
        (options.grid, "grid"),
        (options.fresh_key, "fresh-key"),
        (options.publishable, "publishable"),
        (options.quality == AUTO, "quality auto"),
    ):
        if given:
            raise InputError(
                f"a style of the library has a key set and a model already; leave out --{what}"
            )


def _require_served(options: SubmitOptions) -> None:
    """Raise InputError if options contradict that a service runs the job."""
    if options.cluster or options.notify_url or options.publishable:
        what = "cluster" if options.cluster else "notify-url" if options.notify_url else ""
        raise InputError(
            f"a service runs its models where and as it does; leave out --{what or 'publishable'}"
        )


def start(
    batch: Batch,
    options: SubmitOptions,
    session: Session,
    progress: Progress = lambda done, total: None,
) -> tuple[LocalJob, Driver]:
    """Encrypt a batch, upload it and start its driver.

    Raises:
        InputError: if the passphrase is wrong or missing.
        CircuitError: if model or keys cannot be made.
        StoreError: if the store cannot be written.
        ClusterError: if the cluster does not answer: before anything is encrypted.
    """
    target = options.target
    if not options.model:
        require_reachable(target)
    local = submit(
        session, batch.model, batch.pairs, batch.skipped, progress, options.fresh_key, batch.style
    )
    driver = drivers.start(
        session, local, target, target.actors(options.actors), options.notify_url
    )
    return session.home.job(local.job_id), driver


def go_on(session: Session, local: LocalJob, options: RetryOptions) -> tuple[int, Driver | None]:
    """Start another driver for what is left of a job, where it ran unless the options differ.

    Returns how many pairs are left, and the driver; none is started if nothing is left.

    Raises:
        InputError: if a driver is at work on it, or it was not uploaded to its end.
        ClusterError: if its cluster does not answer: before anything is changed.
    """
    if options.notify_url:
        require_url(options.notify_url)
    target = Target(local.cluster, options.cluster_python or local.cluster_python or PYTHON)
    if options.cluster is not None:
        if local.offer:
            raise InputError(f"job {local.job_id} is a service's; leave --cluster and --here out")
        target = options.target
    left = lifecycle.prepare_retry(session, local, options.failed, target)
    if not left:
        return 0, None
    actors = target.actors(options.actors)
    return left, drivers.start(session, local, target, actors, options.notify_url)


def chosen_model(options: SubmitOptions | StyleOptions, home: Home, url: str) -> Model:
    """A service's model if one is named, else one of the user's own.

    Args:
        options: Which.
        home: Where models are kept.
        url: The store, which is the service's if its model is named.

    Raises:
        InputError: if the service's store is not named; see `Service.model` and `Model.load`.
    """
    if not options.model:
        return load_model(options, home)
    if not options.store:
        raise InputError(
            "a service's model needs the service's --store: s3://bucket/prefix/customers/NAME, or "
            "a shared folder"
        )
    return Service.of(home, url).model(options.model, options.size, options.owner)


def load_model(options: ModelOptions, home: Home) -> Model:
    """The model of these options; see `Model.load` for errors."""
    security = options.security if isinstance(options, BuildOptions) else SECURITY
    publishable = isinstance(options, SubmitOptions) and options.publishable
    return Model.load(
        options.quality, home.models, options.size, options.engine, security, publishable
    )


def named(model: Model) -> str:
    """A model's level, with its size unless that is the level's own, and engine unless default."""
    size = "" if model.size == model.level.square else f", {model.size} pixels"
    engine = "" if model.engine.name == DEFAULT_ENGINE else f", {model.engine.name}"
    return model.level.name + size + engine


def cores_of(options: SubmitOptions) -> int:
    """Cores that a job would have.

    Raises:
        InputError: if only a cluster knows.
    """
    if options.cluster and options.actors is None:
        raise InputError(
            "how many cores a cluster gives is not known here; give a number with --actors"
        )
    return options.target.actors(options.actors)


def best_level(
    pairs: Sequence[PairRecord],
    options: BudgetOptions,
    cores: int,
    offer: Offer,
    home: Home,
    uploads: bool,
    working: Working = silent,
    rates: Rates | None = None,
) -> Choice:
    """The best level whose job fits the options' budget; see `choose`."""

    def model_of(level: QualityLevel) -> Model:
        working(f"building the model of {level.name}")
        return load_model(replace(options, quality=level.name), home)

    levels = levels_of(options.engine)
    return choose(pairs, levels, cores, options.budget, offer, model_of, uploads, rates)
