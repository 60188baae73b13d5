"""The folder of a training run: checkpoints, metrics, samples; and where a run may start from.

`checkpoint.ckpt` is the last state of the run, `best.ckpt` the one with the lowest validation score
(see `nst.training.validation.score`), both with the fields of `Checkpoint`, as safetensors with
JSON in its metadata: a checkpoint from elsewhere is data. `metrics.jsonl` has a JSON object per
line, `sample.png` shows held-out pairs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nst.errors import InputError
from nst.training.engines import TRAINABLE
from nst.training.trainable import Trainable
from nst.training.validation import score

NETWORK, OPTIMIZER = "network", "optimizer"
"""How names of tensors in a checkpoint begin."""
RECORD, PLAIN = (
    "checkpoint",
    (
        "engine",
        "step",
        "seconds",
        "options",
        "architecture",
        "validation",
    ),
)
"""The metadata's key, and the fields that are JSON below it."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run goes on from, and what an export reads.

    Attributes:
        network: `Trainable.state_dict()`.
        optimizer: Adam's state.
        step: Steps done.
        seconds: Time they took.
        options: `nst.training.loop.Run.record`.
        architecture: `Trainable.sizes`.
        validation: Figures of `nst.training.validation.Validation.measure`.
        engine: Whose network it is.
    """

    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    step: int
    seconds: float
    options: dict[str, Any]
    architecture: dict[str, Any]
    validation: dict[str, float]
    # Checkpoints of the first engine are older than the second.
    engine: str = "concrete"

    @staticmethod
    def read(path: Path) -> Checkpoint:
        """Read a checkpoint, onto the CPU.

        Raises:
            InputError: if it is missing, damaged or something else.
        """
        try:
            with safe_open(path, "pt") as file:
                record = json.loads(file.metadata()[RECORD])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            network: dict[str, Tensor] = {}
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                if part == NETWORK:
                    network[rest] = tensor
                else:
                    index, _, moment = rest.partition(".")
                    moments.setdefault(int(index), {})[moment] = tensor
            groups = record.pop("param_groups")
            optimizer = {"state": moments, "param_groups": groups}
            return Checkpoint(network=network, optimizer=optimizer, **record)
        except FileNotFoundError as error:
            raise InputError(f"there is no checkpoint {path}") from error
        except Exception as error:  # other files make safetensors raise nearly anything
            raise InputError(
                f"{path} is damaged or no checkpoint of this program: use another one"
            ) from error

    def write(self, path: Path) -> None:
        """Write the checkpoint whole or not at all."""
        partial = path.with_suffix(".partial")
        tensors = {f"{NETWORK}.{name}": tensor for name, tensor in self.network.items()}
        for index, moments in self.optimizer["state"].items():
            tensors |= {f"{OPTIMIZER}.{index}.{name}": moments[name] for name in moments}
        record = {name: getattr(self, name) for name in PLAIN}
        record["param_groups"] = self.optimizer["param_groups"]
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial, {RECORD: json.dumps(record)})
        partial.replace(path)


class RunFolder:
    """What a run leaves behind under `--out`. One process writes, the others only read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / "checkpoint.ckpt", path / "best.ckpt"
        self.metrics, self.sample = path / "metrics.jsonl", path / "sample.png"

    @property
    def used(self) -> bool:
        """Whether a run has begun here."""
        return self.last.exists() or self.metrics.exists()

    def begin(self, record: dict[str, Any]) -> None:
        """Make the folder, and a first record of this start of the run, which has a `step`.

        Records of later steps, which are done again, are dropped at the same moment.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        kept = []
        for line in self.metrics.read_text().splitlines() if self.metrics.exists() else []:
            try:
                if json.loads(line)["step"] <= record["step"]:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # the line that a killed process was writing
        partial = self.metrics.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in [*kept, json.dumps(record)]))
        partial.replace(self.metrics)

    def log(self, record: dict[str, Any]) -> None:
        """Append a record, which has a `step`, to the metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")

    def save(self, checkpoint: Checkpoint, sheet: Image.Image, may_be_best: bool) -> None:
        """Write a checkpoint and its samples, and keep it if it is the best so far."""
        partial = self.sample.with_suffix(".partial")
        sheet.save(partial, "PNG")
        partial.replace(self.sample)
        if may_be_best and score(checkpoint.validation) < self._best_score():
            checkpoint.write(self.best)
        checkpoint.write(self.last)

    def _best_score(self) -> float:
        if not self.best.exists():
            return float("inf")
        return score(Checkpoint.read(self.best).validation)


def _finite(value: object) -> object:
    """A record with null for what JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def initial_network(
    start: Path | None, sizes: dict[str, Any], *sides: int, engine: str = "concrete"
) -> Trainable:
    """A network to begin with: random, or with the weights of another run.

    Args:
        start: A checkpoint (`.ckpt`), or shipped weights (`.safetensors`); None for random weights
            from PyTorch's generator.
        sizes: Fields of the architecture that differ from the file's, or from the defaults.
            Weights do not depend on the size of pictures, and strides do not change their shapes.
        sides: Of the pictures in pixels.
        engine: Whose network.

    Raises:
        InputError: if there is no such architecture, or the weights do not fit it or are of another
            engine.
        CircuitError: if shipped weights cannot be read, or no engine could compute the network.
    """
    kind = TRAINABLE[engine]
    known: dict[str, Any] = {}
    state: dict[str, Tensor] | None = None
    if start is not None and start.suffix == ".safetensors":
        known, state = kind.read_weights(start)
    elif start is not None:
        checkpoint = Checkpoint.read(start)
        if checkpoint.engine != engine:
            raise InputError(
                f"{start} is of engine {checkpoint.engine}, not {engine}: name that --engine, or "
                "start from another file"
            )
        known, state = checkpoint.architecture, checkpoint.network
    try:
        network = kind.build(sizes, known)
        for side in sides:
            network.check(side)
    except (TypeError, ValueError) as error:
        raise InputError(f"no architecture {sizes or known}: {error}") from error
    if state is not None:
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(
                f"the weights of {start} do not fit the architecture {sizes}"
            ) from error
    return network
