"""What is installed without a checkout: all code, weights and examples, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from jobs.execution.launch import ENTRY, MODULE
from nst.folders import HOME_VARIABLE
from nst.network.levels import LEVELS
from tests.command_line import namesakes

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nst", "jobs", "cluster")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built in a copy: setuptools leaves things where it builds."""
    copy, dist = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for folder in (*PACKAGES, "weights", "examples", "tests", "benchmarks"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore, symlinks=True)
    for name in ("pyproject.toml", "nst_batch.py", "README.md", "LICENSE", "NOTICE.md"):
        shutil.copy(ROOT / name, copy)
    subprocess.run(
        [sys.executable, "-c", f"from setuptools.build_meta import *; build_wheel({str(dist)!r})"],
        cwd=copy, capture_output=True, check=True,
    )  # fmt: skip
    (built,) = dist.glob("*.whl")
    return built


def test_the_wheel_holds_what_a_user_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for level in LEVELS.values():
            for path in (level.weights, level.weights.with_suffix(".json")):
                assert archive.read(f"nst/weights/{path.name}") == path.read_bytes()
    code = {p.relative_to(ROOT).as_posix() for f in PACKAGES for p in (ROOT / f).rglob("*.py")}
    assert code <= names
    templates = {p.relative_to(ROOT).as_posix() for p in (ROOT / "jobs").glob("*/templates/*")}
    pictures = (ROOT / "examples/pairs").rglob("*.jpg")
    examples = {f"jobs/{p.relative_to(ROOT).as_posix()}" for p in pictures}
    assert templates and examples
    assert templates | examples | {"nst/engines/concrete/rates.json"} <= names
    (information,) = {x.split("/")[0] for x in names if x.split("/")[0].endswith(".dist-info")}
    assert {f"{information}/{x}" for x in ("LICENSE", "NOTICE.md", "entry_points.txt")} <= names


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    folders = {name.parts[0] for name in names if not name.parts[0].endswith(".dist-info")}
    # Names that are ours alone: another package overwrites no data of ours.
    assert folders == {*PACKAGES, "nst_batch.py"}
    # No weights that are not finished, and no configurations that need a checkout anyway.
    assert {name.parent.as_posix() for name in names if "weights" in name.parts} == {"nst/weights"}
    assert not [x for x in names if x.suffix in (".yaml", ".ipynb") or "Dockerfile" in x.name]
    assert wheel.stat().st_size < 10e6


@pytest.mark.parametrize(
    "call",
    [
        ["-c", f"from {ENTRY.stem} import main; main()", "list"],
        ["-P", "-m", ENTRY.stem, MODULE, "--help"],
    ],
)
def test_a_project_with_packages_of_our_names_is_not_in_the_way(
    wheel: Path, tmp_path: Path, call: list[str]
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    project = namesakes(tmp_path / "project")
    environment = {
        **os.environ,
        HOME_VARIABLE: str(tmp_path / "home"),
        "PYTHONPATH": f"{project}:{tmp_path / 'site'}",
    }
    done = subprocess.run(
        [sys.executable, *call],
        cwd=project, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
