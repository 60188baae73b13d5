"""What a client does to a pair before encryption, in the clear: the features to expect of it.

Values of a polynomial network are not clipped. The client computes them first, and lowers the
contrast of a content whose values would come near the modulus.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from nst.engines.base import Features, PreparedContent, PreparedInput, PreparedStyle
from nst.engines.ckks.integers import integer_layers
from nst.engines.ckks.network import LeveledNetwork, Reals
from nst.engines.ckks.packing import content_cells, style_cells
from nst.engines.ckks.parameters import Parameters
from nst.errors import InputError
from nst.network.architecture import CONTENT, STYLE
from nst.pictures.picture import Picture

CONTRASTS = (1.0, 0.85, 0.7, 0.55, 0.4)
"""Contrasts of a content tried, in this order, until its values keep clear of the modulus."""
LARGEST_SHARE = 0.8
"""Of half a modulus, that a value may have: noise adds little to it."""
FRESH_DEVIATION = 3.2
"""Of the errors of an encryption, as SEAL draws them."""


def prepare_style(network: LeveledNetwork, parameters: Parameters, style: Picture) -> PreparedStyle:
    """See `nst.engines.base.Engine.prepare_style`."""
    cells = style_cells(style.white)
    code = integer_layers(network, parameters, cells.shape[-1]).style_code(cells)
    return PreparedStyle(PreparedInput(style, STYLE), code.astype(np.float32))


class EncryptionNoise:
    """What CKKS adds to values, drawn at random; a `nst.engines.ckks.integers.Noise`.

    A level rounds every coefficient of both polynomials, and the second one's errors are multiplied
    by the secret key, of whose coefficients a third each are -1, 0 and 1; a value sums all of them.
    A rotation rounds likewise, and two thirds of what a stage reads are rotated.
    """

    def __init__(self, parameters: Parameters, rng: Generator) -> None:
        self._rng = rng
        rounding = parameters.slots * (1 + parameters.degree * 2 / 3) / 12
        fresh = parameters.slots * (FRESH_DEVIATION**2 + 1 / 12)
        self._inputs = math.sqrt(fresh + rounding * 2 / 3)
        self._level = math.sqrt(rounding * (1 + 2 / 3))

    def inputs(self, shape: tuple[int, ...]) -> Reals:
        """See `Noise`."""
        return self._rng.normal(0.0, self._inputs, shape)

    def level(self, shape: tuple[int, ...]) -> Reals:
        """See `Noise`."""
        return self._rng.normal(0.0, self._level, shape)


def simulate(
    network: LeveledNetwork,
    parameters: Parameters,
    content: PreparedContent,
    style: PreparedStyle,
    rng: Generator,
) -> Features:
    """See `nst.engines.base.Engine.simulate`."""
    noise = EncryptionNoise(parameters, rng)
    cells = style_cells(style.input.white)
    integers = integer_layers(network, parameters, cells.shape[-1])
    code = integers.style_code(cells, noise)
    around = content_cells(content.input.white, network.architecture.reach)
    return integers.read(integers.values(around, code, noise))


def prepare_content(
    network: LeveledNetwork, parameters: Parameters, content: Picture, style: PreparedStyle
) -> PreparedContent:
    """See `nst.engines.base.Engine.prepare_content`.

    Raises:
        InputError: if values would leave the modulus at every contrast.
    """
    side = style_cells(style.input.white).shape[-1]
    integers = integer_layers(network, parameters, side)
    for contrast in CONTRASTS:
        prepared = PreparedInput(content, CONTENT, contrast)
        cells = content_cells(prepared.white, network.architecture.reach)
        values = integers.values(cells, style.code.astype(np.float64))
        if max(integers.shares(values)) < LARGEST_SHARE:
            return PreparedContent(prepared, integers.read(values))
    raise InputError(
        "this pair's values would leave the modulus and its result be noise; "
        "take another style or a smaller size"
    )
