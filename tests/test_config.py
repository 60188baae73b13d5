"""Options out of files and the environment: which one wins, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from jobs.cli.main import main
from jobs.configuration import FILE, configured, load
from jobs.fields import options_of
from jobs.options import COMMANDS, SubmitOptions
from nst.errors import InputError
from nst.folders import HOME_VARIABLE
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


def shown(command: str, key: str) -> tuple[str, str]:
    """An option's value, and the variable or file that it is from."""
    result = run("config", "show", *command.split(), "--json")
    assert result.exit_code == 0, result.output
    (row,) = [r for r in json.loads(result.stdout)["options"] if r["key"] == key]
    assert row["command"] == command
    return row["value"], row["source"]


def test_every_option_of_a_command_is_a_field_of_its_dataclass() -> None:
    """Nothing is spelled twice: what can be configured is what the command line takes."""
    for words, kind in COMMANDS.items():
        command: click.Command = main
        for word in words.split():
            assert isinstance(command, click.Group)
            command = command.commands[word]
        taken = {p.name for p in command.params if isinstance(p, click.Option)}
        assert taken == set(options_of(kind)), words


def test_the_first_that_says_something_wins(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = str(user_file)
    assert shown("submit", "quality") == ("low", "default")
    assert shown("submit", "budget") == ("8h", "default"), "as a file would say it"
    write('quality = "draft"\nbudget = "90min"', user_file)
    assert shown("submit", "budget") == ("90min", where)
    assert shown("submit", "quality") == ("draft", where)
    write('[submit]\nquality = "mid"\n[keys.create]\nquality = "high"', user_file)
    assert shown("submit", "quality") == ("mid", where)
    assert shown("keys create", "quality") == ("high", where)
    assert shown("preview", "quality") == ("low", "default")
    # Of the project even what is said to all is stronger than what the user says of one command.
    write('quality = "high"')
    assert shown("submit", "quality") == ("high", FILE)
    monkeypatch.setenv("NST_BATCH_QUALITY", "low")
    assert shown("submit", "quality") == ("low", "NST_BATCH_QUALITY")
    monkeypatch.setenv("NST_BATCH_SUBMIT_QUALITY", "draft")
    assert shown("submit", "quality") == ("draft", "NST_BATCH_SUBMIT_QUALITY")
    assert shown("keys create", "quality")[1] == "NST_BATCH_QUALITY"


def test_commands_take_what_is_configured_unless_a_flag_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write('[estimate]\nlike = "first"\ncores = "8"')
    refused(run("estimate"), "'first'")
    monkeypatch.setenv("NST_BATCH_LIKE", "second")
    refused(run("estimate"), "'second'")
    refused(run("estimate", "--like", "third"), "'third'")


def test_a_variable_is_one_value_of_an_option_that_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NST_BATCH_STORE", str(tmp_path / "somewhere"))
    assert configured("doctor")["store"].value == (str(tmp_path / "somewhere"),)


def test_a_value_for_all_commands_reaches_those_that_take_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write('quality = "auto"')
    assert shown("submit", "quality") == ("auto", FILE)
    assert shown("preview", "quality") == ("low", "default")
    write("")
    monkeypatch.setenv("NST_BATCH_QUALITY", "auto")
    assert shown("estimate", "quality") == ("auto", "NST_BATCH_QUALITY")
    assert shown("doctor", "quality") == ("low", "default")
    write('[preview]\nquality = "auto"')
    refused(run("list"), f"{FILE}: preview.quality: no quality level 'auto'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('qualty = "low"', ["qualty: no option of any command", "quality?"]),
        ("[submit]\nmagnify = 2", ["submit.magnify: no option of submit"]),
        ("[submitt]\nlimit = 2", ["submitt:", "submit?"]),
        ("quality = 3", ["quality: 3 is not text"]),
        ('quality = "lowest"', ["quality: no quality level 'lowest'", "draft"]),
        ('limit = "many"', ["limit: 'many'", "a number"]),
        ("actors = true", ["actors: True", "a whole number"]),
        ('grid = "yes"', ["grid: 'yes'", "true or false"]),
        ("[submit]\nactors = 0", ["submit.actors: 0 is less than 1"]),
        ('[submit]\nbudget = "tomorrow"', ["submit.budget: 'tomorrow' is no span of time"]),
        ('fit = "round"', ["fit: 'round'", "crop"]),
        ("[estimate]\nuplink = -1", ["estimate.uplink: -1 is not above 0"]),
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


def test_files_that_cannot_be_read(user_file: Path) -> None:
    Path(FILE).mkdir()
    refused(run("list"), f"{FILE}: cannot be read (Is a directory)")
    Path(FILE).rmdir()
    user_file.write_bytes(b"quality = '\xff'")
    refused(run("list"), f"{user_file}: is no TOML")


def test_a_byte_order_mark_is_no_part_of_a_file() -> None:
    Path(FILE).write_bytes(b'\xef\xbb\xbfquality = "draft"')
    assert shown("preview", "quality") == ("draft", FILE)


def test_the_address_of_a_webhook_stays_with_its_user(user_file: Path) -> None:
    write('notify-url = "https://hooks.example/T0K3N"')
    refused(run("list"), f"{FILE}: notify-url: only your own file", str(user_file))
    Path(FILE).unlink()
    write('notify-url = "https://hooks.example/T0K3N"', user_file)
    assert shown("submit", "notify-url") == ("https://hooks.example/…", str(user_file))


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_BATCH_ACTORS", "soon")
    refused(run("config", "show", "submit"), "NST_BATCH_ACTORS: 'soon'")
    refused(run("submit", "nowhere"), "NST_BATCH_ACTORS: 'soon' is not a whole number")
    assert run("list").exit_code == run("submit", "--help").exit_code == 0


@pytest.mark.parametrize(("text", "shows"), [("true", "true"), ("0", "false"), ("No", "false")])
def test_flags_in_the_environment(text: str, shows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_BATCH_SUBMIT_WAIT", text)
    assert shown("submit", "wait") == (text, "NST_BATCH_SUBMIT_WAIT")
    outcome = run("submit", "nowhere", "--out", "o").output
    assert ("--out needs --wait" in outcome) is (shows == "false")


def test_secrets_are_no_options_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passphrase's variable is called like a flag, which must not be told it."""
    monkeypatch.setenv("NST_BATCH_PASSPHRASE", "open sesame")
    result = run("keys", "create", "--quality", "nosuch")
    refused(result, "'nosuch'")
    assert "sesame" not in result.output + run("config", "show", "--json").output


def test_what_is_configured_for_a_cluster_or_s3_does_not_stop_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('cluster = "http://127.0.0.1:1"\nprofile = "studio"\nendpoint-url = "http://127.0.0.1:1"')
    monkeypatch.setenv("NST_BATCH_TRUST_PROJECT", "1")
    refused(run("submit", "nowhere", "--here"), "'nowhere' does not exist")
    refused(run("submit", "nowhere"), "a cluster needs a store")
    refused(run("retry", "nosuchjob"), "nosuchjob")
    folder = str(tmp_path / "store")
    refused(run("submit", "nowhere", "--store", folder, "--here"), "'nowhere' does not exist")
    refused(run("submit", "nowhere", "--here", "--profile", "studio"), "takes no profile")


def test_a_folder_for_results_is_of_no_use_to_a_command_that_does_not_wait() -> None:
    write('out = "res"')
    refused(run("submit", "nowhere", "--no-wait"), "'nowhere' does not exist")
    refused(run("submit", "nowhere", "--no-wait", "--out", "o"), "--out needs --wait")


def test_the_text_has_equal_options_in_one_line() -> None:
    write("core-price = 1")
    lines = [line.split() for line in run("config", "show").stdout.splitlines()]
    assert ["core-price", "1", FILE, "estimate,", "submit"] in lines
    refused(run("config", "show", "submitt"), "no options of submitt")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["--nosuch"], ["no such option '--nosuch'", "see: "]),
        (["submitt"], ["no such command 'submitt'", "submit"]),
        (["keys", "creat"], ["no such command 'creat'", "keys --help"]),
        (["submit", "x", "--qualty", "low"], ["--qualty", "--quality", "submit --help"]),
        (["submit"], ["missing argument 'PAIRS'", "submit --help"]),
        (["submit", "x", "--actors", "0"], ["'--actors'", "0 is less than 1"]),
        (["submit", "x", "--out", "o", "--no-wait"], ["--out needs --wait"]),
    ],
)
def test_wrong_usage_is_one_line(call: list[str], words: list[str]) -> None:
    refused(run(*call), *words)


