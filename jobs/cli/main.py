"""The command line. Imports of heavy packages wait until a command needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.about import completion, version_option
from jobs.cli.common import (
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    exit_if,
    level_and_network,
    new_console,
    open_for_user,
)
from jobs.cli.config import config
from jobs.cli.configured import ConfiguredGroup, variable_of
from jobs.cli.doctor import doctor
from jobs.cli.estimate import (
    best_quality_for_files,
    cores_of,
    estimate,
    limit_options,
    print_dry_run,
    require_within_limit,
)
from jobs.cli.evaluate import evaluate, export
from jobs.cli.examples import examples
from jobs.cli.job import COMMANDS, UNREACHABLE, require_somebody_here, see_through
from jobs.cli.keys import Passphrases, keys
from jobs.cli.options import (
    actors_option,
    auto_quality_option,
    budget_option,
    cluster_options,
    fit_option,
    force_option,
    grid_option,
    notify_options,
    number_of_actors,
    quality_option,
    require_auto,
    size_option,
)
from jobs.cli.store import STORE_HELP, s3_options
from jobs.cli.train import train
from jobs.client.wording import many
from nst.errors import InputError, NstBatchError, StoreAddressError, StoreContentError

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.client.drivers import Place
    from jobs.client.home import Home
    from jobs.client.pairs import Skipped
    from jobs.client.preparation import PreparedPair
    from jobs.execution.notify import Hook
    from jobs.storage.s3_address import S3Options
    from nst.network.integers import IntegerNetwork
    from nst.network.levels import QualityLevel
    from nst.pictures.size import Size

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples" / "pairs"


class _Commands(ConfiguredGroup):
    """Prints errors as one line and turns them into exit codes."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            _end(error)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            _end(error)
            raise
        except UNREACHABLE as error:
            click.echo(f"error: {error}", err=True)
            wrong = isinstance(error, StoreAddressError | StoreContentError)
            ctx.exit(EXIT_USAGE if wrong else EXIT_UNREACHABLE)
        except NstBatchError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(EXIT_USAGE)


