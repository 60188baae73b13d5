"""The client's last steps on a result, in PyTorch: training sees the pictures that users will see.

The same as `nst.pictures.octaves` and `nst.pictures.color` compute with NumPy, for batches and with
gradients. What `nst.pictures.lattice` takes out it does not see: it has a loss against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nst.pictures.color import DEVIATION_FLOOR
from nst.pictures.octaves import KERNEL, LEAST, MOST, split_octaves


def finished(
    result: Tensor, style: Tensor, coloring: Tensor, mean: Tensor, octaves: float
) -> Tensor:
    """Standardized results in whitened space to RGB, not clipped.

    Args:
        result: `[N, 3, S, S]`.
        style: The whitened styles `[N, 3, S, S]`.
        coloring: `[N, 3, 3]` of the styles.
        mean: `[N, 3]` of the styles.
        octaves: Share, see `nst.pictures.octaves.match_octaves`.
    """
    if octaves:
        result = match_octaves(result, style, octaves)
    return torch.einsum("nij,njhw->nihw", coloring, result) + mean[:, :, None, None]


def match_octaves(result: Tensor, style: Tensor, share: float) -> Tensor:
    """See `nst.pictures.octaves.match_octaves`; a batch `[N, 3, S, S]` of each."""
    bands, rest = split_octaves(result, _blur)
    with torch.no_grad():
        wanted = [_deviation(band) for band in split_octaves(style, _blur)[0]]
    for band, model in zip(bands, wanted, strict=True):
        ratio = model / _deviation(band).clamp(min=DEVIATION_FLOOR)
        rest = rest + band * ratio.pow(share).clamp(LEAST, MOST)
    return standardized(rest)


def standardized(pictures: Tensor, floor: float = DEVIATION_FLOOR) -> Tensor:
    """See `nst.pictures.color.standardized`; a batch `[N, C, S, S]`."""
    deviation, mean = torch.std_mean(pictures, (2, 3), correction=0, keepdim=True)
    return (pictures - mean) / deviation.clamp(min=floor)


def _deviation(band: Tensor) -> Tensor:
    """Over channels and space of each picture, `[N, 1, 1, 1]`."""
    return (band.var((1, 2, 3), correction=0, keepdim=True) + 1e-12).sqrt()


def _blur(picture: Tensor, step: int) -> Tensor:
    channels, reach = picture.shape[1], step * (len(KERNEL) // 2)
    taps = torch.as_tensor(KERNEL, dtype=picture.dtype, device=picture.device)
    for shape, around in (((5, 1), (0, 0, reach, reach)), ((1, 5), (reach, reach, 0, 0))):
        kernel = taps.view(1, 1, *shape).expand(channels, 1, *shape)
        padded = F.pad(picture, around, mode="reflect")
        picture = F.conv2d(padded, kernel, dilation=step, groups=channels)
    return picture