def test_a_group_alone_shows_its_help() -> None:
    result = run("keys")
    assert result.exit_code == 2 and "create" in result.output and "Usage" in result.output


ASKED = {
    "cluster": "http://evil.example:8265",
    "cluster-python": "/tmp/python",
    "endpoint-url": "http://evil.example",
    "profile": "studio",
    "store": "s3://evil/prefix",
}


@pytest.mark.parametrize("key", ASKED)
def test_a_project_says_where_data_and_credentials_go_only_if_its_user_agrees(
    key: str, user_file: Path
) -> None:
    asked, known = f'{FILE}: {key} = "{ASKED[key]}"', "'nowhere' does not exist"
    write(f'{key} = "{ASKED[key]}"')
    refused(run("submit", "nowhere"), asked, "--trust-project")
    with pytest.raises(InputError, match=key):
        load(SubmitOptions, "submit", {})
    # Whoever gives it is asked nothing, and so is whoever looks.
    if key == "store":
        refused(run("submit", "nowhere", "--store", "here"), known)
        refused(run("submit", "nowhere", "--store=here"), known)
        assert load(SubmitOptions, "submit", {"store": "here"}).store == "here"
    assert run("submit", "--help").exit_code == run("config", "show").exit_code == 0
    assert asked not in run("submit", "nowhere", "--trust-project").output
    refused(run("submit", "nowhere"), asked)
    Path(FILE).rename(user_file)
    assert asked not in run("submit", "nowhere").output


