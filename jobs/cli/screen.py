"""A user at a terminal: what commands show and ask."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from nst.errors import InputError
from nst.folders import PASSPHRASE_VARIABLE

if TYPE_CHECKING:
    from rich.status import Status

EXIT_SOME_FAILED, EXIT_USAGE, EXIT_UNREACHABLE = 1, 2, 3


class Screen:
    """Shows what a command does, and asks for each passphrase once.

    A passphrase is remembered for as long as the command runs, so that `submit --out` need not ask
    again when the results are there, hours later.
    """

    def __init__(self, errors: bool = False) -> None:
        """Write to standard output, or with `errors` to standard error."""
        from rich.console import Console

        # CI systems set FORCE_COLOR, and a file is no terminal even then.
        stream = sys.stderr if errors else sys.stdout
        drawn = stream is not None and stream.isatty()
        self.console = Console(stderr=errors, force_terminal=None if drawn else False)
        self._known: dict[str, str] = {}
        self._status: Status | None = None

    def say(self, text: str, style: str = "") -> None:
        """A line as it is: nothing in it is markup, and paths are not wrapped."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def working(self, what: str) -> Iterator[Callable[[str], None]]:
        """A spinner beside a text; gives what changes the text."""
        with self.console.status(what) as self._status:
            try:
                yield self._status.update
            finally:
                self._status = None

    def passphrase(self, key_id: str) -> str:
        """The passphrase of a key set.

        Raises:
            InputError: if it is not in the environment, and this is no terminal.
        """
        if key_id not in self._known:
            self._known[key_id] = self._ask(key_id)
        return self._known[key_id]

    def _ask(self, key_id: str) -> str:
        given = os.environ.get(PASSPHRASE_VARIABLE)
        if given:
            return given
        require_terminal(f"key {key_id} has a passphrase")
        # The spinner would write over what is typed.
        if self._status is not None:
            self._status.stop()
        typed: str = click.prompt(f"Passphrase of key {key_id}", hide_input=True, err=True)
        if self._status is not None:
            self._status.start()
        return typed


def require_terminal(why: str) -> None:
    """Raise InputError if no user can type here."""
    if not is_terminal():
        raise InputError(f"{why}, and this is no terminal; set {PASSPHRASE_VARIABLE}")


def is_terminal() -> bool:
    """Whether a user can answer."""
    # A service may have none at all.
    return sys.stdin is not None and sys.stdin.isatty()


def exit_if(some_failed: bool) -> None:
    """End with the exit code for failed pairs, if there are any."""
    if some_failed:
        raise SystemExit(EXIT_SOME_FAILED)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Print the library's warnings as lines on standard error."""
    handler = _Warnings(logging.WARNING)
    log = logging.getLogger("nst-batch")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"warning: {record.getMessage()}", err=True)
