"""How much of the styles' own texture arrives: do results of several styles differ as these do?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nst.training.losses import LUMINANCE, statistics
from nst.training.vgg import VGG16

Floats = NDArray[np.float32]
BATCH = 8
"""Pictures that go through VGG together: at 192 pixels they take about 1 GB."""
CONTRAST = 0.2
"""Standard deviation that every picture's luminance is given, about that of a photograph."""
DEVIATION_FLOOR = 1e-3
"""Keeps a flat picture flat."""


def spread(results: Sequence[Tensor], styles: Sequence[Tensor]) -> float:
    """Mean distance of results of one content from each other, over that of their styles.

    The distance of two pictures: that of their VGG channel statistics (means and deviations, as
    AdaIN's style loss takes them, arXiv 1703.06868, eq. 13), relative to their root mean square,
    averaged over relu1_1 to relu4_1. 0 if all results are alike, 1 if they differ as much as the
    styles. It says nothing of which result is nearer to which style: the style loss does.

    Args:
        results: What `texture` gives of results, one per style, at least two.
        styles: The same of the styles.
    """
    return _mean_distance(results) / max(_mean_distance(styles), 1e-6)


@torch.no_grad()
def texture(vgg: VGG16, pictures: Sequence[Floats]) -> list[Tensor]:
    """Channel means and deviations of each layer, `[N, 2 C]`, without colour and contrast.

    Pictures are grey and of one mean and contrast first: the client gives every result the colours
    of its style, so that these would differ with a network that paints one texture for all.

    Args:
        vgg: Features to compare in.
        pictures: N pictures `[3, H, W]` in [0, 1] of one size.
    """
    parts = []
    for start in range(0, len(pictures), BATCH):
        batch = _grey(torch.from_numpy(np.stack(pictures[start : start + BATCH])))
        parts.append([torch.cat(layer, 1) for layer in statistics(vgg(batch))])
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def _grey(rgb: Tensor) -> Tensor:
    luminance = (rgb * torch.tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
    mean, deviation = luminance.mean((2, 3), True), luminance.std((2, 3), keepdim=True)
    scaled = 0.5 + CONTRAST * (luminance - mean) / deviation.clamp(min=DEVIATION_FLOOR)
    return scaled.expand(-1, 3, -1, -1)


def _mean_distance(layers: Sequence[Tensor]) -> float:
    """Over all pairs of pictures and over layers `[N, K]`."""
    total = 0.0
    for layer in layers:
        first, second = torch.triu_indices(len(layer), len(layer), 1)
        a, b = layer[first], layer[second]
        size = ((a.pow(2).sum(1) + b.pow(2).sum(1)) / 2).sqrt()
        total += float(((a - b).pow(2).sum(1).sqrt() / size).mean())
    return total / len(layers)
