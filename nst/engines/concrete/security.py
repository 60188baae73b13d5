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
LARGEST_DIMENSION, LARGEST_KEYS, WORD = 1 << 16, 4 << 30, 8
"""Of a key, in coefficients; of all evaluation keys, and of a word of them, in bytes. Ours have
102 MB; making larger ones would take a client's memory or its day."""
SECRET, BOOTSTRAP, KEYSWITCH = KINDS = "lweSecretKeys", "lweBootstrapKeys", "lweKeyswitchKeys"
NO_SPECS = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)


def least_deviation(dimension: int) -> float:
    """log2 of the least secure standard deviation under a binary key of so many coefficients."""
    return max(SLOPE * dimension + BIAS, FLOOR)


def require_secure(specs: bytes, what: str) -> None:
    """Check Concrete's description of circuits, of which nothing is trusted.

    Args:
        specs: JSON: keys, and the inputs of all circuits.
        what: Whose it is, in an error.

    Raises:
        CircuitError: if something is encrypted with less than 128 bits of security, it cannot be
            told, or keys would be larger than any of ours.
    """
    try:
        document = json.loads(specs)
        keyset = document["keyset"]
        others = [name for name, value in keyset.items() if value and name not in KINDS]
        keys = {key["id"]: key["params"] for key in keyset[SECRET]}
        for key in keys.values():
            _require_whole(key["lweDimension"])
        secure, size = not others, 0
        for key in keyset[BOOTSTRAP]:
            params, source, target = key["params"], keys[key["inputId"]], keys[key["outputId"]]
            k, degree, levels = (
                _require_whole(params[name])
                for name in ("glweDimension", "polynomialSize", "levelCount")
            )
            secure &= _secure(target, params["variance"], k * degree)
            secure &= params["inputLweDimension"] == source["lweDimension"]
            size += source["lweDimension"] * levels * (k + 1) ** 2 * degree * WORD
        for key in keyset[KEYSWITCH]:
            params, source, target = key["params"], keys[key["inputId"]], keys[key["outputId"]]
            secure &= _secure(target, params["variance"], params["outputLweDimension"])
            secure &= params["inputLweDimension"] == source["lweDimension"]
            levels = _require_whole(params["levelCount"])
            size += source["lweDimension"] * levels * (target["lweDimension"] + 1) * WORD
        for circuit in document["circuits"]:
            for gate in circuit["inputs"]:
                encryption = gate["typeInfo"]["lweCiphertext"]["encryption"]
                target = keys[encryption["keyId"]]
                secure &= _secure(target, encryption["variance"], encryption["lweDimension"])
        if size > LARGEST_KEYS:
            raise ValueError("keys that fit no memory")
    except NO_SPECS as error:
        raise CircuitError(f"{what}: its parameters cannot be read; do not use it") from error
    if not secure:
        raise CircuitError(
            f"{what}: its parameters give less than 128 bits of security; do not use it"
        )


def _require_whole(number: Json) -> int:
    if type(number) is not int or not 0 < number <= LARGEST_DIMENSION:
        raise ValueError(f"{number!r} is none")
    return number


def _secure(key: dict[str, Json], variance: float, dimension: Json) -> bool:
    """Whether noise of a variance hides enough under a key, if it is of that dimension."""
    binary = key["keyType"] == "binary" and key["integerPrecision"] == 64
    if not binary or dimension != key["lweDimension"]:
        return False
    dimension = _require_whole(dimension)
    if dimension < LEAST_DIMENSION or not variance > 0:
        return False
    return math.log2(variance) / 2 >= least_deviation(dimension) - SLACK
