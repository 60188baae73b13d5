"""Commands for jobs that have been submitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.common import (
    EXIT_UNREACHABLE,
    exit_if,
    level_and_network,
    new_console,
    open_for_user,
)
from jobs.cli.examples import examples
from jobs.cli.keys import Passphrases
from jobs.cli.options import (
    actors_option,
    cluster_options,
    complete_job,
    force_option,
    notify_options,
    number_of_actors,
)
from jobs.client.wording import many
from nst.errors import ClusterError, InputError, StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.client.drivers import Driver, Place
    from jobs.client.home import Home, JobBook
    from jobs.execution.notify import Hook
    from jobs.storage.records import JobState
    from jobs.storage.store import Store

JOB = click.argument("job_id", metavar="JOB", shell_complete=complete_job)
OUT = click.option(
    "--out", type=click.Path(path_type=Path), help="Fetch the results into this folder."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")


def _opened(job_id: str) -> tuple[Home, Store, JobBook]:
    from jobs.client.home import Home

    home = Home.default()
    book = home.book(job_id)
    return home, open_for_user(book.store), book


def see_through(
    home: Home,
    store: Store,
    book: JobBook,
    driver: Driver,
    console: Console,
    out: Path | None,
    passphrases: Passphrases,
    hook: Hook | None = None,
) -> None:
    """Follow a job to its end and fetch its results; exits 1 unless all is done.

    The driver calls the hook. What it cannot do is done here: a command of the user's if it runs
    on a cluster, and to tell that it is gone.
    """
    from jobs.client.watch import describe, duration

    try:
        state = _watch(store, book, driver, console)
    except KeyboardInterrupt:
        _say_how_to_return(book)
        if hook and hook.command and book.cluster:
            click.echo("warning: --notify-command is not run then: nobody waits here", err=True)
        return
    if hook:
        _tell(hook, book, state)
    _require_end(book, state)
    took = duration(state.last_task - state.first_task)
    console.print(f"{describe(state, state.last_task)} in {took}", highlight=False)
    if state.reason:
        console.print(f"it stopped: {state.reason}", style="red", highlight=False, markup=False)
    if out is None:
        console.print(f"fetch the pictures: nst-batch fetch {book.job_id} --out DIR")
        exit_if(bool(book.skipped))
    else:
        fetch_pictures(home, store, book, out, True, console, passphrases)
    exit_if(state.status != "succeeded")


def require_somebody_here(hook: Hook, place: Place, wait: bool) -> None:
    """Raise click.UsageError if nobody on the user's machine will be there to run a command."""
    if hook.command and place.cluster and not wait:
        raise click.UsageError("--notify-command needs --wait with --cluster; or give --notify-url")


def _tell(hook: Hook, book: JobBook, state: JobState) -> None:
    """What a driver cannot tell; a hook that fails is a warning."""
    from jobs.execution.notify import Hook, message, notify

    if not state.finished:
        told = message(book.job_id, state, "stopped")
    elif book.cluster:
        hook, told = Hook(hook.command), message(book.job_id, state)
    else:
        return
    for problem in notify(hook, told):
        click.echo(f"warning: {problem}", err=True)


def _say_how_to_return(book: JobBook) -> None:
    """After Ctrl-C: the driver has a session of its own and did not get it."""
    click.echo(
        f"\nthe job goes on; come back with: nst-batch status {book.job_id} --watch, then "
        f"nst-batch fetch {book.job_id} --out DIR"
    )


def _watch(store: Store, book: JobBook, driver: Driver, console: Console) -> JobState:
    from jobs.client.lifecycle import at_work
    from jobs.client.watch import watch

    return watch(store, book, console, lambda state: at_work(store, book, state, driver))


def _require_end(book: JobBook, state: JobState) -> None:
    """End with the exit code for failed pairs if a job has no driver any more."""
    if not state.finished:
        click.echo(
            f"error: the driver of job {book.job_id} stopped (see nst-batch logs {book.job_id}); "
            f"go on with: nst-batch retry {book.job_id}",
            err=True,
        )
        exit_if(True)


