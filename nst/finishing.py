"""The client's last steps on a result, in PyTorch: training sees the pictures that users will see.

The same as `nst.lattice`, `nst.octaves` and `nst.color` compute with NumPy, for batches and with
gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nst.lattice import PERIOD, neighbours
from nst.octaves import DEVIATION_FLOOR, KERNEL, LEAST, MOST, OCTAVES


def finished(
    result: Tensor, style: Tensor, coloring: Tensor, mean: Tensor, octaves: float
) -> Tensor:
    """Standardized results in whitened space to RGB, not clipped.

    Args:
        result: `[N, 3, S, S]`.
        style: The whitened styles `[N, 3, S, S]`.
        coloring: `[N, 3, 3]` of the styles.
        mean: `[N, 3]` of the styles.
        octaves: Share, see `nst.octaves.match_octaves`.
    """
    result = without_lattice(result)
    if octaves:
        result = match_octaves(result, style, octaves)
    return torch.einsum("nij,njhw->nihw", coloring, result) + mean[:, :, None, None]


def match_octaves(result: Tensor, style: Tensor, share: float) -> Tensor:
    """See `nst.octaves.match_octaves`; a batch `[N, 3, S, S]` of each."""
    bands, rest = _octaves(result)
    with torch.no_grad():
        wanted = [_deviation(band) for band in _octaves(style)[0]]
    for band, model in zip(bands, wanted, strict=True):
        ratio = model / _deviation(band).clamp(min=DEVIATION_FLOOR)
        rest = rest + band * ratio.pow(share).clamp(LEAST, MOST)
    return _standardized(rest)


def without_lattice(result: Tensor) -> Tensor:
    """See `nst.lattice.without_lattice`; a batch `[N, 3, S, S]`."""
    margin = (PERIOD // 2,) * 4
    around = F.avg_pool2d(F.pad(result, margin, mode="replicate"), PERIOD + 1, 1)
    count, channels, side, _ = result.shape
    shape = (count, channels, side // PERIOD, PERIOD, side // PERIOD, PERIOD)
    weights = torch.as_tensor(neighbours(side // PERIOD), device=result.device)
    cells = (result - around).reshape(shape)
    lattice = torch.einsum("ab,ncbpxq->ncapxq", weights, cells)
    lattice = torch.einsum("xy,ncapyq->ncapxq", weights, lattice)
    return _standardized(result - lattice.reshape(result.shape))


def _standardized(picture: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(picture, (2, 3), correction=0, keepdim=True)
    return (picture - mean) / deviation.clamp(min=DEVIATION_FLOOR)


def _deviation(band: Tensor) -> Tensor:
    """Over channels and space of each picture, `[N, 1, 1, 1]`."""
    return (band.var((1, 2, 3), correction=0, keepdim=True) + 1e-12).sqrt()


def _octaves(picture: Tensor) -> tuple[list[Tensor], Tensor]:
    bands = []
    for octave in range(OCTAVES):
        blurred = _blur(picture, 2**octave)
        bands.append(picture - blurred)
        picture = blurred
    return bands, picture


def _blur(picture: Tensor, step: int) -> Tensor:
    channels, reach = picture.shape[1], step * (len(KERNEL) // 2)
    taps = torch.as_tensor(KERNEL, dtype=picture.dtype, device=picture.device)
    for shape, around in (((5, 1), (0, 0, reach, reach)), ((1, 5), (reach, reach, 0, 0))):
        kernel = taps.view(1, 1, *shape).expand(channels, 1, *shape)
        padded = F.pad(picture, around, mode="reflect")
        picture = F.conv2d(padded, kernel, dilation=step, groups=channels)
    return picture
