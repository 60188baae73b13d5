"""Commands that take pairs: `submit`, `preview` and `demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.cli.estimate import print_dry_run, say_choice
from jobs.cli.examples import examples
from jobs.cli.job import follow, out_of
from jobs.cli.options import here_option, on_command_line, takes
from jobs.cli.screen import Screen, complain, exit_if, is_terminal
from jobs.client.wording import many
from jobs.options import AUTO, STORE_FIELDS, DemoOptions, PreviewOptions, SubmitCommand
from nst.errors import InputError
from nst.pictures.size import Size

if TYPE_CHECKING:
    from jobs.client.home import Home
    from jobs.client.run import Batch
    from jobs.client.session import Session

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "pairs"

DEMO_SIDE = 256
"""Pixels of the demo's larger pictures."""
PAIRS = click.argument("pairs", type=click.Path(path_type=Path))


@click.command(
    epilog=examples(
        "submit ./pairs --quality low --dry-run",
        "submit ./pairs --quality auto --budget 8h --out ./stylized",
        "submit ./pairs --quality low --size 192x128 --out ./stylized",
        "submit ./pairs --store s3://bucket/prefix --profile studio --no-wait",
        "submit ./pairs --store s3://bucket/prefix --cluster http://head:8265",
        "submit ./pairs --store s3://bucket/studio/customers/ann --model ckks-mid --out ./stylized",
    )
)
@PAIRS
@takes(SubmitCommand)
@here_option
def submit(pairs: Path, options: SubmitCommand) -> None:
    """Encrypt PAIRS and stylize them while encrypted.

    PAIRS is a folder with content/ and style/ matched by stem, or with one sub-folder per pair, or
    a CSV file with columns content,style[,name].

    A cluster takes its credentials for the store from its own environment.
    """
    from jobs.client.fetch import make_folder, refuse_overwriting
    from jobs.client.home import Home
    from jobs.client.run import cores_of, ready
    from jobs.client.session import Session

    if options.as_json and not options.dry_run:
        raise click.UsageError("--json needs --dry-run")
    if options.quality != AUTO and on_command_line("budget"):
        raise click.UsageError("--budget needs --quality auto")
    if options.model and (
        chosen := on_command_line("quality", "engine", "security", "publishable")
    ):
        raise click.UsageError(f"--model says which model it is; leave out --{chosen[0]}")
    if options.sample and not (options.model and options.out):
        raise click.UsageError("--sample needs --model and --out")
    out, home, screen = out_of(options), Home.default(), Screen()
    url = options.fold(options.store or str(home.store), on_command_line(*STORE_FIELDS))
    cores = cores_of(options) if options.dry_run else 0
    if options.sample and not options.dry_run:
        _sample(pairs, options, home, url, screen)
    with screen.working("finding pairs") as working:
        batch = ready(pairs, options, home, url, working, planned=options.dry_run)
    _say_what_is_left(batch)
    if options.dry_run:
        print_dry_run(batch, options, url, cores)
        exit_if(bool(batch.skipped))
        return
    _require_allowed(batch, options)
    if out is not None:
        make_folder(out)
        refuse_overwriting(out, [pair.name for pair in batch.pairs], options.force)
    session = Session.open(home, url, screen.passphrase, create=True)
    _submit(batch, replace(options, out=out), session, screen)


def _submit(batch: Batch, options: SubmitCommand, session: Session, screen: Screen) -> None:
    """Encrypt, start a driver, and with `wait` follow it; exits 1 if pairs failed."""
    from jobs.client.run import start

    with screen.working("making keys") as working:
        local, driver = start(
            batch,
            options,
            session,
            lambda done, total: working(f"encrypting picture {done} of {total}"),
        )
    screen.say(f"job {local.job_id}: {many(len(batch.pairs), 'pair')} encrypted at {local.quality}")
    if options.wait:
        follow(session, local, driver, screen, options.out)
    else:
        screen.say(f"running; see: nst-batch status {local.job_id}")
        exit_if(bool(batch.skipped))


