"""Smaller installations: a client's and a server's, without what only owners and trainers need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.client.home import Home
from jobs.service.owner import owner_of, signing_key
from jobs.service.places import Place
from jobs.service.publishing import publish
from jobs.storage.store import open_store
from nst.engines.base import Published
from nst.model import Model
from nst.network import levels
from requirements import EXTRAS, WHOLE, lock_of
from tests.toy import toy_level, toy_weights
from tests.user_pairs import folder_of

ROOT = WHOLE.parent
HEAVY = ("torch", "brevitas", "concrete.ml", "concrete.fhe", "networkx", "scipy", "pandas", "onnx")
ABSENT = {"client": (*HEAVY, "ray", "pyarrow", "prometheus_client"), "server": HEAVY}
FORBIDDEN = {
    "client": {"torch", "brevitas", "concrete-ml", "ray", "pyarrow"},
    "server": {"torch", "brevitas", "concrete-ml"},
    "train": {"pytest", "ruff", "mypy"},
}


def names(lock: str) -> set[str]:
    return {line.split("==")[0].lower() for line in lock.splitlines() if "==" in line}


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_lock_is_what_its_extra_takes_of_the_whole(extra: str) -> None:
    lock = (ROOT / f"requirements-{extra}.lock").read_text()
    assert lock == lock_of(extra), "run: make lock"
    lines = {line for line in lock.splitlines() if not line.startswith("#")}
    assert lines < set(WHOLE.read_text().splitlines())
    assert not names(lock) & FORBIDDEN[extra]
    assert {"numpy", "concrete-python", "tenseal", "click"} <= names(lock)


def without(packages: tuple[str, ...], code: str, **environment: str) -> str:
    """What a process prints in which packages cannot be imported."""
    block = f"import sys\nfor name in {packages!r}: sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", block + code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


COMMAND = "sys.argv = ['nst-batch', *{!r}]\nimport nst_batch\nnst_batch.main()"


@pytest.fixture
def studio(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of a service that offers the toy; only this process knows that level."""
    owner, root = Home(tmp_path / "owner"), tmp_path / "studio"
    monkeypatch.setitem(levels.LEVELS, "toy", toy_level(toy_weights(tmp_path / "toy.safetensors")))
    open_store(str(root), create=True)
    offers = open_store(Place(str(root)).offers, create=True)
    cache = published.folder.parent
    publish(Model.load("toy", cache), offers, signing_key(owner.signing_key), str(cache), "toy", "")
    return root


def test_a_client_submits_and_a_server_loads_what_it_sent(
    studio: Path, published: Published, tmp_path: Path
) -> None:
    pairs, ann = folder_of(tmp_path / "pairs", ["lake"]), tmp_path / "ann"
    part = str(studio / "customers" / "ann")
    for command in (
        ["models", "--store", part],
        ["submit", str(pairs), "--store", part, "--model", "toy", "--no-wait"],
        ["status"],
        ["keys", "list"],
    ):
        answer = without(ABSENT["client"], COMMAND.format(command), NST_BATCH_HOME=str(ann))
        assert answer.startswith("0\n"), answer
    (local,) = Home(ann).jobs()
    owner = owner_of(tmp_path / "owner" / "signing.key")
    code = f"""
from nst.sealing import seal
from jobs.service.serving import Limits, Server
from jobs.service.accounts import Quota
from jobs.service.metrics import Metrics
from jobs.execution.loading import EvaluatorLoader
seal()
class Load:
    def __init__(self, launch):
        print(type(EvaluatorLoader(launch.store, launch.pin)()).__name__)
    def ended(self): return False
    def stop(self): pass
limits = Limits(1, False, 1, 1.0, Quota(9, 0.0))
private = {str(published.folder.parent)!r}
Server({str(studio)!r}, private, {owner!r}, limits, Metrics(), Load).look()
"""
    assert without(ABSENT["server"], code) == "0\nCircuitEvaluator\n"
    assert local.offer


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["circuits", "build", "--quality", "draft"], "concrete"),
        (["evaluate", "--vgg", "v", "--content-dir", "c", "--style-dir", "s"], "torch"),
    ],
)
def test_what_a_client_s_installation_lacks_is_said_in_a_line(
    command: list[str], missing: str, tmp_path: Path
) -> None:
    answer = without(ABSENT["client"], COMMAND.format(command), NST_BATCH_HOME=str(tmp_path))
    code, *lines = answer.splitlines()
    assert code == "2" and len(lines) == 1, answer
    assert f"takes the package {missing}, which this installation has not" in lines[0]


def test_a_client_s_installation_cannot_compute_by_itself(tmp_path: Path) -> None:
    pairs = folder_of(tmp_path / "pairs", ["lake"])
    command = ["submit", str(pairs), "--engine", "ckks", "--size", "64", "--no-wait"]
    hidden = (
        "import importlib.util as u\nfound = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'ray' else found(name, *rest)\n"
    )
    answer = without(
        ABSENT["client"], hidden + COMMAND.format(command), NST_BATCH_HOME=str(tmp_path / "home")
    )
    assert answer.startswith("2\n") and "submit by a service's --model" in answer, answer
    assert not (tmp_path / "home" / "jobs").exists()
