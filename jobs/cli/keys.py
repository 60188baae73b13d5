"""`nst-batch keys`."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from jobs.cli.config import ConfiguredGroup
from jobs.cli.examples import examples
from jobs.cli.options import json_option, takes
from jobs.cli.screen import Screen, require_terminal
from jobs.options import KeyOptions
from nst.folders import PASSPHRASE_VARIABLE

if TYPE_CHECKING:
    from nst.keyring import KeyRing

KEY = click.argument("key_id", metavar="KEY")


@click.group(cls=ConfiguredGroup, epilog=examples("keys create --passphrase", "keys list"))
def keys() -> None:
    """Key sets: the secret keys stay in the user's data directory."""


@keys.command("create", epilog=examples("keys create --quality low --passphrase"))
@takes(KeyOptions)
def keys_create(options: KeyOptions) -> None:
    """Generate a key set for a quality level, and for one width of results.

    Results made under older key sets still need those; new jobs take the newest.
    """
    from jobs.client.home import Home
    from jobs.client.run import load_model

    home = Home.default()
    model = load_model(options, home)
    passphrase = _new_passphrase() if options.passphrase else None
    card = _ring().create(model.published, model.level.name, passphrase)
    click.echo(f"key {card.key_id} for {card.quality} in {home.keys / card.key_id}")
    click.echo("Back it up: without it, results made under it are lost. Never share it.")
    if options.passphrase:
        click.echo("Without its passphrase it is lost as well: there is no way to recover that.")


@keys.command("list", epilog=examples("keys list", "keys list --json"))
@json_option
def keys_list(as_json: bool) -> None:
    """List the key sets, oldest first."""
    ring = _ring()
    listed = [(card, ring.is_protected(card.key_id)) for card in ring.list()]
    if as_json:
        rows = [{**card.__dict__, "protected": protected} for card, protected in listed]
        click.echo(json.dumps(rows, indent=2))
        return
    for card, protected in listed:
        how = "passphrase" if protected else "no passphrase"
        whose = f"  job {card.job_id} alone" if card.job_id else ""
        click.echo(
            f"{card.key_id}  {card.quality:6}  {card.created}  model {card.model_id}  {how}{whose}"
        )
    if not listed:
        click.echo("no keys yet; submit makes them, or: nst-batch keys create")


@keys.command("protect", epilog=examples("keys protect 5d41402abc4b"))
@KEY
def keys_protect(key_id: str) -> None:
    """Encrypt the secret key of KEY under a passphrase.

    Copies made before, in backups or in what the disk has not overwritten, stay in the clear.
    """
    ring = _ring()
    ring.require_unprotected(key_id)
    ring.protect(key_id, _new_passphrase())
    click.echo(f"key {key_id} has a passphrase now; without it the key is lost")


@keys.command("unprotect", epilog=examples("keys unprotect 5d41402abc4b"))
@KEY
def keys_unprotect(key_id: str) -> None:
    """Store the secret key of KEY without a passphrase again."""
    _ring().unprotect(key_id, Screen().passphrase)
    click.echo(f"key {key_id} has no passphrase any more; its file's mode alone protects it")


def _ring() -> KeyRing:
    from jobs.client.home import Home
    from nst.keyring import KeyRing

    return KeyRing(Home.default().keys)


def _new_passphrase() -> str:
    """A passphrase for a key: from the environment, or typed twice.

    Raises:
        InputError: if it is not in the environment, and this is no terminal.
    """
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given:
        return given
    require_terminal("a passphrase must be typed")
    typed: str = click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return typed
