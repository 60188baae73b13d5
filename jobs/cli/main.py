"""The command line. Imports of heavy packages wait until a command needs them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.doctor import doctor
from jobs.cli.estimate import estimate, limit_options, print_dry_run, require_within_limit
from jobs.cli.evaluate import evaluate, export
from jobs.cli.keys import Passphrases, keys
from jobs.cli.options import fit_option, grid_option, quality_option
from jobs.cli.store import STORE_HELP, s3_options
from jobs.cli.train import train
from nst.errors import NstBatchError, StoreError

if TYPE_CHECKING:
    import subprocess

    from rich.console import Console

    from jobs.client.home import Home, JobBook
    from jobs.client.pairs import Skipped
    from jobs.client.preparation import PreparedPair
    from jobs.storage.s3_address import S3Options
    from jobs.storage.store import Store
    from nst.integer import IntegerNetwork
    from nst.levels import QualityLevel

EXIT_SOME_FAILED, EXIT_USAGE, EXIT_STORE = 1, 2, 3
EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples" / "pairs"


class _Commands(click.Group):
    """Prints named errors as one line and turns them into exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StoreError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(EXIT_STORE)
        except NstBatchError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(EXIT_USAGE)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nst-batch")
def main() -> None:
    """Style transfer on encrypted pictures, as a batch job.

    Exit codes: 0 all done, 1 some pairs failed, 2 wrong usage or input, 3 store out of reach.
    """


main.add_command(doctor)
main.add_command(estimate)
main.add_command(evaluate)
main.add_command(export)
main.add_command(keys)
main.add_command(train)

_force = click.option("--force", is_flag=True, help="Replace pictures in the output folder.")
_actors = click.option(
    "--actors",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default="all cores",
    help="Ray actors, one core each.",
)


@main.command()
@click.argument("pairs", type=click.Path(path_type=Path))
@quality_option
@grid_option
@fit_option
@_actors
@click.option("--wait/--no-wait", default=True, show_default=True, help="Stay until it is done.")
@click.option("--out", type=click.Path(path_type=Path), help="Fetch the results into this folder.")
@click.option("--store", "store_url", help=f"{STORE_HELP}  [default: a folder of yours]")
@s3_options
@limit_options
@_force
def submit(
    pairs: Path,
    quality: str,
    grid: bool,
    fit: str,
    actors: int,
    wait: bool,
    out: Path | None,
    store_url: str | None,
    s3: S3Options,
    dry_run: bool,
    limit: float,
    yes: bool,
    core_price: float,
    force: bool,
) -> None:
    """Encrypt PAIRS and stylize them while encrypted.

    PAIRS is a folder with content/ and style/ matched by stem, or one sub-folder a pair, or a CSV
    file with columns content,style[,name].

    \b
    Example: nst-batch submit ./pairs --quality low --dry-run
             nst-batch submit ./pairs --quality low --out ./stylized
             nst-batch submit ./pairs --store s3://bucket/prefix --profile studio --no-wait
    """
    from jobs.client.fetch import make_folder, refuse_overwriting
    from jobs.client.home import Home

    if out is not None and not wait:
        raise click.UsageError("--out needs --wait; later: nst-batch fetch JOB --out DIR")
    home, console = Home.default(), _console()
    store_url = s3.fold(store_url or str(home.store))
    level, network = _level(quality)
    prepared, skipped = _prepare(pairs, grid, fit, level, network, console)
    if dry_run:
        print_dry_run(level, network, prepared, skipped, actors, core_price)
        _exit(bool(skipped))
        return
    require_within_limit(level, network, prepared, limit, yes)
    if out is not None:
        make_folder(out)
        refuse_overwriting(out, [pair.name for pair in prepared], force)
    _submit(home, store_url, level, network, prepared, skipped, console, actors, wait, out)


