"""From a whitened picture to the signed 4-bit pixels that the network reads."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from nst.network.architecture import PIXEL_MAX, PIXEL_MIN

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

PIXEL_STEPS = 2.7
"""Pixel levels in one standard deviation: the 4-bit range then ends at 3 deviations."""
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
