"""Options out of files and the environment: what a flag does not say, they do.

One precedence for every option: flag, environment, project file, user file, default. Both files are
called `nst-batch.toml`; a key is an option's long name, at the top for every command that has the
option, or in a table that is called like one command. click does the rest: it reads variables by
`Option.envvar`, files by `Context.default_map`, and remembers the source.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from platformdirs import user_config_path

from nst.errors import InputError, NstBatchError

FILE, PREFIX = "nst-batch.toml", "NST_BATCH_"
ONE_CALL = frozenset(
    {
        *("all", "dry-run", "failed", "force", "help", "json"),
        *("passphrase", "resume", "version", "watch", "yes"),
    }
)
"""Options that are an answer to one call: a file or a shell's profile must not give it to all."""
ONE_CALL_OF = frozenset({("retry", "cluster"), ("retry", "cluster-python"), ("retry", "here")})
"""Likewise of one command: a job is taken up where it ran unless somebody says otherwise now."""
NOT_IN_FILES = {
    ("project file", "notify-command"): "a folder must not run programs; put it into the user file",
    ("project file", "notify-url"): "whoever knows it may write there; put it into the user file",
}
"""Options that one kind of file must not give, and why."""
OF_TABLES = frozenset({("train", "cluster")})
"""Options that mean something else in one command: a key at the top does not reach them."""
SECRET = re.compile(r"passphrase|passw(or)?d|secret|token|credential|(access|api)[-_]?key")
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")
"""User and password in a URL."""

Words = tuple[str, ...]
"""A command by its words, as ("keys", "create")."""


@dataclass(frozen=True)
class Layer:
    """One file of options, the kind of file it is, and what is in it."""

    kind: str
    path: Path
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """A value out of a file: its key as it stands there, in which file, and the option's."""

    key: str
    value: Any
    layer: Layer


class ConfiguredGroup(click.Group):
    """Commands whose options may be given in files and in the environment."""

    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called, its options configured.

        Raises:
            InputError: if a file cannot be used.
        """
        name, command, rest = super().resolve_command(ctx, args)
        if name and command and not ctx.resilient_parsing:
            try:
                self._configure(ctx, name, command)
            except InputError:
                # Who asks for help shall get it.
                if not set(rest) & set(ctx.help_option_names):
                    raise
        return name, command, rest

    @staticmethod
    def _configure(ctx: click.Context, name: str, command: click.Command) -> None:
        path = (*path_of(ctx), name)
        name_variables(path, command)
        ctx.default_map = {name: default_map(path, command, layers_of(ctx))}


def path_of(ctx: click.Context) -> Words:
    """The words between the program's name and here."""
    return () if ctx.parent is None else (*path_of(ctx.parent), ctx.info_name or "")


def files() -> tuple[tuple[str, Path], ...]:
    """Kinds of files and where they would be, the stronger first."""
    return (
        ("project file", Path(FILE)),
        ("user file", user_config_path("nst-batch") / FILE),
    )


def layers_of(ctx: click.Context) -> list[Layer]:
    """The files that there are, read and checked once a call.

    Raises:
        InputError: if one cannot be read, or has keys that no command knows or that do not belong
            into a file.
    """
    if __name__ not in ctx.meta:
        layers = [_read(kind, path) for kind, path in files() if os.path.lexists(path)]
        if layers:
            known = dict(all_commands(ctx.find_root()))
            for layer in layers:
                _check_table(layer, layer.values, (), known)
        ctx.meta[__name__] = layers
    found: list[Layer] = ctx.meta[__name__]
    return found


def all_commands(root: click.Context) -> Iterator[tuple[Words, click.Command]]:
    """Every command that is no group, by its words."""

    def below(group: click.Group, path: Words) -> Iterator[tuple[Words, click.Command]]:
        for name in group.list_commands(root):
            command = group.get_command(root, name)
            if isinstance(command, click.Group):
                yield from below(command, (*path, name))
            elif command is not None:
                yield (*path, name), command

    assert isinstance(root.command, click.Group)
    yield from below(root.command, ())


def options_of(path: Words, command: click.Command) -> dict[str, click.Option]:
    """The options of a command that may be configured, by key."""
    options = {_key(p): p for p in command.params if isinstance(p, click.Option)}
    return {
        key: option
        for key, option in options.items()
        if key not in ONE_CALL and (" ".join(path), key) not in ONE_CALL_OF
    }


def variables(path: Words, key: str) -> tuple[str, ...]:
    """Names of the variables of an option: that of the command, and that of all commands."""
    own = PREFIX + "_".join((*path, key))
    names = [own] if (" ".join(path), key) in OF_TABLES else [own, PREFIX + key]
    return tuple(name.upper().replace("-", "_") for name in names)


def variable_of(ctx: click.Context, parameter: click.Parameter) -> str:
    """The variable that a parameter of this call has its value from, and a colon; else nothing."""
    if ctx.get_parameter_source(parameter.name or "") is not ParameterSource.ENVIRONMENT:
        return ""
    return next((f"{v}: " for v in parameter.envvar or () if os.environ.get(v)), "")


def name_variables(path: Words, command: click.Command) -> None:
    """Have click look for a command's options in the environment."""
    for key, option in options_of(path, command).items():
        option.envvar = variables(path, key)


def default_map(path: Words, command: click.Command, layers: list[Layer]) -> dict[str, Any]:
    """What files say of a command's options, by the names of its parameters.

    Raises:
        InputError: if a value is not what the option takes.
    """
    found = found_in(path, command, layers)
    options = options_of(path, command)
    return {options[key].name or "": _checked(options[key], f) for key, f in found.items()}


