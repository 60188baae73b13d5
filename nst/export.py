"""Turn training checkpoints into shipped weights, if their circuits keep to the budget."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nst.architecture import Architecture, grids
from nst.checkpoint import Checkpoint
from nst.circuits import build, load_plan
from nst.errors import CircuitError, InputError
from nst.integer import IntegerNetwork
from nst.levels import QualityLevel
from nst.network import StyleTransfer
from nst.plan import CircuitPlan
from nst.weights import save_weights


def export(
    checkpoints: list[Path],
    level: QualityLevel,
    out: Path,
    data: str,
    cache: Path,
    budget: float,
    strength: float = 1.0,
) -> dict[str, Any]:
    """Compile the last checkpoint's network and write it as weights with a card.

    The compiled circuits stay in the cache, where a client that uses these weights finds them.

    Args:
        checkpoints: The runs that led to it, in order; their times and steps are summed.
        level: Size and `p_error` to compile for.
        out: Destination `.safetensors`; replaced, with its `.json`, if it exists.
        data: What it was trained on, for the card.
        cache: Folder of compiled circuits.
        budget: Most PBS a pixel of output, style branch included.
        strength: What the client's last layer adds to the content is multiplied by this: less
            than 1 gives back content for style, at no cost.

    Returns:
        The card, without the checksum of the weights.

    Raises:
        InputError: if a checkpoint cannot be read, or `out` cannot be written.
        CircuitError: if the network does not fit the level, its accumulators or the budget;
            nothing is written then.
    """
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise InputError(f"cannot export to {out}: name a .safetensors file in an existing folder")
    runs = [Checkpoint.read(path) for path in checkpoints]
    last = runs[-1]
    network = _integers(last, checkpoints[-1])
    network = replace(
        network,
        head_weight=network.head_weight * np.float32(strength),
        head_bias=network.head_bias * np.float32(strength),
    )
    try:
        grids(network.architecture.stages(), level.size)
    except ValueError as error:
        raise CircuitError(f"{checkpoints[-1]} does not fit level {level.name}: {error}") from error
    plan = load_plan(build(network, level.size, level.p_error, cache))
    costs = circuit_costs(plan)
    if costs["pbs_per_pixel"] > budget:
        raise CircuitError(
            f"{checkpoints[-1]} costs {costs['pbs_per_pixel']:.2f} PBS a pixel at {level.name}, "
            f"over the budget of {budget:g}; train a smaller network or raise --budget-pbs"
        )
    card = {
        "size": level.size,
        "architecture": network.architecture.to_dict(),
        "steps": sum(run.step for run in runs),
        "training_minutes": round(sum(run.seconds for run in runs) / 60, 1),
        "runs": [
            {"size": run.options["size"], "steps": run.step, "options": run.options} for run in runs
        ],
        "validation": last.validation,
        "strength": strength,
        "circuits": costs,
        "data": data,
        "commit": _commit(),
        "checkpoint_sha256": hashlib.sha256(checkpoints[-1].read_bytes()).hexdigest(),
    }
    try:
        save_weights(network, out, card)
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror}); choose another --out") from error
    return card


def circuit_costs(plan: CircuitPlan) -> dict[str, float]:
    """What a pair whose style is not shared costs, for the card of its weights."""
    summary = plan.summary()
    pbs: int = summary["pbs_per_pair"]
    operations: float = summary["operations_per_pair"]
    return {
        "pbs_per_pair": pbs,
        "pbs_per_pixel": round(pbs / (plan.width * plan.height), 3),
        "operations_per_pair": operations,
        "mops_per_pbs": round(operations / pbs / 1e6, 2),
        "p_error": plan.p_error,
    }


def _integers(checkpoint: Checkpoint, path: Path) -> IntegerNetwork:
    """The integers of a checkpoint; raises CircuitError if this version's network is another."""
    try:
        network = StyleTransfer(Architecture.from_dict(checkpoint.architecture))
        network.load_state_dict(checkpoint.network)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise CircuitError(f"{path} does not fit this version's network ({detail})") from error
    return network.integers()


def _commit() -> str:
    """Commit of the code in use, or `unknown` outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
