"""Every process computes the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nst.network.architecture import STYLE
from nst.engines.concrete.circuits import PLAN_FILE, SERVER_FILE
from nst.engines.concrete.client import Cipher, KeyRing
from tests.toy import TOY_SIZE, noise_pixels

ROW_IN_A_PROCESS = """
import hashlib, json, sys
from pathlib import Path
import nst.engines.concrete.server
from nst.engines.concrete.fft_plan import fix_fft_plan
from nst.engines.concrete.plan import CircuitPlan

if sys.argv[2] != "default":
    assert fix_fft_plan(sys.argv[2])
folder = Path(sys.argv[1])
plan = CircuitPlan.from_dict(json.loads((folder / "plan.json").read_text()))
evaluator = nst.engines.concrete.server.Evaluator(
    plan, (folder / "server.zip").read_bytes(), (folder / "keys").read_bytes()
)
row = (folder / "row").read_bytes()
print(hashlib.sha256(evaluator.run("style_stem", [row, row, row])).hexdigest())
"""


@pytest.fixture(scope="module")
def folder(
    circuits: Path, cipher: Cipher, key_ring: KeyRing, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("row")
    for name in (SERVER_FILE, PLAN_FILE):
        (folder / name).write_bytes((circuits / name).read_bytes())
    (folder / "keys").write_bytes(key_ring.evaluation_keys(cipher.key_id))
    (folder / "row").write_bytes(cipher.encrypt(noise_pixels(TOY_SIZE), STYLE).rows[3])
    return folder


def digests(folder: Path, *algorithms: str) -> list[str]:
    # At once: while they compete for the processor, what they would measure differs.
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ROW_IN_A_PROCESS, folder, algorithm],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        for algorithm in algorithms
    ]
    out = [process.communicate(timeout=300)[0].strip() for process in running]
    assert all(process.returncode == 0 for process in running)
    return out


def test_processes_agree_to_the_bit(folder: Path) -> None:
    assert len(set(digests(folder, *["default"] * 4))) == 1


def test_another_algorithm_gives_other_bits(folder: Path) -> None:
    dif8, dit8, default = digests(folder, "Dif8", "Dit8", "default")
    assert default == dif8 != dit8
