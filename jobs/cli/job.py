"""Commands for jobs that have been submitted."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.examples import examples
from jobs.cli.options import complete_job, here_option, json_option, on_command_line, takes
from jobs.cli.screen import EXIT_UNREACHABLE, Screen, complain, exit_if, is_terminal
from jobs.client.wording import many
from jobs.options import FetchOptions, RetryCommand, WaitOptions
from nst.errors import InputError, StoreError
from nst.plain import plain

if TYPE_CHECKING:
    from jobs.client.drivers import Driver
    from jobs.client.home import LocalJob
    from jobs.client.session import Session
    from jobs.storage.records import JobState

MOST_SHOWN = 100
"""Pairs of a job that are shown in a terminal, those that need attention first."""
JOB = click.argument("job_id", metavar="JOB", shell_complete=complete_job)


def _opened(job_id: str, screen: Screen) -> tuple[Session, LocalJob]:
    from jobs.client.home import Home
    from jobs.client.session import Session

    home = Home.default()
    local = home.job(job_id)
    return Session.open(home, local.store, screen.passphrase), local


def out_of(options: WaitOptions) -> Path | None:
    """Where results go at the end of a command: nowhere if it does not stay until then.

    Raises:
        click.UsageError: if this call names a folder and does not stay.
    """
    if options.wait:
        return options.out
    if on_command_line("out"):
        raise click.UsageError("--out needs --wait; later: nst-batch fetch JOB --out DIR")
    return None


def follow(
    session: Session, local: LocalJob, driver: Driver, screen: Screen, out: Path | None
) -> None:
    """Watch a job to its end and fetch its results; exits 1 unless all is done."""
    from jobs.client.watch import describe, duration

    try:
        state = _watch(session, local, driver, screen)
    except KeyboardInterrupt:
        _say_how_to_return(local)
        return
    _require_end(local, state)
    took = duration(state.last_task - state.first_task)
    screen.say(f"{describe(state, state.last_task)} in {took}")
    if state.reason:
        screen.say(f"it stopped: {state.reason}", style="red")
    if out is None:
        screen.say(f"fetch the pictures: nst-batch fetch {local.job_id} --out DIR")
        exit_if(bool(local.skipped))
    else:
        _fetch(session, local, out, True, screen)
    exit_if(state.status != "succeeded")


def _say_how_to_return(local: LocalJob) -> None:
    """After Ctrl-C: the driver has a session of its own and did not get it."""
    click.echo(
        f"\nthe job goes on; come back with: nst-batch status {local.job_id} --watch, then "
        f"nst-batch fetch {local.job_id} --out DIR"
    )


def _watch(session: Session, local: LocalJob, driver: Driver, screen: Screen) -> JobState:
    from jobs.client.lifecycle import at_work
    from jobs.client.watch import watch

    store = session.store
    return watch(store, local, screen.console, lambda state: at_work(store, local, state, driver))


def _require_end(local: LocalJob, state: JobState) -> None:
    """End with the exit code for failed pairs if a job has no driver any more."""
    if not state.finished:
        click.echo(
            f"error: the driver of job {local.job_id} stopped (see nst-batch logs {local.job_id}); "
            f"go on with: nst-batch retry {local.job_id}",
            err=True,
        )
        exit_if(True)


@click.command("list", epilog=examples("list", "list --json"))
@json_option
def list_jobs(as_json: bool) -> None:
    """Show all jobs of this machine."""
    _list(as_json)


def _list(as_json: bool) -> None:
    """Show all jobs; exits 3 if the store of one does not answer, else 2 if one is damaged."""
    from rich.table import Table
    from rich.text import Text

    from jobs.client.home import Home
    from jobs.client.session import Session
    from jobs.client.watch import describe

    home, screen = Home.default(), Screen()
    sessions: dict[str, Session] = {}
    away: dict[str, StoreError] = {}
    problems: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    table = Table("job", "created (UTC)", "quality", "state", "progress")
    for local in home.jobs():
        row = {"job": local.job_id, "created": local.created, "quality": local.quality}
        created = local.created[:16].replace("T", " ")
        try:
            if local.store in away:
                raise away[local.store]
            if local.store not in sessions:
                sessions[local.store] = Session.open(home, local.store)
            state, shown = _state_of(sessions[local.store], local)
            progress = describe(state, time.time())
            rows.append({**row, **state.model_dump()})
        except StoreError as error:
            problems[str(error)] = error.exit_code
            rows.append({**row, "status": "unknown", "reason": str(error)})
            shown, progress = "unknown", "damaged in the store"
            if error.exit_code == EXIT_UNREACHABLE:
                away[local.store], progress = error, "store out of reach"
        cells = local.job_id, created, local.quality, shown, progress
        table.add_row(*(Text(plain(cell)) for cell in cells))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        screen.console.print(table)
    else:
        click.echo(f"no jobs yet in {home.root}; begin with: nst-batch submit PAIRS")
    for problem in problems:
        complain(f"error: {problem}")
    if problems:
        raise SystemExit(max(problems.values()))


def _state_of(session: Session, local: LocalJob) -> tuple[JobState, str]:
    """A job's state, and how to show it."""
    from jobs.client.drivers import driver_of
    from jobs.client.lifecycle import at_work, uploaded
    from jobs.storage.records import read_state

    state = read_state(session.store, local.job_id, len(local.pairs))
    if state.status == "submitted":
        if not uploaded(session.store, local):
            return state, f"not uploaded: nst-batch delete {local.job_id}"
        return state, f"submitted: nst-batch retry {local.job_id}"
    if state.finished or at_work(session.store, local, state, driver_of(session, local)):
        return state, state.status
    return state, f"{state.status}, driver gone: nst-batch retry {local.job_id}"


