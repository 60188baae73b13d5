"""Every process computes the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nst.engines.base import PLAN_FILE, SERVER_FILE, Cipher, Published
from nst.keyring import KeyRing
from nst.network.architecture import STYLE
from tests.toy import encrypt, noise_input

ROW_IN_A_PROCESS = """
import hashlib, sys
from pathlib import Path
import nst.engines.concrete.server
from nst.engines import get_engine, parse_plan
from nst.engines.concrete.fft_plan import fix_fft_plan

if sys.argv[2] != "default":
    assert fix_fft_plan(sys.argv[2])
folder = Path(sys.argv[1])
plan = parse_plan((folder / "plan.json").read_bytes(), "the plan")
evaluator = get_engine(plan.engine).load(
    plan, (folder / "server.zip").read_bytes(), (folder / "keys").read_bytes()
)
row = (folder / "row").read_bytes()
print(hashlib.sha256(evaluator.run("style_stem", [row, row, row])).hexdigest())
"""


@pytest.fixture(scope="module")
def folder(
    published: Published,
    cipher: Cipher,
    key_ring: KeyRing,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("row")
    for name in (SERVER_FILE, PLAN_FILE):
        (folder / name).write_bytes((published.folder / name).read_bytes())
    (folder / "keys").write_bytes(key_ring.evaluation_keys(cipher.key_id))
    (folder / "row").write_bytes(encrypt(cipher, noise_input(STYLE)).parts[3])
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