def _submit(
    home: Home,
    store_url: str,
    level: QualityLevel,
    network: IntegerNetwork,
    prepared: list[PreparedPair],
    skipped: list[Skipped],
    console: Console,
    actors: int,
    wait: bool,
    out: Path | None,
) -> None:
    """Encrypt, start a driver, and with `wait` see it through; exits 1 if pairs failed."""
    from jobs.client import submit as jobs_submit

    store, passphrases = _open(store_url), Passphrases()
    with console.status("building circuits and keys") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"encrypting picture {done} of {total}")

        book = jobs_submit.submit(
            home, store, level, network, prepared, skipped, progress, passphrases.under(status)
        )
    console.print(f"job {book.job_id}: {len(prepared)} pairs encrypted at {level.name}")
    process = jobs_submit.start_driver(home, book, actors)
    if not wait:
        console.print(f"running; see: nst-batch status {book.job_id}")
        _exit(bool(skipped))
        return
    _see_through(home, store, book, process, console, out, passphrases)


@main.command()
@click.argument("job_id", metavar="JOB")
@_actors
@click.option("--out", type=click.Path(path_type=Path), help="Fetch the results into this folder.")
def resume(job_id: str, actors: int, out: Path | None) -> None:
    """Go on with a JOB whose driver is gone; finished pairs are not done again."""
    from jobs.client.home import Home
    from jobs.client.submit import start_driver
    from nst.client import KeyRing

    home, passphrases = Home.default(), Passphrases()
    book = home.book(job_id)
    if _alive(book.driver_pid):
        raise click.UsageError(f"job {job_id} is still running (process {book.driver_pid})")
    if out is not None:
        # Ask now for the passphrase that fetching will need: nobody may sit here when it ends.
        KeyRing(home.keys).secret(book.key_id, passphrases)
    process = start_driver(home, book, actors)
    _see_through(home, _open(book.store), book, process, _console(), out, passphrases)


def _see_through(
    home: Home,
    store: Store,
    book: JobBook,
    process: subprocess.Popen[bytes],
    console: Console,
    out: Path | None,
    passphrases: Passphrases,
) -> None:
    from jobs.client.watch import describe, duration, watch

    try:
        state = watch(store, book, console, lambda: process.poll() is None)
    except KeyboardInterrupt:
        console.print(
            f"\nthe job goes on; come back with: nst-batch status {book.job_id}, then "
            f"nst-batch fetch {book.job_id} --out DIR"
        )
        return
    if not state.finished:
        raise StoreError(
            f"the driver of job {book.job_id} stopped (see {home.driver_log(book.job_id)}); "
            f"go on with: nst-batch resume {book.job_id}"
        )
    if state.reason:
        raise StoreError(f"job {book.job_id} could not run: {state.reason}")
    took = duration(state.last_task - state.first_task)
    console.print(f"{describe(state, state.last_task)} in {took}", highlight=False)
    if out is None:
        console.print(f"fetch the pictures: nst-batch fetch {book.job_id} --out DIR")
        _exit(bool(state.pairs_failed or book.skipped))
    else:
        _fetch(home, store, book, out, True, console, passphrases)


