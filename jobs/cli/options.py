"""Click's options, made from the fields of dataclasses (see `jobs.fields`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from jobs.fields import Option, complete, options_of
from nst.errors import InputError, NstBatchError

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
METAVARS = {int: "INTEGER", float: "FLOAT", str: "TEXT"}


class FieldType(click.ParamType[object]):
    """What a field takes, as click asks for it."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = str(option.about.get("metavar", METAVARS.get(option.kind, "TEXT")))

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> object:
        """See `click.ParamType`; a default and what a file says are values already."""
        if not isinstance(value, str):
            return value
        try:
            return self.option.from_text(value)
        except InputError as error:
            self.fail(str(error), parameter, context)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """See `click.ParamType`."""
        choices = self.option.choices
        return f"[{'|'.join(map(str, choices))}]" if choices else self.name

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """See `click.ParamType`."""
        return [CompletionItem(each) for each in complete(self.option, incomplete)]


def options_from(kind: type, *names: str) -> Decorator:
    """A decorator that adds the options of a dataclass; a command gets them by the fields' names.

    Args:
        kind: The dataclass.
        names: Fields to take; all if none is named.
    """
    chosen = [o for name, o in options_of(kind).items() if not names or name in names]

    def decorate(command: Command) -> Command:
        for option in reversed(chosen):
            command = _click_option(option)(command)
        return command

    return decorate


def takes(kind: type) -> Decorator:
    """A decorator that adds the options of a dataclass; a command gets `options`, one of it."""

    def decorate(command: Command) -> Command:
        @options_from(kind)
        @wraps(command)
        def folded(*arguments: Any, **given: Any) -> Any:
            fields = {name: given.pop(name) for name in options_of(kind)}
            return command(*arguments, options=kind(**fields), **given)

        return folded

    return decorate


def on_command_line(*fields: str) -> list[str]:
    """Those of the fields of this call that its flags say, not a file, a variable or a default."""
    context = click.get_current_context()
    return [f for f in fields if context.get_parameter_source(f) is ParameterSource.COMMANDLINE]


def complete_job(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Jobs of this machine for a shell."""
    from jobs.client.home import Home

    try:
        known = Home.default().jobs()
    except NstBatchError:
        return []
    return [
        CompletionItem(local.job_id, help=f"{local.quality}, {local.created}")
        for local in known
        if local.job_id.startswith(begun)
    ]


json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
here_option = click.option("--here", "cluster", flag_value="", help="Run on this machine.")
job_argument = click.argument("job_id", metavar="JOB", shell_complete=complete_job)


def _click_option(option: Option) -> Decorator:
    about, default = option.about, option.default
    names = [f"--{option.key}", option.field, *([about["short"]] if "short" in about else [])]
    if option.kind is bool:
        off = about.get("off", f"no-{option.key}" if default else "")
        names[0] += f"/--{off}" if off else ""
        return click.option(
            *names, is_flag=True, default=default, show_default=bool(off), help=about["help"]
        )
    # Click takes None for a default, too.
    defaults: dict[str, Any] = {} if option.required else {"default": default}
    return click.option(
        *names,
        type=_path(option) if option.kind is Path else FieldType(option),
        multiple=option.repeated,
        required=option.required,
        show_default=about.get("shown", default not in (None, "", ())),
        help=about["help"],
        **defaults,
    )


def _path(option: Option) -> click.Path:
    """Shells complete it; what has to be there is looked for when the command runs."""
    there = option.about.get("exists")
    return click.Path(
        path_type=Path,
        exists=there is not None,
        file_okay=there != "folder",
        dir_okay=there != "file",
        resolve_path=there is not None,
    )
