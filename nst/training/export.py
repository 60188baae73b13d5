"""Turn checkpoints into shipped weights, if what computes them keeps to its bounds.

Of the first engine that is the budget of PBS; of the second the headroom of its parameters, which
unseen pictures show. A level's weights can be carried over to another level, too.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nst.engines import get_engine
from nst.engines.base import Engine, Plan
from nst.engines.cache import ModelCache
from nst.engines.ckks import CkksEngine
from nst.engines.ckks.network import LeveledNetwork
from nst.engines.concrete.plan import CircuitPlan
from nst.errors import CircuitError, InputError
from nst.network.architecture import Architecture, grids
from nst.network.integers import IntegerNetwork
from nst.network.levels import QualityLevel
from nst.network.weight_files import engine_of
from nst.network.weights import load_weights
from nst.training.checkpoint import Checkpoint
from nst.training.dataset import list_pictures, split
from nst.training.engines import TRAINABLE
from nst.training.headroom import measure_headroom

Exported = IntegerNetwork | LeveledNetwork


@dataclass(frozen=True)
class HeldOut:
    """The folders of a training, whose held-out pictures nobody has trained on."""

    contents: Path
    styles: Path


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
    held_out: HeldOut | None = None,
) -> dict[str, Any]:
    """Publish the last checkpoint's network and write it as weights with a card.

    In place of checkpoints may stand weights (`.safetensors`), of another level as well: a network
    does not depend on the size of pictures, and strides, in which levels differ, change no weight.

    What is published stays in the cache, where a client that uses these weights finds it.

    Args:
        checkpoints: The runs that led to it, in order; their times and steps are summed. Or one
            file of weights, whose card tells of its runs.
        level: Size and `p_error` to compile for.
        out: Destination `.safetensors`; replaced, with its `.json`, if it exists.
        data: What it was trained on, for the card; None takes it from the card of the weights.
        cache: Folder of published models.
        budget: Most PBS per pixel of output, style branch included; of engine concrete.
        strength: What the client's last layer adds to the content is multiplied by this: less
            than 1 gives back content for style, at no cost.
        octaves: See `nst.pictures.octaves.match_octaves`; None keeps that of weights, or of the
            training run.
        lattice: See `nst.pictures.lattice.without_lattice`; None keeps that of weights, 0 of a
            training run.
        held_out: What the largest values are measured on; of engine ckks, which needs it unless the
            card of the weights has them.

    Returns:
        The card, without the checksum of the weights.

    Raises:
        InputError: if a checkpoint cannot be read, `data` or `held_out` is missing, or `out` cannot
            be written.
        CircuitError: if weights cannot be read, or the network does not fit the level, its
            accumulators, parameters or the budget; nothing is written then.
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
    engine = get_engine(source.engine)
    about: dict[str, Any]
    if isinstance(network, LeveledNetwork):
        about = {"headroom": _headroom(network, level, held_out, source, checkpoints[-1])}
        _publish(network, level, cache, engine)
    else:
        _require_grid(network, level, checkpoints[-1])
        plan = _publish(network, level, cache, engine)
        about = {"circuits": _within(budget, plan, level, checkpoints[-1])}
    card = {
        "engine": engine.name,
        "size": level.side,
        "architecture": asdict(network.architecture),
        **history,
        "strength": round(history.get("strength", 1.0) * strength, 6),
        "octaves": network.octaves,
        "lattice": network.lattice,
        **about,
        "data": data,
        "commit": _commit(),
    }
    try:
        engine.save_network(network, out, card)
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror}); choose another --out") from error
    return card


def _publish(network: Exported, level: QualityLevel, cache: Path, engine: Engine) -> Plan:
    return ModelCache(cache).publish(engine, network, level, level.square).plan


def _require_grid(network: IntegerNetwork, level: QualityLevel, path: Path) -> None:
    try:
        grids(network.architecture.stages(), level.side)
    except ValueError as error:
        raise CircuitError(f"{path} does not fit level {level.name}: {error}") from error


