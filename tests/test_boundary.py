"""Server processes hold no client code; packages import only what they may."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nst.ciphertext import Envelope
from nst.engines.base import Published
from nst.engines.concrete.client import CircuitCipher
from nst.engines.concrete.preparation import quantized
from nst.engines.concrete.server import CLIENT_NAMES
from nst.keyring import EVALUATION_FILE, KeyRing
from nst.network.architecture import STYLE
from nst.network.integers import IntegerNetwork, space_to_depth
from nst.sealing import client_modules
from tests.toy import assert_close_levels, encrypt, noise_input

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = client_modules()
SERVER_MODULES = (
    "nst.sealing",
    "nst.engines.cache",
    "nst.engines.concrete.server",
    "nst.engines.concrete.switching",
    "jobs.execution.driver",
    "jobs.execution.loading",
    "jobs.execution.recorder",
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
    forbidden = [m for m in loaded for f in FORBIDDEN if m == f or m.startswith(f + ".")]
    assert forbidden == []


def test_the_client_does_import_what_is_forbidden() -> None:
    # Otherwise the list would be out of date and the test above blind.
    code = "import sys, json, {}; print(json.dumps(sorted(sys.modules)))"
    every = ", ".join(m for m in FORBIDDEN if m != "concrete.ml")
    assert {*FORBIDDEN} - {"concrete.ml"} <= set(json.loads(output_of(code.format(every))))
    # To encrypt and to decrypt takes the runtime alone: the frontend costs a user seconds.
    client = code.format("nst.stylizer, nst.engines.concrete.client")
    assert {"concrete.fhe", "torch"}.isdisjoint(json.loads(output_of(client)))


def test_a_sealed_process_cannot_import_client_code() -> None:
    code = """
import importlib, json, sys
from nst.sealing import client_modules, seal
seal()
refused = []
for name in (*client_modules(), "concrete.fhe.compilation", "concrete.fhe.compilation.client"):
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
    assert set(FORBIDDEN) <= set(refused)
    assert {"concrete.fhe.compilation", "concrete.fhe.compilation.client"} <= set(refused)
    assert set(CLIENT_NAMES).isdisjoint(left)
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
    assert set(CLIENT_NAMES) <= set(json.loads(output_of(code)))


@pytest.mark.parametrize("module", ["nst.keyring", "nst.engines.concrete.publish"])
def test_a_process_with_client_code_cannot_be_sealed(module: str) -> None:
    done = run_python(f"import {module}; from nst.sealing import seal; seal()")
    assert done.returncode != 0
    assert "RuntimeError: a server process has imported client code" in done.stderr
    assert module in done.stderr


def test_a_sealed_process_evaluates(
    network: IntegerNetwork,
    published: Published,
    key_ring: KeyRing,
    cipher: CircuitCipher,
    tmp_path: Path,
) -> None:
    style = noise_input(STYLE, 4)
    (tmp_path / "in").write_bytes(encrypt(cipher, style).pack())
    code = """
import os, sys
from pathlib import Path
from nst.sealing import seal
seal()
from nst.ciphertext import Envelope
from nst.engines import get_engine, parse_plan
from nst.engines.base import PLAN_FILE, SERVER_FILE
folder, keys, source, target = map(Path, sys.argv[1:])
plan = parse_plan((folder / PLAN_FILE).read_bytes(), "the plan")
bundle = (folder / SERVER_FILE).read_bytes()
evaluator = get_engine(plan.engine).load(plan, bundle, keys.read_bytes())
envelope = Envelope.unpack(source.read_bytes(), "input")
above, row, below, *_ = envelope.parts
result = evaluator.run("style_stem", [above, row, below])
target.write_bytes(Envelope(envelope.key_id, envelope.model_id, (result,)).pack())
# LLVM's handler would end the process here.
reading, writing = os.pipe()
os.close(reading)
try:
    os.write(writing, b"to no reader")
except BrokenPipeError:
    print("alive")
"""
    said = output_of(
        code,
        str(published.folder),
        str(key_ring.folder / cipher.key_id / EVALUATION_FILE),
        str(tmp_path / "in"),
        str(tmp_path / "out"),
    )
    assert said == "alive\n"
    result = Envelope.unpack((tmp_path / "out").read_bytes(), "result")
    result.require(cipher.key_id, cipher.model_id, "result")
    layer = network.stages["style_stem"]
    expected = layer.activate(layer.accumulate(space_to_depth(quantized(style)), None))[:, 1:2]
    assert np.unique(expected).size > 1
    assert_close_levels(cipher.decrypt_rows("style_stem", result.parts), expected)


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
    assert offences("cluster", ("jobs", *FORBIDDEN)) == []


def test_the_core_knows_neither_cluster_nor_store() -> None:
    assert offences("nst", ("ray", "boto3", "botocore", "jobs", "cluster")) == []


@pytest.mark.parametrize("package", ["jobs/execution", "jobs/storage", "jobs/client", "cluster"])
def test_what_runs_and_stores_jobs_knows_no_engine(package: str) -> None:
    assert offences(package, ("nst.engines.concrete", "concrete", "mlir")) == []


@pytest.mark.parametrize("package", ["jobs/execution", "jobs/storage", "cluster"])
def test_costs_are_seconds_and_bytes_outside_engines(package: str) -> None:
    words = re.compile(r"concrete|\bpbs\b|_pbs|pbs_", re.IGNORECASE)
    named = [path for path in (ROOT / package).rglob("*.py") if words.search(path.read_text())]
    assert named == []


def test_the_scan_sees_imports() -> None:
    assert offences("nst", ("nst.engines.concrete.server",))
    assert offences("cluster", ("ray",))
