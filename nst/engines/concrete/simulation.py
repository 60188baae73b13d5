"""The integer network with the noise that circuits have: what decryption will give, in the clear.

A circuit's table look-up first rounds the encrypted accumulator to the bits it keeps. The
ciphertext's noise, scaled by the modulus switch, is in it by then, so an accumulator near the
boundary of two levels may come out as either (approximate rounding of Concrete; TFHE, IACR
ePrint 2018/421).
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from nst.engines.base import Features, PreparedInput
from nst.engines.concrete.preparation import quantized
from nst.network.architecture import LEVEL
from nst.network.integers import IntegerNetwork, Noise
from nst.network.levels import noise_levels


def rounding_noise(p_error: float, rng: Generator) -> Noise:
    """Gaussian noise on accumulators as circuits compiled for `p_error` have it.

    Args:
        p_error: Probability that the noise of one PBS exceeds half a level.
        rng: Where the noise is drawn from.
    """
    deviation = noise_levels(p_error) * LEVEL
    return lambda acc: acc + rng.normal(0.0, deviation, acc.shape)


def simulate(
    network: IntegerNetwork, content: PreparedInput, style: PreparedInput, noise: Noise | None
) -> Features:
    """Features as one encrypted run might give them.

    Args:
        network: The level's network.
        content: At the contrast at which it is encrypted.
        style: Likewise.
        noise: From `rounding_noise`, another call draws another run; None of exact circuits.
    """
    code = network.style_code(quantized(style), noise=noise)
    return network.content_features(quantized(content), code, noise=noise).astype(np.float32)
