"""How good a stylization is, measured in the clear: content, style, grain, blockiness, and PSNR.

Figures are of pictures of 8 bits, lower is better. Those of `nst.training.losses`: relative error
of the content at relu4_1, relative error of the style's channel statistics at relu1_1 to relu4_1
(both arXiv 1703.06868), and the share of the highest octave over that of the inputs. And
`nst.training.blockiness`: how much of the edges stands on the lattice of the network's cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nst.training.blockiness import blockiness
from nst.training.losses import Statistics, content_loss, grain, statistics, style_loss
from nst.training.vgg import VGG16

Floats = NDArray[np.float32]

BATCH = 8
"""Pictures that go through VGG together: at 192 pixels they take about 1 GB."""


@dataclass(frozen=True)
class Figures:
    """Content loss, style loss, grain and blockiness of one picture, or a quantile of many."""

    content: float
    style: float
    grain: float
    blockiness: float


@dataclass(frozen=True)
class Comparison:
    """Pictures that are measured against one content and one style; `[3, H, W]` in [0, 1].

    Attributes:
        content: What should be recognizable, sides of at least `nst.training.vgg.MIN_SIDE`.
        style: How it should be painted; its size may be another.
        results: Of the content's size.
    """

    content: Floats
    style: Floats
    results: Sequence[Floats]


def eight_bits(picture: Floats) -> Floats:
    """A picture as a PNG file keeps it: clipped to [0, 1], in steps of 1/255."""
    return np.asarray(np.rint(np.clip(picture, 0, 1) * 255) / 255, dtype=np.float32)


def psnr(picture: Floats, reference: Floats) -> float:
    """Peak signal-to-noise ratio in dB of two pictures as PNG files; infinite if they agree."""
    difference = eight_bits(picture).astype(np.float64) - eight_bits(reference)
    error = float(np.mean(difference**2))
    return math.inf if error == 0 else -10 * math.log10(error)


@torch.no_grad()
def measure(
    vgg: VGG16,
    comparisons: Sequence[Comparison],
    progress: Callable[[int], None] = lambda count: None,
) -> list[list[Figures]]:
    """Figures of every result of every comparison, in their order.

    Args:
        vgg: Features to compare in.
        comparisons: May differ in size; those of one size share batches.
        progress: Told how many more comparisons are measured.
    """
    figures: dict[int, list[Figures]] = {}
    by_shape = sorted((c.content.shape, c.style.shape, i) for i, c in enumerate(comparisons))
    for _, group in groupby(by_shape, itemgetter(0, 1)):
        indices = [index for _, _, index in group]
        for start in range(0, len(indices), BATCH):
            batch = indices[start : start + BATCH]
            measured = _measure_batch(vgg, [comparisons[i] for i in batch])
            figures.update(zip(batch, measured, strict=True))
            progress(len(batch))
    return [figures[i] for i in range(len(comparisons))]


def _measure_batch(vgg: VGG16, batch: list[Comparison]) -> list[list[Figures]]:
    content, style = _stack([c.content for c in batch]), _stack([c.style for c in batch])
    deepest, targets = vgg(content)[-1], statistics(vgg(style))
    results = [(i, result) for i, c in enumerate(batch) for result in c.results]
    out: list[list[Figures]] = [[] for _ in batch]
    for start in range(0, len(results), BATCH):
        owners, pictures = zip(*results[start : start + BATCH], strict=True)
        shown, own = _stack([eight_bits(p) for p in pictures]), list(owners)
        features = vgg(shown)
        rows = zip(
            owners,
            content_loss(features[-1], deepest[own]).tolist(),
            style_loss(statistics(features), _select(targets, own)).tolist(),
            grain(shown, content[own], style[own]).tolist(),
            [blockiness(eight_bits(p)) for p in pictures],
            strict=True,
        )
        for owner, *figures in rows:
            out[owner].append(Figures(*figures))
    return out


def _stack(pictures: list[Floats]) -> Tensor:
    return torch.from_numpy(np.stack(pictures))


def _select(parts: Statistics, indices: list[int]) -> Statistics:
    return [(mean[indices], deviation[indices]) for mean, deviation in parts]