def found_in(path: Words, command: click.Command, layers: list[Layer]) -> dict[str, Found]:
    """By key, what files say of a command's options: the first of them that says something."""
    found: dict[str, Found] = {}
    for layer in layers:
        table: Any = layer.values
        for word in path:
            table = table.get(word, {}) if isinstance(table, Mapping) else {}
        for key in options_of(path, command):
            if key in found:
                continue
            if key in table:
                found[key] = Found(".".join((*path, key)), table[key], layer)
            elif key in layer.values and (" ".join(path), key) not in OF_TABLES:
                found[key] = Found(key, layer.values[key], layer)
    return found


@dataclass(frozen=True)
class Standing:
    """What an option is without any flag, and where that comes from.

    Attributes:
        option: Which.
        value: As the command would get it.
        said: The same as a file says it, if one does.
        origin: Who said it, in click's terms.
        source: `environment`, `project file`, `user file` or `default`.
        where: The variable or the file.
    """

    option: click.Option
    value: Any
    said: Any
    origin: ParameterSource
    source: str
    where: str = ""


def standing(root: click.Context, path: Words, command: click.Command) -> dict[str, Standing]:
    """By key, what a command's options are as things stand.

    Raises:
        InputError: if a file or a variable says what an option does not take.
    """
    name_variables(path, command)
    layers = layers_of(root)
    found = found_in(path, command, layers)
    own = command.make_context(
        path[-1],
        [],
        parent=root,
        resilient_parsing=True,  # what is required need not be there
        default_map=default_map(path, command, layers),
    )
    stands = {}
    for key, option in options_of(path, command).items():
        name = option.name or ""
        value, origin = own.params.get(name), own.get_parameter_source(name)
        said, source, where = value, "default", ""
        if origin is ParameterSource.ENVIRONMENT:
            where = next(v for v in variables(path, key) if os.environ.get(v))
            check(option, os.environ[where], where)
            source = "environment"
        elif origin is ParameterSource.DEFAULT_MAP:
            layer = found[key].layer
            said, source, where = found[key].value, layer.kind, str(layer.path)
        else:
            origin = ParameterSource.DEFAULT
        stands[key] = Standing(option, value, said, origin, source, where)
    return stands


def _key(option: click.Option) -> str:
    return next((o[2:] for o in option.opts if o.startswith("--")), option.name or "")


def _read(kind: str, path: Path) -> Layer:
    try:
        return Layer(kind, path, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check its permissions, or remove it"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: is no TOML ({error}); correct it") from error


def _check_table(
    layer: Layer,
    table: Mapping[str, Any],
    path: Words,
    known: dict[Words, click.Command],
) -> None:
    """Raise InputError if a table has keys that it should not have, or values of other types."""
    commands = {p[len(path)] for p in known if p[: len(path)] == path and len(p) > len(path)}
    whose = [p for p in known if p == path or not path]
    keys = {key for p in whose for key in options_of(p, known[p])}
    for key, value in table.items():
        name = ".".join((*path, key))
        if SECRET.search(key.lower()):
            raise InputError(
                f"{layer.path}: {name}: secrets do not belong into this file; use the environment "
                "(NST_BATCH_PASSPHRASE) or an AWS profile"
            )
        if isinstance(value, Mapping) and key in commands:
            _check_table(layer, value, (*path, key), known)
        elif key in ONE_CALL or any((" ".join(p), key) in ONE_CALL_OF for p in whose if path):
            raise InputError(f"{layer.path}: {name}: is for one call only; give it as --{key}")
        elif why := NOT_IN_FILES.get((layer.kind, key)):
            raise InputError(f"{layer.path}: {name}: {why}")
        elif key not in keys:
            near = difflib.get_close_matches(key, keys | commands, 1)
            hint = f"did you mean {near[0]}?" if near else "see nst-batch config show"
            what = f"no option of {' '.join(path)}" if path else "no option of any command"
            raise InputError(f"{layer.path}: {name}: {what}; {hint}")
        elif any(isinstance(v, str) and IN_ADDRESS.search(v) for v in _parts(value)):
            raise InputError(
                f"{layer.path}: {name}: passwords in addresses do not belong into this file; "
                "use the environment"
            )
        else:
            for p in whose:
                option = options_of(p, known[p]).get(key)
                if option and (path or (" ".join(p), key) not in OF_TABLES):
                    _require_kind(option, Found(name, value, layer))


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _require_kind(option: click.Option, found: Found) -> None:
    """Raise InputError if a value out of a file has another type than its option."""
    what, fits = _kind(option)
    parts = _parts(found.value) if option.multiple else [found.value]
    if not all(fits(part) for part in parts):
        raise InputError(
            f"{found.layer.path}: {found.key}: {found.value!r} is not what it takes; give {what}"
        )


def _checked(option: click.Option, found: Found) -> Any:
    """A value out of a file as click shall have it; its type has been looked at."""
    value = _parts(found.value) if option.multiple else found.value
    check(option, value, f"{found.layer.path}: {found.key}")
    return value


def _kind(option: click.Option) -> tuple[str, Any]:
    """What an option takes in TOML, in words and as a question."""
    if option.is_flag:
        return "true or false", lambda v: isinstance(v, bool)
    if isinstance(option.type, type(click.INT)):
        return "a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)
    if isinstance(option.type, type(click.FLOAT)):
        return "a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)
    return "text in quotes", lambda v: isinstance(v, str)


def check(option: click.Option, value: Any, where: str) -> None:
    """Raise InputError, which says where, unless an option takes a value."""
    context = click.Context(click.Command(""))
    if isinstance(value, str) and option.multiple:
        value = option.type.split_envvar_value(value)
    try:
        option.process_value(context, value)
    except click.UsageError as error:
        message = error.message.rstrip(".")
        raise InputError(f"{where}: {message}; correct it") from error
    except NstBatchError as error:
        raise InputError(f"{where}: {error}") from error