def _within(budget: float, plan: Plan, level: QualityLevel, path: Path) -> dict[str, float]:
    """What the circuits cost; raises CircuitError if that is more than the budget."""
    assert isinstance(plan, CircuitPlan)
    costs = circuit_costs(plan)
    if costs["pbs_per_pixel"] > budget:
        raise CircuitError(
            f"{path} costs {costs['pbs_per_pixel']:.2f} PBS per pixel at {level.name}, "
            f"over the budget of {budget:g}; train a smaller network or raise --budget-pbs"
        )
    return costs


def _headroom(
    network: LeveledNetwork,
    level: QualityLevel,
    held_out: HeldOut | None,
    source: _Source,
    path: Path,
) -> dict[str, Any]:
    """The largest values on held-out pairs, measured or as the card of the weights has them."""
    if held_out is None:
        measured: dict[str, Any] | None = source.history.get("headroom")
        if measured is None:
            raise InputError(
                f"{path} needs --content-dir and --style-dir: their held-out pictures show whether "
                "its values keep within the modulus"
            )
        return measured
    engine = get_engine(source.engine)
    assert isinstance(engine, CkksEngine)
    (_, contents), (_, styles) = (
        split(list_pictures(folder)) for folder in (held_out.contents, held_out.styles)
    )
    return measure_headroom(network, engine.parameters, level.side, contents, styles)


@dataclass(frozen=True)
class _Source:
    """A network, and what a card says of how it came to be."""

    network: Exported
    history: dict[str, Any]
    engine: str


def _of_runs(checkpoints: list[Path]) -> _Source:
    runs = [Checkpoint.read(path) for path in checkpoints]
    if len(engines := dict.fromkeys(run.engine for run in runs)) > 1:
        raise InputError(
            f"these checkpoints are of engines {' and '.join(engines)}: give those of one network"
        )
    history = {
        "steps": sum(run.step for run in runs),
        "training_minutes": round(sum(run.seconds for run in runs) / 60, 1),
        "runs": [
            {"size": run.options["size"], "steps": run.step, "options": run.options} for run in runs
        ],
        "validation": runs[-1].validation,
        "checkpoint_sha256": hashlib.sha256(checkpoints[-1].read_bytes()).hexdigest(),
    }
    return _Source(_network(runs[-1], checkpoints[-1]), history, runs[-1].engine)


def _of_weights(paths: list[Path], level: QualityLevel) -> _Source | None:
    """Weights, of any level, as those of this one; None if no path is of such a file."""
    if not any(path.suffix == ".safetensors" for path in paths):
        return None
    if len(paths) > 1:
        raise InputError("give one .safetensors alone: its card tells of the runs before it")
    (path,) = paths
    if (engine := engine_of(path)) == CkksEngine.name:
        leveled = CkksEngine().load_network(path)
        history = _history(path, level)
        return _Source(leveled, history, engine)
    network = load_weights(path)
    history = _history(path, level)
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
    return _Source(network, history, engine)


def _history(path: Path, level: QualityLevel) -> dict[str, Any]:
    """What the card of weights says that is true of them at this level as well."""
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        kept = ["steps", "training_minutes", "runs", "strength", "data", "checkpoint_sha256"]
        carried: dict[str, Any] = {}
        if card["size"] != level.side:
            # What was measured was measured at the other size.
            carried = {"weights": path.name, "size": card["size"], "sha256": card["sha256"]}
            carried = {"validation": None, "carried_over_from": carried}
        else:
            kept += ["validation", "start", "note", "carried_over_from", "headroom"]
        return {**{key: card[key] for key in kept if key in card}, **carried}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} has no card that can be read ({error!r}); export it from its checkpoint"
        ) from error


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


def _network(checkpoint: Checkpoint, path: Path) -> Exported:
    """What a checkpoint's engine computes; raises CircuitError if this version's is another."""
    try:
        network = TRAINABLE[checkpoint.engine].build({}, checkpoint.architecture)
        network.load_state_dict(checkpoint.network)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise CircuitError(f"{path} does not fit this version's network ({detail})") from error
    return network.weights(float(checkpoint.options.get("octaves", 0)))


def _commit() -> str:
    """Commit of the code in use, or `unknown` outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
