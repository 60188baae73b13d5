"""Whether circuits' parameters are secure: a client checks what an owner of a model publishes.

The client makes its keys and encrypts with whatever noise a client bundle names, and one without
noise would hide nothing.
"""

from __future__ import annotations

import json
import math

from nst.errors import CircuitError
from nst.parsing import Json

SLOPE, BIAS, LEAST_DIMENSION = -0.025696778711484593, 2.675931372549016, 450
"""Concrete's own curve of 128 bits, by the lattice estimator (security curves of concrete-optimizer
2.10): log2 of the least standard deviation, on a torus of size 1, by dimension of a binary key."""
FLOOR = 2.0 - 64
"""The same where rounding to 64 bits decides."""
SLACK = 1e-3
"""Of the logarithm: specs hold variances that were rounded."""
SPECS_DEPTH_ERRORS = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)


def least_deviation(dimension: int) -> float:
    """log2 of the least secure standard deviation under a binary key of so many coefficients."""
    return max(SLOPE * dimension + BIAS, FLOOR)


def require_secure(specs: bytes, what: str) -> None:
    """Check Concrete's description of circuits, of which nothing is trusted.

    Args:
        specs: JSON: keys, and the inputs of all circuits.
        what: Whose it is, in an error.

    Raises:
        CircuitError: if something is encrypted with less than 128 bits of security, or it cannot be
            told.
    """
    try:
        document = json.loads(specs)
        keyset = document["keyset"]
        keys = {key["id"]: key["params"] for key in keyset["lweSecretKeys"]}
        noises = [
            (key["outputId"], key["params"]["variance"])
            for kind in ("lweBootstrapKeys", "lweKeyswitchKeys")
            for key in keyset[kind]
        ]
        for circuit in document["circuits"]:
            for gate in circuit["inputs"]:
                encryption = gate["typeInfo"]["lweCiphertext"]["encryption"]
                noises.append((encryption["keyId"], encryption["variance"]))
        known = ("lweSecretKeys", "lweBootstrapKeys", "lweKeyswitchKeys")
        others = [name for name, value in keyset.items() if value and name not in known]
        secure = not others and all(_secure(keys[key], variance) for key, variance in noises)
    except SPECS_DEPTH_ERRORS as error:
        raise CircuitError(f"{what}: its parameters cannot be read; do not use it") from error
    if not secure:
        raise CircuitError(
            f"{what}: its parameters give less than 128 bits of security; do not use it"
        )


def _secure(key: dict[str, Json], variance: float) -> bool:
    dimension = key["lweDimension"]
    binary = key["keyType"] == "binary" and key["integerPrecision"] == 64
    if not binary or not isinstance(dimension, int) or dimension < LEAST_DIMENSION:
        return False
    return variance > 0 and math.log2(variance) / 2 >= least_deviation(dimension) - SLACK
