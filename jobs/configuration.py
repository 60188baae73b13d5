"""Options out of files and the environment: what a caller does not give, they do.

One precedence for every option: the caller (a flag, an argument), environment, project file, user
file, default. Both files are called `nst-batch.toml`; a key is an option's long name, at the top
for every command that takes the value, or in a table that is called like one command.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_config_path

from jobs.fields import Option, options_of
from jobs.options import COMMANDS
from jobs.trust import require_trusted
from nst.errors import InputError
from nst.folders import user_folder

FILE, PREFIX = "nst-batch.toml", "NST_BATCH_"
SECRET = re.compile(r"passphrase|passw(or)?d|secret|token|credential|(access|api)[-_]?key")
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")
"""User and password in a URL."""

Options = TypeVar("Options")


@dataclass(frozen=True)
class Entry:
    """What a file or a variable says of an option.

    Attributes:
        source: The file or the variable.
        command: Of which command, empty for all that take the value.
        key: The option's key.
        value: As it stands there.
        of_file: Whether it stands in a file; a variable holds text.
    """

    source: str
    command: str
    key: str
    value: object
    of_file: bool = True

    @property
    def where(self) -> str:
        """File and key or variable, as errors name them."""
        key = ".".join([*self.command.split(), self.key])
        return f"{self.source}: {key}" if self.of_file else self.source

    def taken(self, option: Option) -> object:
        """As the option's field has it; raises InputError if it does not take this."""
        if self.of_file:
            return option.from_value(self.value)
        value = option.from_text(str(self.value))
        return (value,) if option.repeated else value

    def require_taken(self) -> None:
        """Raise InputError unless an option that this is for takes the value."""
        problems = []
        for command in [self.command] if self.command else COMMANDS:
            option = configurable(command).get(self.key)
            if option and (self.command or not option.about.get("own")):
                try:
                    self.taken(option)
                    return
                except InputError as error:
                    problems.append(error)
        raise InputError(f"{self.where}: {problems[0]}")


@dataclass(frozen=True)
class Setting:
    """An option's value, and the entry that gives it."""

    value: object
    entry: Entry


def of_project(settings: Iterable[Setting]) -> list[tuple[str, object]]:
    """Keys and values that the project's file sets, out of settings."""
    found = (s.entry for s in settings)
    return [(e.key, e.value) for e in found if e.source == FILE and e.of_file]


def load(kind: type[Options], command: str, given: Mapping[str, object]) -> Options:
    """Options of a command as a caller gives them, else as they are configured.

    Args:
        kind: The command's dataclass, or a base of it.
        command: The command, as "submit" or "keys create".
        given: By the fields' names; None is not given.

    Raises:
        InputError: if a file, a variable or the caller says what an option does not take, or a
            project's file what has to be asked about (see `jobs.trust`).
        TypeError: if there is no such field.
    """
    of_kind: type = kind
    options = options_of(of_kind)
    settings = {
        name: setting
        for name, setting in configured(command).items()
        if name in options and given.get(name) is None
    }
    # Who calls from a program is not asked.
    require_trusted(FILE, of_project(settings.values()), None)
    values: dict[str, Any] = {name: setting.value for name, setting in settings.items()}
    for name, value in given.items():
        if name not in options:
            raise TypeError(f"no option {name!r}; there are {', '.join(options)}")
        if value is not None:
            try:
                values[name] = options[name].from_value(value)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
    return kind(**values)


def configured(command: str) -> dict[str, Setting]:
    """What files and variables say of a command's options, by the fields' names.

    Raises:
        InputError: if a file cannot be used, or a variable says what its option does not take.
    """
    entries = [e for path in files() for e in read_file(path)]
    found = {}
    for key, option in configurable(command).items():
        for entry in [*_variables(command, key), *_of_files(entries, command, key)]:
            if option.about.get("own") and not entry.command:
                continue
            try:
                found[option.field] = Setting(entry.taken(option), entry)
                break
            except InputError:
                entry.require_taken()
    return found


def configurable(command: str) -> dict[str, Option]:
    """By key, the options of a command that files and variables may give."""
    options = options_of(COMMANDS[command]).values() if command in COMMANDS else ()
    return {option.key: option for option in options if not option.about.get("once")}


def files() -> tuple[Path, Path]:
    """Where files of options would be: the project's, and the user's, which is weaker."""
    return Path(FILE), (user_folder(user_config_path) or Path("~")) / FILE


def read_file(path: Path) -> list[Entry]:
    """The entries of a file, none if it is not there.

    Raises:
        InputError: if it cannot be read, or has a key or a value that does not belong into it.
    """
    # Of a user without a home, the folder of this file is no path.
    if str(path).startswith("~") or not os.path.lexists(path):
        return []
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check its permissions, or remove it"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: is no TOML ({error}); correct it") from error
    entries = list(_flat(str(path), table))
    for entry in entries:
        _check(entry)
    return entries


def _variables(command: str, key: str) -> Iterator[Entry]:
    for owner in (command, ""):
        name = PREFIX + "_".join([*owner.split(), key]).upper().replace("-", "_")
        if text := os.environ.get(name):
            yield Entry(name, owner, key, text, of_file=False)


def _of_files(entries: list[Entry], command: str, key: str) -> list[Entry]:
    """Entries for an option, the strongest first: within a file its command's own."""
    of_it = (e for e in entries if e.key == key and e.command in (command, ""))
    return sorted(of_it, key=lambda e: (e.source != FILE, not e.command))


def _flat(source: str, table: Mapping[str, object], command: str = "") -> Iterator[Entry]:
    """The entries of a table and of the tables in it that are called like commands."""
    for key, value in table.items():
        below = f"{command} {key}".strip()
        if isinstance(value, Mapping) and any(f"{c} ".startswith(f"{below} ") for c in COMMANDS):
            yield from _flat(source, value, below)
        else:
            yield Entry(source, command, key, value)


def _check(entry: Entry) -> None:
    """Raise InputError if an entry does not belong into a file, or nothing takes its value."""
    where, key = entry.where, entry.key
    owners = [entry.command] if entry.command else list(COMMANDS)
    known = {o.key: o for c in owners if c in COMMANDS for o in options_of(COMMANDS[c]).values()}
    if SECRET.search(key.lower()):
        raise InputError(
            f"{where}: secrets do not belong into this file; use the environment "
            "(NST_BATCH_PASSPHRASE) or an AWS profile"
        )
    if key not in known:
        words = [*known, *(word for c in COMMANDS for word in c.split())]
        near = difflib.get_close_matches(key, words, 1)
        hint = f"did you mean {near[0]}?" if near else "see nst-batch config show"
        raise InputError(f"{where}: no option of {entry.command or 'any command'}; {hint}")
    if not any(key in configurable(c) for c in owners):
        raise InputError(f"{where}: is for one call only; give it as --{key}")
    if known[key].about.get("private") and entry.source == FILE:
        raise InputError(f"{where}: only your own file may hold it: {files()[1]}")
    values = entry.value if isinstance(entry.value, list) else [entry.value]
    if any(isinstance(value, str) and IN_ADDRESS.search(value) for value in values):
        raise InputError(
            f"{where}: passwords in addresses do not belong into this file; use the environment"
        )
    entry.require_taken()
