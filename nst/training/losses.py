"""Content, style, style-signal-contrastive and grain losses.

All are per-picture `[N]` and relative to the features they are compared with, so that their
values mean the same at every picture size and layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nst.pictures.lattice import PERIOD

LUMINANCE = (0.299, 0.587, 0.114)
DISTANCE_FLOOR = 1e-3
"""Keeps the contrastive loss finite while all style signals are still the same."""
ENERGY_FLOOR = 1e-6
"""Keeps losses relative to a picture without features (one flat colour) finite."""
GRAIN_FLOOR = 1e-4
"""Keeps the grain of a pair of flat pictures finite."""

Statistics = list[tuple[Tensor, Tensor]]
"""Channel means and deviations `[N, C]` of each layer."""


def statistics(features: list[Tensor]) -> Statistics:
    """Means and deviations over space of feature maps `[N, C, H, W]`."""
    return [(f.mean((2, 3)), (f.var((2, 3)) + 1e-5).sqrt()) for f in features]


def content_loss(result: Tensor, content: Tensor) -> Tensor:
    """Mean squared difference of relu4_1 over the content's mean square (arXiv 1703.06868, 6.2)."""
    energy = content.pow(2).mean((1, 2, 3)) + ENERGY_FLOOR
    return (result - content).pow(2).mean((1, 2, 3)) / energy


def style_loss(result: Statistics, style: Statistics) -> Tensor:
    """Squared differences of channel means and deviations, relu1_1 to relu4_1.

    As in AdaIN (arXiv 1703.06868, eq. 13), normalized by each layer's own energy in the style.
    """
    total: Tensor = torch.zeros(())
    for (mean, deviation), (mean_s, deviation_s) in zip(result, style, strict=True):
        energy = mean_s.pow(2).mean(1) + deviation_s.pow(2).mean(1)
        difference = (mean - mean_s).pow(2).mean(1) + (deviation - deviation_s).pow(2).mean(1)
        total = total + difference / (energy + ENERGY_FLOOR)
    return total


def contrastive_loss(result: Tensor, style: Tensor) -> Tensor:
    """Style signal contrastive loss of a batch (MicroAST, arXiv 2211.15313, section 3.3).

    Each result's style signal is drawn to the signal of its own style and pushed from those of
    the other styles: the squared distance to the first over the sum of those to the others. Two
    results are never compared with each other. The value falls as 1/(N - 1) with the batch.

    Args:
        result: Style signals of the results `[N, K]`, N >= 2.
        style: Style signals of their styles `[N, K]`.
    """
    distance = (result[:, None] - style[None]).pow(2).mean(2)
    own = distance.diagonal()
    return own / (distance.sum(1) - own + DISTANCE_FLOOR)


def grain(result: Tensor, content: Tensor, style: Tensor) -> Tensor:
    """Share of luminance variance in the highest octave, over the larger share of the two inputs.

    Well above 1 means hatching or a checkerboard that neither picture has.
    """
    return _top(result) / torch.maximum(_top(content), _top(style)).clamp(min=GRAIN_FLOOR)


def lattice(result: Tensor) -> Tensor:
    """Share of variance in patterns that repeat every `PERIOD` pixels, `[N]`.

    A network that works on 4 x 4 and 8 x 8 cells may paint the same strokes into every cell; the
    mean of many cells shows them, while strokes that do not repeat average out.

    Args:
        result: `[N, 3, S, S]`, S a multiple of the period.
    """
    size, period = result.shape[-1], PERIOD
    local = F.avg_pool2d(F.pad(result, (period // 2,) * 4, mode="replicate"), period + 1, 1)
    cells = size // period
    # Averaged over blocks of cells: another part of the picture may have another pattern.
    block = next(b for b in (4, 3, 2, 1) if cells % b == 0)
    shape = (len(result), 3, cells // block, block, period, cells // block, block, period)
    pattern = (result - local).reshape(shape).mean((3, 6))
    return pattern.pow(2).mean((1, 2, 3, 4, 5)) / (result.var((2, 3)).mean(1) + 1e-3)


def _top(picture: Tensor) -> Tensor:
    weights = torch.tensor(LUMINANCE, device=picture.device).view(1, 3, 1, 1)
    luminance = (picture * weights).sum(1, keepdim=True)
    low = F.avg_pool2d(F.pad(luminance, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (luminance - low).pow(2).mean((1, 2, 3)) / (luminance.var((1, 2, 3)) + 1e-4)