@main.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def status(job_id: str | None, as_json: bool) -> None:
    """Show all jobs, or one JOB with its pairs."""
    import json
    import time

    from rich.table import Table
    from rich.text import Text

    from jobs.client.home import Home
    from jobs.client.watch import describe
    from jobs.storage import layout
    from jobs.storage.records import JobRecord, pair_states, read_marks, read_record, read_state

    home = Home.default()
    if job_id is None:
        books = home.books()
        stores = {url: _open(url) for url in {book.store for book in books}}
        states = [read_state(stores[book.store], book.job_id) for book in books]
        if as_json:
            rows = [
                {"job": b.job_id, "created": b.created, "quality": b.quality, **s.model_dump()}
                for b, s in zip(books, states, strict=True)
            ]
            click.echo(json.dumps(rows, indent=2))
            return
        table = Table("job", "created", "quality", "state", "progress")
        for book, state in zip(books, states, strict=True):
            shown = _shown_status(state.status, state.finished, book.driver_pid)
            table.add_row(
                book.job_id, book.created, book.quality, shown, describe(state, time.time())
            )
        _console().print(table)
        return
    book = home.book(job_id)
    store = _open(book.store)
    state = read_state(store, job_id)
    ended = read_marks(store, read_record(store, layout.job(job_id), JobRecord)).ended
    found = pair_states([pair.pair_id for pair in book.pairs], state, ended)
    pairs = [
        {
            "name": pair.name,
            "status": found[pair.pair_id].status,
            "reason": found[pair.pair_id].reason,
        }
        for pair in book.pairs
    ] + [{"name": s.name, "status": "skipped", "reason": s.reason} for s in book.skipped]
    if as_json:
        click.echo(json.dumps({"job": job_id, **state.model_dump(), "pairs": pairs}, indent=2))
        return
    console = _console()
    shown = _shown_status(state.status, state.finished, book.driver_pid)
    console.print(f"job {job_id} ({book.quality}): {shown}, {describe(state, time.time())}")
    if state.reason:
        console.print(state.reason, highlight=False, markup=False)
    table = Table("pair", "state", "reason")
    for row in pairs:
        table.add_row(Text(row["name"]), row["status"], Text(row["reason"]))
    console.print(table)


@main.command()
@click.argument("job_id", metavar="JOB")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the PNGs.")
@_force
def fetch(job_id: str, out: Path, force: bool) -> None:
    """Decrypt what is ready of JOB into PNG files and a gallery."""
    from jobs.client.home import Home

    home = Home.default()
    book = home.book(job_id)
    _fetch(home, _open(book.store), book, out, force, _console(), Passphrases())


def _fetch(
    home: Home,
    store: Store,
    book: JobBook,
    out: Path,
    force: bool,
    console: Console,
    passphrases: Passphrases,
) -> None:
    from jobs.client.fetch import fetch as fetch_job

    level, network = _level(book.quality)
    with console.status("decrypting") as status:
        report = fetch_job(home, store, book, level, network, out, force, passphrases.under(status))
    for name, reason in report.failed.items():
        console.print(f"{name}: {reason}", style="red", highlight=False, markup=False)
    if report.waiting:
        console.print(f"{len(report.waiting)} pairs are not done yet")
    console.print(f"{len(report.done)} pictures in {out}", highlight=False)
    console.print(f"gallery: {report.gallery.resolve()}", highlight=False, soft_wrap=True)
    _exit(bool(report.failed))


@main.command()
@click.argument("pairs", type=click.Path(path_type=Path))
@quality_option
@grid_option
@fit_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the PNGs.")
@_force
def preview(pairs: Path, quality: str, grid: bool, fit: str, out: Path, force: bool) -> None:
    """Show what the encrypted run of PAIRS will produce: the same integers, in the clear."""
    from jobs.client.fetch import GALLERY, SHEET, make_folder, refuse_overwriting
    from jobs.client.gallery import Entry, write_contact_sheet, write_gallery
    from jobs.client.pictures import write_png

    console = _console()
    level, network = _level(quality)
    prepared, skipped = _prepare(pairs, grid, fit, level, network, console)
    make_folder(out)
    refuse_overwriting(out, [pair.name for pair in prepared], force)
    entries = []
    for pair in prepared:
        result = pair.preview(network)
        write_png(result, pair.box, out / f"{pair.name}.png", force)
        entries.append(
            Entry(pair.name, "done", pair.content.rgb, pair.style.rgb, result, "preview")
        )
    entries += [Entry(s.name, "failed", None, None, None, s.reason) for s in skipped]
    write_gallery(entries, f"nst-batch preview, {quality}", out / GALLERY)
    write_contact_sheet(entries, out / SHEET)
    console.print(f"{len(prepared)} previews in {out}", highlight=False)
    console.print(f"gallery: {(out / GALLERY).resolve()}", highlight=False, soft_wrap=True)
    _exit(bool(skipped))


