"""What a client does before it encrypts for Concrete: choose a safe contrast, quantize.

The accumulators of the circuits have 10 bits and would wrap around beyond them. The client knows
its pictures, so it runs the integer network in the clear before it encrypts anything, and lowers
the contrast of a picture that would overflow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nst.engines.base import PreparedContent, PreparedInput, PreparedStyle
from nst.errors import InputError
from nst.network.architecture import CONTENT
from nst.network.integers import AccumulatorRange, IntegerNetwork
from nst.network.pixels import quantize_pixels
from nst.pictures.picture import Picture

Ints = NDArray[np.int64]

CONTRASTS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52, 0.46, 0.4, 0.32, 0.25)
"""Contrasts tried, in this order, until no accumulator leaves its 10 bits."""
OVERFLOW = "overflows the circuits at every contrast; try another picture"


def quantized(prepared: PreparedInput) -> Ints:
    """Signed 4-bit pixels `[3, H, W]` of a picture at its contrast; contents are dithered."""
    return quantize_pixels(prepared.white, dithered=prepared.role == CONTENT)


def prepare_style(network: IntegerNetwork, style: Picture) -> PreparedStyle:
    """Choose the contrast of a style.

    Raises:
        InputError: if no contrast is safe, which no known picture does.
    """
    for contrast in CONTRASTS:
        seen, prepared = AccumulatorRange(), PreparedInput(style, "style", contrast)
        code = network.style_code(quantized(prepared), seen)
        if seen.safe:
            return PreparedStyle(prepared, code)
    raise InputError(OVERFLOW)


def prepare_content(
    network: IntegerNetwork, content: Picture, style: PreparedStyle
) -> PreparedContent:
    """Choose the contrast of a content under a style's code.

    Raises:
        InputError: if no contrast is safe.
    """
    code = style.code.astype(np.int64)
    for contrast in CONTRASTS:
        seen, prepared = AccumulatorRange(), PreparedInput(content, "content", contrast)
        features = network.content_features(quantized(prepared), code, seen)
        if seen.safe:
            return PreparedContent(prepared, features.astype(np.float32))
    raise InputError(OVERFLOW)
