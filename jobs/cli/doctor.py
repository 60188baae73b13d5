"""`nst-batch doctor`: what is wrong with this installation, and what to do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from jobs.cli.examples import examples
from jobs.cli.options import size_option
from jobs.cli.store import STORE_HELP, s3_options
from jobs.storage.s3_address import S3Options

if TYPE_CHECKING:
    from nst.pictures.size import Size

EXIT_FAILED, EXIT_UNREACHABLE = 2, 3


@click.command(
    epilog=examples(
        "doctor",
        "doctor --store s3://bucket/prefix --endpoint-url http://host:8333",
        "doctor --quality mid --size 768x512 --actors 4",
        "doctor --cluster http://host:8265",
    )
)
@click.option(
    "--store", "stores", multiple=True, help=f"{STORE_HELP} Repeatable.  [default: the local one]"
)
@s3_options
@click.option("--quality", "-q", default="low", show_default=True, help="Level of your jobs.")
@size_option
@click.option(
    "--actors",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default="all cores",
    help="Ray actors that run at once.",
)
@click.option("--cluster", metavar="ADDRESS", help="A Ray cluster, as for submit.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def doctor(
    stores: tuple[str, ...],
    s3: S3Options,
    quality: str,
    size: Size | None,
    actors: int,
    cluster: str | None,
    as_json: bool,
) -> None:
    """Check this machine, its stores and a cluster, and say what to do.

    Looks at versions, Ray, keys, free memory and disk, at every store's credentials, bytes,
    conditional writes and clock, and whether the cluster answers and takes the token. Nothing
    stays in a store.

    Exit codes: 0 nothing fails, 2 something does, 3 a store or the cluster cannot be used.
    """
    import json
    from dataclasses import asdict

    from jobs.client.doctor import diagnose
    from jobs.client.home import Home

    home = Home.default()
    urls = [s3.fold(url) for url in stores or (str(home.store),)]
    checks = []
    for check in diagnose(home, urls, quality, actors, cluster or "", size):
        checks.append(check)
        if not as_json:
            advice = f" -> {check.advice}" if check.advice else ""
            click.echo(f"{check.status:4}  {check.what}  {check.detail}{advice}")
    failed = [check for check in checks if check.status == "FAIL"]
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [asdict(c) for c in checks]}, indent=2))
    if failed:
        unreachable = any(check.unreachable for check in failed)
        raise SystemExit(EXIT_UNREACHABLE if unreachable else EXIT_FAILED)
