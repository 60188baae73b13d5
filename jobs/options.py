"""What commands and the Python API can be told, each option in one place.

`jobs.fields` says what a field's metadata means; `jobs.configuration` reads files and variables.
Help shows the fields of the last base class first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.fields import option, options_of
from jobs.storage.store import StoreOptions
from nst.errors import InputError
from nst.folders import PASSPHRASE_VARIABLE
from nst.machine import cores
from nst.network.levels import DEFAULT_ENGINE, LEVELS, SECURITY, find_level
from nst.pictures.size import Size
from nst.training.halves import DECIDING, Half
from nst.training.options import RunOptions, TrainOptions, Workers

AUTO = "auto"
"""In place of a level's name: the best that a budget allows."""
PYTHON = "python"
"""A cluster's interpreter, if none is named: the one that its nodes find by themselves."""
MOST_CORES = 20_000
HOUR = 3600.0


def _engine(name: object) -> str:
    # Engines import NumPy, which no help needs.
    from nst.engines import get_engine

    return get_engine(str(name)).name


def _engines() -> Iterable[str]:
    from nst.engines import ENGINES

    return ENGINES


def _level(name: object) -> str:
    return find_level(str(name)).name


def _level_or_auto(name: object) -> str:
    return AUTO if name == AUTO else _level(name)


def _size(value: object) -> Size:
    return Size(*value).checked() if isinstance(value, tuple) else Size.parse(str(value))


def _span(text: object) -> float:
    """Seconds out of 8h, 90min or 1h30m."""
    parts = re.fullmatch(
        r"(?:([\d.]+) *h)? *(?:([\d.]+) *m(?:in)?)? *(?:([\d.]+) *s)?", str(text).strip()
    )
    try:
        given = [float(part or 0) for part in parts.groups()] if parts else [0.0] * 3
    except ValueError:
        given = [0.0] * 3
    seconds = HOUR * given[0] + 60 * given[1] + given[2]
    if not seconds > 0:
        raise InputError(f"{text!r} is no span of time such as 8h or 90min")
    return seconds


def _counts(text: object) -> tuple[int, ...]:
    """Numbers of cores in a list with commas."""
    try:
        counts = tuple(int(part) for part in str(text).split(","))
    except ValueError:
        counts = ()
    if not counts or not all(1 <= count <= MOST_CORES for count in counts):
        raise InputError(
            f"{text!r} is no list of numbers from 1 to {MOST_CORES:,}; write it like 16,96,1024"
        )
    return counts


def _levels() -> Iterable[str]:
    return LEVELS


def _levels_and_auto() -> Iterable[str]:
    return (*LEVELS, AUTO)


SIDES = ", ".join(f"{level.name} {level.side}" for level in LEVELS.values()) + " pixels"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model."""

    quality: str = option(
        f"{SIDES}.", "low", short="-q", metavar="LEVEL", parse=_level, complete=_levels
    )
    size: Size | None = option(
        "Size of contents and results in pixels.",
        None,
        parse=_size,
        metavar="WIDTHxHEIGHT",
        shown="a square of the level's size",
    )
    engine: str = option(
        "What computes on ciphertexts: concrete rounds like its preview, ckks costs hundreds of "
        "times less.",
        DEFAULT_ENGINE,
        metavar="NAME",
        parse=_engine,
        complete=_engines,
    )


@dataclass(frozen=True, kw_only=True)
class BuildOptions(ModelOptions):
    """Which model, and how its circuits are built."""

    security: Literal[128, 132] = option(
        "Bits of security of the encryption; 132 takes a little longer.", SECURITY
    )


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(BuildOptions):
    """Which model, or how long it may take."""

    quality: str = option(
        f"{SIDES}; auto: the best that --budget allows.",
        "low",
        short="-q",
        metavar="LEVEL",
        parse=_level_or_auto,
        complete=_levels_and_auto,
    )
    budget: float = option(
        "With --quality auto: how long the job may take, as 8h or 90min.",
        8 * HOUR,
        parse=_span,
        above=0,
        metavar="TIME",
        shown="8h",
    )


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Which pairs of the pictures that are found."""

    grid: bool = option("Combine every content with every style.", False)


@dataclass(frozen=True, kw_only=True)
class FitOptions(GridOptions):
    """Which pairs, and how their contents are brought to the size of the result."""

    fit: Literal["crop", "letterbox"] = option("How contents of other proportions fit.", "crop")