def test_consent_is_for_one_folder_and_what_its_file_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers: list[bool] = []
    questions: list[str] = []

    def confirm(question: str, **_: object) -> bool:
        questions.append(question)
        return answers.pop()

    monkeypatch.setattr(click, "confirm", confirm)
    monkeypatch.setattr("jobs.cli.config.is_terminal", lambda: True)

    def submit_asks(*planned: bool) -> int:
        answers[:] = planned
        questions.clear()
        refused(run("submit", "nowhere"), "nowhere" if planned != (False,) else "not trusted")
        return len(questions)

    write('store = "\x1b[2Jours"'.replace("\x1b", "\\u001b"))
    assert submit_asks(False) == 1 and "\x1b" not in questions[0]
    assert submit_asks(True) == 1 and submit_asks() == 0
    write('quality = "mid"\n' + Path(FILE).read_text())
    assert submit_asks() == 0, "only what is asked about counts"
    write('store = "theirs"')
    assert submit_asks(True) == 1
    (tmp_path / "other").mkdir()
    Path(FILE).rename(tmp_path / "other" / FILE)
    monkeypatch.chdir(tmp_path / "other")
    assert submit_asks(True) == 1
    assert (tmp_path / "home" / "trusted").stat().st_mode & 0o777 == 0o700
    write('store = "elsewhere"')
    monkeypatch.setenv("NST_BATCH_TRUST_PROJECT", "1")
    assert submit_asks() == 0


def test_a_folder_for_results_is_none_for_weights_runs_and_reports() -> None:
    write('out = "res"')
    assert shown("preview", "out") == ("res", FILE)
    for command in ("train", "export", "evaluate", "demo"):
        assert shown(command, "out")[1] == "default"
    write('[train]\nout = "runs/low"')
    assert shown("train", "out") == ("runs/low", FILE)


def test_folders_that_are_configured_for_train_do_not_stop_evaluate() -> None:
    write('content-dir = "coco"\nstyle-dir = "wikiart"\ngrid = true')
    refused(run("evaluate", "nowhere", "--vgg", "vgg.pth"), "vgg.pth")
    refused(run("evaluate", "x", "--content-dir", "c", "--vgg", "v"), "give either PAIRS")
    refused(run("evaluate", "--vgg", "vgg.pth"), "vgg.pth")
    refused(run("evaluate", "--grid", "--vgg", "vgg.pth"), "--grid needs PAIRS")


@pytest.mark.parametrize(("home", "code"), [("/nowhere", 0), ("", 2)])
def test_a_user_whom_the_system_does_not_know(
    home: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv(HOME_VARIABLE, home)
    result = run("list")
    assert result.exit_code == code, result.output
    assert ("no home directory" in result.output) == bool(code)
