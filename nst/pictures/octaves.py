"""The client's last touch: a result's contrast, octave by octave, as its style has it.

A network of 4-bit activations paints strokes of about one size; how strong a style is at each size
its picture says. Bringing the energy of every band of a pyramid to that of an example is how
textures were first synthesized (Heeger and Bergen, SIGGRAPH 1995, section 3). It is linear work on
plain pixels, so it costs no PBS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nst.pictures.color import DEVIATION_FLOOR, Floats, standardized

OCTAVES = 4
"""The finest ones: strokes of up to 16 pixels. What is larger is content."""
LEAST, MOST = 0.5, 2.0
"""Factors of an octave, so that noise is never blown up into texture."""
KERNEL = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16


def match_octaves(result: Floats, style: Floats, share: float) -> Floats:
    """Bring the octaves of a result nearer to a style's.

    Args:
        result: `[3, H, W]`, zero mean and unit deviation in whitened space; so is what is returned.
        style: Whitened `[3, S, S]`.
        share: 0 leaves the result, 1 goes all the way, in terms of the octaves' logarithms.
    """
    bands, rest = split_octaves(result, _blur)
    wanted, _ = split_octaves(style, _blur)
    for band, model in zip(bands, wanted, strict=True):
        ratio = float(model.std()) / max(float(band.std()), DEVIATION_FLOOR)
        rest = rest + band * np.float32(np.clip(ratio**share, LEAST, MOST))
    return standardized(rest)


def split_octaves(picture: Any, blur: Callable[[Any, int], Any]) -> tuple[list[Any], Any]:
    """Differences of ever wider blurs, the finest first, and what is left: their sum is the
    picture.

    Args:
        picture: An array or a tensor.
        blur: Blurs one with taps that are so many pixels apart.
    """
    bands = []
    for octave in range(OCTAVES):
        blurred = blur(picture, 2**octave)
        bands.append(picture - blurred)
        picture = blurred
    return bands, picture


def _blur(picture: Floats, step: int) -> Floats:
    """Binomial blur whose taps are so many pixels apart, mirrored at the edges."""
    for axis in (1, 2):
        length, reach = picture.shape[axis], step * (len(KERNEL) // 2)
        around = [(0, 0)] * 3
        around[axis] = (reach, reach)
        padded = np.pad(picture, around, mode="reflect")
        taps = [padded.take(range(i * step, i * step + length), axis) for i in range(len(KERNEL))]
        picture = sum(weight * tap for weight, tap in zip(KERNEL, taps, strict=True))
    return picture
