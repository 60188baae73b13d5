"""`nst-batch config`: what options are without any flag, and why."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from jobs.cli.configured import (
    IN_ADDRESS,
    ConfiguredGroup,
    Words,
    all_commands,
    files,
    layers_of,
    standing,
)
from jobs.cli.examples import examples
from jobs.cli.options import Duration


@dataclass(frozen=True)
class Row:
    """An option's value without any flag, and where it comes from.

    Attributes:
        command: Whose option.
        key: Its key in a file.
        value: Text, number, true or false, or a list of them; None if there is none.
        source: `environment`, `project file`, `user file` or `default`.
        where: The variable or the file.
    """

    command: str
    key: str
    value: Any
    source: str
    where: str = ""


def rows(ctx: click.Context, path: Words, command: click.Command) -> Iterator[Row]:
    """What a command's options are as things stand.

    Raises:
        InputError: if a file or a variable says what an option does not take.
    """
    from jobs.client.auto import hours

    for key, found in standing(ctx.find_root(), path, command).items():
        value = found.said
        if value in (None, ()) and isinstance(found.option.show_default, str):
            value = found.option.show_default
        if isinstance(found.option.type, Duration) and isinstance(value, float):
            value = hours(value)
        yield Row(" ".join(path), key, shown_value(value, key), found.source, found.where)


def shown_value(value: Any, key: str = "") -> Any:
    """A value as JSON can say it, without what opens something."""
    if isinstance(value, list | tuple):
        return [shown_value(part) for part in value]
    if isinstance(value, bool | int | float) or value is None:
        return value
    text = IN_ADDRESS.sub("", str(value))
    # The path of a webhook mostly is what allows to write there.
    return re.sub(r"(?<=\w)/.*", "/…", text) if key == "notify-url" else text


@click.group(cls=ConfiguredGroup, epilog=examples("config show", "config show submit"))
def config() -> None:
    """Options out of files and the environment.

    What no flag says is taken from the environment (NST_BATCH_QUALITY for every command that has
    --quality, NST_BATCH_SUBMIT_QUALITY for submit), then from nst-batch.toml in the working
    directory, then from nst-batch.toml in your configuration directory.
    """


@config.command("show", epilog=examples("config show", "config show submit", "config show --json"))
@click.argument("words", metavar="[COMMAND]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Defaults, too.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable; defaults, too.")
@click.pass_context
def config_show(
    ctx: click.Context, words: tuple[str, ...], everything: bool, as_json: bool
) -> None:
    """Show each option's value, of COMMAND or of all, and where it comes from."""
    import json
    from dataclasses import asdict

    from jobs.client.home import Home
    from nst.folders import HOME_VARIABLE

    read = {layer.path for layer in layers_of(ctx)}
    chosen = [
        (path, command)
        for path, command in all_commands(ctx.find_root())
        if path[: len(words)] == words
    ]
    if not chosen:
        raise click.UsageError(f"no command {' '.join(words)}")
    table = [row for path, command in chosen for row in rows(ctx, path, command)]
    home = Row("", "data directory", str(Home.default().root), "default")
    if os.environ.get(HOME_VARIABLE):
        home = Row("", home.key, home.value, "environment", HOME_VARIABLE)
    if as_json:
        record = {
            "files": [{"kind": k, "path": str(p), "read": p in read} for k, p in files()],
            "data_directory": {k: v for k, v in asdict(home).items() if k != "command"},
            "options": [asdict(row) for row in table],
        }
        click.echo(json.dumps(record, indent=2))
        return
    for kind, path in files():
        click.echo(f"{kind:13} {path}{'' if path in read else ' (not there)'}")
    shown = [home, *(row for row in table if everything or words or row.source != "default")]
    _print(shown)
    if len(shown) == 1:
        click.echo("all options have their defaults: nst-batch config show --all")


def _print(table: list[Row]) -> None:
    """Rows that differ in nothing but the command as one."""
    merged: dict[tuple[str, str, str], list[str]] = {}
    for row in table:
        where = f"{row.source} {row.where}".strip()
        value = "-" if row.value in (None, []) else str(row.value).replace("\n", " ")
        if isinstance(row.value, bool):
            value = str(row.value).lower()
        merged.setdefault((row.key, value, where), []).append(row.command)
    wide = [max(len(key[i]) for key in merged) for i in range(3)]
    for key, commands in merged.items():
        cells = "  ".join(text.ljust(width) for text, width in zip(key, wide, strict=True))
        click.echo(f"{cells}  {', '.join(commands)}".rstrip())
