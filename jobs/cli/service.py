"""`nst-batch publish`, `models` and `serve`: a model stays with its owner, pictures with theirs."""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from jobs.cli.examples import examples
from jobs.cli.options import on_command_line, takes
from jobs.cli.screen import Screen, complain
from jobs.options import STORE_FIELDS, ModelsOptions, PublishOptions, ServeOptions
from nst.errors import InputError

if TYPE_CHECKING:
    from jobs.service.offers import Offered


@click.command(
    epilog=examples(
        "publish --quality low --store s3://bucket/studio",
        "publish --quality mid --size 512x512 --engine ckks --store s3://bucket/studio",
        "publish --store s3://bucket/studio --private s3://owners-bucket/models",
        "publish --store s3://bucket/studio --withdraw concrete-low",
    )
)
@takes(PublishOptions)
def publish(options: PublishOptions) -> None:
    """Offer a model to customers: they get what encrypts and decrypts, and never the weights.

    The offer is signed with a key in the data directory. Tell customers its fingerprint.
    """
    from pathlib import Path

    from jobs.client.home import Home
    from jobs.service.offers import withdraw
    from jobs.service.owner import signing_key
    from jobs.service.places import Place, private_place
    from jobs.service.publishing import offer_name
    from jobs.service.publishing import publish as publish_model
    from jobs.storage.store import open_store
    from nst.model import Model

    home, screen = Home.default(), Screen()
    url = options.fold(options.store, on_command_line(*STORE_FIELDS))
    place = Place.of(url)
    if options.withdraw:
        withdraw(open_store(place.offers), options.withdraw)
        screen.say(f"{options.withdraw} is not offered any more; jobs of it that wait will fail")
        return
    private = private_place(options.private, home.models, place.root)
    cache = home.models if "://" in private else Path(private)
    key = signing_key(home.signing_key)
    model = Model.load(options.quality, cache, options.size, options.engine)
    name = options.name or offer_name(model)
    with screen.working("building the model"):
        open_store(place.root, create=True)
        offers = open_store(place.offers, create=True)
        offered = publish_model(model, offers, key, private, name, options.price)
    offer = offered.offer
    screen.say(
        f"{offer.name} is offered: model {offer.model_id}, {offer.core_s:,.1f} core-seconds per "
        "pair"
    )
    screen.say(f"owner {offered.owner}; tell your customers, who see it with: nst-batch models")
    screen.say(f"server bundle in {private}; serve it with: nst-batch serve --store {place.root}")


@click.command(
    epilog=examples(
        "models --store s3://bucket/studio/customers/ann",
        "models --store s3://bucket/studio --json",
    )
)
@takes(ModelsOptions)
def models(options: ModelsOptions) -> None:
    """List what a service offers: sizes, prices, what a pair takes."""
    from jobs.client.home import Home
    from jobs.client.offered import Service

    url = options.fold(options.store, on_command_line(*STORE_FIELDS))
    found = Service.of(Home.default(), url).offers(options.owner, complain)
    if options.as_json:
        click.echo(json.dumps([_row(each) for each in found], indent=2))
        return
    if not found:
        click.echo("nothing is offered here yet")
        return
    _print(found)


def _row(offered: Offered) -> dict[str, object]:
    shown = [
        "name",
        "engine",
        "quality",
        "width",
        "height",
        "core_s",
        "price",
        "model_id",
        "created",
    ]
    return {**{key: getattr(offered.offer, key) for key in shown}, "owner": offered.owner}


def _print(found: list[Offered]) -> None:
    from rich.table import Table
    from rich.text import Text

    from nst.plain import plain

    screen = Screen()
    table = Table("model", "engine", "pixels", "core-seconds per pair", "price", "of (UTC)")
    for each in found:
        offer = each.offer
        cells = (
            *(offer.name, offer.engine, f"{offer.width} x {offer.height}"),
            *(f"{offer.core_s:,.1f}", offer.price or "-", offer.created[:16].replace("T", " ")),
        )
        table.add_row(*(Text(plain(cell)) for cell in cells))
    screen.console.print(table)
    screen.say(f"owner {found[0].owner}")


@click.command(
    epilog=examples(
        "serve --store s3://bucket/studio",
        "serve --store s3://bucket/studio --actors 16 --turn 5min --port 9400",
        "serve --store ./studio --once",
    )
)
@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Run the jobs that customers of a service submit to its store.

    Several servers may share a store. SIGTERM ends one; its jobs wait for the next.
    """
    from jobs.service.accounts import Quota
    from jobs.service.metrics import Metrics, served
    from jobs.service.serving import ClusterJob, Limits, LocalProcess, Server, until_signalled
    from nst.errors import ClusterError
    from nst.sealing import seal

    url = options.fold(options.store, on_command_line(*STORE_FIELDS))
    private, owner = _of_owner(options)
    seal()
    target = options.target
    actors = target.actors(options.actors)
    if not target.cluster and options.at_once > actors:
        raise InputError(f"--at-once {options.at_once} is more than the {actors} actors")
    limits = Limits(
        actors=actors,
        here=not target.cluster,
        at_once=options.at_once,
        turn_s=options.turn,
        quota=Quota(options.most_pairs, options.daily_core_hours),
    )
    _log_to_stderr()
    metrics = Metrics()
    start = partial(ClusterJob, target) if target.cluster else LocalProcess
    server = Server(url, private, owner, limits, metrics, start)
    with served(metrics, options.port) as port, until_signalled(server):
        where = target.cluster or f"{actors} actors"
        click.echo(f"serving {server.store.url} with {where}, owner {owner}", err=True)
        if port:
            click.echo(f"http://127.0.0.1:{port}/healthz and /metrics", err=True)
        try:
            server.run(options.once)
        except ClusterError as error:
            raise InputError(str(error)) from error


def _of_owner(options: ServeOptions) -> tuple[str, str]:
    """Where the server bundles are, and whose offers are served.

    Raises:
        InputError: if this data directory has no owner's key and none is named.
    """
    from pathlib import Path

    from jobs.client.home import Home
    from jobs.service.owner import owner_of
    from jobs.service.places import private_place

    if options.private and options.owner:
        # A container may have no home.
        return private_place(options.private, Path(), options.store), options.owner
    home = Home.default()
    if not options.owner and not home.signing_key.exists():
        raise InputError(
            f"{home.root} has no owner's key; publish a model first, or name the --owner"
        )
    owner = options.owner or owner_of(home.signing_key)
    return private_place(options.private, home.models, options.store), owner


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log = logging.getLogger("nst-batch.service")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


COMMANDS = (publish, models, serve)
