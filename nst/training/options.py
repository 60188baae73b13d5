"""What a training run can be told, each option in one place: its name, type, default and help.

The metadata of a field is what `jobs.fields` reads. Nothing heavy is imported here: the command
line shows the help of these options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nst.errors import InputError

RAMP = 100
"""Steps over which the learning rate rises to its full value."""
LEAST_SIDE, SIDE_STEP = 32, 8
"""Of pictures in a mix, in pixels: the lattice loss counts in cells of 8."""
BATCH_SIZE = 8
"""Pairs per worker and step."""
Part = tuple[int, int]
"""Of a mix: side of the pictures in pixels, pairs per worker and step."""


@dataclass(frozen=True)
class Lesson:
    """How the style branch alone is taught, see `nst.training.pretraining`.

    Attributes:
        steps: Batches, of a run that starts from random weights.
        batch: Crops in one.
        most_crops: That are kept.
        rate: Of Adam.
        overflow_weight: Of values that leave their bounds, beside the error as a share of the
            variance.
        idle_weight: Likewise of channels that do not use their levels.
        code_level: Typical size of a value of the style code.
        side: Of a crop in pixels; None for the level's.
        window: Side of what a step sees of it, somewhere in it; None for all.
        quantized: Whether its second half is.
    """

    steps: int
    batch: int
    most_crops: int
    rate: float
    overflow_weight: float
    idle_weight: float
    code_level: float
    side: int | None = None
    window: int | None = None
    quantized: bool = False


@dataclass(frozen=True)
class Recipe:
    """What an engine's network is trained with unless a run says otherwise.

    Attributes:
        options: Fields of `TrainOptions`.
        float_share: Share of the steps before quantization, of a run that starts from random
            weights.
        lesson: Of the style branch.
    """

    options: Mapping[str, Any]
    float_share: float
    lesson: Lesson


RECIPES: Mapping[str, Recipe] = {
    "concrete": Recipe(
        options={
            "lr": 1e-3,
            "lr_decay": 0.05,
            "style_rate": 1.0,
            "content_weight": 1.0,
            # At 0.3, half the pictures had to be encrypted at less contrast than was trained, at 2
            # one in nine.
            "overflow_weight": 2.0,
            "idle_weight": 0.1,
            "consistency_weight": 20.0,
            "octaves": 0.0,
            "photo_styles": 0,
            "mix": (),
        },
        float_share=0.1,
        lesson=Lesson(
            steps=2_500,
            batch=64,
            most_crops=6_000,
            rate=4e-3,
            overflow_weight=0.03,
            idle_weight=0.03,
            code_level=4.0,
            quantized=True,
        ),
    ),
    "ckks": Recipe(
        options={
            "lr": 8e-4,
            "lr_decay": 0.02,
            # What it was taught alone is soon lost at the rate of the rest.
            "style_rate": 0.2,
            "content_weight": 1.3,
            "overflow_weight": 1.0,
            "idle_weight": 0.0,
            # Its noise is too small to be seen.
            "consistency_weight": 0.0,
            "octaves": 0.65,
            "photo_styles": 400,
            "mix": ((128, 4), (64, 8), (128, 4), (192, 2)),
        },
        float_share=0.8,
        lesson=Lesson(
            steps=1_800,
            batch=40,
            most_crops=3_600,
            rate=3e-3,
            overflow_weight=0.1,
            idle_weight=0.0,
            code_level=1.0,
            side=96,
            window=88,
        ),
    ),
}
"""By engine."""


def _option(help: str, default: Any = MISSING, **about: Any) -> Any:
    return field(default=default, metadata={"help": help, **about})


def _weight(help: str, default: float) -> Any:
    return _option(f"Weight of {help}.", default, least=0)


def _by_engine(name: str, help: str, **about: Any) -> Any:
    """An option whose default the engine's recipe has."""
    default, *others = ((engine, recipe.options[name]) for engine, recipe in RECIPES.items())
    shown = "; ".join([_words(default[1]), *(f"{e}: {_words(v)}" for e, v in others)])
    return _option(help, None, shown=shown, **about)


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{side}x{pairs}" for side, pairs in value) or "the level's size"
    return str(value)


