"""What a system refuses: full disks and outputs, folders, homes and inputs that are not there."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.screen import is_terminal
from jobs.client.home import JOB_FILE, PICTURES, Home
from jobs.storage.store import connect
from nst import keyring
from nst.engines.base import Published
from nst.engines.cache import ModelCache
from nst.errors import InputError, StoreAddressError
from nst.folders import HOME_VARIABLE, default_folder
from nst.keyring import KeyRing
from nst.network.integers import IntegerNetwork
from tests.command_line import refused, run
from tests.toy import publish_toy
from tests.toy_job import ToyJob

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "from jobs.cli.main import main; main()"


def shell(script: str, folder: Path) -> str:
    """All that a shell's script prints; `nst` in it is the command."""
    call = f"nst() {{ {sys.executable} -c '{COMMAND}' \"$@\"; }}; cd {folder}; {script}"
    done = subprocess.run(
        ["bash", "-c", f"( {call} ) 2>&1"],
        env={**os.environ, "PYTHONPATH": str(ROOT), HOME_VARIABLE: str(folder / "home")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("script", "line", "code"),
    [
        ("nst list > /dev/full", "error: the system refuses (No space left on device)", 2),
        ("nst --help > /dev/full", "error: the system refuses (No space left on device)", 2),
        ("mkdir d; cd d; rmdir ../d; nst list", "error: the working directory cannot be read", 2),
        ("nst list <&- >&-", "", 0),
        ("nst list 2>/dev/full", "no jobs yet", 0),
    ],
)
def test_outputs_inputs_and_folders_that_are_gone(
    tmp_path: Path, script: str, line: str, code: int
) -> None:
    *lines, last = shell(f"{script}; echo $?", tmp_path).splitlines()
    assert int(last) == code
    # Bash itself complains of its working directory.
    assert [x for x in lines if "getcwd" not in x or x.startswith("error")][-1:] == [
        x for x in lines if line and x.startswith(line)
    ]


def test_where_there_is_no_input_no_user_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert not is_terminal()


def test_a_user_id_that_the_system_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    for name in ("HOME", HOME_VARIABLE, "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(InputError, match=HOME_VARIABLE):
        default_folder()
    refused(run("list"), HOME_VARIABLE)
    monkeypatch.setenv(HOME_VARIABLE, "/nowhere")
    assert run("list").exit_code == 0


def test_a_store_of_a_user_who_is_unknown() -> None:
    with pytest.raises(StoreAddressError, match="whole path"):
        connect("~no-such-user/store")


@pytest.mark.parametrize("below", ["file", "file/home"])
def test_a_data_directory_that_is_a_file(
    tmp_path: Path, below: str, network: IntegerNetwork, published: Published, toy_job: ToyJob
) -> None:
    (tmp_path / "file").touch()
    home = Home(tmp_path / below)
    calls: list[Callable[[], Any]] = [
        lambda: publish_toy(ModelCache(home.models), network),
        lambda: KeyRing(home.keys).create(published, "toy"),
        lambda: home.save_job(toy_job.local),
        home.jobs,
        KeyRing(home.keys).list,
    ]
    for call in calls:
        with pytest.raises(InputError, match=f"cannot .*{HOME_VARIABLE}"):
            call()


def test_a_key_set_that_does_not_fit_leaves_nothing(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = keyring._write_private

    def full(path: Path, data: bytes) -> None:
        write(path, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keyring, "_write_private", full)
    with pytest.raises(InputError, match="No space left"):
        KeyRing(tmp_path / "keys").create(published, "toy")
    assert list((tmp_path / "keys").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir(mode=0)
    with pytest.raises(InputError, match="cannot read"):
        Home(tmp_path).jobs()


@pytest.mark.parametrize(("name", "text"), [(JOB_FILE, ""), (PICTURES, "plain")])
def test_what_is_damaged_or_left_by_a_submit_that_died_can_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    folder = tmp_path / "jobs" / "broken"
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    assert "nst-batch delete broken" in run("list").stderr
    refused(run("delete", "broken"), "--yes", alone=False)
    assert folder.exists()
    result = run("delete", "broken", "--yes")
    assert result.exit_code == 0, result.output
    assert not folder.exists()
    refused(run("delete", "../jobs", "--yes"), "was not submitted")