def _end(error: click.UsageError) -> None:
    """End with wrong usage in one line; a group without a command shows its help instead."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return
    path = error.ctx.command_path if error.ctx else "nst-batch"
    message = error.format_message().rstrip(".")
    message = f"{message[:1].lower()}{message[1:]}"
    if isinstance(error, click.BadParameter) and error.ctx and error.param:
        message = f"{variable_of(error.ctx, error.param)}{message}"
    click.echo(f"error: {message}; see: {path} --help", err=True)
    raise click.exceptions.Exit(EXIT_USAGE)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("demo", "submit ./pairs --quality low --out ./stylized", "submit --help"),
)
@version_option
def main() -> None:
    """Style transfer on encrypted pictures, as a batch job.

    Options that no flag gives are taken from the environment and from nst-batch.toml: see config.

    Exit codes: 0 all done, 1 some pairs failed, 2 wrong usage or input, 3 store or
    cluster out of reach.
    """


main.add_command(completion)
main.add_command(config)
main.add_command(doctor)
main.add_command(estimate)
main.add_command(evaluate)
main.add_command(export)
main.add_command(keys)
main.add_command(train)
for _command in COMMANDS:
    main.add_command(_command)


@main.command(
    epilog=examples(
        "submit ./pairs --quality low --dry-run",
        "submit ./pairs --quality auto --budget 8h --out ./stylized",
        "submit ./pairs --quality low --size 192x128 --out ./stylized",
        "submit ./pairs --store s3://bucket/prefix --profile studio --no-wait",
        "submit ./pairs --store s3://bucket/prefix --cluster http://head:8265",
    )
)
@click.argument("pairs", type=click.Path(path_type=Path))
@auto_quality_option
@budget_option
@size_option
@grid_option
@fit_option
@actors_option
@cluster_options
@notify_options
@click.option("--wait/--no-wait", default=True, show_default=True, help="Stay until it is done.")
@click.option("--out", type=click.Path(path_type=Path), help="Fetch the results into this folder.")
@click.option("--store", "store_url", help=f"{STORE_HELP}  [default: a folder of yours]")
@s3_options
@click.option("--keep-days", type=click.IntRange(min=1), help="When `prune` may delete the job.")
@limit_options
@force_option
def submit(
    pairs: Path,
    quality: str,
    budget: float,
    size: Size | None,
    grid: bool,
    fit: str,
    actors: int | None,
    place: Place | None,
    hook: Hook,
    wait: bool,
    out: Path | None,
    store_url: str | None,
    s3: S3Options,
    keep_days: int | None,
    dry_run: bool,
    as_json: bool,
    limit: float,
    yes: bool,
    core_price: float,
    force: bool,
) -> None:
    """Encrypt PAIRS and stylize them while encrypted.

    PAIRS is a folder with content/ and style/ matched by stem, or one sub-folder a pair, or a CSV
    file with columns content,style[,name].

    A cluster takes its credentials for the store from its own environment.
    """
    from jobs.client.drivers import Place
    from jobs.client.fetch import make_folder, refuse_overwriting
    from jobs.client.home import Home

    if out is not None and not wait:
        raise click.UsageError("--out needs --wait; later: nst-batch fetch JOB --out DIR")
    place = place or Place()
    if place.cluster and store_url is None:
        raise click.UsageError("--cluster needs --store: s3://bucket/prefix, or a shared folder")
    require_somebody_here(hook, place, wait)
    home, console = Home.default(), new_console()
    store_url = s3.fold(store_url or str(home.store))
    require_auto(quality)
    if as_json and not dry_run:
        raise click.UsageError("--json needs --dry-run")
    if quality == "auto":
        quality = best_quality_for_files(pairs, grid, place, actors, budget, store_url, size)
    level, network = level_and_network(quality)
    cores = cores_of(place, actors) if dry_run else 0
    prepared, skipped = _prepare(pairs, grid, fit, level, network, console, size)
    if dry_run:
        print_dry_run(
            level, network, prepared, skipped, cores, core_price, store_url, as_json, size
        )
        exit_if(bool(skipped))
        return
    require_within_limit(level, network, prepared, limit, yes, size)
    if out is not None:
        make_folder(out)
        refuse_overwriting(out, [pair.name for pair in prepared], force)
    _submit(
        home,
        store_url,
        level,
        network,
        prepared,
        skipped,
        console,
        actors,
        place,
        wait,
        out,
        keep_days,
        hook,
        size,
    )


def _submit(
    home: Home,
    store_url: str,
    level: QualityLevel,
    network: IntegerNetwork,
    prepared: list[PreparedPair],
    skipped: list[Skipped],
    console: Console,
    actors: int | None,
    place: Place,
    wait: bool,
    out: Path | None,
    keep_days: int | None = None,
    hook: Hook | None = None,
    canvas: Size | None = None,
) -> None:
    """Encrypt, start a driver, and with `wait` see it through; exits 1 if pairs failed."""
    from jobs.client import drivers
    from jobs.client import submit as jobs_submit

    store, passphrases = open_for_user(store_url), Passphrases()
    drivers.require_reachable(place)
    with console.status("building circuits and keys") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"encrypting picture {done} of {total}")

        ask = passphrases.under(status)
        book = jobs_submit.submit(
            home, store, level, network, prepared, skipped, progress, ask, keep_days, canvas
        )
    console.print(f"job {book.job_id}: {many(len(prepared), 'pair')} encrypted at {level.name}")
    hook = hook or drivers.NOBODY
    driver = drivers.start(home, store, book, number_of_actors(actors, place), place, hook)
    if not wait:
        console.print(f"running; see: nst-batch status {book.job_id}")
        exit_if(bool(skipped))
        return
    book = home.book(book.job_id)  # knows its driver now
    see_through(home, store, book, driver, console, out, passphrases, hook)


@main.command(
    epilog=examples(
        "preview ./pairs --quality low --out ./previews",
        "preview ./pairs --quality mid --size 768x512 --out ./previews",
        "preview ./pairs --grid --fit letterbox --out ./previews --force",
    )
)
@click.argument("pairs", type=click.Path(path_type=Path))
@quality_option
@size_option
@grid_option
@fit_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the PNGs.")
@force_option
def preview(
    pairs: Path,
    quality: str,
    size: Size | None,
    grid: bool,
    fit: str,
    out: Path,
    force: bool,
) -> None:
    """Show what the encrypted run of PAIRS will produce: the same integers, in the clear."""
    from jobs.client.facts import quality_fact
    from jobs.client.fetch import GALLERY, SHEET, make_folder, refuse_overwriting
    from jobs.client.gallery import Entry, Summary, write_contact_sheet, write_gallery
    from jobs.client.pictures import cut_out, write_png

    console = new_console()
    level, network = level_and_network(quality)
    prepared, skipped = _prepare(pairs, grid, fit, level, network, console, size)
    make_folder(out)
    refuse_overwriting(out, [pair.name for pair in prepared], force)
    entries = []
    for pair in prepared:
        result = pair.preview(network)
        content, result = (cut_out(picture, pair.box) for picture in (pair.content.rgb, result))
        write_png(result, out / f"{pair.name}.png", force)
        entries.append(Entry(pair.name, "succeeded", content, pair.style.rgb, result))
    entries += [Entry(s.name, "failed", None, None, None, s.reason) for s in skipped]
    summary = Summary("Previews, computed in the clear", (("quality", quality_fact(level, size)),))
    write_gallery(entries, summary, out / GALLERY)
    write_contact_sheet(entries, out / SHEET)
    console.print(f"{many(len(prepared), 'preview')} in {out}", highlight=False)
    console.print(f"gallery: {(out / GALLERY).resolve()}", highlight=False, soft_wrap=True)
    exit_if(bool(skipped))


@main.command(epilog=examples("demo", "demo --pairs 1 --out ./trial"))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Everything the demo makes: keys, store, pictures.",
)
@click.option(
    "--pairs",
    "count",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="How many of the bundled pairs.",
)
@actors_option
def demo(out: Path, count: int, actors: int | None) -> None:
    """Stylize bundled pairs at draft quality, encrypted, on this machine."""
    from jobs.client.drivers import Place
    from jobs.client.home import Home
    from jobs.client.pairs import find_pairs

    console, place = new_console(), Place()
    level, network = level_and_network("draft")
    pairs, skipped = find_pairs(EXAMPLES)
    console.print(
        f"{many(count, 'pair')} of {level.side} x {level.side} pixels: encrypted here, stylized "
        f"by {number_of_actors(actors, place)} Ray actors, which cannot decrypt, and decrypted "
        "here.",
        highlight=False,
    )
    from jobs.client.preparation import prepare

    prepared, more = prepare(pairs[:count], network, level.side, "crop")
    home = Home(out / "home")
    _submit(
        home,
        str(home.store),
        level,
        network,
        prepared,
        skipped + more,
        console,
        actors,
        place,
        True,
        out / "results",
    )


@main.group(epilog=examples("circuits inspect --quality low"))
def circuits() -> None:
    """Compiled circuits of the quality levels."""


@circuits.command("build", epilog=examples("circuits build --quality mid"))
@quality_option
@size_option
def circuits_build(quality: str, size: Size | None) -> None:
    """Compile the circuits of a level; done once for a width and kept."""
    from jobs.client.home import Home
    from nst.engines.concrete.circuits import build_level

    level, network = level_and_network(quality)
    folder, _ = build_level(level, network, Home.default().circuits, size)
    click.echo(f"circuits {folder.name} in {folder}")


@circuits.command(
    "inspect",
    epilog=examples("circuits inspect --quality low", "circuits inspect --quality low --json"),
)
@quality_option
@size_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def circuits_inspect(quality: str, size: Size | None, as_json: bool) -> None:
    """Show what the compiled circuits of a level cost."""
    import json

    from jobs.client.home import Home
    from nst.engines.concrete.circuits import build_level

    level, network = level_and_network(quality)
    _, plan = build_level(level, network, Home.default().circuits, size)
    summary = plan.summary()
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for key, value in summary.items():
        if key != "stages":
            form = {int: ",", float: ".4g"}.get(type(value), "")
            click.echo(f"{key:24} {value:{form}}")
    for stage in summary["stages"]:
        click.echo(
            f"  {stage['name']:12} {stage['rows']:4} rows {stage['pbs']:8,} PBS "
            f"{stage['operations']:.3g} operations"
        )


def _prepare(
    source: Path,
    grid: bool,
    fit: str,
    level: QualityLevel,
    network: IntegerNetwork,
    console: Console,
    canvas: Size | None,
) -> tuple[list[PreparedPair], list[Skipped]]:
    """Find and read pairs; prints what is skipped, raises if nothing is left."""
    from jobs.client.pairs import find_pairs
    from jobs.client.preparation import prepare

    pairs, skipped = find_pairs(source, grid)
    with console.status(f"reading {len(pairs)} pairs"):
        prepared, unreadable = prepare(
            pairs,
            network,
            level.side,
            fit,  # type: ignore[arg-type]
            canvas,
        )
    skipped = skipped + unreadable
    for item in skipped:
        click.echo(f"skipped {item.name}: {item.reason}", err=True)
    if not prepared:
        raise InputError(f"none of the {len(skipped)} pairs in {source} can be used; see above")
    return prepared, skipped