def _sample(pairs: Path, options: SubmitCommand, home: Home, url: str, screen: Screen) -> None:
    """Have a service stylize some pairs by its smallest model, and ask whether they will do.

    Raises:
        InputError: if the answer is no, or there is none.
    """
    from jobs.client.offered import Service
    from jobs.client.pairs import find_pairs
    from jobs.client.run import ready
    from jobs.client.session import Session

    assert options.sample and options.out
    smallest = Service.of(home, url).smallest(options.owner)
    out = options.out / "sample"
    chosen = replace(options, model=smallest, size=None, wait=True, out=out, sample=None)
    some = find_pairs(pairs, options.grid)[0][: options.sample]
    with screen.working("finding pairs") as working:
        batch = ready(some, chosen, home, url, working)
    _say_what_is_left(batch)
    screen.say(f"first {many(len(batch.pairs), 'pair')} by {smallest}, into {out}")
    _submit(batch, chosen, Session.open(home, url, screen.passphrase, create=True), screen)
    if options.yes:
        return
    if not is_terminal():
        raise InputError(
            f"the sample is in {out}; to go on with all pairs, leave out --sample or add --yes"
        )
    if not click.confirm(f"The sample is in {out}. Go on with all pairs?", err=True):
        raise InputError("the other pairs were not submitted")


def _say_what_is_left(batch: Batch) -> None:
    """Name pairs that are skipped and the level that was chosen; InputError if none is left."""
    for item in batch.skipped:
        complain(f"skipped {item.name}: {item.reason}")
    if batch.choice is not None:
        say_choice(batch.choice)
    batch.require_pairs()


def _require_allowed(batch: Batch, options: SubmitCommand) -> None:
    """Ask whether to submit pairs that take more core-hours than the limit.

    Raises:
        InputError: if the answer is no, or there is none.
    """
    excess = "" if options.yes else batch.excess(options.limit)
    if not excess:
        return
    try:
        agreed = click.confirm(f"{excess}. Submit them?", err=True)
    except click.Abort as error:
        click.echo(err=True)
        raise InputError(f"{excess}: allow them with --yes or --limit") from error
    if not agreed:
        raise InputError("nothing was submitted")


@click.command(
    epilog=examples(
        "preview ./pairs --quality low --out ./previews",
        "preview ./pairs --quality mid --size 768x512 --out ./previews",
        "preview ./pairs --grid --fit letterbox --out ./previews --force",
    )
)
@PAIRS
@takes(PreviewOptions)
def preview(pairs: Path, options: PreviewOptions) -> None:
    """Show what the encrypted run of PAIRS will produce: the same integers, in the clear."""
    from jobs.client.fetch import preview as write_previews
    from jobs.client.home import Home
    from jobs.client.pairs import find_pairs
    from jobs.client.run import load_model

    screen = Screen()
    model = load_model(options, Home.default())
    found, skipped = find_pairs(pairs, options.grid)
    with screen.working(f"computing {many(len(found), 'preview')}"):
        report = write_previews(found, skipped, model, options.fit, options.out, options.force)
    for name, reason in report.failed.items():
        complain(f"skipped {name}: {reason}")
    screen.say(f"{many(len(report.done), 'preview')} in {options.out}")
    screen.say(f"gallery: {report.gallery.resolve()}")
    exit_if(bool(report.failed))


@click.command(epilog=examples("demo", "demo --pairs 1 --out ./trial"))
@takes(DemoOptions)
def demo(options: DemoOptions) -> None:
    """Stylize bundled pairs, encrypted, on this machine: thumbnails, then pictures of a real size.

    The thumbnails are computed by engine concrete at draft, the others by engine ckks.
    """
    from jobs.client.home import Home
    from jobs.client.pairs import find_pairs
    from jobs.client.run import ready
    from jobs.client.session import Session

    home, screen = Home(options.out / "home"), Screen()
    url, pairs = str(home.store), find_pairs(EXAMPLES)[0][: options.count]
    thumbnails = SubmitCommand(quality="draft", actors=options.actors, out=options.out / "results")
    large = replace(
        thumbnails,
        quality="mid",
        size=Size.square(DEMO_SIDE),
        engine="ckks",
        out=options.out / f"results-{DEMO_SIDE}",
    )
    for chosen in (thumbnails, large):
        with screen.working("finding pairs") as working:
            batch = ready(pairs, chosen, home, url, working)
        _say_what_is_left(batch)
        screen.say(
            f"{many(len(batch.pairs), 'pair')} of {batch.model.size} pixels, engine "
            f"{chosen.engine}: encrypted here, stylized by "
            f"{many(chosen.target.actors(chosen.actors), 'Ray actor')}, which cannot decrypt, and "
            "decrypted here."
        )
        _submit(batch, chosen, Session.open(home, url, screen.passphrase, create=True), screen)
