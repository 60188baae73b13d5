"""Turn checkpoints into shipped weights, if their circuits keep to the budget.

A level's weights can be carried over to another level, too.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nst.engines.cache import ModelCache
from nst.engines.concrete import ConcreteEngine
from nst.engines.concrete.plan import CircuitPlan
from nst.errors import CircuitError, InputError
from nst.network.architecture import Architecture, grids
from nst.network.integers import IntegerNetwork
from nst.network.levels import QualityLevel
from nst.network.weights import load_weights, save_weights
from nst.training.checkpoint import Checkpoint
from nst.training.network import StyleTransfer


def export(
    checkpoints: list[Path],
    level: QualityLevel,
    out: Path,
    data: str | None,
    cache: Path,
    budget: float,
    strength: float = 1.0,
    octaves: float | None = None,
    lattice: float | None = None,
) -> dict[str, Any]:
    """Compile the last checkpoint's network and write it as weights with a card.

    In place of checkpoints may stand weights (`.safetensors`), of another level as well: a network
    does not depend on the size of pictures, and strides, in which levels differ, change no weight.

    The compiled circuits stay in the cache, where a client that uses these weights finds them.

    Args:
        checkpoints: The runs that led to it, in order; their times and steps are summed. Or one
            file of weights, whose card tells of its runs.
        level: Size and `p_error` to compile for.
        out: Destination `.safetensors`; replaced, with its `.json`, if it exists.
        data: What it was trained on, for the card; None takes it from the card of the weights.
        cache: Folder of compiled circuits.
        budget: Most PBS per pixel of output, style branch included.
        strength: What the client's last layer adds to the content is multiplied by this: less
            than 1 gives back content for style, at no cost.
        octaves: See `nst.pictures.octaves.match_octaves`; None keeps that of weights, or of the
            training run.
        lattice: See `nst.pictures.lattice.without_lattice`; None keeps that of weights, 0 of a
            training run.

    Returns:
        The card, without the checksum of the weights.

    Raises:
        InputError: if a checkpoint cannot be read, `data` is missing, or `out` cannot be written.
        CircuitError: if weights cannot be read, or the network does not fit the level, its
            accumulators or the budget; nothing is written then.
    """
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise InputError(f"cannot export to {out}: name a .safetensors file in an existing folder")
    source = _of_weights(checkpoints, level) or _of_runs(checkpoints)
    history = source.history
    data = data or history.get("data")
    if not data:
        raise InputError(f"{checkpoints[-1]} does not say what it was trained on; give --data")
    network = source.network
    network = replace(
        network,
        head_weight=network.head_weight * np.float32(strength),
        head_bias=network.head_bias * np.float32(strength),
        octaves=network.octaves if octaves is None else octaves,
        lattice=network.lattice if lattice is None else lattice,
    )
    try:
        grids(network.architecture.stages(), level.side)
    except ValueError as error:
        raise CircuitError(f"{checkpoints[-1]} does not fit level {level.name}: {error}") from error
    plan = ModelCache(cache).publish(ConcreteEngine(), network, level, level.square).plan
    assert isinstance(plan, CircuitPlan)
    costs = circuit_costs(plan)
    if costs["pbs_per_pixel"] > budget:
        raise CircuitError(
            f"{checkpoints[-1]} costs {costs['pbs_per_pixel']:.2f} PBS per pixel at {level.name}, "
            f"over the budget of {budget:g}; train a smaller network or raise --budget-pbs"
        )
    card = {
        "size": level.side,
        "architecture": network.architecture.to_dict(),
        **history,
        "strength": round(history.get("strength", 1.0) * strength, 6),
        "octaves": network.octaves,
        "lattice": network.lattice,
        "circuits": costs,
        "data": data,
        "commit": _commit(),
    }
    try:
        save_weights(network, out, card)
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror}); choose another --out") from error
    return card


@dataclass(frozen=True)
class _Source:
    """A network, and what a card says of how it came to be."""

    network: IntegerNetwork
    history: dict[str, Any]


def _of_runs(checkpoints: list[Path]) -> _Source:
    runs = [Checkpoint.read(path) for path in checkpoints]
    history = {
        "steps": sum(run.step for run in runs),
        "training_minutes": round(sum(run.seconds for run in runs) / 60, 1),
        "runs": [
            {"size": run.options["size"], "steps": run.step, "options": run.options} for run in runs
        ],
        "validation": runs[-1].validation,
        "checkpoint_sha256": hashlib.sha256(checkpoints[-1].read_bytes()).hexdigest(),
    }
    return _Source(_integers(runs[-1], checkpoints[-1]), history)


def _of_weights(paths: list[Path], level: QualityLevel) -> _Source | None:
    """Weights, of any level, as those of this one; None if no path is of such a file."""
    if not any(path.suffix == ".safetensors" for path in paths):
        return None
    if len(paths) > 1:
        raise InputError("give one .safetensors alone: its card tells of the runs before it")
    (path,) = paths
    network = load_weights(path)
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        kept = ["steps", "training_minutes", "runs", "strength", "data", "checkpoint_sha256"]
        carried: dict[str, Any] = {}
        if card["size"] != level.side:
            # What was measured was measured at the other size.
            carried = {"weights": path.name, "size": card["size"], "sha256": card["sha256"]}
            carried = {"validation": None, "carried_over_from": carried}
        else:
            kept += ["validation", "start", "note", "carried_over_from"]
        history = {key: card[key] for key in kept if key in card}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} has no card that can be read ({error!r}); export it from its checkpoint"
        ) from error
    architecture = Architecture.from_dict({**asdict(network.architecture), **level.sizes})
    if [s.name for s in architecture.stages()] != list(network.stages) or any(
        replace(stage, stride=1) != replace(network.stages[stage.name].stage, stride=1)
        for stage in architecture.stages()
    ):
        raise CircuitError(
            f"{path} does not fit level {level.name}: their networks differ in more than strides"
        )
    stages = {s.name: replace(network.stages[s.name], stage=s) for s in architecture.stages()}
    network = replace(network, architecture=architecture, stages=stages)
    return _Source(network, {**history, **carried})


def circuit_costs(plan: CircuitPlan) -> dict[str, float]:
    """What a pair whose style is not shared costs, for the card of its weights."""
    pbs, operations = plan.pbs_style + plan.pbs_content, plan.operations_per_pair
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
    octaves = float(checkpoint.options.get("octaves", 0))
    return replace(network.integers(), octaves=octaves)


def _commit() -> str:
    """Commit of the code in use, or `unknown` outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
