"""Training pictures: random crops with their VGG targets, computed once and kept.

On a CPU the VGG passes over content and style would be half of every step; a fixed number of
crops of every picture, with their targets cached in memory, removes them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nst.color import ColorStatistics, Floats, whiten
from nst.losses import statistics
from nst.vgg import VGG16

SUFFIXES = (".jpg", ".jpeg", ".png")
VALIDATION_EVERY = 16
"""Every 16th picture of a folder, in name order, is never trained on."""
SMALLEST_CROP = 0.6
"""Smallest crop side, as a share of the picture's short side."""


@dataclass(frozen=True)
class Example:
    """One crop with what a step needs of it.

    Attributes:
        rgb: `[3, S, S]` in [0, 1].
        white: The same, whitened.
        coloring: `[3, 3]`.
        mean: `[3]`.
        targets: By scale: relu4_1 of a content, or feature statistics of a style.
    """

    rgb: Tensor
    white: Tensor
    coloring: Tensor
    mean: Tensor
    targets: dict[float, list[Tensor]]


def list_pictures(folder: Path) -> list[Path]:
    """Pictures below a folder in name order; raises FileNotFoundError if there are none."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"no {', '.join(SUFFIXES)} pictures below {folder}")
    return found


def split(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Training and validation pictures."""
    train = [p for i, p in enumerate(paths) if i % VALIDATION_EVERY]
    return train, paths[::VALIDATION_EVERY]


def center_square(path: Path, size: int) -> Floats:
    """Central square of a picture as `[3, size, size]` in [0, 1]."""
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
    width, height = rgb.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return _array(rgb, (left, top, left + side, top + side), size)


def random_square(path: Path, size: int, rng: random.Random) -> Floats:
    """A random square crop, perhaps mirrored, as `[3, size, size]` in [0, 1]."""
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
    width, height = rgb.size
    short = min(width, height)
    side = int(short * rng.uniform(SMALLEST_CROP, 1.0))
    left, top = rng.randint(0, width - side), rng.randint(0, height - side)
    out = _array(rgb, (left, top, left + side, top + side), size)
    return np.ascontiguousarray(out[:, :, ::-1]) if rng.random() < 0.5 else out


def _array(rgb: Image.Image, box: tuple[int, int, int, int], size: int) -> Floats:
    resized = rgb.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 255


class Crops:
    """Random crops of a list of pictures, each made once with its VGG targets."""

    def __init__(
        self,
        paths: list[Path],
        vgg: VGG16,
        size: int,
        scales: tuple[float, ...],
        is_style: bool,
        variants: int,
    ) -> None:
        self.paths, self.vgg, self.size, self.scales = paths, vgg, size, scales
        self.is_style, self.variants = is_style, variants
        self._made: dict[tuple[int, int], Example] = {}

    def draw(self, count: int, rng: random.Random) -> list[Example]:
        """`count` random crops of different pictures."""
        indices = rng.sample(range(len(self.paths)), count)
        return [self._get(i, rng.randrange(self.variants)) for i in indices]

    def _get(self, index: int, variant: int) -> Example:
        key = (index, variant)
        if key not in self._made:
            rng = random.Random(index * 1009 + variant)
            self._made[key] = self._make(random_square(self.paths[index], self.size, rng))
        return self._made[key]

    def _make(self, array: Floats) -> Example:
        colors = ColorStatistics.of(array)
        rgb = torch.from_numpy(array)
        return Example(
            rgb=rgb,
            white=torch.from_numpy(whiten(array, colors)),
            coloring=torch.from_numpy(colors.coloring()),
            mean=torch.from_numpy(colors.mean),
            targets={scale: self._target(rgb, scale) for scale in self.scales},
        )

    @torch.no_grad()
    def _target(self, rgb: Tensor, scale: float) -> list[Tensor]:
        features = self.vgg(rescale(rgb[None], scale))
        if not self.is_style:
            return [features[-1][0].half()]
        return [part[0] for pair in statistics(features) for part in pair]


def rescale(picture: Tensor, scale: float) -> Tensor:
    """Pictures `[N, 3, S, S]` enlarged bilinearly."""
    if scale == 1:
        return picture
    return F.interpolate(picture, scale_factor=scale, mode="bilinear", align_corners=False)
