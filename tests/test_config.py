"""Options out of files and the environment: which one wins, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from jobs.cli.configured import FILE, all_commands, options_of, variables
from jobs.cli.main import main
from tests.command_line import refused, run


@pytest.fixture(autouse=True)
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and where the user's file would be."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NST_BATCH_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / "config" / "nst-batch"
    folder.mkdir(parents=True)
    return folder / FILE


def write(text: str, path: Path = Path(FILE)) -> None:
    path.write_text(text)


def shown(command: str, key: str) -> tuple[object, str, str]:
    """An option's value, source and variable or file."""
    result = run("config", "show", "--json")
    assert result.exit_code == 0, result.output
    (row,) = [
        r
        for r in json.loads(result.stdout)["options"]
        if (r["command"], r["key"]) == (command, key)
    ]
    return row["value"], row["source"], row["where"]


def test_the_first_that_says_something_wins(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = str(user_file)
    assert shown("submit", "quality") == ("low", "default", "")
    assert shown("submit", "budget") == ("8 h", "default", ""), "as a file would say it"
    write('quality = "draft"\nbudget = "90min"', user_file)
    assert shown("submit", "budget") == ("90min", "user file", where)
    assert shown("submit", "quality") == ("draft", "user file", where)
    write('[submit]\nquality = "mid"\n[keys.create]\nquality = "high"', user_file)
    assert shown("submit", "quality") == ("mid", "user file", where)
    assert shown("keys create", "quality") == ("high", "user file", where)
    assert shown("preview", "quality") == ("low", "default", "")
    # Of the project even what is said to all is stronger than what the user says of one command.
    write('quality = "high"')
    assert shown("submit", "quality") == ("high", "project file", FILE)
    monkeypatch.setenv("NST_BATCH_QUALITY", "low")
    assert shown("submit", "quality") == ("low", "environment", "NST_BATCH_QUALITY")
    monkeypatch.setenv("NST_BATCH_SUBMIT_QUALITY", "draft")
    assert shown("submit", "quality") == ("draft", "environment", "NST_BATCH_SUBMIT_QUALITY")
    assert shown("keys create", "quality")[2] == "NST_BATCH_QUALITY"


def test_commands_take_what_is_configured_unless_a_flag_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write('quality = "nosuch"\n[estimate]\ncores = "8"')
    refused(run("estimate"), "'nosuch'")
    refused(run("estimate", "--quality", "other"), "'other'")
    monkeypatch.setenv("NST_BATCH_QUALITY", "third")
    refused(run("estimate"), "'third'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('qualty = "low"', ["qualty: no option of any command", "quality?"]),
        ("[submit]\nmagnify = 2", ["submit.magnify: no option of submit"]),
        ("[submitt]\nlimit = 2", ["submitt:", "submit?"]),
        ("quality = 3", ["quality: 3", "text in quotes"]),
        ('limit = "many"', ["limit: 'many'", "a number"]),
        ("keep-days = true", ["keep-days: True", "a whole number"]),
        ('grid = "yes"', ["grid: 'yes'", "true or false"]),
        ("[submit]\nkeep-days = 0", ["submit.keep-days: 0 is not in the range"]),
        ('fit = "round"', ["fit: 'round'", "crop"]),
        ("[estimate]\nuplink = -1", ["estimate.uplink: --uplink -1"]),
        ("quality =", ["is no TOML"]),
        ('passphrase = "x"', ["passphrase: secrets do not belong"]),
        ('aws_secret_access_key = "x"', ["aws_secret_access_key: secrets do not belong"]),
        ('endpoint-url = "http://me:word@host"', ["endpoint-url: passwords in addresses"]),
        ("force = true", ["force: is for one call only", "--force"]),
        ('[retry]\ncluster = "http://h:1"', ["retry.cluster: is for one call only"]),
    ],
)
def test_a_wrong_file_is_one_line(text: str, words: list[str]) -> None:
    write(text)
    result = run("config", "show")
    refused(result, f"{FILE}: {words[0]}", *words)
    assert "word@" not in result.output
    # Nothing else runs either, and who asks for help gets it.
    assert run("submit", "--help").exit_code == run("--version").exit_code == 0


