"""Built circuits: find them, or have them compiled once and kept.

Compiling (`nst.compilation`) takes Concrete's frontend and with it PyTorch; what has been compiled
is found without either. Only clients build; the server loads what `build` wrote (see
`nst.server`).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from nst import architecture as shape
from nst import integer
from nst.canvas import Canvas
from nst.errors import CircuitError
from nst.integer import IntegerNetwork
from nst.levels import QualityLevel
from nst.plan import CircuitPlan

SERVER_FILE, PLAN_FILE = "server.zip", "plan.json"
COMPILER = Path(__file__).with_name("compilation.py")
"""What makes the circuits: its source is part of their id, and it is not imported for that."""


def circuit_id(network: IntegerNetwork, size: int, p_error: float, width: int | None = None) -> str:
    """Hash of everything the compiled circuits depend on, 16 hex digits; see `build`."""
    digest = hashlib.sha256()
    for stage in network.stages.values():
        digest.update(repr(stage.stage).encode())
        for array in (stage.weight, stage.bias, stage.modulation):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    for module in (shape, integer):
        digest.update(inspect.getsource(module).encode())
    digest.update(COMPILER.read_bytes())
    digest.update(f"{version('concrete-python')} {_python()} {size} {p_error}".encode())
    if width not in (None, size):
        digest.update(f" {width} wide".encode())
    return digest.hexdigest()[:16]


def build(
    network: IntegerNetwork, size: int, p_error: float, cache: Path, width: int | None = None
) -> Path:
    """Compile the circuits, or find them compiled.

    Args:
        network: Integer weights.
        size: Side of the style in pixels.
        p_error: Error probability of one PBS to compile for.
        cache: Folder that holds compiled circuits by their id.
        width: Of the content in pixels, a multiple of 8; None for `size`. Contents of any height
            go through the same circuits.

    Returns:
        The folder with `server.zip` and `plan.json`.

    Raises:
        CircuitError: if the weights do not fit the accumulators the design counts on.
    """
    identifier = circuit_id(network, size, p_error, width)
    folder = cache / identifier
    if (folder / PLAN_FILE).exists():
        return folder
    # Slow to import, and only needed here.
    from nst.compilation import compile_module, make_plan

    module, parameters = compile_module(network, size, p_error, width)
    plan = make_plan(module, parameters, network, size, identifier, width)
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache, prefix=".building-"))
    try:
        module.server.save(partial / SERVER_FILE)
        (partial / PLAN_FILE).write_text(json.dumps(plan.to_dict(), indent=2))
        partial.replace(folder)
    except OSError:
        # Another process built the same circuits meanwhile; theirs are as good.
        if not (folder / PLAN_FILE).exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def build_level(
    level: QualityLevel, network: IntegerNetwork, cache: Path, canvas: Canvas | None = None
) -> tuple[Path, CircuitPlan]:
    """Build or find a level's circuits for contents of a size, and their plan at that size.

    Args:
        level: Style's size and `p_error`.
        network: The level's network.
        cache: See `build`.
        canvas: Size of contents and results; None for the level's own.

    Raises:
        CircuitError: see `build`.
    """
    padded = level.canvas(canvas).padded
    folder = build(network, level.size, level.p_error, cache, padded.width)
    return folder, load_plan(folder).at_height(padded.height)


def load_plan(folder: Path) -> CircuitPlan:
    """The plan of built circuits.

    Raises:
        CircuitError: if it is missing, damaged or of another version.
    """
    try:
        return CircuitPlan.from_dict(json.loads((folder / PLAN_FILE).read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise CircuitError(f"no circuit plan in {folder} ({error}); build it again") from error


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])
