"""Server processes hold no client code; packages import only what they may."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nst.network.architecture import STYLE
from nst.ciphertext import Envelope
from nst.engines.concrete.circuits import PLAN_FILE, SERVER_FILE
from nst.engines.concrete.client import EVALUATION_FILE, Cipher, KeyRing
from nst.network.integers import IntegerNetwork, space_to_depth
from nst.engines.concrete.server import FORBIDDEN_MODULES, FORBIDDEN_NAMES
from tests.toy import TOY_SIZE, assert_close_levels, noise_pixels

ROOT = Path(__file__).resolve().parent.parent
SERVER_MODULES = (
    "nst.engines.concrete.server",
    "nst.engines.concrete.switching",
    "jobs.execution.driver",
    "jobs.execution.loading",
    "jobs.execution.writer",
    "cluster.actors",
    "cluster.executor",
)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter of this environment."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def output_of(code: str, *arguments: str) -> str:
    done = run_python(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", SERVER_MODULES)
def test_server_modules_import_no_client_code(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(output_of(code))
    assert module in loaded
    forbidden = [m for m in loaded for f in FORBIDDEN_MODULES if m == f or m.startswith(f + ".")]
    assert forbidden == []


def test_the_client_does_import_what_is_forbidden() -> None:
    # Otherwise the list would be out of date and the test above blind.
    code = "import sys, json, nst.engines.concrete.client; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(output_of(code.replace("nst.engines.concrete.client", "nst.engines.concrete.client, nst.engines.concrete.compilation")))
    assert {"concrete.fhe", "nst.engines.concrete.client", "nst.engines.concrete.circuits", "nst.engines.concrete.compilation"} <= set(loaded)
    # To encrypt and to decrypt takes the runtime alone: the frontend costs a user seconds.
    assert {"concrete.fhe", "torch"}.isdisjoint(json.loads(output_of(code)))
    assert "concrete.ml" in FORBIDDEN_MODULES


def test_a_sealed_process_cannot_import_client_code() -> None:
    code = """
import importlib, json, sys
from nst.engines.concrete.server import FORBIDDEN_MODULES, seal
seal()
refused = []
for name in (*FORBIDDEN_MODULES, "concrete.fhe.compilation", "concrete.fhe.compilation.client"):
    try:
        importlib.import_module(name)
    except ImportError:
        refused.append(name)
import concrete.compiler
from mlir._mlir_libs._concretelang import _compiler
left = [n for n in {*dir(concrete.compiler), *dir(_compiler)}]
try:
    from concrete.compiler import Keyset
    left.append("Keyset")
except ImportError:
    pass
print(json.dumps([refused, left]))
"""
    refused, left = json.loads(output_of(code))
    assert set(FORBIDDEN_MODULES) <= set(refused)
    assert {"concrete.fhe.compilation", "concrete.fhe.compilation.client"} <= set(refused)
    assert set(FORBIDDEN_NAMES).isdisjoint(left)
    # Nothing else that by its name makes or uses a secret: these are what a server has, and
    # descriptions of keys.
    suspicious = {n for n in left if "Client" in n or "Secret" in n or "Keyset" in n}
    harmless = {"ServerKeyset", "LweSecretKeyParam", "KeysetInfo", "KeysetRestriction"}
    assert suspicious <= harmless


def test_the_forbidden_names_exist_in_the_runtime() -> None:
    # A renamed class would slip through the seal.
    code = """
import json, concrete.compiler as c
from mlir._mlir_libs._concretelang import _compiler
print(json.dumps([*dir(c), *dir(_compiler)]))
"""
    assert set(FORBIDDEN_NAMES) <= set(json.loads(output_of(code)))


@pytest.mark.parametrize("module", ["nst.engines.concrete.client", "nst.engines.concrete.circuits"])
def test_a_process_with_client_code_cannot_be_sealed(module: str) -> None:
    done = run_python(f"import {module}; from nst.engines.concrete.server import seal; seal()")
    assert done.returncode != 0
    assert "RuntimeError: a server process has imported client code" in done.stderr
    assert module in done.stderr


def test_a_sealed_process_evaluates(
    network: IntegerNetwork, circuits: Path, key_ring: KeyRing, cipher: Cipher, tmp_path: Path
) -> None:
    pixels = noise_pixels(TOY_SIZE, 4)
    (tmp_path / "in").write_bytes(cipher.encrypt(pixels, STYLE).pack())
    code = """
import json, os, sys
from pathlib import Path
from nst.engines.concrete.server import Evaluator, seal
seal()
from nst.ciphertext import Envelope
from nst.engines.concrete.plan import CircuitPlan
plan, archive, keys, source, target = map(Path, sys.argv[1:])
record = CircuitPlan.from_dict(json.loads(plan.read_text()))
evaluator = Evaluator(record, archive.read_bytes(), keys.read_bytes())
envelope = Envelope.unpack(source.read_bytes(), "input")
above, row, below, *_ = envelope.rows
result = evaluator.run("style_stem", [above, row, below])
target.write_bytes(Envelope(envelope.key_id, envelope.model_id, (result,)).pack())
# LLVM's handler would end the process here.
reading, writing = os.pipe()
os.close(reading)
try:
    os.write(writing, b"to nobody")
except BrokenPipeError:
    print("alive")
"""
    said = output_of(
        code,
        str(circuits / PLAN_FILE),
        str(circuits / SERVER_FILE),
        str(key_ring.folder / cipher.key_id / EVALUATION_FILE),
        str(tmp_path / "in"),
        str(tmp_path / "out"),
    )
    assert said == "alive\n"
    result = Envelope.unpack((tmp_path / "out").read_bytes(), "result")
    result.require(cipher.key_id, cipher.model_id, "result")
    layer = network.stages["style_stem"]
    expected = layer.activate(layer.accumulate(space_to_depth(pixels), None))[:, 1:2]
    assert np.unique(expected).size > 1
    assert_close_levels(cipher.decrypt_rows("style_stem", result.rows), expected)


def imported(path: Path) -> set[str]:
    """Modules a file imports anywhere in it, lazily or not."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def offences(package: str, banned: tuple[str, ...]) -> list[str]:
    """Imports of banned modules, or of anything in them, by a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in sorted(imported(path))
        if any(name == b or name.startswith(b + ".") for b in banned)
    ]


def test_cluster_knows_neither_jobs_nor_the_client() -> None:
    assert offences("cluster", ("jobs", *FORBIDDEN_MODULES)) == []


def test_the_core_knows_neither_cluster_nor_store() -> None:
    assert offences("nst", ("ray", "boto3", "botocore", "jobs", "cluster")) == []


def test_the_scan_sees_imports() -> None:
    assert offences("jobs", ("nst.engines.concrete.server",))
    assert offences("cluster", ("ray",))
