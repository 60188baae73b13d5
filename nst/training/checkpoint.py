"""The folder of a training run: checkpoints, metrics, samples; and where a run may start from.

`checkpoint.pt` is the last state of the run, `best.pt` the one with the lowest validation score
(see `nst.training.validation.score`), both with the fields of `Checkpoint`; `metrics.jsonl` has a
JSON object per line, `sample.png` shows held-out pairs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nst.errors import InputError
from nst.network.architecture import LEVEL, Architecture, grids
from nst.network.weights import load_weights
from nst.training.network import StyleTransfer
from nst.training.validation import score


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run goes on from, and what an export reads.

    Attributes:
        network: `StyleTransfer.state_dict()`.
        optimizer: Adam's state.
        step: Steps done.
        seconds: Time they took.
        options: `nst.training.loop.Options` as a dictionary.
        architecture: `Architecture` as a dictionary.
        validation: Figures of `nst.training.validation.Validation.measure`.
    """

    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    step: int
    seconds: float
    options: dict[str, Any]
    architecture: dict[str, Any]
    validation: dict[str, float]

    @staticmethod
    def read(path: Path) -> Checkpoint:
        """Read a checkpoint, onto the CPU.

        Raises:
            InputError: if it is missing, damaged or something else.
        """
        try:
            # Only tensors and plain data: a checkpoint from elsewhere must not run code.
            return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError as error:
            raise InputError(f"there is no checkpoint {path}") from error
        except Exception as error:  # the unpickler raises nearly anything on other files
            raise InputError(
                f"{path} is damaged or no checkpoint of this program: use another one"
            ) from error

    def write(self, path: Path) -> None:
        """Write the checkpoint whole or not at all."""
        partial = path.with_suffix(".partial")
        torch.save({name: getattr(self, name) for name in self.__dataclass_fields__}, partial)
        partial.replace(path)


class RunFolder:
    """What a run leaves behind under `--out`. One process writes, the others only read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / "checkpoint.pt", path / "best.pt"
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
            file.write(json.dumps(record) + "\n")

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


def initial_network(start: Path | None, sizes: dict[str, Any], size: int) -> StyleTransfer:
    """A network to begin with: random, or with the weights of another run.

    Args:
        start: A checkpoint (`.pt`), or shipped integer weights (`.safetensors`); None for random
            weights from PyTorch's generator.
        sizes: Fields of `Architecture` that differ from the file's, or from the defaults. Weights
            do not depend on the size of pictures, and strides do not change their shapes.
        size: Side of the pictures in pixels.

    Raises:
        InputError: if there is no such architecture, or the weights do not fit it.
    """
    if start is None:
        return StyleTransfer(_architecture(Architecture(), sizes, size))
    if start.suffix == ".safetensors":
        integers = load_weights(start)
        network = StyleTransfer(_architecture(integers.architecture, sizes, size))
        state: dict[str, Tensor] = {
            "head.weight": torch.from_numpy(integers.head_weight),
            "head.bias": torch.from_numpy(integers.head_bias),
            "skip": torch.from_numpy(integers.skip),
        }
        for name, stage in integers.stages.items():
            prefix = f"stages.{name}"
            state[f"{prefix}.conv.weight"] = torch.from_numpy(stage.weight).float() / LEVEL
            state[f"{prefix}.bias"] = torch.from_numpy(stage.bias).float() / LEVEL
            if stage.modulation is not None:
                state[f"{prefix}.modulation.weight"] = (
                    torch.from_numpy(stage.modulation).float() / LEVEL
                )
    else:
        checkpoint = Checkpoint.read(start)
        known = _architecture(Architecture(), checkpoint.architecture, size=None)
        network = StyleTransfer(_architecture(known, sizes, size))
        state = checkpoint.network
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights of {start} do not fit the architecture {sizes}") from error
    return network


def _architecture(base: Architecture, sizes: dict[str, Any], size: int | None) -> Architecture:
    """`base` with other sizes, checked for pictures of `size` pixels if that is given."""
    try:
        for name, value in sizes.items():
            if type(value) is not type(getattr(base, name, value)) or value < 0:
                raise ValueError(f"{name} cannot be {value!r}")
        architecture = Architecture.from_dict({**asdict(base), **sizes})
        stages = architecture.stages()
        if size is not None:
            grids(stages, size)
    except (TypeError, ValueError) as error:
        raise InputError(f"no architecture {sizes}: {error}") from error
    return architecture