@click.command(epilog=examples("status", "status 0f3c9a --watch", "status 0f3c9a --json"))
@click.argument("job_id", metavar="[JOB]", required=False, shell_complete=complete_job)
@click.option("--watch", "watching", is_flag=True, help="Stay until JOB ends.")
@json_option
def status(job_id: str | None, watching: bool, as_json: bool) -> None:
    """Show all jobs, or one JOB with its pairs.

    Exits with 1 if pairs of JOB failed, or it was cancelled.
    """
    if job_id is None:
        if watching:
            raise click.UsageError("--watch needs a JOB")
        _list(as_json)
        return
    # JSON stands alone on standard output.
    screen = Screen(errors=as_json)
    session, local = _opened(job_id, screen)
    if watching and not _watched(session, local, screen, as_json):
        return
    state, shown = _state_of(session, local)
    pairs = _pairs(session, local, state)
    if as_json:
        click.echo(json.dumps({"job": job_id, **state.model_dump(), "pairs": pairs}, indent=2))
    else:
        _show(local, state, shown, pairs, screen)
    exit_if(any(p["status"] in ("failed", "cancelled", "skipped") for p in pairs))


def _watched(session: Session, local: LocalJob, screen: Screen, as_json: bool) -> bool:
    """Stay until a job ends; False if the user does not. Exits 1 if its driver is gone."""
    from jobs.client.drivers import driver_of

    try:
        state = _watch(session, local, driver_of(session, local), screen)
    except KeyboardInterrupt:
        _say_how_to_return(local)
        return False
    if not as_json:
        _require_end(local, state)
    return True


def _pairs(session: Session, local: LocalJob, state: JobState) -> list[dict[str, str]]:
    """Name, state and reason of each pair of a job, those that were skipped among them."""
    from jobs.client.lifecycle import uploaded
    from jobs.storage.records import pair_states, read_job, read_marks

    ended = {}
    if uploaded(session.store, local):
        job = read_job(session.store, local.job_id, len(local.pairs))
        ended = read_marks(session.store, job).ended
    found = pair_states([pair.pair_id for pair in local.pairs], state, ended)
    known = [(pair.name, found[pair.pair_id]) for pair in local.pairs]
    rows = [{"name": name, "status": s.status, "reason": s.reason} for name, s in known]
    skipped = [{"name": s.name, "status": "skipped", "reason": s.reason} for s in local.skipped]
    return rows + skipped


def _show(
    local: LocalJob, state: JobState, shown: str, pairs: list[dict[str, str]], screen: Screen
) -> None:
    from rich.table import Table
    from rich.text import Text

    from jobs.client.watch import describe

    screen.say(f"job {local.job_id} ({local.quality}): {shown}, {describe(state, time.time())}")
    if state.reason:
        screen.say(state.reason)
    table = Table("pair", "state", "reason")
    rows = pairs
    if len(pairs) > MOST_SHOWN:
        rows = sorted(pairs, key=lambda row: row["status"] not in ("failed", "skipped"))
    for row in rows[:MOST_SHOWN]:
        table.add_row(*(Text(plain(row[cell])) for cell in ("name", "status", "reason")))
    screen.console.print(table)
    if len(pairs) > MOST_SHOWN:
        screen.say(f"{MOST_SHOWN} of {len(pairs):,} pairs; status {local.job_id} --json has all")


@click.command(
    epilog=examples("logs 0f3c9a", "logs 0f3c9a --pair sea", "logs 0f3c9a --pair sea --json")
)
@JOB
@click.option("--pair", "name", help="What concerns this pair, and when its stages ran.")
@json_option
def logs(job_id: str, name: str | None, as_json: bool) -> None:
    """Show what the driver of JOB printed.

    The driver knows ids only; the names of pairs are added here.
    """
    from jobs.client.drivers import driver_of
    from jobs.client.home import Home
    from jobs.client.lifecycle import uploaded
    from jobs.client.pair_log import lines_of, pair_named, stages_of, with_names
    from jobs.storage.records import read_job, read_trace

    home = Home.default()
    local = home.job(job_id)
    pair = None if name is None else pair_named(local, name)
    text = driver_of(_opened(job_id, Screen())[0], local).logs()
    if pair is None:
        shown = with_names(text, local)
        if as_json:
            click.echo(json.dumps({"job": job_id, "lines": shown.splitlines()}, indent=2))
        else:
            click.echo(shown, nl=False)
        return
    lines = [with_names(line, local) for line in lines_of(text, pair)]
    store, stages = _opened(job_id, Screen())[0].store, []
    if uploaded(store, local):
        stages = [
            *stages_of(
                read_trace(store, job_id), read_job(store, job_id, len(local.pairs)), pair.pair_id
            )
        ]
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
    """Stop JOB; pairs that are done stay, and retry goes on with the others."""
    from jobs.client import lifecycle

    screen = Screen()
    session, local = _opened(job_id, screen)
    with screen.working("waiting for the driver to stop"):
        state = lifecycle.cancel(session, local)
    screen.say(f"job {job_id}: {state.status}, {state.pairs_done}/{len(local.pairs)} pairs done")


