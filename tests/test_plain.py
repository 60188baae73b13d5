"""What others wrote steers no terminal, wherever it is shown."""

from __future__ import annotations

import io
import logging
import unicodedata

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from jobs.cli.main import main
from jobs.cli.screen import Screen, warnings_shown
from jobs.client.home import LocalJob, LocalPair
from jobs.client.pairs import safe_name
from jobs.client.pictures import Box
from jobs.client.view import Snapshot, table
from jobs.storage.records import JobState, PairEnd
from nst.errors import InputError, first_line, last_line
from nst.plain import MARKS, MOST, plain, plain_lines

EVIL = "a\x1b]0;owned\x07\x9b2J\u202egpj\u2066\u200b\ufeff[bold red]b\x00\r\x08\udcff\U000e0041"


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def test_text_of_others_is_one_harmless_line() -> None:
    assert plain(EVIL) == "a ]0;owned  2Jgpj[bold red]b   \ufffd"
    for code in (*range(0x3000), *range(0xD800, 0xE100), *range(0xE0000, 0xE0100)):
        assert is_harmless(plain(chr(code)))
    assert plain("Größe – 日本 👍🏽") == "Größe – 日本 👍🏽"


def test_long_texts_are_cut_off_whatever_they_are_made_of() -> None:
    for text in ("x" * 10**6, "\u200b" * 10**6, "\x1b" * 10**6):
        assert len(plain(text)) <= MOST and plain(text).endswith("…")
    assert plain("x" * MOST) == "x" * MOST
    assert plain("e" + "\u0301" * 50) == "e" + "\u0301" * MARKS
    assert plain_lines("one\x1b[2J\ttwo\nthree") == "one [2J two\nthree"


def shown_by_table() -> str:
    pair = LocalPair(pair_id="1", result="1", name=EVIL, content=0, style=1, box=Box(0, 0, 1, 1))
    book = LocalJob(
        job_id="ab", created="", store=".", quality="low", width=8, height=8, engine="concrete",
        key_id="cd", model_id="ef", pairs=[pair], skipped=[],
    )  # fmt: skip
    end = PairEnd.model_construct(pair_id="1", status="failed", reason=EVIL)
    out = io.StringIO()
    Console(file=out, width=200).print(table(Snapshot(book, JobState(), {"1": end}, "line")))
    return out.getvalue()


def shown_by_screen() -> str:
    out, screen = io.StringIO(), Screen()
    screen.console = Console(file=out, width=200)
    screen.say(EVIL)
    return out.getvalue()


def shown_by_error() -> str:
    @main.command("raise-it")
    def raising() -> None:
        logging.getLogger("nst-batch").warning("%s", EVIL)
        raise InputError(EVIL)

    try:
        return CliRunner().invoke(main, ["raise-it"]).stderr
    finally:
        del main.commands["raise-it"]


@pytest.mark.parametrize("show", [shown_by_table, shown_by_screen, shown_by_error])
def test_nothing_that_is_shown_steers(show: object, monkeypatch: pytest.MonkeyPatch) -> None:
    # A test process hands its log to others as UTF-8, which what is logged here is not.
    monkeypatch.setattr(logging.getLogger("nst-batch"), "propagate", False)
    assert callable(show)
    text = show()
    assert "[bold red]b" in text
    assert all(is_harmless(line) for line in text.split("\n"))


def test_errors_of_others_and_names_of_files_are_plain() -> None:
    assert is_harmless(first_line(ValueError(EVIL))) and is_harmless(last_line(ValueError(EVIL)))
    assert is_harmless(safe_name(EVIL))
    with warnings_shown():
        assert click.unstyle(plain(EVIL)) == plain(EVIL)
