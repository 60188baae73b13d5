"""The leveled network as trained: real weights, which are made integers for given parameters.

A stage is `y = a z^2 + z` of `z = conv(sources) + modulation(style code)`, see
`nst.training.leveled`. Which integers stand for the weights depends on primes and on the style's
size, so a file holds the real ones and `nst.engines.ckks.integers` rounds them, always alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst.errors import CircuitError
from nst.network.architecture import CELL_CHANNELS, UPSAMPLE
from nst.network.integers import last_layer
from nst.network.weight_files import read_weights, tensor, write_weights
from nst.pictures.color import Floats

ENGINE = "ckks"
FORMAT = 1
LARGEST_PIXEL = 3.0
"""Of whitened pixels as they are encrypted; in training as well."""
LEAST_CURVATURE = 0.03
"""Of a square: below it the shift 1 / 2a of the completed square would grow without bound."""
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class LeveledArchitecture:
    """Sizes of a leveled network.

    Attributes:
        channels: Of every content stage but the last.
        stages: 3 x 3 content stages, a level each.
        up: Channels at half the resolution, made by the last stage and a pixel shuffle.
        style: Channels of the 3 x 3 stages of the style branch, a level each.
        code: Length of the style code: squares of pooled values, one level.
    """

    channels: int = 64
    stages: int = 6
    up: int = 16
    style: tuple[int, ...] = (48, 80)
    code: int = 64

    @property
    def levels(self) -> int:
        """On the longest way from a style to a result: squares, and the mean over the style."""
        return len(self.style) + 2 + self.stages

    @property
    def reach(self) -> int:
        """Cells of guard ring around a content."""
        return self.stages

    @property
    def result_channels(self) -> int:
        """Of the last content stage."""
        return self.up * UPSAMPLE**2

    def content(self) -> Iterator[tuple[int, int]]:
        """Channels that each content stage reads and makes."""
        inside = CELL_CHANNELS
        for index in range(self.stages):
            out = self.result_channels if index == self.stages - 1 else self.channels
            yield inside, out
            inside += out


@dataclass(frozen=True)
class Square:
    """A linear layer and the square behind it, in real numbers.

    Attributes:
        weight: `[out, in, 3, 3]`, or `[out, in]` of pooled values.
        bias: `[out]`.
        curvature: `[out]`, at least `LEAST_CURVATURE` in size.
        modulation: `[out, code]`, of a content stage.
    """

    weight: Reals
    bias: Reals
    curvature: Reals
    modulation: Reals | None = None

    @property
    def shift(self) -> Reals:
        """What completes the square: `a z^2 + z = a (z + shift)^2 - shift / 2`."""
        return 1 / (2 * self.curvature)


@dataclass(frozen=True)
class LeveledNetwork:
    """All weights, and the client's last linear layer; a `nst.engines.base.Network`.

    Attributes:
        architecture: Sizes.
        style: 3 x 3 stages of the style branch.
        pool: From the means of the `z^2` of all of them to the style code.
        content: 3 x 3 stages; each reads the pixels and all before it.
        head_weight: `[12, up, 3, 3]`.
        head_bias: `[12]`.
        skip: `[3, 3]`, the colour-mixing skip from the content.
        octaves: How far the client brings the result's octaves to the style's.
        lattice: How much of what repeats from cell to cell the client takes out.
    """

    architecture: LeveledArchitecture
    style: tuple[Square, ...]
    pool: Square
    content: tuple[Square, ...]
    head_weight: Floats
    head_bias: Floats
    skip: Floats
    octaves: float = 0.0
    lattice: float = 0.0
    _rounded: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What `nst.engines.ckks.integers` made of it: it is asked for with every picture."""

    def finish(self, white: Floats, features: Floats) -> Floats:
        """See `nst.network.integers.last_layer`."""
        return last_layer(self.head_weight, self.head_bias, self.skip, white, features)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All weights under their names in a file."""
        named = {"head.weight": self.head_weight, "head.bias": self.head_bias, "skip": self.skip}
        for name, square in self._squares():
            for part in ("weight", "bias", "curvature", "modulation"):
                if (value := getattr(square, part)) is not None:
                    named[f"{name}.{part}"] = value
        return {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in named.items()}

    def _squares(self) -> Iterator[tuple[str, Square]]:
        yield from ((f"style{i}", square) for i, square in enumerate(self.style))
        yield "pool", self.pool
        yield from ((f"content{i}", square) for i, square in enumerate(self.content))

    @staticmethod
    def of(
        architecture: LeveledArchitecture,
        arrays: Mapping[str, NDArray[Any]],
        octaves: float = 0.0,
        lattice: float = 0.0,
    ) -> LeveledNetwork:
        """A network of arrays as `arrays` names them.

        Raises:
            KeyError: if one is missing.
            ValueError: if one has another shape than the architecture.
        """

        def take(name: str, *shape: int) -> Reals:
            return np.asarray(tensor(arrays, name, shape), dtype=np.float64)

        def square(name: str, out: int, *inside: int, modulated: bool = False) -> Square:
            curvature = take(f"{name}.curvature", out)
            sign = np.where(curvature < 0, -1.0, 1.0)
            return Square(
                take(f"{name}.weight", out, *inside),
                take(f"{name}.bias", out),
                sign * np.maximum(np.abs(curvature), LEAST_CURVATURE),
                take(f"{name}.modulation", out, a.code) if modulated else None,
            )

        a = architecture
        before = (CELL_CHANNELS, *a.style)
        return LeveledNetwork(
            a,
            tuple(square(f"style{i}", out, before[i], 3, 3) for i, out in enumerate(a.style)),
            square("pool", a.code, sum(a.style)),
            tuple(
                square(f"content{i}", out, inside, 3, 3, modulated=True)
                for i, (inside, out) in enumerate(a.content())
            ),
            take("head.weight", 3 * UPSAMPLE**2, a.up, 3, 3).astype(np.float32),
            take("head.bias", 3 * UPSAMPLE**2).astype(np.float32),
            take("skip", 3, 3).astype(np.float32),
            octaves,
            lattice,
        )

    def save(self, path: Path, card: dict[str, Any]) -> None:
        """Write a file that `load_network` reads; see `nst.network.weight_files`."""
        metadata = {
            "architecture": json.dumps(asdict(self.architecture)),
            "octaves": str(self.octaves),
            "lattice": str(self.lattice),
        }
        write_weights(path, ENGINE, FORMAT, self.arrays(), metadata, card)


def load_network(path: Path) -> LeveledNetwork:
    """Read weights written by `LeveledNetwork.save`.

    Raises:
        CircuitError: see `nst.network.weight_files.read_weights`; or of another architecture.
    """
    arrays, metadata = read_weights(path, ENGINE, FORMAT)
    try:
        sizes = json.loads(metadata["architecture"])
        architecture = LeveledArchitecture(**{**sizes, "style": tuple(sizes["style"])})
        return LeveledNetwork.of(
            architecture, arrays, float(metadata["octaves"]), float(metadata["lattice"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CircuitError(f"weights {path} do not fit the network ({error})") from error


TORCH_NAMES = (
    ("style_convs.", "style"),
    ("style_squares.", "style"),
    ("pool_square.", "pool."),
    ("convs.", "content"),
    ("squares.", "content"),
)


def array_name(torch_name: str) -> str:
    """Under what name `LeveledNetwork.arrays` has a parameter of the trained network."""
    if torch_name.startswith("modulations."):
        return f"content{torch_name.split('.')[1]}.modulation"
    for theirs, ours in TORCH_NAMES:
        if torch_name.startswith(theirs):
            return ours + torch_name.removeprefix(theirs)
    return torch_name


def from_torch(
    architecture: LeveledArchitecture,
    state: Mapping[str, NDArray[Any]],
    octaves: float = 0.0,
    lattice: float = 0.0,
) -> LeveledNetwork:
    """A network of the arrays of a `nst.training.leveled.LeveledStyleTransfer`'s `state_dict`."""
    arrays = {array_name(name): value for name, value in state.items()}
    return LeveledNetwork.of(architecture, arrays, octaves, lattice)
