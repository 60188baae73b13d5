"""`nst-batch doctor`: what is wrong with this installation, and what to do."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from jobs.cli.examples import examples
from jobs.cli.options import on_command_line, takes
from jobs.cli.screen import EXIT_UNREACHABLE, EXIT_USAGE
from jobs.options import STORE_FIELDS, DoctorOptions


@click.command(
    epilog=examples(
        "doctor",
        "doctor --store s3://bucket/prefix --endpoint-url http://host:8333",
        "doctor --quality mid --size 768x512 --actors 4",
        "doctor --cluster http://host:8265",
    )
)
@takes(DoctorOptions)
def doctor(options: DoctorOptions) -> None:
    """Check this machine, its stores and a cluster, and say what to do.

    Looks at versions, Ray, keys, free memory and disk, at every store's credentials, bytes,
    conditional writes and clock, and whether the cluster answers and takes the token. Nothing
    stays in a store.

    Exit codes: 0 nothing fails, 2 something does, 3 a store or the cluster cannot be used.
    """
    from jobs.client.doctor import diagnose
    from jobs.client.home import Home
    from jobs.storage.store import address_of

    home = Home.default()
    stores = options.store or (str(home.store),)
    taken = {name for url in stores for name in address_of(url).takes}
    refused = [name for name in on_command_line(*STORE_FIELDS) if name not in taken]
    urls = [options.fold(url, refused) for url in stores]
    checks = []
    for check in diagnose(
        home, urls, options.quality, options.actors, options.cluster, options.size
    ):
        checks.append(check)
        if not options.as_json:
            advice = f" -> {check.advice}" if check.advice else ""
            click.echo(f"{check.status:4}  {check.what}  {check.detail}{advice}")
    failed = [check for check in checks if check.status == "FAIL"]
    if options.as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [asdict(c) for c in checks]}, indent=2))
    if failed:
        unreachable = any(check.unreachable for check in failed)
        raise SystemExit(EXIT_UNREACHABLE if unreachable else EXIT_USAGE)
