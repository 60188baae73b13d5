"""Colour statistics that the client takes off before encryption and puts back after decryption.

A picture is whitened with its own mean and colour covariance (ZCA, the whitening that stays
closest to the picture) and quantized to signed 4-bit pixels. After decryption the result is
standardized and coloured with the style's statistics, so that a grey style gives a grey picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nst.network.architecture import PIXEL_MAX, PIXEL_MIN

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

PIXEL_STEPS = 2.7
"""Pixel levels in one standard deviation: the 4-bit range then ends at 3 deviations."""
DEVIATION_FLOOR = 1e-3
"""Smallest deviation by which anything is divided."""
VARIANCE_FLOOR = 5e-4
"""Added to the variances (of colours in [0, 1]) before whitening: noise is not blown up."""


@dataclass(frozen=True)
class ColorStatistics:
    """Mean `[3]` and covariance `[3, 3]` of a picture's colours in [0, 1]."""

    mean: Floats
    covariance: Floats

    @staticmethod
    def of(picture: Floats) -> ColorStatistics:
        """Statistics of a picture `[3, H, W]`."""
        flat = picture.reshape(3, -1).astype(np.float64)
        mean = flat.mean(1)
        centred = flat - mean[:, None]
        covariance = centred @ centred.T / flat.shape[1]
        return ColorStatistics(mean.astype(np.float32), covariance.astype(np.float32))

    def whitening(self) -> Floats:
        """Matrix `[3, 3]` that takes centred colours to unit covariance."""
        values, vectors = np.linalg.eigh(self.covariance.astype(np.float64))
        scale = 1 / np.sqrt(np.maximum(values, 0) + VARIANCE_FLOOR)
        return np.asarray((vectors * scale) @ vectors.T, dtype=np.float32)

    def coloring(self) -> Floats:
        """Matrix `[3, 3]` that gives white noise this picture's covariance."""
        values, vectors = np.linalg.eigh(self.covariance.astype(np.float64))
        scale = np.sqrt(np.maximum(values, 0))
        return np.asarray((vectors * scale) @ vectors.T, dtype=np.float32)


def whiten(picture: Floats, statistics: ColorStatistics) -> Floats:
    """Picture `[3, H, W]` in [0, 1] to zero mean and (nearly) unit colour covariance."""
    centred = picture - statistics.mean[:, None, None]
    return np.einsum("ij,jhw->ihw", statistics.whitening(), centred).astype(np.float32)


def standardized(picture: Floats, floor: float = DEVIATION_FLOOR) -> Floats:
    """A picture `[C, H, W]`, each channel with zero mean and unit deviation.

    Args:
        picture: In whitened space.
        floor: Smallest deviation that a channel is divided by.
    """
    mean, deviation = picture.mean((1, 2), keepdims=True), picture.std((1, 2), keepdims=True)
    return ((picture - mean) / np.maximum(deviation, floor)).astype(np.float32)


def colored(white: Floats, statistics: ColorStatistics) -> Floats:
    """Picture `[3, H, W]` in whitened space to one in [0, 1] with those colours, clipped."""
    rgb = np.einsum("ij,jhw->ihw", statistics.coloring(), white)
    return np.clip(rgb + statistics.mean[:, None, None], 0, 1).astype(np.float32)


DITHER, DITHER_SEED = 0.4, 20221115
"""Amplitude of the contents' dither, in pixel levels, and the seed of its noise."""


@cache
def dither(height: int, width: int) -> Floats:
    """Fixed noise `[3, H, W]`, in pixel levels, that is added to contents before quantization.

    A network that sees the same 4 x 4 cell all over a clear sky paints the same strokes into every
    cell, and they make a lattice. With noise it can make texture that does not repeat.
    """
    # The one generator of NumPy whose stream is promised never to change.
    drawn = np.random.RandomState(DITHER_SEED).uniform(-DITHER, DITHER, (3, height, width))
    noise = drawn.astype(np.float32)
    noise.setflags(write=False)
    return noise


def quantize_pixels(white: Floats, dithered: bool = False) -> Ints:
    """Whitened picture `[3, H, W]` to the signed 4-bit integers that are encrypted."""
    offset = dither(*white.shape[1:]) if dithered else np.float32(0)
    levels = np.floor(white * np.float32(PIXEL_STEPS) + offset + np.float32(0.5))
    return np.clip(levels, PIXEL_MIN, PIXEL_MAX).astype(np.int64)