@dataclass(frozen=True, kw_only=True)
class ActorOptions:
    """How many actors compute."""

    actors: int | None = option(
        "Ray actors, one core each.",
        None,
        least=1,
        shown="all cores, or all CPUs of the cluster",
    )


_MODEL: dict[str, Any] = {
    "help": "Model of the service whose store --store is, in place of one of yours; see models.",
    "default": "",
    "metavar": "NAME",
}
_OWNER: dict[str, Any] = {
    "help": "Fingerprint of the service's owner, as the owner told it to you.",
    "default": "",
    "metavar": "FINGERPRINT",
    "shown": "whoever you met there first",
}
_CLUSTER: dict[str, Any] = {
    "help": "Run on the Ray cluster at http://host:8265.",
    "default": None,
    "metavar": "ADDRESS",
}
_PYTHON: dict[str, Any] = {
    "help": "Interpreter of the cluster that has this package.",
    "default": None,
    "metavar": "PATH",
    "shown": "python",
}


@dataclass(frozen=True)
class Target:
    """Where the driver of a job runs.

    Attributes:
        cluster: Address of a cluster's Jobs API, empty for this machine.
        python: The cluster's interpreter that has this package.
    """

    cluster: str = ""
    python: str = PYTHON

    def actors(self, asked: int | None) -> int:
        """How many actors to start: all cores here; on a cluster, 0 leaves it to the driver."""
        return asked or (0 if self.cluster else cores())


@dataclass(frozen=True, kw_only=True)
class TargetOptions(ActorOptions):
    """Where a job runs, and a webhook for its end."""

    cluster: str | None = option(**_CLUSTER)
    cluster_python: str | None = option(**_PYTHON)
    notify_url: str = option(
        "Post job, state and counts to this address at the end.", "", metavar="URL", private=True
    )

    @property
    def target(self) -> Target:
        """This machine unless a cluster is named."""
        return Target(self.cluster or "", self.cluster_python or PYTHON)


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(StoreOptions, TargetOptions, FitOptions, BudgetOptions):
    """What a job is made with, whoever submits it."""

    store: str | None = option(
        "Folder or s3://bucket/prefix for ciphertexts and job records.",
        None,
        shown="a folder of yours",
    )
    model: str = option(**_MODEL)
    owner: str = option(**_OWNER)
    style: str = option(
        "Style of the library for all contents of PAIRS; see styles.", "", metavar="NAME"
    )
    limit: float = option(
        "Core-hours up to which a job is submitted without asking.", 24.0, least=0
    )
    fresh_key: bool = option("Make a key set for this job alone; deleted with the job.", False)
    publishable: bool = option(
        "Results that may be published: exact circuits, several times slower, and a key set for "
        "this job alone; fetch deletes the job from the store.",
        False,
        once=True,
    )


@dataclass(frozen=True, kw_only=True)
class ForceOptions:
    """What a folder of results may lose."""

    force: bool = option("Replace pictures in the output folder.", False, once=True)


@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """Whether a command stays until a job ends."""

    wait: bool = option("Stay until the job ends.", True)
    out: Path | None = option("Fetch the results into this folder.", None)


@dataclass(frozen=True, kw_only=True)
class PriceOptions:
    """What cores cost."""

    core_price: float = option("Dollars per core-hour.", 0.04, least=0)


@dataclass(frozen=True, kw_only=True)
class JsonOptions:
    """How a command answers."""

    as_json: bool = option("Machine-readable.", False, name="json", once=True)


@dataclass(frozen=True, kw_only=True)
class SubmitCommand(ForceOptions, PriceOptions, WaitOptions, SubmitOptions):
    """`submit`: a job's options, and those of one call."""

    dry_run: bool = option("Say what the job would take; encrypt nothing.", False, once=True)
    as_json: bool = option("With --dry-run: machine-readable.", False, name="json", once=True)
    yes: bool = option("Do not ask about a job above --limit, or after --sample.", False, once=True)
    sample: int | None = option(
        "With --model: first so many pairs by the service's smallest model, to be looked at.",
        None,
        least=1,
        once=True,
        shown="none",
    )


@dataclass(frozen=True, kw_only=True)
class RetryOptions(TargetOptions):
    """How another driver goes on with a job: where it ran, unless this call says otherwise."""

    cluster: str | None = option(**_CLUSTER, once=True)
    cluster_python: str | None = option(**_PYTHON, once=True)
    failed: bool = option("Compute pairs that failed, too.", False, once=True)


@dataclass(frozen=True, kw_only=True)
class RetryCommand(WaitOptions, RetryOptions):
    """`retry`."""


