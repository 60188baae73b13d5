"""Colour statistics that the client takes off before encryption and puts back after decryption.

A picture is whitened with its own mean and colour covariance (ZCA, the whitening that stays
closest to the picture). After decryption the result is standardized and coloured with the style's
statistics, so that a grey style gives a grey picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

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
