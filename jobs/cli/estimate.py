"""`nst-batch estimate`, and what `submit` shows and asks before it encrypts anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.examples import examples
from jobs.cli.options import (
    auto_quality_option,
    budget_option,
    grid_option,
    require_auto,
    size_option,
)
from jobs.client.wording import many
from nst.errors import InputError

if TYPE_CHECKING:
    from jobs.client.drivers import Place
    from jobs.client.pairs import Skipped
    from jobs.client.preparation import PreparedPair
    from jobs.execution.forecast import Estimate, Offer, OnePair
    from jobs.execution.stage_times import StageTimes
    from jobs.storage.records import PairRecord
    from nst.pictures.size import Size
    from nst.network.integers import IntegerNetwork
    from nst.network.levels import QualityLevel
    from nst.engines.concrete.plan import CircuitPlan

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

MOST_CORES = 20_000
LIMIT = 24.0
ADVICE = {
    "cores": "the cores",
    "pairs": "its few pairs, whose rows do not fill the cores: more pairs at once, or fewer cores",
    "driver": "the driver: fewer cores a job",
    "network": "the network: larger nodes, or more bandwidth",
}
"""By what limits a job, what to do about it."""


def _all_of(*options: Decorator) -> Decorator:
    """Several options as one decorator, in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


core_price_option = click.option(
    "--core-price",
    type=click.FloatRange(min=0),
    default=0.04,
    show_default=True,
    help="Dollars for an hour of a core.",
)
limit_options = _all_of(
    click.option("--dry-run", is_flag=True, help="Say what it would take; encrypt nothing."),
    click.option("--json", "as_json", is_flag=True, help="With --dry-run: machine-readable."),
    click.option(
        "--limit",
        type=click.FloatRange(min=0),
        default=LIMIT,
        show_default=True,
        help="Core-hours above which to ask first.",
    ),
    click.option("--yes", is_flag=True, help="Do not ask."),
    core_price_option,
)