@click.command("list", epilog=examples("list", "list --json"))
@JSON
def list_jobs(as_json: bool) -> None:
    """Show all jobs of this machine."""
    show_all(as_json)


def show_all(as_json: bool) -> None:
    """All jobs; exits 3 if the store of one does not answer."""
    import time

    from rich.table import Table

    from jobs.client.home import Home
    from jobs.client.watch import describe

    home = Home.default()
    stores: dict[str, Store | str] = {}
    rows: list[dict[str, Any]] = []
    table = Table("job", "created (UTC)", "quality", "state", "progress")
    for book in home.books():
        if book.store not in stores:
            try:
                stores[book.store] = open_for_user(book.store)
            except StoreError as error:
                stores[book.store] = str(error)
        store = stores[book.store]
        created = book.created[:16].replace("T", " ")
        row: dict[str, Any] = {
            "job": book.job_id,
            "created": book.created,
            "quality": book.quality,
        }
        if isinstance(store, str):
            row |= {"status": "unknown", "reason": store}
            table.add_row(book.job_id, created, book.quality, "unknown", "store out of reach")
        else:
            state, shown = _state_of(home, store, book)
            row |= state.model_dump()
            progress = describe(state, time.time())
            table.add_row(book.job_id, created, book.quality, shown, progress)
        rows.append(row)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        new_console().print(table)
    else:
        click.echo(f"no jobs yet in {home.root}; begin with: nst-batch submit PAIRS")
    for problem in stores.values():
        if isinstance(problem, str):
            click.echo(f"error: {problem}", err=True)
    if any(isinstance(problem, str) for problem in stores.values()):
        raise SystemExit(EXIT_UNREACHABLE)


def _state_of(home: Home, store: Store, book: JobBook) -> tuple[JobState, str]:
    """A job's state, and how to show it."""
    from jobs.client.drivers import driver_of
    from jobs.client.lifecycle import at_work, uploaded
    from jobs.storage.records import read_state

    state = read_state(store, book.job_id)
    if state.status == "submitted":
        if not uploaded(store, book):
            return state, f"not uploaded: nst-batch delete {book.job_id}"
        return state, f"submitted: nst-batch retry {book.job_id}"
    if state.finished or at_work(store, book, state, driver_of(home, book)):
        return state, state.status
    return state, f"{state.status}, driver gone: nst-batch retry {book.job_id}"


@click.command(epilog=examples("status", "status 0f3c9a --watch", "status 0f3c9a --json"))
@click.argument("job_id", metavar="[JOB]", required=False, shell_complete=complete_job)
@click.option("--watch", "watching", is_flag=True, help="Stay until JOB ends.")
@JSON
def status(job_id: str | None, watching: bool, as_json: bool) -> None:
    """Show all jobs, or one JOB with its pairs.

    Exits with 1 if pairs of JOB failed, or it was cancelled.
    """
    import time

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from jobs.client.drivers import driver_of
    from jobs.client.lifecycle import uploaded
    from jobs.client.watch import describe
    from jobs.storage.records import pair_states, read_job, read_marks

    if job_id is None:
        if watching:
            raise click.UsageError("--watch needs a JOB")
        show_all(as_json)
        return
    home, store, book = _opened(job_id)
    if watching:
        try:
            # JSON stands alone on standard output.
            screen = Console(stderr=True) if as_json else new_console()
            state = _watch(store, book, driver_of(home, book), screen)
        except KeyboardInterrupt:
            _say_how_to_return(book)
            return
        if not as_json:
            _require_end(book, state)
    state, shown = _state_of(home, store, book)
    ended = {}
    if uploaded(store, book):
        ended = read_marks(store, read_job(store, job_id)).ended
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
    else:
        now = time.time()
        screen = new_console()
        screen.print(f"job {job_id} ({book.quality}): {shown}, {describe(state, now)}")
        if state.reason:
            screen.print(state.reason, highlight=False, markup=False)
        table = Table("pair", "state", "reason")
        for row in pairs:
            table.add_row(Text(row["name"]), row["status"], Text(row["reason"]))
        screen.print(table)
    exit_if(any(p["status"] in ("failed", "cancelled", "skipped") for p in pairs))


