"""What a training run can be told, each option in one place: its name, type, default and help.

The metadata of a field is what `jobs.fields` reads. Nothing heavy is imported here: the command
line shows the help of these options.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from nst.errors import InputError

RAMP = 100
"""Steps over which the learning rate rises to its full value."""


def _option(help: str, default: Any = MISSING, **about: Any) -> Any:
    return field(default=default, metadata={"help": help, **about})


def _weight(help: str, default: float) -> Any:
    return _option(f"Weight of {help}.", default, least=0)


def _scales(text: object) -> tuple[float, ...]:
    """Enlargements in a list with commas."""
    try:
        scales = tuple(float(part) for part in str(text).split(","))
    except ValueError as error:
        raise InputError(f"{text!r} is no list of numbers such as 1.0,1.5") from error
    if not all(0.5 <= scale <= 4 for scale in scales):
        raise InputError(f"{text!r}: enlargements must be between 0.5 and 4")
    return scales


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """From what a network is trained, and where to; paths mean the same to all workers."""

    content_dir: Path = _option("Photographs, at any depth.", exists="folder")
    style_dir: Path = _option("Paintings, at any depth.", exists="folder")
    vgg: Path = _option("VGG weights that losses are measured in.", exists="file")
    out: Path = _option("The run's folder: checkpoints, metrics, samples.")
    resume: bool = _option("Go on from the last checkpoint in --out.", False, once=True)
    init: Path | None = _option(
        "Start from a run's .pt or from shipped .safetensors.", None, exists="file"
    )
    save_every: float = _option("Seconds between two checkpoints.", 300.0, least=0)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What decides the outcome of a run besides level, pictures and architecture."""

    max_iter: int = _option("Steps.", 20_000, least=1)
    style_steps: int | None = _option(
        "Steps in which the style branch alone learns what a style is.",
        None,
        least=0,
        shown="2500, none with --init",
    )
    warm_up: int | None = _option(
        "Steps before quantization.",
        None,
        least=0,
        shown="a tenth of --max-iter, none with --init",
    )
    batch_size: int = _option("Pairs per worker and step.", 8, least=2)
    lr: float = _option("Learning rate of Adam.", 1e-3, above=0)
    lr_decay: float = _option(
        "Learning rate at the end, as a share of --lr; a cosine leads there.", 0.05, least=0, most=1
    )
    content_weight: float = _weight("the content loss", 1.0)
    style_weight: float = _weight("the style loss", 7.0)
    ssc_weight: float = _weight("the style signal contrastive loss", 0.35)
    grain_weight: float = _weight("hatching and checkerboards", 0.5)
    # At 0.3, half the pictures had to be encrypted at less contrast than was trained, at 2 one in
    # nine.
    overflow_weight: float = _weight("accumulators that leave their 10 bits", 2.0)
    idle_weight: float = _weight("channels that do not use their levels", 0.1)
    consistency_weight: float = _weight(
        "the difference of two noisy passes; 0 saves the second pass", 20.0
    )
    lattice_weight: float = _weight("patterns that repeat from cell to cell", 3.0)
    octaves: float = _option(
        "How far the client will bring the contrast of a result's finest octaves to its style's.",
        0.0,
        least=0,
        most=1,
    )
    # What pleases VGG only at 1x is often hatching.
    scales: tuple[float, ...] = _option(
        "Enlargements that VGG sees, in turn.",
        (1.0, 1.5),
        parse=_scales,
        metavar="LIST",
        shown="1.0,1.5",
    )
    seed: int = _option("Of everything random.", 1)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step: a short rise, then a cosine."""
        fall = 0.5 * (1 + math.cos(math.pi * step / self.max_iter))
        rate = self.lr * (self.lr_decay + (1 - self.lr_decay) * fall)
        return rate * min(1.0, (step + 1) / RAMP)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Which processes train together."""

    workers: int = _option("Worker processes.", 1, least=1)
    gpu: bool = _option("A GPU (and NCCL) for each worker.", False)
    threads: int = _option("PyTorch's threads, and CPUs, of each worker.", 1, least=1)