def _mix(text: object) -> tuple[Part, ...]:
    """Sides and pairs in a list with commas."""
    try:
        parts = [str(part).split("x") for part in str(text).split(",")]
        mix = tuple((int(side), int(pairs)) for side, pairs in parts)
    except ValueError as error:
        raise InputError(f"{text!r} is no list of sides and pairs such as 128x4,64x8") from error
    if not all(s >= LEAST_SIDE and s % SIDE_STEP == 0 and pairs >= 2 for s, pairs in mix):
        raise InputError(
            f"{text!r}: sides must be multiples of {SIDE_STEP} from {LEAST_SIDE} on, with two "
            "pairs or more each"
        )
    return mix


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
    out: Path = _option("The run's folder: checkpoints, metrics, samples.", own=True)
    resume: bool = _option("Go on from the last checkpoint in --out.", False, once=True)
    init: Path | None = _option(
        "Start from a run's .ckpt or from shipped .safetensors.", None, exists="file"
    )
    save_every: float = _option("Seconds between two checkpoints.", 300.0, least=0)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What decides the outcome of a run besides level, pictures and architecture.

    What is None takes its value from the engine's recipe.
    """

    engine: Literal["concrete", "ckks"] = _option("Whose network is trained.", "concrete")
    max_iter: int = _option("Steps.", 20_000, least=1)
    style_steps: int | None = _option(
        "Steps in which the style branch alone learns what a style is.",
        None,
        least=0,
        shown="2500, ckks: 1800, none with --init",
    )
    warm_up: int | None = _option(
        "Steps before quantization.",
        None,
        least=0,
        shown="a tenth of --max-iter, ckks: four fifths, none with --init",
    )
    batch_size: int = _option(
        "Pairs per worker and step at the level's size.", None, least=2, shown="8, or --mix"
    )
    mix: tuple[Part, ...] = _by_engine(
        "mix", "Sides in pixels and pairs per worker, in turn.", parse=_mix, metavar="LIST"
    )
    lr: float = _by_engine("lr", "Learning rate of Adam.", above=0)
    lr_decay: float = _by_engine(
        "lr_decay",
        "Learning rate at the end, as a share of --lr; a cosine leads there.",
        least=0,
        most=1,
    )
    style_rate: float = _by_engine(
        "style_rate", "Learning rate of the style branch, as a share of --lr.", above=0, most=1
    )
    photo_styles: int = _by_engine(
        "photo_styles", "Photographs that serve as styles, too.", least=0
    )
    widen: float = _option(
        "Share of styles that are turned, blended with others, or of other contrast.",
        0.0,
        least=0,
        most=1,
    )
    content_weight: float = _by_engine("content_weight", "Weight of the content loss.", least=0)
    style_weight: float = _weight("the style loss", 7.0)
    ssc_weight: float = _weight("the style signal contrastive loss", 0.35)
    grain_weight: float = _weight("hatching and checkerboards", 0.5)
    overflow_weight: float = _by_engine(
        "overflow_weight", "Weight of values that leave the range of integers.", least=0
    )
    idle_weight: float = _by_engine(
        "idle_weight", "Weight of channels that do not use their levels.", least=0
    )
    consistency_weight: float = _by_engine(
        "consistency_weight",
        "Weight of the difference of two noisy passes; 0 saves the second pass.",
        least=0,
    )
    lattice_weight: float = _weight("patterns that repeat from cell to cell", 3.0)
    octaves: float = _by_engine(
        "octaves",
        "How far the client will bring the contrast of a result's finest octaves to its style's.",
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

    def __post_init__(self) -> None:
        """Fill in what the engine's recipe says."""
        if self.batch_size is None:
            decided: dict[str, Any] = {**self.recipe.options, "batch_size": BATCH_SIZE}
        else:
            # Who says how many pairs says at which size: the level's.
            decided = {**self.recipe.options, "mix": ()}
        for name, value in decided.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def recipe(self) -> Recipe:
        """The engine's."""
        return RECIPES[self.engine]

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
