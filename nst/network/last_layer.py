"""The client's last linear layer: all that it needs of a network that it does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nst.errors import CircuitError
from nst.network.architecture import UPSAMPLE
from nst.network.finishing import Network
from nst.network.integers import last_layer
from nst.pictures.color import Floats

COLOURS = 3
MOST_CHANNELS = 1024


@runtime_checkable
class Finishing(Network, Protocol):
    """A network whose last layer is ours: that of every engine so far."""

    @property
    def head_weight(self) -> Floats: ...

    @property
    def head_bias(self) -> Floats: ...

    @property
    def skip(self) -> Floats: ...


@dataclass(frozen=True)
class LastLayer:
    """What makes a picture of features; a `nst.network.finishing.Network`.

    Attributes:
        head_weight: `[12, up, 3, 3]`.
        head_bias: `[12]`.
        skip: `[3, 3]`.
        octaves: See `Network`.
        lattice: Likewise.
    """

    head_weight: Floats
    head_bias: Floats
    skip: Floats
    octaves: float = 0.0
    lattice: float = 0.0

    @staticmethod
    def of(network: Finishing) -> LastLayer:
        """That of a network."""
        arrays = network.head_weight, network.head_bias, network.skip
        return LastLayer(*arrays, octaves=network.octaves, lattice=network.lattice)

    @property
    def channels(self) -> int:
        """Of the features that it reads."""
        return self.head_weight.shape[1] * UPSAMPLE**2

    def finish(self, white: Floats, features: Floats) -> Floats:
        """See `nst.network.integers.last_layer`."""
        return last_layer(self.head_weight, self.head_bias, self.skip, white, features)

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        arrays = {
            "head.weight": self.head_weight,
            "head.bias": self.head_bias,
            "skip": self.skip,
            "shares": np.array([self.octaves, self.lattice]),
        }
        return save({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in arrays.items()})

    @staticmethod
    def from_bytes(blob: bytes, what: str) -> LastLayer:
        """Inverse of `to_bytes`, of a file of which nothing is trusted.

        Raises:
            CircuitError: if it is damaged.
        """
        out = UPSAMPLE**2 * COLOURS
        try:
            arrays = load(blob)
            weight, bias = arrays["head.weight"], arrays["head.bias"]
            skip, shares = arrays["skip"], arrays["shares"]
            shapes = weight.shape[:1], weight.shape[2:], bias.shape, skip.shape, shares.shape
            if shapes != ((out,), (3, 3), (out,), (COLOURS, COLOURS), (2,)):
                raise ValueError(f"shapes {shapes}")
            if not 1 <= weight.shape[1] <= MOST_CHANNELS:
                raise ValueError(f"{weight.shape[1]} channels")
            for name, array in arrays.items():
                if array.dtype != np.float32 or not np.isfinite(array).all():
                    raise ValueError(f"{name} is not finite")
            octaves, lattice = map(float, shares)
            if not (0 <= octaves <= 1 and 0 <= lattice <= 1):
                raise ValueError("shares beyond 1")
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise CircuitError(f"{what} is damaged ({error}); ask its owner") from error
        return LastLayer(weight, bias, skip, octaves, lattice)