@click.command(
    epilog=examples("logs 0f3c9a", "logs 0f3c9a --pair sea", "logs 0f3c9a --pair sea --json")
)
@JOB
@click.option("--pair", "name", help="What concerns this pair, and when its stages ran.")
@JSON
def logs(job_id: str, name: str | None, as_json: bool) -> None:
    """Show what the driver of JOB printed.

    The driver knows ids only; the names of pairs are added here.
    """
    from dataclasses import asdict

    from jobs.client.costs import read_trace
    from jobs.client.drivers import driver_of
    from jobs.client.home import Home
    from jobs.client.lifecycle import uploaded
    from jobs.client.pair_log import lines_of, pair_named, stages_of, with_names
    from jobs.storage.records import read_job

    home = Home.default()
    book = home.book(job_id)
    pair = None if name is None else pair_named(book, name)
    text = driver_of(home, book).logs()
    if pair is None:
        shown = with_names(text, book)
        if as_json:
            click.echo(json.dumps({"job": job_id, "lines": shown.splitlines()}, indent=2))
        else:
            click.echo(shown, nl=False)
        return
    lines = [with_names(line, book) for line in lines_of(text, pair)]
    store = open_for_user(book.store)
    stages = []
    if uploaded(store, book):
        job = read_job(store, job_id)
        stages = [*stages_of(read_trace(store, job_id), job, pair.pair_id)]
    if as_json:
        runs = [asdict(run) for run in stages]
        record = {"job": job_id, "pair": name, "lines": lines, "stages": runs}
        click.echo(json.dumps(record, indent=2))
        return
    found = lines + [run.line() for run in stages]
    click.echo("\n".join(found) if found else f"pair {name}: nothing yet")


@click.command(epilog=examples("cancel 0f3c9a"))
@JOB
def cancel(job_id: str) -> None:
    """Stop JOB; pairs that are done stay, the others can be taken up with retry."""
    from jobs.client import lifecycle

    home, store, book = _opened(job_id)
    screen = new_console()
    with screen.status("waiting for the driver to stop"):
        state = lifecycle.cancel(home, store, book)
    screen.print(
        f"job {job_id}: {state.status}, {state.pairs_done}/{len(book.pairs)} pairs done",
        highlight=False,
    )


@click.command(
    epilog=examples(
        "retry 0f3c9a", "retry 0f3c9a --failed --out ./stylized", "retry 0f3c9a --here --no-wait"
    )
)
@JOB
@click.option("--failed", is_flag=True, help="Pairs that failed, too.")
@actors_option
@cluster_options
@notify_options
@click.option("--wait/--no-wait", default=True, show_default=True, help="Stay until it is done.")
@OUT
def retry(
    job_id: str,
    failed: bool,
    actors: int | None,
    place: Place | None,
    hook: Hook,
    wait: bool,
    out: Path | None,
) -> None:
    """Go on with JOB, whose driver is gone or which was cancelled; what is done stays.

    It runs where it ran before, unless --cluster or --here says otherwise.
    """
    from jobs.client import drivers, lifecycle
    from nst.engines.concrete.client import KeyRing

    if out is not None and not wait:
        raise click.UsageError("--out needs --wait; later: nst-batch fetch JOB --out DIR")
    home, store, book = _opened(job_id)
    passphrases, screen = Passphrases(), new_console()
    if out is not None:
        # Ask now for the passphrase that fetching will need: nobody may sit here when it ends.
        KeyRing(home.keys).secret(book.key_id, passphrases)
    place = place or drivers.Place(book.cluster, book.cluster_python or drivers.PYTHON)
    require_somebody_here(hook, place, wait)
    left = lifecycle.prepare_retry(home, store, book, failed)
    if not left:
        state, shown = _state_of(home, store, book)
        hint = f"; failed pairs: nst-batch retry {job_id} --failed" if state.pairs_failed else ""
        screen.print(f"job {job_id}: nothing is left to do{hint}")
        exit_if(shown != "succeeded")
        return
    driver = drivers.start(home, store, book, number_of_actors(actors, place), place, hook)
    if not wait:
        screen.print(f"job {job_id}: {many(left, 'pair')} to do; see: nst-batch status {job_id}")
        return
    see_through(home, store, home.book(job_id), driver, screen, out, passphrases, hook)