def _counts(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    """Numbers of cores in a list with commas."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or not all(1 <= count <= MOST_CORES for count in counts):
        raise InputError(
            f"--cores {text!r} is no list of numbers from 1 to {MOST_CORES:,}; "
            "write it like 16,96,1024"
        )
    return counts


def _positive(_: click.Context, parameter: click.Parameter, value: float) -> float:
    if not value > 0:
        raise InputError(f"{parameter.opts[0]} {value:g} is not above 0")
    return value


def _count(_: click.Context, __: click.Parameter, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise InputError(f"--pairs {value} is not above 0")
    return value


@click.command(
    epilog=examples(
        "estimate --quality low --pairs 1000 --cores 16,96,1024",
        "estimate ./pairs --grid --cores 96 --core-price 0.03",
        "estimate ./pairs --quality auto --budget 8h --cores 96",
        "estimate --quality mid --size 768x512 --pairs 10",
        "estimate --like 0f3c9a --pairs 500 --json",
    )
)
@click.argument("pairs", type=click.Path(path_type=Path), required=False)
@auto_quality_option
@budget_option
@size_option
@grid_option
@click.option(
    "--pairs",
    "count",
    type=int,
    callback=_count,
    help="How many pairs.  [default: those of PAIRS, else 100]",
)
@click.option(
    "--cores", default="16,96,1024", show_default=True, callback=_counts, help="Cores to compare."
)
@click.option("--cores-per-node", type=click.IntRange(min=1), default=16, show_default=True)
@core_price_option
@click.option(
    "--bandwidth",
    type=float,
    default=1250.0,
    show_default=True,
    callback=_positive,
    help="MB/s of a node: to other nodes and to the store.",
)
@click.option(
    "--uplink",
    type=float,
    default=12.5,
    show_default=True,
    callback=_positive,
    help="MB/s between you and the store.",
)
@click.option("--like", "job_id", metavar="JOB", help="Take stage times from a job you have run.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def estimate(
    pairs: Path | None,
    quality: str,
    budget: float,
    size: Size | None,
    grid: bool,
    count: int | None,
    cores: list[int],
    cores_per_node: int,
    core_price: float,
    bandwidth: float,
    uplink: float,
    job_id: str | None,
    as_json: bool,
) -> None:
    """Say what a job would take, and where it stops scaling.

    Walks the job's task graph in virtual time, with measured stage times. PAIRS is what `submit`
    takes, and is only listed; without it every pair has a style of its own. With --pairs, PAIRS
    is repeated or cut to that many.
    """
    import json

    from jobs.client.auto import AUTO
    from jobs.execution.forecast import Forecaster, Offer
    from nst.network.levels import get_level
    from nst.network.weights import load_weights

    times = _times(job_id)
    offer = Offer(cores_per_node, bandwidth * 1e6, uplink * 1e6, core_price)
    require_auto(quality)
    if quality == AUTO:
        if len(cores) != 1:
            raise InputError("--quality auto needs one number of --cores: each would get its own")
        records = _records(pairs, grid, count)
        quality = best_quality(records, cores[0], budget, times, offer, True, size)
    level = get_level(quality)
    plan, _ = _built(level, load_weights(level.weights), size)
    forecaster = Forecaster(plan, times, offer)
    if count is not None:
        forecaster.require_few(count)
    forecast = forecaster.estimate(_records(pairs, grid, count), cores)
    if as_json:
        source = times.model_dump(include={"machine", "date", "command"})
        sides = {"width": level.canvas(size).width, "height": level.canvas(size).height}
        record = {"quality": quality, **sides, **forecast.to_dict(), "stage_times": source}
        click.echo(json.dumps(record, indent=2))
        return
    click.echo(
        f"{many(forecast.pairs, 'pair')} at {_level_at(level, size)}, "
        f"{many(forecast.styles, 'style')}: "
        f"{forecast.pbs:,} PBS, "
        f"{forecast.work_core_hours:,.2f} core-hours"
    )
    click.echo(f"stage times: {_source(times)}")
    _print_one_pair(forecast.one_pair)
    _print_table(forecast)


def best_quality(
    records: list[PairRecord],
    cores: int,
    budget: float,
    times: StageTimes,
    offer: Offer,
    uploads: bool,
    canvas: Size | None = None,
) -> str:
    """Name of the best level whose job fits `budget` seconds; says on standard error why it is.

    Raises:
        InputError: if none fits.
    """
    from rich.console import Console

    from jobs.client.auto import choose, hours
    from nst.network.weights import load_weights

    with Console(stderr=True).status("compiling circuits") as status:

        def plan_of(level: QualityLevel) -> CircuitPlan:
            status.update(f"compiling circuits of {level.name}")
            return _built(level, load_weights(level.weights), canvas)[0]

        choice = choose(records, cores, budget, times, offer, plan_of, uploads)
    why = f"about {hours(choice.seconds)} of {hours(budget)} on {many(cores, 'core')}"
    if choice.better:
        why += f"; {choice.better[0].name} would take {hours(choice.better[1])}"
    click.echo(f"quality {choice.level.name}: {why}", err=True)
    return choice.level.name


def best_quality_for_files(
    pairs: Path,
    grid: bool,
    place: Place | None,
    actors: int | None,
    budget: float,
    store: str,
    canvas: Size | None,
) -> str:
    """The same for what `submit` is given; see `best_quality`."""
    from jobs.client.dry_run import records_of_files
    from jobs.client.pairs import find_pairs
    from jobs.execution.forecast import Offer
    from jobs.execution.stage_times import read_times
    from jobs.storage.s3_address import SCHEME

    cores = cores_of(place, actors)
    records = records_of_files(find_pairs(pairs, grid)[0])
    remote = store.startswith(SCHEME)
    return best_quality(records, cores, budget, read_times(), Offer(cores), remote, canvas)


def cores_of(place: Place | None, actors: int | None) -> int:
    """Cores that a job would have.

    Raises:
        InputError: if only a cluster knows.
    """
    from jobs.client.drivers import Place

    place = place or Place()
    if place.cluster and actors is None:
        raise InputError("how many cores a cluster gives is not known here; say it with --actors")
    return place.actors(actors)


def require_within_limit(
    level: QualityLevel,
    network: IntegerNetwork,
    prepared: list[PreparedPair],
    limit: float,
    yes: bool,
    canvas: Size | None = None,
) -> None:
    """Ask whether to submit these pairs if they take more core-hours than `limit`.

    Raises:
        InputError: if the answer is no, or nobody is there to give one.
    """
    from jobs.client.dry_run import core_hours, records_of_pictures
    from jobs.execution.stage_times import read_times

    if yes:
        return
    plan, _ = _built(level, network, canvas)
    hours = core_hours(plan, read_times(), records_of_pictures(prepared))
    if hours <= limit:
        return
    pairs = f"{many(len(prepared), 'pair')} at {_level_at(level, canvas)}"
    what = f"{pairs}: about {hours:.3g} core-hours"
    try:
        agreed = click.confirm(f"{what}, more than the limit of {limit:g}. Submit them?", err=True)
    except click.Abort as error:
        click.echo(err=True)
        raise InputError(
            f"{what}, more than the limit of {limit:g}: allow them with --yes or --limit"
        ) from error
    if not agreed:
        raise InputError("nothing was submitted")


def print_dry_run(
    level: QualityLevel,
    network: IntegerNetwork,
    prepared: list[PreparedPair],
    skipped: list[Skipped],
    actors: int,
    core_price: float,
    store: str,
    as_json: bool,
    canvas: Size | None = None,
) -> None:
    """Print what submitting these pairs would take on so many actors, of this machine or not."""
    import json

    from jobs.client.dry_run import records_of_pictures
    from jobs.client.watch import duration
    from jobs.execution.forecast import Forecaster, Offer
    from jobs.execution.stage_times import read_times
    from jobs.storage.s3_address import SCHEME

    plan, once = _built(level, network, canvas)
    times = read_times()
    offer = Offer(cores_per_node=actors, core_price=core_price)
    forecast = Forecaster(plan, times, offer).estimate(records_of_pictures(prepared), [actors])
    (on,) = forecast.on
    wire = forecast.wire
    remote = store.startswith(SCHEME)
    up_s, down_s = ((n / offer.uplink if remote else 0.0) for n in (wire.up + once, wire.down))
    if as_json:
        record = {
            "quality": level.name,
            "width": level.canvas(canvas).width,
            "height": level.canvas(canvas).height,
            "pairs": forecast.pairs,
            "styles": forecast.styles,
            "skipped": [{"name": s.name, "reason": s.reason} for s in skipped],
            "pbs": forecast.pbs,
            "cores": actors,
            "core_hours": on.core_hours,
            "wall_s": on.job_s,
            "upload_s": up_s,
            "download_s": down_s,
            "bytes_up": wire.up,
            "bytes_up_once": once,
            "bytes_down": wire.down,
            "memory_bytes": on.memory_bytes,
            "dollars": on.dollars,
            "core_price": core_price,
            "stage_times": times.model_dump(include={"machine", "date", "command"}),
        }
        click.echo(json.dumps(record, indent=2))
        return
    lines = {
        "pairs": f"{forecast.pairs:,} at {_level_at(level, canvas)}, "
        f"{many(forecast.styles, 'style')}; "
        f"{len(skipped):,} skipped",
        "PBS": f"{forecast.pbs:,}",
        "core-hours": f"{on.core_hours:,.3g}",
        "wall time": f"{duration(on.job_s)} on {many(actors, 'core')}",
        "bytes up": f"{wire.up:,}, and {once:,} of circuits and keys once"
        + (f"; {duration(up_s)} at {offer.uplink / 1e6:g} MB/s" if remote else ""),
        "bytes down": f"{wire.down:,}" + (f"; {duration(down_s)}" if remote else ""),
        "memory": size(on.memory_bytes),
        "cost": f"${on.dollars:,.2f} at ${core_price:g} an hour of a core",
        "stage times": _source(times),
    }
    for label, text in lines.items():
        click.echo(f"{label:12} {text}")
    click.echo("a dry run: nothing was encrypted or uploaded")


def _built(
    level: QualityLevel, network: IntegerNetwork, canvas: Size | None
) -> tuple[CircuitPlan, int]:
    """Circuits of a level, compiled if need be, and the bytes that a store needs of them once."""
    from jobs.client.home import Home
    from nst.engines.concrete.circuits import SERVER_FILE, build_level

    folder, plan = build_level(level, network, Home.default().circuits, canvas)
    return plan, (folder / SERVER_FILE).stat().st_size + plan.evaluation_key_bytes


def _records(pairs: Path | None, grid: bool, count: int | None) -> list[PairRecord]:
    from jobs.client.dry_run import records_of_files
    from jobs.client.pairs import find_pairs
    from jobs.execution.forecast import distinct_pairs, repeated

    if pairs is None:
        return distinct_pairs(100 if count is None else count)
    found, skipped = find_pairs(pairs, grid)
    for item in skipped:
        click.echo(f"skipped {item.name}: {item.reason}", err=True)
    records = records_of_files(found)
    return records if count is None else repeated(records, count)


def _times(job_id: str | None) -> StageTimes:
    """Shipped stage times, or those of a job of the user's."""
    import json

    from jobs.client.home import Home
    from jobs.execution.loading import read_plan
    from jobs.execution.stage_times import read_times
    from jobs.storage import layout
    from jobs.storage.records import TaskTrace
    from jobs.storage.store import FIRST_PATIENCE, open_store

    times = read_times()
    if job_id is None:
        return times
    book = Home.default().book(job_id)
    store = open_store(book.store, FIRST_PATIENCE)
    trace = [TaskTrace(**entry) for entry in json.loads(store.read(layout.trace(job_id)))]
    return times.measured_by(read_plan(store, book.model_id), trace, f"job {job_id}")


def _source(times: StageTimes) -> str:
    return ", ".join(x for x in (times.machine, times.date[:10], times.command) if x)


def _level_at(level: QualityLevel, canvas: Size | None) -> str:
    """A level's name, with the size that was asked for if one was."""
    return level.name if canvas is None else f"{level.name}, {canvas} pixels"


def _print_one_pair(one: OnePair) -> None:
    from jobs.client.watch import duration

    click.echo(
        f"one pair: at least {duration(one.critical_path_s)} (critical path) on any number of "
        f"cores; more than {many(one.useful_cores, 'core')} are of no use to it"
    )
    for stage, seconds in one.path_s.items():
        click.echo(
            f"  {stage:12} {seconds:7.1f} s, {many(one.rows[stage], 'row')} at the same time"
        )
    click.echo(
        f"  halving the tasks of {one.longest} would make it {duration(one.halved_s)}, "
        "with twice as many of them at the same time"
    )


def _print_table(forecast: Estimate) -> None:
    from jobs.client.watch import duration

    up, down = forecast.wire.up, forecast.wire.down
    click.echo(f"client to store {size(up)}, store to client {size(down)}")

    def line(label: str, *cells: str) -> None:
        click.echo(f"{label:24}" + "".join(f"{cell:>16}" for cell in cells))

    on = forecast.on
    line("cores", *(f"{x.cores:,}" for x in on))
    line("one pair", *(duration(x.pair_s) for x in on))
    line("  with upload, download", *(duration(x.pair_at_client_s) for x in on))
    line(many(forecast.pairs, "pair"), *(duration(x.job_s) for x in on))
    line("pairs a night (8 h)", *(f"{x.pairs_a_night:,}" for x in on))
    line("core-hours paid for", *(f"{x.core_hours:,.2f}" for x in on))
    line("  of them used", *(f"{x.utilization:.0%}" for x in on))
    line("dollars", *(f"{x.dollars:,.2f}" for x in on))
    line("memory", *(size(x.memory_bytes) for x in on))
    line("between nodes", *(size(x.bytes_between_nodes) for x in on))
    for each in on:
        click.echo(f"limited on {many(each.cores, 'core')} by {ADVICE[each.limit]}")


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"
