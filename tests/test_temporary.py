"""Temporary folders: of a process that was killed, of one that lives, and Ray's."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster.local import LONGEST_BASE, _ray_folder
from nst import temporary
from nst.temporary import LOCK, TemporaryFolder

KILLED = """
import os, signal, sys
from nst.temporary import TemporaryFolder
kept = TemporaryFolder("nst-circuits-", sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = TemporaryFolder("nst-circuits-", str(tmp_path))
    (unknown := tmp_path / "nst-circuits-of-another-program").mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = set(tmp_path.iterdir()) - {Path(alive.name), unknown}
    with TemporaryFolder("nst-circuits-", str(tmp_path)):
        assert left.exists(), "whoever makes a folder needs a moment to take its lock"
    monkeypatch.setattr(temporary, "YOUNG", -1.0)
    with TemporaryFolder("nst-ray-", str(tmp_path)):
        assert left.exists()
    with TemporaryFolder("nst-circuits-", str(tmp_path)) as own:
        assert set(tmp_path.iterdir()) == {Path(own), Path(alive.name), unknown}
    alive.cleanup()
    assert set(tmp_path.iterdir()) == {unknown}


def test_rays_files_go_where_the_user_wants_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "scratch-of-a-batch-job-1234567"
    base.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    with _ray_folder() as folder:
        # Longer ones would not leave Ray's sockets their 107 characters.
        assert len(folder) <= LONGEST_BASE + len("/nst-ray-12345678/r")
        (Path(folder) / "log").touch()
        assert [path.name for path in base.glob("*/r/*")] == ["log"]
        assert all(path.stat().st_mode & 0o077 == 0 for path in base.iterdir())
        around = Path(folder).parent
        assert {path.name for path in around.iterdir()} == {LOCK, "r"}
    assert not around.exists() and not list(base.iterdir())
