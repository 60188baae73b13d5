"""The integer network with the noise that circuits have: what decryption will give, in the clear.

A circuit's table look-up first rounds the encrypted accumulator to the bits it keeps. The
ciphertext's noise, scaled by the modulus switch, is in it by then, so an accumulator near the
boundary of two levels may come out as either (approximate rounding of Concrete; TFHE, IACR
ePrint 2018/421).
"""

from __future__ import annotations

from numpy.random import Generator

from nst.architecture import CONTENT, LEVEL, STYLE
from nst.integer import Floats, IntegerNetwork, Noise
from nst.levels import noise_levels
from nst.stylize import Picture, finish


def rounding_noise(p_error: float, rng: Generator) -> Noise:
    """Gaussian noise on accumulators as circuits compiled for `p_error` have it.

    Args:
        p_error: Probability that the noise of one PBS exceeds half a level.
        rng: Where the noise is drawn from.
    """
    deviation = noise_levels(p_error) * LEVEL
    return lambda acc: acc + rng.normal(0.0, deviation, acc.shape)


def simulate(
    network: IntegerNetwork,
    content: Picture,
    style: Picture,
    gains: tuple[float, float],
    noise: Noise,
) -> Floats:
    """A result `[3, H, W]` in [0, 1] as one encrypted run might give it.

    Args:
        network: The level's network.
        content: Prepared content.
        style: Prepared style.
        gains: Contrasts at which content and style are encrypted.
        noise: From `rounding_noise`; another call draws another run.
    """
    content_gain, style_gain = gains
    code = network.style_code(style.quantized(STYLE, style_gain), noise=noise)
    features = network.content_features(content.quantized(CONTENT, content_gain), code, noise=noise)
    return finish(network, content, style, features)
