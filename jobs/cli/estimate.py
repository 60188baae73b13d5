"""`nst-batch estimate`, and what `submit` shows before it encrypts anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.cli.examples import examples
from jobs.cli.options import on_command_line, takes
from jobs.cli.screen import Screen, complain
from jobs.client.wording import many
from jobs.options import AUTO, EstimateOptions, SubmitCommand
from nst.errors import InputError

if TYPE_CHECKING:
    from jobs.client.auto import Choice
    from jobs.client.home import Home
    from jobs.client.run import Batch
    from jobs.execution.forecast import Estimate, OnePair
    from jobs.storage.records import PairRecord
    from nst.engines.rates import Rates

ADVICE = {
    "cores": "the cores",
    "pairs": "its few pairs, whose tasks do not fill the cores: more pairs at once, or fewer cores",
    "driver": "the driver: fewer cores per job",
    "network": "the network: larger nodes, or more bandwidth",
    "memory": "the nodes' memory: fewer cores per node",
}
"""By what limits a job, what to do about it."""
DEFAULT_PAIRS = 100


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
@takes(EstimateOptions)
def estimate(pairs: Path | None, options: EstimateOptions) -> None:
    """Say what a job would take, and where it stops scaling.

    Walks the job's task graph in virtual time, with measured rates. PAIRS is what `submit` takes,
    and is only listed; without it every pair has a style of its own. With --pairs, PAIRS is
    repeated or cut to that many.
    """
    from dataclasses import replace

    from jobs.client.home import Home
    from jobs.client.run import best_level, load_model, named
    from jobs.execution.forecast import Forecaster, Offer
    from jobs.execution.sharing import sharing

    home, auto = Home.default(), options.quality == AUTO
    if not auto and on_command_line("budget"):
        raise click.UsageError("--budget needs --quality auto")
    if auto and len(options.cores) != 1:
        raise InputError("--quality auto needs one number of --cores: each would get its own")
    rates = _rates_of(options.like, home) if options.like else None
    records = _records(pairs, options)
    offer = Offer(
        options.cores_per_node,
        options.bandwidth * 1e6,
        options.uplink * 1e6,
        options.core_price,
        options.memory_bandwidth * 1e9,
    )
    if auto:
        with Screen(errors=True).working("choosing a level") as working:
            choice = best_level(
                records, options, options.cores[0], offer, home, True, working, rates
            )
        say_choice(choice)
        options = replace(options, quality=choice.level.name)
    model = load_model(options, home)
    forecaster = Forecaster(model.plan, rates or model.engine.rates(), offer)
    records = sharing(records, model.plan.pairs_per_result)
    forecast = forecaster.estimate(records, options.cores)
    source = forecaster.rates
    if options.as_json:
        record = {
            "quality": model.level.name,
            "width": model.size.width,
            "height": model.size.height,
            **forecast.to_dict(),
            "rates": source.model_dump(include={"machine", "date", "command"}),
        }
        click.echo(json.dumps(record, indent=2))
        return
    click.echo(
        f"{many(forecast.pairs, 'pair')} at {named(model)}, {many(forecast.styles, 'style')}: "
        f"{forecast.work_core_hours:,.2f} core-hours"
    )
    click.echo(f"rates: {source.source}")
    _print_one_pair(forecast.one_pair)
    _print_table(forecast)


def say_choice(choice: Choice) -> None:
    """Say on standard error which level was chosen, and why."""
    click.echo(f"quality {choice.level.name}: {choice.reason}", err=True)


def print_dry_run(batch: Batch, options: SubmitCommand, url: str, cores: int) -> None:
    """Print what it would take to submit a batch to a store, and to compute it on some cores."""
    from jobs.client.run import named
    from jobs.client.watch import duration
    from jobs.execution.forecast import Forecaster, Offer
    from jobs.storage.store import address_of

    model = batch.model
    offer = Offer(cores_per_node=cores, core_price=options.core_price)
    forecaster = Forecaster(model.plan, model.engine.rates(), offer)
    forecast = forecaster.estimate(batch.records, [cores])
    (on,) = forecast.on
    wire, remote = forecast.wire, address_of(url).remote
    once = model.published.server_bundle.stat().st_size + model.plan.evaluation_key_bytes
    up_s, down_s = ((n / offer.uplink if remote else 0.0) for n in (wire.up + once, wire.down))
    if options.as_json:
        record = {
            "quality": model.level.name,
            "width": model.size.width,
            "height": model.size.height,
            "pairs": forecast.pairs,
            "styles": forecast.styles,
            "skipped": [{"name": s.name, "reason": s.reason} for s in batch.skipped],
            "cores": cores,
            "core_hours": on.core_hours,
            "wall_s": on.job_s,
            "upload_s": up_s,
            "download_s": down_s,
            "bytes_up": wire.up,
            "bytes_up_once": once,
            "bytes_down": wire.down,
            "memory_bytes": on.memory_bytes,
            "dollars": on.dollars,
            "core_price": options.core_price,
            "rates": forecaster.rates.model_dump(include={"machine", "date", "command"}),
        }
        click.echo(json.dumps(record, indent=2))
        return
    lines = {
        "pairs": f"{forecast.pairs:,} at {named(model)}, {many(forecast.styles, 'style')}; "
        f"{len(batch.skipped):,} skipped",
        "core-hours": f"{on.core_hours:,.3g}",
        "wall time": f"{duration(on.job_s)} on {many(cores, 'core')}",
        "bytes up": f"{wire.up:,}, and {once:,} of model and keys once"
        + (f"; {duration(up_s)} at {offer.uplink / 1e6:g} MB/s" if remote else ""),
        "bytes down": f"{wire.down:,}" + (f"; {duration(down_s)}" if remote else ""),
        "memory": size(on.memory_bytes),
        "cost": f"${on.dollars:,.2f} at ${options.core_price:g} per core-hour",
        "rates": forecaster.rates.source,
    }
    for label, text in lines.items():
        click.echo(f"{label:12} {text}")
    click.echo("a dry run: nothing was encrypted or uploaded")


def _records(pairs: Path | None, options: EstimateOptions) -> list[PairRecord]:
    from jobs.client.dry_run import records_of_files
    from jobs.client.pairs import find_pairs
    from jobs.execution.forecast import distinct_pairs, repeated

    if pairs is None:
        return distinct_pairs(DEFAULT_PAIRS if options.count is None else options.count)
    found, skipped = find_pairs(pairs, options.grid)
    for item in skipped:
        complain(f"skipped {item.name}: {item.reason}")
    records = records_of_files(found)
    return records if options.count is None else repeated(records, options.count)


LEAST_SECONDS = 1e-3
"""Of a task: clocks are set back, and stores lie."""


def _rates_of(job_id: str, home: Home) -> Rates:
    """The rates of a job that has run.

    Raises:
        InputError: if it has not run whole.
        CircuitError: if this machine does not have its model any more.
        StoreError: if its trace is damaged, or the store does not answer.
    """
    from jobs.client.session import Session
    from jobs.storage.records import read_trace
    from nst.engines import get_engine
    from nst.engines.cache import ModelCache

    local = home.job(job_id)
    # This machine's own plan: the store's says what the store likes.
    plan = ModelCache(home.models).open(local.model_id).plan.at(local.size.padded)
    trace = read_trace(Session.open(home, local.store).store, job_id)
    tasks = ((task.stage, max(task.end - task.start, LEAST_SECONDS)) for task in trace)
    return get_engine(plan.engine).rates().measured_by(plan.stages, tasks, f"job {job_id}")


def _print_one_pair(one: OnePair) -> None:
    from jobs.client.watch import duration

    click.echo(
        f"one pair: at least {duration(one.critical_path_s)} (critical path) on any number of "
        f"cores; more than {many(one.useful_cores, 'core')} are of no use to it"
    )
    for stage, seconds in one.path_s.items():
        tasks = many(one.tasks[stage], "task")
        click.echo(f"  {stage:12} {seconds:7.1f} s, {tasks} at the same time")
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
    line("pairs per night (8 h)", *(f"{x.pairs_a_night:,}" for x in on))
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
