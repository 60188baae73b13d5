"""Options as fields of frozen dataclasses: name, type, default and help stand there and only there.

The command line, the configuration files, the environment and the Python API all read them. A
field's metadata may hold:

- `help`: one sentence; a field without it is no option;
- `name`: the long name, if it is not the field's own; `short`: as "-q"; `off`: the flag for False;
- `metavar`: what help shows for the value; `shown`: the same for the default;
- `least`, `most`, `above`, `below`: limits of a number;
- `parse`: from text to the value, raising `InputError`; `complete`: what a shell offers;
- `exists`: "file" or "folder" for a path that has to be there when the command runs;
- `once`: an answer to one call, which neither files nor variables may give;
- `own`: a key at the top of a file means something else and does not reach it;
- `private`: shown shortened, and refused in a project's file: whoever knows it may use it.
"""

from __future__ import annotations

import dataclasses
import operator
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nst.errors import InputError

WORDS = {bool: "true or false", int: "a whole number", float: "a number"}
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def option(help: str, default: Any = dataclasses.MISSING, **about: Any) -> Any:
    """A field that is an option; without a default it is required."""
    return dataclasses.field(default=default, metadata={"help": help, **about})


@dataclasses.dataclass(frozen=True)
class Option:
    """What a field takes.

    Attributes:
        field: The field's name.
        kind: Type of one value.
        repeated: Whether it takes any number of them, as a tuple.
        choices: The texts or numbers that it takes, if not any.
        default: Its default; `dataclasses.MISSING` if it is required.
        about: The field's metadata.
    """

    field: str
    kind: type
    repeated: bool
    choices: tuple[str | int, ...]
    default: object
    about: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The long name: on the command line after two hyphens, in files as it is."""
        return str(self.about.get("name", self.field.replace("_", "-")))

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is dataclasses.MISSING

    def from_text(self, text: str) -> object:
        """One value out of a command line or a variable.

        Raises:
            InputError: if it does not take that.
        """
        if "parse" in self.about or self.kind not in WORDS:
            return self._one(text)
        if self.kind is bool:
            known = text.lower() in TRUE + FALSE
            return self._one(text.lower() in TRUE if known else text)
        try:
            return self._one(self.kind(text))
        except ValueError:
            return self._one(text)

    def from_value(self, value: object) -> object:
        """All of it, out of a file or a caller's argument; see `from_text` for errors."""
        if not self.repeated:
            return self._one(value)
        return tuple(self._one(v) for v in (value if isinstance(value, list | tuple) else [value]))

    def _one(self, value: object) -> object:
        parse: Callable[[object], object] | None = self.about.get("parse")
        if parse and isinstance(value, str | tuple) and (self.kind is str or not self._is(value)):
            value = parse(value)
        if not self._is(value):
            raise InputError(f"{value!r} is not {WORDS.get(self.kind, 'text')}")
        if self.choices and value not in self.choices:
            raise InputError(f"{value!r} is not one of {', '.join(map(str, self.choices))}")
        if isinstance(value, int | float) and self.kind is not bool:
            self._require_within(value)
        if isinstance(value, int) and self.kind is float:
            return float(value)
        return Path(value) if isinstance(value, str) and self.kind is Path else value

    def _is(self, value: object) -> bool:
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if self.kind is float:
            return isinstance(value, int | float)
        return isinstance(value, str | Path if self.kind is Path else self.kind)

    def _require_within(self, value: float) -> None:
        for limit, keeps, what in (
            ("least", operator.ge, "less than"),
            ("most", operator.le, "more than"),
            ("above", operator.gt, "not above"),
            ("below", operator.lt, "not below"),
        ):
            # What is no number keeps no limit.
            if limit in self.about and not keeps(value, self.about[limit]):
                raise InputError(f"{value} is {what} {self.about[limit]}")


@cache
def options_of(kind: type[Any]) -> dict[str, Option]:
    """The options of a dataclass by the names of its fields, in their order."""
    hints = get_type_hints(kind)
    return {
        field.name: _option(field, hints[field.name])
        for field in dataclasses.fields(kind)
        if "help" in field.metadata
    }


def _option(field: dataclasses.Field[Any], hint: Any) -> Option:
    parts = [part for part in get_args(hint) if part is not types.NoneType]
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = parts
    repeated = get_origin(hint) is tuple and "parse" not in field.metadata
    if repeated:
        hint = get_args(hint)[0]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = type(choices[0]) if choices else get_origin(hint) or hint
    return Option(field.name, kind, repeated, choices, field.default, field.metadata)


def complete(option: Option, begun: str) -> list[str]:
    """What a shell offers for a value that is begun."""
    offered: Callable[[], Iterable[str]] = option.about.get(
        "complete", lambda: map(str, option.choices)
    )
    return [each for each in offered() if each.startswith(begun)]
