"""`nst-batch config`, and how commands get what files and variables say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import click

from jobs.cli.examples import examples
from jobs.cli.options import json_option
from jobs.configuration import IN_ADDRESS, configurable, configured, files
from jobs.fields import Option
from jobs.options import COMMANDS
from nst.errors import InputError


class ConfiguredGroup(click.Group):
    """Commands whose options may be given in files and in the environment."""

    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called, its options configured.

        Raises:
            InputError: if a file or a variable cannot be used.
        """
        name, command, rest = super().resolve_command(ctx, args)
        if name and not isinstance(command, click.Group) and not ctx.resilient_parsing:
            try:
                settings = configured(" ".join([*_words(ctx), name]))
            except InputError:
                # Help is there even then.
                if not set(rest) & set(ctx.help_option_names):
                    raise
                settings = {}
            ctx.default_map = {name: {field: s.value for field, s in settings.items()}}
        return name, command, rest


def _words(ctx: click.Context) -> list[str]:
    """The words between the program's name and here."""
    return [] if ctx.parent is None else [*_words(ctx.parent), ctx.info_name or ""]


@click.group(cls=ConfiguredGroup, epilog=examples("config show", "config show submit"))
def config() -> None:
    """Options in files and in the environment.

    What no flag says is taken from the environment (NST_BATCH_SUBMIT_QUALITY for submit, else
    NST_BATCH_QUALITY for every command that takes the value), then from nst-batch.toml in the
    working directory, then from nst-batch.toml in your configuration directory.
    """


@config.command("show", epilog=examples("config show", "config show submit", "config show --json"))
@click.argument("words", metavar="[COMMAND]", nargs=-1)
@json_option
def config_show(words: tuple[str, ...], as_json: bool) -> None:
    """Show the values that hold without flags, of COMMAND or of all, and where they come from."""
    chosen = [c for c in COMMANDS if tuple(c.split())[: len(words)] == words]
    if not chosen:
        raise click.UsageError(f"no options of {' '.join(words)} can be configured")
    rows = [row for command in chosen for row in _rows(command)]
    if as_json:
        there = [{"path": str(path), "read": path.exists()} for path in files()]
        click.echo(json.dumps({"files": there, "options": rows}, indent=2))
        return
    for path in files():
        click.echo(f"{path}{'' if path.exists() else ' (not there)'}")
    merged: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        merged.setdefault((row["key"], row["value"], row["source"]), []).append(row["command"])
    wide = [max(len(key[i]) for key in merged) for i in range(3)]
    for key, commands in merged.items():
        cells = "  ".join(text.ljust(width) for text, width in zip(key, wide, strict=True))
        click.echo(f"{cells}  {', '.join(commands)}")


def _rows(command: str) -> Iterator[dict[str, str]]:
    """Each option of a command with its value and where that comes from, as text."""
    settings = configured(command)
    for key, option in configurable(command).items():
        setting = settings.get(option.field)
        value = setting.entry.value if setting else option.about.get("shown", option.default)
        source = setting.entry.source if setting else "default"
        yield {"command": command, "key": key, "value": _shown(value, option), "source": source}


def _shown(value: object, option: Option) -> str:
    """A value as a file says it, without what opens something."""
    if value in (None, "", (), []) or option.required:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)
    text = IN_ADDRESS.sub("", str(value))
    # The path of a webhook mostly is what allows to write there.
    return re.sub(r"(?<=\w)/.*", "/…", text) if option.about.get("private") else text