@main.command()
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
@_actors
def demo(out: Path, count: int, actors: int) -> None:
    """Stylize bundled pairs at draft quality, encrypted, on this machine."""
    from jobs.client.home import Home
    from jobs.client.pairs import find_pairs

    console = _console()
    level, network = _level("draft")
    pairs, skipped = find_pairs(EXAMPLES)
    console.print(
        f"{count} pictures of {level.size} x {level.size} pixels are encrypted here, stylized "
        f"by {actors} Ray actors that cannot decrypt them, and decrypted here.",
        highlight=False,
    )
    from jobs.client.preparation import prepare

    prepared, more = prepare(pairs[:count], network, level.size, "crop")
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
        True,
        out / "results",
    )


@main.group()
def circuits() -> None:
    """Compiled circuits of the quality levels."""


@circuits.command("build")
@quality_option
def circuits_build(quality: str) -> None:
    """Compile the circuits of a level; done once and kept."""
    from jobs.client.home import Home
    from nst.circuits import build

    level, network = _level(quality)
    folder = build(network, level.size, level.p_error, Home.default().circuits)
    click.echo(f"circuits {folder.name} in {folder}")


@circuits.command("inspect")
@quality_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def circuits_inspect(quality: str, as_json: bool) -> None:
    """Show what the compiled circuits of a level cost."""
    import json

    from jobs.client.home import Home
    from nst.circuits import build, load_plan

    level, network = _level(quality)
    plan = load_plan(build(network, level.size, level.p_error, Home.default().circuits))
    summary = plan.summary()
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for key, value in summary.items():
        if key != "stages":
            click.echo(f"{key:24} {value:,}" if isinstance(value, int) else f"{key:24} {value}")
    for stage in summary["stages"]:
        click.echo(
            f"  {stage['name']:12} {stage['rows']:4} rows {stage['pbs']:8,} PBS "
            f"{stage['operations']:.3g} operations"
        )


def _console() -> Console:
    from rich.console import Console

    return Console()


def _open(url: str) -> Store:
    """A store for somebody who waits for the answer."""
    from jobs.storage.store import FIRST_PATIENCE, open_store

    return open_store(url, FIRST_PATIENCE)


def _level(quality: str) -> tuple[QualityLevel, IntegerNetwork]:
    from nst.levels import get_level
    from nst.weights import load_weights

    level = get_level(quality)
    return level, load_weights(level.weights)


def _prepare(
    source: Path,
    grid: bool,
    fit: str,
    level: QualityLevel,
    network: IntegerNetwork,
    console: Console,
) -> tuple[list[PreparedPair], list[Skipped]]:
    """Find and read pairs; prints what is skipped, raises if nothing is left."""
    from jobs.client.pairs import find_pairs
    from jobs.client.preparation import prepare
    from nst.errors import InputError

    pairs, skipped = find_pairs(source, grid)
    with console.status(f"reading {len(pairs)} pairs"):
        prepared, unreadable = prepare(pairs, network, level.size, fit)  # type: ignore[arg-type]
    skipped = skipped + unreadable
    for item in skipped:
        click.echo(f"skipped {item.name}: {item.reason}", err=True)
    if not prepared:
        raise InputError(f"none of the {len(skipped)} pairs in {source} can be used; see above")
    return prepared, skipped


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but is not yet collected does not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return pid > 0 and fields[0] != "Z"


def _shown_status(recorded: str, finished: bool, pid: int) -> str:
    """The recorded status, unless the driver that should be working is gone."""
    return recorded if finished or _alive(pid) else f"{recorded}, driver gone: resume it"


def _exit(some_failed: bool) -> None:
    if some_failed:
        raise SystemExit(EXIT_SOME_FAILED)