@dataclass(frozen=True, kw_only=True)
class FetchOptions(ForceOptions):
    """`fetch`: where results go."""

    out: Path = option("Folder for the PNGs.")


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(FetchOptions, FitOptions, ModelOptions):
    """`preview`."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions(ActorOptions):
    """`demo`."""

    out: Path = option(
        "Folder for all that the demo makes: keys, store, pictures.", Path("demo-out"), own=True
    )
    count: int = option("How many of the bundled pairs.", 2, name="pairs", least=1)


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(JsonOptions, PriceOptions, GridOptions, BudgetOptions):
    """`estimate`."""

    count: int | None = option(
        "How many pairs.",
        None,
        name="pairs",
        least=1,
        most=100_000,
        shown="those of PAIRS, else 100",
    )
    cores: tuple[int, ...] = option(
        "Numbers of cores to compare.",
        (16, 96, 1024),
        parse=_counts,
        metavar="LIST",
        shown="16,96,1024",
    )
    cores_per_node: int = option("Cores of a node.", 16, least=1)
    bandwidth: float = option("MB/s of a node: to other nodes and to the store.", 1250.0, above=0)
    memory_bandwidth: float = option(
        "GB/s of a node's memory, which its cores share; doctor measures it.",
        230.0,
        above=0,
        shown="230, assumed",
    )
    uplink: float = option("MB/s between you and the store.", 12.5, above=0)
    like: str | None = option("Take stage times from a job that has run.", None, metavar="JOB")


@dataclass(frozen=True, kw_only=True)
class StyleOptions(StoreOptions, BuildOptions):
    """`styles add`: which model will compute a style, and in which store it is."""

    store: str | None = option(
        "Folder or s3://bucket/prefix for ciphertexts and job records.",
        None,
        shown="a folder of yours",
    )
    model: str = option(**_MODEL)
    owner: str = option(**_OWNER)


@dataclass(frozen=True, kw_only=True)
class ServiceStoreOptions(StoreOptions):
    """The store of a service."""

    store: str = option("The service's store: a folder or s3://bucket/prefix.")


@dataclass(frozen=True, kw_only=True)
class PrivateOptions(ServiceStoreOptions):
    """Where an owner keeps what customers must not have."""

    private: str | None = option(
        "Where server bundles are: a folder or s3://bucket/prefix that no customer reads.",
        None,
        shown="the data directory",
    )


@dataclass(frozen=True, kw_only=True)
class PublishOptions(PrivateOptions, ModelOptions):
    """`publish`."""

    name: str | None = option(
        "What customers call it.", None, metavar="NAME", shown="engine and level", once=True
    )
    price: str = option("What a pair costs, in your words.", "", metavar="TEXT")
    withdraw: str = option(
        "Take the offer of this name out of the store instead.", "", metavar="NAME", once=True
    )


@dataclass(frozen=True, kw_only=True)
class ModelsOptions(JsonOptions, ServiceStoreOptions):
    """`models`."""

    owner: str = option(**_OWNER)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ActorOptions, PrivateOptions):
    """`serve`."""

    owner: str = option(
        "Fingerprint of the owner whose models are served.",
        "",
        metavar="FINGERPRINT",
        shown="that of this data directory",
    )
    cluster: str | None = option(**_CLUSTER)
    cluster_python: str | None = option(**_PYTHON)
    at_once: int = option("Jobs at a time; actors are shared among them.", 1, least=1)
    turn: float = option(
        "How long a job runs before it makes room for another customer's, as 10min.",
        600.0,
        parse=_span,
        above=0,
        metavar="TIME",
        shown="10min",
    )
    most_pairs: int = option("Pairs of a job, at most.", 10_000, least=1)
    daily_core_hours: float = option(
        "Core-hours per customer and day (UTC); jobs beyond wait for the next. 0 is no limit.",
        0.0,
        least=0,
    )
    port: int | None = option(
        "Answer /healthz and /metrics on this port of the loopback interface.",
        None,
        least=0,
        most=65535,
        shown="nowhere",
    )
    once: bool = option("End when nothing is left to do.", False, once=True)

    @property
    def target(self) -> Target:
        """Where drivers run."""
        return Target(self.cluster or "", self.cluster_python or PYTHON)


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(JsonOptions, StoreOptions, ModelOptions):
    """`doctor`."""

    actors: int = option("Ray actors at the same time.", cores(), least=1, shown="all cores")
    cluster: str = option("Ray cluster to check, as for submit.", "", metavar="ADDRESS")
    store: tuple[str, ...] = option(
        "Folder or s3://bucket/prefix to check; repeatable.", (), shown="the store of submit"
    )


@dataclass(frozen=True, kw_only=True)
class KeyOptions(BuildOptions):
    """`keys create`."""

    passphrase: bool = option(
        f"Encrypt the secret key under a passphrase (asked for, or {PASSPHRASE_VARIABLE}).",
        False,
        once=True,
    )


@dataclass(frozen=True, kw_only=True)
class InspectOptions(JsonOptions, BuildOptions):
    """`circuits inspect`."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand(Workers, TrainOptions, RunOptions):
    """`train`."""

    quality: str = option("Decides the size.", "low", short="-q", metavar="LEVEL", parse=_level)
    architecture: str = option(
        "Sizes that differ from those of --init, or of the level, as JSON.", "{}", metavar="JSON"
    )
    cluster: str | None = option(
        "Train on a running Ray cluster, `auto` on one of its nodes; all must see the folders.",
        None,
        metavar="ADDRESS",
        own=True,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(FitOptions, ModelOptions):
    """`evaluate`."""

    content_dir: Path | None = option("Instead of PAIRS: photographs of the training.", None)
    style_dir: Path | None = option("With --content-dir: paintings of the training.", None)
    strong_dir: Path | None = option(
        "With --content-dir: styles that nothing was trained on, instead of --style-dir.", None
    )
    half: Half = option(
        "Which half of the strong styles: one to choose weights by, one for figures to report.",
        DECIDING,
    )
    count: int = option("How many fixed pairs of held-out pictures of these folders.", 63, least=1)
    vgg: Path = option("VGG16 or VGG19 weights.")
    weights: Path | None = option("Weights to measure instead of the level's own.", None)
    runs: int = option(
        "How often each pair is computed with the circuits' noise.",
        1,
        name="simulate",
        metavar="RUNS",
        least=0,
    )
    p_error: float | None = option(
        "Error probability of one PBS in the simulation, of engine concrete.",
        None,
        above=0,
        below=1,
        shown="the level's",
    )
    results: Path | None = option("Folder written by fetch: measure its pictures, too.", None)
    record: str | None = option(
        "Write all figures to this file; - is standard output.", None, name="json", once=True
    )
    out: Path | None = option("Folder for the contact sheet.", None, own=True)
    magnify: int = option("Pixels of the sheet per pixel, each way.", 2, least=1, most=8)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """`export`."""

    quality: str = option(
        "Level that these weights are for.",
        short="-q",
        metavar="LEVEL",
        parse=_level,
        complete=_levels,
    )
    out: Path = option("Destination .safetensors.", own=True)
    data: str | None = option(
        "Description of the training pictures.", None, shown="that of the weights' card"
    )
    content_dir: Path | None = option(
        "Photographs of the training, for weights of engine ckks: see --style-dir.", None
    )
    style_dir: Path | None = option(
        "Paintings of the training: held-out ones show how large values become.", None
    )
    budget_pbs: float = option(
        "Most PBS per pixel of output, style branch included; of engine concrete.", 22.0, above=0
    )
    strength: float = option(
        "Less than 1 gives back content for style, see evaluate; it costs nothing.",
        1.0,
        above=0,
        most=2,
    )
    octaves: float | None = option(
        "How far the client brings the contrast of a result's finest octaves to its style's.",
        None,
        least=0,
        most=1,
        shown="that of the weights or of the run",
    )
    lattice: float | None = option(
        "How much the client takes out of what repeats from cell to cell of a result.",
        None,
        least=0,
        most=1,
        shown="that of the weights, 0 of a run",
    )


STORE_FIELDS = tuple(options_of(StoreOptions))

COMMANDS: dict[str, type] = {
    "circuits build": BuildOptions,
    "circuits inspect": InspectOptions,
    "demo": DemoOptions,
    "doctor": DoctorOptions,
    "estimate": EstimateOptions,
    "evaluate": EvaluateOptions,
    "export": ExportOptions,
    "fetch": FetchOptions,
    "keys create": KeyOptions,
    "models": ModelsOptions,
    "preview": PreviewOptions,
    "publish": PublishOptions,
    "retry": RetryCommand,
    "serve": ServeOptions,
    "styles add": StyleOptions,
    "submit": SubmitCommand,
    "train": TrainCommand,
}
"""The commands that files and variables configure, and their options."""
