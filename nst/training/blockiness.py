"""How much of a picture's edges stand on the lattice of the network's cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nst.pictures.lattice import PERIOD
from nst.training.losses import LUMINANCE

SEGMENT = 7 * PERIOD
"""Pixels of a row that are transformed together: so few that the strokes of a part of a picture
count alike at every size, and a multiple of the period, which then falls into one bin."""
FLOOR = 1e-9
"""Mean power of a gradient in [-1, 1] below which there is nothing to compare: a flat picture."""

Spectrum = NDArray[np.float64]


def blockiness(picture: NDArray[np.float32]) -> float:
    """Power at the cells' period over the power at frequencies beside it; 1 is none above them.

    Wang, Bovik and Evans, "Blind measurement of blocking artifacts in images" (ICIP 2000): the
    spectrum of differences between neighbouring pixels, along rows and along columns, averaged
    over the picture, has peaks at multiples of 1/period where blocks are. Here each of these bins
    is divided by the mean of the bins nearer to it than to the next one, and ratios are averaged
    over both directions: over 1/4 and 1/2 for cells of 4 pixels, over 1/8 and 3/8 for their 8-pixel
    double. Differences are taken with their sign, which finds a pattern that repeats, and without,
    which finds borders of cells whatever is in the cells. The result is the largest of these four.

    Photographs have 1.0 to 1.2; sides below 17 pixels say nothing and have 1.

    Args:
        picture: `[3, H, W]` in [0, 1].
    """
    luminance = np.tensordot(np.array(LUMINANCE), picture.astype(np.float64), 1)
    found = []
    for rectified in (False, True):
        # By direction and then by frequency: 1/8, 1/4, 3/8, 1/2.
        ratios = np.mean([_ratios(p, rectified) for p in (luminance, luminance.T)], axis=0)
        found += [ratios[[1, 3]].mean(), ratios[[0, 2]].mean()]
    return float(max(found))


def _ratios(luminance: Spectrum, rectified: bool) -> Spectrum:
    """Along rows: power at 1/8 to 4/8 over that beside it, `[4]`."""
    gradient = np.diff(luminance, axis=1)
    if rectified:
        gradient = np.abs(gradient)
    length = gradient.shape[1]
    segment = min(SEGMENT, length // PERIOD * PERIOD)
    step = segment // PERIOD
    if step < 2:
        return np.ones(PERIOD // 2)
    reach = max(1, (step - 1) // 2)
    # Segments overlap by half, so that each pixel of the middle counts alike.
    starts = np.linspace(0, length - segment, -(-2 * (length - segment) // segment) + 1)
    power = np.zeros(segment)
    for start in np.rint(starts).astype(int):
        part = gradient[:, start : start + segment]
        part = part - part.mean(1, keepdims=True)
        power += (np.abs(np.fft.fft(part, axis=1)) ** 2).mean(0) / segment / len(starts)
    peaks = step * np.arange(1, PERIOD // 2 + 1)
    offsets = [k for k in range(-reach, reach + 1) if k]
    beside = np.mean([power[peaks + k] for k in offsets], axis=0)
    return np.asarray((power[peaks] + FLOOR) / (beside + FLOOR))
