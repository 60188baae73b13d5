"""Files of the user's alone: whole or not at all, whatever ends the process or fills the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from jobs.client.home import JOB_FILE, Home, LocalJob
from nst import keyring
from nst.engines.base import Published
from nst.engines.cache import ModelCache
from nst.errors import InputError
from nst.keyring import KeyRing
from nst.network.integers import IntegerNetwork
from nst.pictures.picture import Picture
from nst.private import ABANDONED_S, MAKING, private_file, private_folder, sweep, write_private
from tests.fakes import FakeEngine
from tests.toy import TOY_SQUARE, toy_level

SECRET, EVALUATION = b"s" * 5_000, b"e" * 50_000


@contextmanager
def full_disk(after: int = 0) -> Iterator[None]:
    """So many files and folders still get onto the disk."""
    real, left = os.fsync, iter(range(after))

    def fsync(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def killed_while(code: str, folder: Path) -> None:
    """Runs code that makes `partial` in a process of its own and kills it there."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom nst.private import *\n"
        f"folder = Path(sys.argv[1])\n{code}\n    os.kill(os.getpid(), {signal.SIGKILL.value})\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert ended.returncode == -signal.SIGKILL


def test_a_file_is_replaced_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")
    with private_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        sweep(tmp_path)
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="No space left"), full_disk():
        write_private(path, bytes(11))
    assert path.read_bytes() == b"new" and everything(tmp_path) == [path]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt), private_folder(path) as partial:
        (partial / "secret").write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with private_folder(path) as partial:
        (partial / "secret").write_bytes(b"whole")
        sweep(tmp_path)
    assert everything(tmp_path) == [path / "secret"] and path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "code",
    [
        "with private_folder(folder / 'a') as partial:\n    (partial / 'x').write_bytes(b'x')",
        "with private_file(folder / 'a') as file:\n    file.write(b'x')",
    ],
)
def test_what_a_killed_process_left_is_removed(code: str, tmp_path: Path) -> None:
    killed_while(code, tmp_path)
    assert [path.name.startswith(MAKING) for path in tmp_path.iterdir()] == [True]
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_locks_age_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", no_locks)
    new, old = tmp_path / f"{MAKING}new", tmp_path / f"{MAKING}old"
    for path in (new, old):
        path.touch()
    long_ago = new.stat().st_mtime - ABANDONED_S - 1
    os.utime(old, (long_ago, long_ago))
    sweep(tmp_path)
    assert everything(tmp_path) == [new]


@pytest.fixture
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> Published:
    keys = SimpleNamespace(secret=SECRET, evaluation=EVALUATION)
    engine = SimpleNamespace(make_keys=lambda bundle: keys)
    monkeypatch.setattr(keyring, "get_engine", lambda name: engine)
    plan = SimpleNamespace(engine="concrete", model_id="0" * 16)
    return cast("Published", SimpleNamespace(plan=plan, client_bundle=b""))


@pytest.mark.parametrize("after", [0, 2, 4, 6])
def test_a_full_disk_leaves_no_key(after: int, quick_keys: Published, tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys")
    with pytest.raises(InputError, match="make room") as caught, full_disk(after):
        ring.create(quick_keys, "toy")
    assert "\n" not in str(caught.value) and not everything(tmp_path)


def test_a_folder_that_refuses_is_not_called_full(quick_keys: Published, tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    with pytest.raises(InputError, match=r"\(Not a directory\); set NST_BATCH_HOME to"):
        KeyRing(tmp_path / "keys").create(quick_keys, "toy")


def test_keys_of_a_killed_process_go_with_the_next_look(
    quick_keys: Published, tmp_path: Path
) -> None:
    ring = KeyRing(tmp_path)
    card = ring.create(quick_keys, "toy")
    before = everything(tmp_path)
    for folder in (tmp_path, tmp_path / card.key_id):
        code = "with private_file(folder / 'secret.key') as file:\n    file.write(b'secret')"
        killed_while(code, folder)
    code = "with private_folder(folder / 'a') as partial:\n    (partial / 'x').write_bytes(b'x')"
    killed_while(code, tmp_path)
    assert ring.list() == [card] and everything(tmp_path) == before


@pytest.mark.parametrize("after", [0, 3])
def test_a_full_disk_leaves_no_model(after: int, network: IntegerNetwork, tmp_path: Path) -> None:
    models = ModelCache(tmp_path)
    with pytest.raises(InputError, match="make room") as caught, full_disk(after):
        models.publish(FakeEngine(), network, toy_level(), TOY_SQUARE)
    assert "\n" not in str(caught.value) and not everything(tmp_path)


def test_a_job_is_known_before_its_pictures_are_written(tmp_path: Path) -> None:
    home = Home(tmp_path)
    local = LocalJob.model_validate(
        dict.fromkeys(("created", "store", "quality", "engine", "key_id", "model_id"), "x")
        | {"job_id": "0" * 12, "width": 8, "height": 8, "pairs": [], "skipped": []}
    )
    picture = Picture(np.random.default_rng(0).random((3, 64, 64), dtype=np.float32))
    with pytest.raises(InputError, match="make room") as caught, full_disk(after=2):
        home.add_job(local, [picture])
    assert "\n" not in str(caught.value)
    folder = tmp_path / "jobs" / local.job_id
    assert everything(tmp_path) == [folder / JOB_FILE]
    killed_while("with private_file(folder / 'p') as file:\n    file.write(b'x')", folder)
    assert len(everything(tmp_path)) == 2
    assert home.jobs() == [local] and everything(tmp_path) == [folder / JOB_FILE]
