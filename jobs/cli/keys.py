"""`nst-batch keys`, and how commands get a passphrase."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from jobs.cli.configured import ConfiguredGroup
from jobs.cli.examples import examples
from jobs.cli.options import size_option
from nst.errors import InputError
from nst.folders import PASSPHRASE_VARIABLE

if TYPE_CHECKING:
    from rich.status import Status

    from nst.pictures.size import Size


class Passphrases:
    """Asks once for the passphrase of a key set: from the environment, or a person at a terminal.

    It is remembered for as long as the command runs, so that `submit --out` need not ask again
    when the results are there, hours later.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._status: Status | None = None

    def under(self, status: Status) -> Passphrases:
        """The same, with a spinner that must stand still while somebody types."""
        self._status = status
        return self

    def __call__(self, key_id: str) -> str:
        """The passphrase; raises InputError if there is nobody to ask."""
        if key_id not in self._known:
            self._known[key_id] = self._find(key_id)
        return self._known[key_id]

    def _find(self, key_id: str) -> str:
        given = os.environ.get(PASSPHRASE_VARIABLE)
        if given:
            return given
        require_terminal(f"key {key_id} has a passphrase")
        if self._status is not None:
            self._status.stop()
        typed: str = click.prompt(f"Passphrase of key {key_id}", hide_input=True, err=True)
        if self._status is not None:
            self._status.start()
        return typed


def new_passphrase() -> str:
    """A passphrase for a key: from the environment, or typed twice.

    Raises:
        InputError: if it is not in the environment and there is nobody to ask.
    """
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given:
        return given
    require_terminal("a passphrase must be typed")
    typed: str = click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return typed


def require_terminal(why: str) -> None:
    """Raise InputError if nobody sits at standard input."""
    if not is_terminal():
        raise InputError(f"{why}, and this is no terminal; set {PASSPHRASE_VARIABLE}")


def is_terminal() -> bool:
    """Whether a person can answer."""
    return sys.stdin.isatty()


@click.group(cls=ConfiguredGroup, epilog=examples("keys create --passphrase", "keys list"))
def keys() -> None:
    """Key sets: the secret keys stay in the user's data directory."""


@keys.command("create", epilog=examples("keys create --quality low --passphrase"))
@click.option("--quality", "-q", default="low", show_default=True, help="Level they are for.")
@size_option
@click.option(
    "--passphrase",
    "protected",
    is_flag=True,
    help=f"Encrypt the secret key under a passphrase (asked for, or {PASSPHRASE_VARIABLE}).",
)
def keys_create(quality: str, size: Size | None, protected: bool) -> None:
    """Generate a key set for a quality level, and for one width of results.

    Results made under older key sets still need those; new jobs take the newest.
    """
    from jobs.client.home import Home
    from nst.engines.concrete.circuits import build_level
    from nst.engines.concrete.client import KeyRing
    from nst.network.levels import get_level
    from nst.network.weights import load_weights

    home = Home.default()
    level = get_level(quality)
    network = load_weights(level.weights)
    passphrase = new_passphrase() if protected else None
    folder, _ = build_level(level, network, home.circuits, size)
    card = KeyRing(home.keys).create(folder, quality, passphrase)
    click.echo(f"key {card.key_id} for {quality} in {home.keys / card.key_id}")
    click.echo("Back it up: without it, results made under it are lost. Never share it.")
    if protected:
        click.echo("Without its passphrase it is lost as well: nobody can recover that.")


@keys.command("list", epilog=examples("keys list", "keys list --json"))
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def keys_list(as_json: bool) -> None:
    """List the key sets, oldest first."""
    import json

    from jobs.client.home import Home
    from nst.engines.concrete.client import KeyRing

    ring = KeyRing(Home.default().keys)
    listed = [(card, ring.is_protected(card.key_id)) for card in ring.list()]
    if as_json:
        rows = [{**card.__dict__, "protected": protected} for card, protected in listed]
        click.echo(json.dumps(rows, indent=2))
        return
    for card, protected in listed:
        how = "passphrase" if protected else "no passphrase"
        click.echo(
            f"{card.key_id}  {card.quality:6}  {card.created}  circuits {card.model_id}  {how}"
        )
    if not listed:
        click.echo("no keys yet; submit makes them, or: nst-batch keys create")


@keys.command("protect", epilog=examples("keys protect 5d41402abc4b"))
@click.argument("key_id", metavar="KEY")
def keys_protect(key_id: str) -> None:
    """Encrypt the secret key of KEY under a passphrase.

    Copies made before, in backups or in what the disk has not overwritten, stay in the clear.
    """
    from jobs.client.home import Home
    from nst.engines.concrete.client import KeyRing

    ring = KeyRing(Home.default().keys)
    ring.require_unprotected(key_id)
    ring.protect(key_id, new_passphrase())
    click.echo(f"key {key_id} has a passphrase now; without it the key is lost")


@keys.command("unprotect", epilog=examples("keys unprotect 5d41402abc4b"))
@click.argument("key_id", metavar="KEY")
def keys_unprotect(key_id: str) -> None:
    """Store the secret key of KEY without a passphrase again."""
    from jobs.client.home import Home
    from nst.engines.concrete.client import KeyRing

    KeyRing(Home.default().keys).unprotect(key_id, Passphrases())
    click.echo(f"key {key_id} has no passphrase any more; its file's mode alone protects it")
