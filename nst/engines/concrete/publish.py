"""Publishing: from integer weights to compiled circuits and what a client needs of them.

Compiling (`nst.engines.concrete.compilation`) takes Concrete's frontend and with it PyTorch; both
are imported only when there is something to compile.
"""

from __future__ import annotations

import hashlib
import json
import platform
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from nst.engines.base import CLIENT_FILE, PLAN_FILE, SERVER_FILE
from nst.engines.concrete.plan import CircuitPlan
from nst.network import architecture as shape
from nst.network.integers import IntegerNetwork
from nst.network.levels import SECURITY, QualityLevel

COMPILER_REVISION = 2
"""Goes up by one whenever `compilation.py`, the arithmetic of `nst.network.integers` or the
constants below give other circuits for the same weights: keys and caches are void then."""
CONSTANTS = (
    shape.ACCUMULATOR_BITS,
    shape.KEPT_BITS,
    shape.PIXEL_MIN,
    shape.PIXEL_MAX,
    shape.CELL,
    shape.UPSAMPLE,
    shape.LEAK,
)
SPECS_FILE = "client.specs.json"
"""Concrete's description of inputs and outputs: all that encryption and decryption need."""


def model_id(
    network: IntegerNetwork,
    side: int,
    width: int,
    p_error: float,
    security: int = SECURITY,
    exact: bool = False,
) -> str:
    """Hash of what the circuits compute, 16 hex digits.

    Weights, stages, sizes, error probability, Concrete's version and `COMPILER_REVISION`; no
    source text: a reworded comment makes no other model.

    Args:
        network: Integer weights.
        side: Of the style in pixels.
        width: Of the content in pixels; its height is not compiled in.
        p_error: Error probability of one PBS.
        security: Bits of security.
        exact: Whether activations are rounded exactly.
    """
    digest = hashlib.sha256()
    for stage in network.stages.values():
        digest.update(json.dumps(stage.stage.to_dict(), sort_keys=True).encode())
        for array in (stage.weight, stage.bias, stage.modulation):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    python = ".".join(platform.python_version_tuple()[:2])
    compiler = f"{COMPILER_REVISION} {CONSTANTS} {version('concrete-python')} {python}"
    digest.update(f"{compiler} {side} {width} {p_error}".encode())
    if (security, exact) != (SECURITY, False):
        digest.update(f" {security} {exact}".encode())
    return digest.hexdigest()[:16]


def publish(network: IntegerNetwork, level: QualityLevel, width: int, folder: Path) -> CircuitPlan:
    """Compile circuits into a folder; see `nst.engines.base.Engine.publish`."""
    # Slow to import, and only needed here.
    from nst.engines.concrete.compilation import compile_module, make_plan

    side, choices = level.side, (level.security, level.exact)
    module, parameters = compile_module(network, side, level.p_error, width, *choices)
    identifier = model_id(network, side, width, level.p_error, *choices)
    plan = make_plan(module, parameters, network, side, identifier, width, level.exact)
    module.server.save(folder / SERVER_FILE)
    write_client_bundle(folder / SERVER_FILE, folder / CLIENT_FILE)
    (folder / PLAN_FILE).write_text(json.dumps(plan.to_dict(), indent=2))
    return plan


def write_client_bundle(server_bundle: Path, client_bundle: Path) -> None:
    """Take what a client needs out of Concrete's archive: no circuit and no weight is in it."""
    with (
        zipfile.ZipFile(server_bundle) as source,
        zipfile.ZipFile(client_bundle, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        target.writestr(SPECS_FILE, source.read(SPECS_FILE))
