"""The client's path around the encrypted network: normalize, quantize, finish, colour.

Everything here sees plain pixels and runs on the user's machine only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst.architecture import CONTENT, STYLE
from nst.canvas import Canvas
from nst.color import ColorStatistics, colored, quantize_pixels, whiten
from nst.errors import InputError
from nst.integer import AccumulatorRange, IntegerNetwork
from nst.lattice import without_lattice
from nst.octaves import match_octaves

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

GAINS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52, 0.46, 0.4, 0.32, 0.25)
"""Contrasts tried, in this order, until no accumulator leaves its 10 bits."""


@dataclass(frozen=True)
class Picture:
    """A picture `[3, H, W]` in [0, 1] with its colour statistics; a style is square."""

    rgb: Floats

    @cached_property
    def statistics(self) -> ColorStatistics:
        """Mean and covariance of its colours."""
        return ColorStatistics.of(self.rgb)

    @cached_property
    def white(self) -> Floats:
        """The whitened picture."""
        return whiten(self.rgb, self.statistics)

    def quantized(self, kind: str, gain: float) -> Ints:
        """Signed 4-bit pixels `[3, H, W]` of the whitened picture at a contrast.

        Args:
            kind: `content`, which is dithered, or `style`.
            gain: Contrast.
        """
        return quantize_pixels(self.white * np.float32(gain), dithered=kind == CONTENT)


@dataclass(frozen=True)
class StylePlan:
    """A style proved safe: the contrast it is encrypted at and the style code it gives."""

    gain: float
    code: Ints


@dataclass(frozen=True)
class ContentPlan:
    """A content proved safe with its style: its contrast and the features it gives in the clear."""

    gain: float
    features: Ints


def central_part(image: Image.Image, canvas: Canvas) -> Floats:
    """The largest central part of an RGB image in a canvas's proportions, scaled to it.

    Returns:
        `[3, H, W]` in [0, 1], not padded.
    """
    width, height = canvas.width, canvas.height
    if image.width * height >= image.height * width:
        inner = max(1, round(image.height * width / height)), image.height
    else:
        inner = image.width, max(1, round(image.width * height / width))
    left, top = (image.width - inner[0]) // 2, (image.height - inner[1]) // 2
    return resized(image, (left, top, left + inner[0], top + inner[1]), (width, height))


def pad_to_grid(picture: Floats) -> Floats:
    """A picture `[3, H, W]` with its last row and column repeated up to the network's grid."""
    _, height, width = picture.shape
    padded = Canvas(width, height).padded
    margins = ((0, 0), (0, padded.height - height), (0, padded.width - width))
    return np.pad(picture, margins, mode="edge")


def resized(image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Floats:
    """The region `box` of an RGB image, scaled to a width and height, as `[3, H, W]` in [0, 1]."""
    scaled = image.resize(size, Image.Resampling.BICUBIC, box=box)
    return np.asarray(scaled, dtype=np.float32).transpose(2, 0, 1) / 255


def to_image(picture: Floats) -> Image.Image:
    """Picture `[3, H, W]`, clipped to [0, 1], as 8-bit RGB."""
    levels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


def plan_style(network: IntegerNetwork, style: Picture) -> StylePlan:
    """Choose the contrast of a style.

    The accumulators of the circuits have 10 bits and would wrap around beyond them. The client
    knows its pictures, so it runs the integer network in the clear before encrypting anything,
    and lowers the contrast of a picture that would overflow.

    Raises:
        InputError: if no contrast is safe, which no known picture does.
    """
    for gain in GAINS:
        seen = AccumulatorRange()
        code = network.style_code(style.quantized(STYLE, gain), seen)
        if seen.safe:
            return StylePlan(gain, code)
    raise InputError("overflows the circuits at every contrast; try another picture")


def plan_content(network: IntegerNetwork, content: Picture, code: Ints) -> ContentPlan:
    """Choose the contrast of a content under a style code; see `plan_style`.

    Raises:
        InputError: if no contrast is safe.
    """
    for gain in GAINS:
        seen = AccumulatorRange()
        features = network.content_features(content.quantized(CONTENT, gain), code, seen)
        if seen.safe:
            return ContentPlan(gain, features)
    raise InputError("overflows the circuits at every contrast; try another picture")


def finish(network: IntegerNetwork, content: Picture, style: Picture, features: Ints) -> Floats:
    """Decrypted (or clear) features of the last stage to an RGB result `[3, H, W]` in [0, 1]."""
    white = network.finish(content.white, features)
    if network.lattice:
        white = without_lattice(white, network.lattice)
    if network.octaves:
        white = match_octaves(white, style.white, network.octaves)
    return colored(white, style.statistics)