@pytest.mark.parametrize("text", ['limit = "many"', "keep-days = true", "[train]\nseed = 1.5"])
def test_a_value_of_another_type_ends_every_command(text: str) -> None:
    write(text)
    refused(run("list"), f"{FILE}: ", "is not what it takes")
    # What only one command can judge, it judges: a folder need not be there from everywhere.
    write('[train]\ncontent-dir = "nowhere"\n[submit]\nbudget = "tomorrow"')
    assert run("list").exit_code == 0


def test_files_that_cannot_be_read(user_file: Path) -> None:
    Path(FILE).mkdir()
    refused(run("list"), f"{FILE}: cannot be read (Is a directory)")
    Path(FILE).rmdir()
    user_file.write_bytes(b"quality = '\xff'")
    refused(run("list"), f"{user_file}: is no TOML")


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_BATCH_KEEP_DAYS", "soon")
    refused(run("config", "show", "submit"), "NST_BATCH_KEEP_DAYS: 'soon'")
    refused(run("submit", "nowhere"), "NST_BATCH_KEEP_DAYS", "'soon'")


def test_secrets_are_no_options_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passphrase's variable is called like a flag, which must not be told it."""
    monkeypatch.setenv("NST_BATCH_PASSPHRASE", "open sesame")
    with click.Context(main) as root:
        for path, command in all_commands(root):
            for key in options_of(path, command):
                assert "NST_BATCH_PASSPHRASE" not in variables(path, key)
    result = run("keys", "create", "--quality", "nosuch")
    refused(result, "'nosuch'")
    assert "sesame" not in result.output + run("config", "show", "--json").output


def test_what_is_configured_for_a_cluster_or_s3_does_not_stop_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('cluster = "http://127.0.0.1:1"\nprofile = "studio"\nendpoint-url = "http://127.0.0.1:1"')
    refused(run("submit", "nowhere", "--here"), "'nowhere' does not exist")
    refused(run("submit", "nowhere"), "--cluster needs --store")
    refused(run("submit", "nowhere", "--here", "--cluster", "http://h:1"), "exclude each other")
    refused(run("retry", "nosuchjob"), "nosuchjob")
    folder = str(tmp_path / "store")
    refused(run("submit", "nowhere", "--store", folder, "--here"), "'nowhere' does not exist")
    result = run("submit", "nowhere", "--store", folder, "--here", "--profile", "studio")
    assert result.exit_code == 2 and "takes no" in result.output


def test_the_text_tells_what_differs_from_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "all options have their defaults" in run("config", "show").stdout
    write("core-price = 1")
    lines = run("config", "show").stdout.splitlines()
    assert lines[-1].split() == ["core-price", "1", "project", "file", FILE, "estimate,", "submit"]
    assert "keep-days" in run("config", "show", "submit").stdout
    refused(run("config", "show", "submitt"), "no command submitt")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["--nosuch"], ["no such option '--nosuch'", "see: "]),
        (["submitt"], ["no such command 'submitt'", "submit"]),
        (["keys", "creat"], ["no such command 'creat'", "keys --help"]),
        (["submit", "x", "--qualty", "low"], ["--qualty", "--quality", "submit --help"]),
        (["submit"], ["missing argument 'PAIRS'", "submit --help"]),
        (["submit", "x", "--keep-days", "0"], ["'--keep-days'", "0 is not in the range"]),
        (["submit", "x", "--out", "o", "--no-wait"], ["--out needs --wait"]),
    ],
)
def test_wrong_usage_is_one_line(call: list[str], words: list[str]) -> None:
    refused(run(*call), *words)


def test_a_group_alone_shows_its_help() -> None:
    result = run("keys")
    assert result.exit_code == 2 and "create" in result.output and "Usage" in result.output
