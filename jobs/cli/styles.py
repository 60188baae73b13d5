"""`nst-batch styles`: styles that are encrypted and computed once for any number of jobs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from jobs.cli.config import ConfiguredGroup
from jobs.cli.examples import examples
from jobs.cli.options import json_option, on_command_line, takes
from jobs.cli.screen import Screen
from jobs.options import STORE_FIELDS, StyleOptions

NAME = click.argument("name", metavar="NAME")


@click.group(
    cls=ConfiguredGroup,
    epilog=examples("styles add wheat art/wheat.jpg --quality low", "styles list"),
)
def styles() -> None:
    """Styles for many jobs: uploaded once, their code computed once."""


@styles.command(
    "add",
    epilog=examples(
        "styles add wheat art/wheat.jpg --quality low",
        "styles add wheat art/wheat.jpg --store s3://bucket/studio/customers/ann --model ckks-mid",
    ),
)
@NAME
@click.argument("picture", type=click.Path(path_type=Path))
@takes(StyleOptions)
def styles_add(name: str, picture: Path, options: StyleOptions) -> None:
    """Encrypt PICTURE as a style called NAME; submit --style NAME uses it.

    The server sees that jobs share a style, and neither the style nor its name. Its code is
    computed by the first job, stays in the store as a ciphertext, and no later one computes it.
    """
    from jobs.client.home import Home
    from jobs.client.run import chosen_model
    from jobs.client.session import Session
    from jobs.client.styles import add

    home, screen = Home.default(), Screen()
    url = options.fold(options.store or str(home.store), on_command_line(*STORE_FIELDS))
    with screen.working("making keys"):
        model = chosen_model(options, home, url)
        session = Session.open(home, url, screen.passphrase, create=True)
        style = add(session, model, name, picture)
    screen.say(f"style {name}: {style.style_id} under key {style.key_id} in {style.store}")
    screen.say(f"use it: nst-batch submit CONTENTS --style {name}")


@styles.command("list", epilog=examples("styles list", "styles list --json"))
@json_option
def styles_list(as_json: bool) -> None:
    """List the styles of this machine."""
    from jobs.client.home import Home
    from jobs.client.styles import listed
    from nst.plain import plain

    home = Home.default()
    found = listed(home)
    if as_json:
        click.echo(json.dumps([style.model_dump() for style in found], indent=2))
        return
    for style in found:
        click.echo(plain(f"{style.name}  {style.quality}  {style.created}  {style.store}"))
    if not found:
        click.echo(f"no styles yet in {home.styles}; begin with: nst-batch styles add NAME PICTURE")


@styles.command("remove", epilog=examples("styles remove wheat"))
@NAME
def styles_remove(name: str) -> None:
    """Remove the style NAME from its store and from here; jobs that wait for it will fail."""
    from jobs.client.home import Home
    from jobs.client.session import Session
    from jobs.client.styles import DamagedStyleError, open_style, remove

    home = Home.default()
    try:
        session = Session.open(home, open_style(home, name).store)
    except DamagedStyleError:
        session = None
    remove(home, name, session)
    click.echo(f"style {name}: removed")