@click.command(epilog=examples("delete 0f3c9a", "delete 0f3c9a --yes"))
@JOB
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(job_id: str, yes: bool) -> None:
    """Delete JOB: ciphertexts, records, and what this machine knows of it.

    Its circuits and evaluation keys go from the store with the last job that uses them. Keys on
    this machine and pictures that were fetched stay.
    """
    from jobs.cli.keys import is_terminal
    from jobs.client import lifecycle

    home, store, book = _opened(job_id)
    lifecycle.require_idle(home, store, book, "cancel it first")
    if not yes:
        if not is_terminal():
            raise InputError(f"job {job_id}: nobody can confirm it here; delete it with --yes")
        click.confirm(f"Delete job {job_id} with its {many(len(book.pairs), 'pair')}?", abort=True)
    count = lifecycle.delete(home, store, book)
    new_console().print(f"job {job_id}: {many(count, 'object')} deleted", highlight=False)


@click.command(epilog=examples("prune", "prune --json"))
@JSON
def prune(as_json: bool) -> None:
    """Delete jobs of this machine that were to be kept for some days only (`--keep-days`).

    Those at work are left. Exits with 1 if a job whose time is over is still there.
    """
    from dataclasses import asdict

    from jobs.client import retention
    from jobs.client.home import Home

    console, report = new_console(), retention.prune(Home.default(), open_for_user)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
        exit_if(bool(report.left))
        return
    for job_id, count in report.deleted.items():
        console.print(f"job {job_id}: {many(count, 'object')} deleted", highlight=False)
    for job_id, reason in report.left.items():
        console.print(f"job {job_id}: {reason}", style="red", highlight=False, markup=False)
    if not report.deleted and not report.left:
        console.print("nothing to prune")
    exit_if(bool(report.left))


@click.command(
    epilog=examples("fetch 0f3c9a --out ./stylized", "fetch 0f3c9a --out ./stylized --force")
)
@JOB
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the PNGs.")
@force_option
def fetch(job_id: str, out: Path, force: bool) -> None:
    """Decrypt what is ready of JOB into PNG files and a gallery."""
    home, store, book = _opened(job_id)
    fetch_pictures(home, store, book, out, force, new_console(), Passphrases())


def fetch_pictures(
    home: Home,
    store: Store,
    book: JobBook,
    out: Path,
    force: bool,
    console: Console,
    passphrases: Passphrases,
) -> None:
    """Decrypt what is ready of a job; exits 1 if pairs failed."""
    from jobs.client.fetch import fetch as fetch_job

    level, network = level_and_network(book.quality)
    with console.status("decrypting") as status:
        report = fetch_job(home, store, book, level, network, out, force, passphrases.under(status))
    for name, reason in report.failed.items():
        console.print(f"{name}: {reason}", style="red", highlight=False, markup=False)
    if report.waiting:
        console.print(f"not done yet: {many(len(report.waiting), 'pair')}")
    console.print(f"{many(len(report.done), 'picture')} in {out}", highlight=False)
    console.print(f"gallery: {report.gallery.resolve()}", highlight=False, soft_wrap=True)
    exit_if(bool(report.failed))


COMMANDS = (cancel, delete, fetch, list_jobs, logs, prune, retry, status)
UNREACHABLE = (ClusterError, StoreError)
"""What ends a command with exit code 3."""
