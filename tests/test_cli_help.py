"""Help, versions and completion: what a user reads before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version

import click
import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner

from jobs.cli.about import PROGRAM, VARIABLE
from jobs.cli.examples import HEADING, calls_of
from jobs.cli.main import main
from tests.test_docs import parse


def every_command() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands and groups by their words."""
    left: list[tuple[tuple[str, ...], click.Command]] = [((), main)]
    while left:
        words, command = left.pop()
        yield words, command
        if isinstance(command, click.Group):
            left += [((*words, name), below) for name, below in command.commands.items()]


COMMANDS = dict(every_command())


def run(*arguments: str, columns: str = "100") -> str:
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": columns})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_examples_of_itself_that_parse(words: tuple[str, ...]) -> None:
    text = run(*words, "--help")
    calls = calls_of(text.partition(f"\n  {HEADING}\n")[2])
    assert calls
    for call in calls:
        assert tuple(call.split()[: len(words)]) == words
        parse(call.partition(" > ")[0])
    assert COMMANDS[words].help, "and says what it does"


def test_every_option_says_what_it_is_for() -> None:
    silent = {
        (" ".join(words), option.opts[0])
        for words, command in COMMANDS.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    }
    # Names that say it all.
    assert {name for _, name in silent} <= {
        *("--batch-size", "--content-weight", "--cores-per-node", "--lr", "--max-iter"),
        *("--seed", "--style-weight", "--workers"),
    }


@pytest.mark.parametrize(
    "call",
    ["list", "status", "logs", "keys list", "circuits inspect", "config show", "doctor",
     "estimate", "evaluate"],
)  # fmt: skip
def test_what_lists_something_lists_it_for_programs_too(call: str) -> None:
    options = COMMANDS[tuple(call.split())].params
    assert any("--json" in option.opts for option in options)


def test_the_version_names_what_keys_and_jobs_depend_on() -> None:
    first, second, third = run("--version").splitlines()
    assert first == f"nst-batch {version('nst-batch')}"
    assert f"Concrete {version('concrete-python')}" in second
    assert re.search(r"circuit format \d+$", second)
    assert f"Ray {version('ray')}" in third


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_script(shell: str) -> None:
    assert f"{VARIABLE}={shell}_complete" in run("completion", shell)


def completed(*words: str) -> set[str]:
    """What a shell would offer for the last word."""
    kind = get_completion_class("zsh")
    assert kind is not None
    found = kind(main, {}, PROGRAM, VARIABLE).get_completions(list(words[:-1]), words[-1])
    return {item.value for item in found}


def test_what_is_completed(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.client.home import Home, LocalJob

    monkeypatch.setenv("NST_BATCH_HOME", str(tmp_path))
    for job_id in ("aa11", "ab22"):
        local = LocalJob(
            job_id=job_id, created="2026-01-01", store="s", quality="low", key_id="k",
            model_id="c", width=32, height=32, engine="concrete", pairs=[], skipped=[],
        )  # fmt: skip
        Home(tmp_path).save_job(local)
    assert completed("") == set(main.commands)
    assert completed("keys", "") == {"create", "list", "protect", "unprotect"}
    assert completed("submit", "--quality", "m") == completed("preview", "-q", "m") == {"mid"}
    assert completed("submit", "--quality", "a") == {"auto"}
    assert completed("submit", "--no") >= {"--no-wait"}
    assert completed("fetch", "a") == completed("status", "a") == {"aa11", "ab22"}
    assert completed("logs", "ab") == {"ab22"}