@click.command(
    epilog=examples(
        "retry 0f3c9a", "retry 0f3c9a --failed --out ./stylized", "retry 0f3c9a --here --no-wait"
    )
)
@JOB
@takes(RetryCommand)
@here_option
def retry(job_id: str, options: RetryCommand) -> None:
    """Go on with JOB, whose driver is gone or which was cancelled; what is done stays.

    It runs where it ran before, unless --cluster or --here says otherwise.
    """
    from jobs.client.run import go_on

    out, screen = out_of(options), Screen()
    session, local = _opened(job_id, screen)
    if out is not None:
        # Asked for now: the user may be gone when the job ends.
        session.ring.secret(local.key_id, screen.passphrase)
    left, driver = go_on(session, local, options)
    if driver is None:
        state, shown = _state_of(session, local)
        hint = f"; failed pairs: nst-batch retry {job_id} --failed" if state.pairs_failed else ""
        screen.say(f"job {job_id}: nothing is left to do{hint}")
        exit_if(shown != "succeeded")
    elif options.wait:
        follow(session, session.home.job(job_id), driver, screen, out)
    else:
        screen.say(f"job {job_id}: {many(left, 'pair')} to do; see: nst-batch status {job_id}")


@click.command(epilog=examples("delete 0f3c9a", "delete 0f3c9a --yes"))
@JOB
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(job_id: str, yes: bool) -> None:
    """Delete JOB: ciphertexts, records, and what this machine knows of it.

    Its model and evaluation keys go from the store with the last job that uses them. Keys on this
    machine and pictures that were fetched stay.
    """
    from jobs.client import lifecycle
    from jobs.client.home import DamagedJobError, Home

    screen = Screen()
    try:
        session, local = _opened(job_id, screen)
    except DamagedJobError as error:
        screen.say(str(error))
        _confirm(f"Delete what this machine has of job {job_id}?", job_id, yes)
        Home.default().forget(job_id)
        screen.say(f"job {job_id}: deleted here; what it has in a store, if anything, stays")
        return
    lifecycle.require_idle(session, local, "cancel it first")
    _confirm(f"Delete job {job_id} with its {many(len(local.pairs), 'pair')}?", job_id, yes)
    count = lifecycle.delete(session, local)
    screen.say(f"job {job_id}: {many(count, 'object')} deleted")


def _confirm(question: str, job_id: str, yes: bool) -> None:
    """Ask before something of a job is deleted, unless told not to."""
    if yes:
        return
    if not is_terminal():
        raise InputError(f"job {job_id}: this is no terminal to ask at; delete it with --yes")
    click.confirm(question, abort=True)


@click.command(
    epilog=examples("fetch 0f3c9a --out ./stylized", "fetch 0f3c9a --out ./stylized --force")
)
@JOB
@takes(FetchOptions)
def fetch(job_id: str, options: FetchOptions) -> None:
    """Decrypt what is ready of JOB into PNG files and a gallery."""
    screen = Screen()
    session, local = _opened(job_id, screen)
    _fetch(session, local, options.out, options.force, screen)


def _fetch(session: Session, local: LocalJob, out: Path, force: bool, screen: Screen) -> None:
    """Decrypt what is ready of a job; exits 1 if pairs failed."""
    from jobs.client.fetch import fetch as fetch_job

    with screen.working("decrypting"):
        report = fetch_job(session, local, out, force)
    for name, reason in islice(report.failed.items(), MOST_SHOWN):
        screen.say(f"{name}: {reason}", style="red")
    if len(report.failed) > MOST_SHOWN:
        screen.say(f"{len(report.failed) - MOST_SHOWN:,} more failed: see the gallery", style="red")
    if report.waiting:
        screen.say(f"not done yet: {many(len(report.waiting), 'pair')}")
    screen.say(f"{many(len(report.done), 'picture')} in {out}")
    screen.say(f"gallery: {report.gallery.resolve()}")
    if report.deleted:
        screen.say(
            f"job {local.job_id} and its key set are deleted, here and in the store; its pictures "
            "may be published: see docs/security.md"
        )
    exit_if(bool(report.failed))


COMMANDS = (cancel, delete, fetch, list_jobs, logs, retry, status)
