"""Integer weights of the leveled network, and what they compute, in the clear.

A stage `y = a z^2 + z` is one square of a completed `v = z + 1 / 2a`, since `y = a v^2 - 1 / 4a`;
its constants go into the weights and biases before and behind it. A ciphertext holds
`U = (2 t v)^2 / q`, `q` the prime that the square costs, and the next stage reads `U` with weights
`round(t' w a / scale)`: integers cost no level. What rounding a weight does to the constant part of
`U` the bias takes back, exactly.

`preview` computes with the same integers in float64; a decrypted result differs by noise alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nst.engines.ckks.network import LeveledNetwork, Reals, Square
from nst.engines.ckks.parameters import Parameters
from nst.errors import CircuitError
from nst.network.architecture import CELL_CHANNELS
from nst.pictures.color import Floats

APART = 2
"""A slot of a ciphertext holds two values; what takes them apart before a square doubles them."""
WEIGHT_MAX = 4095
"""So that its product with half a prime of 41 bits is exact in float64, and the sum of two."""
STYLE_CELLS = 16
"""Side of the style for which `Parameters.style_bits` holds: the mean over more cells takes more
noise off, and leaves more room below the prime that it costs."""


class Noise(Protocol):
    """What encryption adds to an array of values of some shape."""

    def inputs(self, shape: tuple[int, ...]) -> Reals | float:
        """To encrypted pixels."""
        ...

    def level(self, shape: tuple[int, ...]) -> Reals | float:
        """To what is behind a square or a mean."""
        ...


class NoNoise:
    """What the clear integers have; a `Noise`."""

    def inputs(self, shape: tuple[int, ...]) -> float:
        """See `Noise`."""
        return 0.0

    level = inputs


NO_NOISE = NoNoise()


@dataclass(frozen=True)
class Layer:
    """Integer weights of a stage; all arrays hold whole numbers.

    Attributes:
        name: Of the stage.
        weight: `[out, in, 3, 3]`, or `[out, in]` of values summed over all cells.
        bias: `[out]`.
        modulation: `[out, code]` or None.
        limbs: Of the ciphertexts that it reads.
        prime: That its square costs.
        common: A power of two in all weights and the bias: too large a weight is not multiplied
            exactly, so sums are taken without it and then doubled.
    """

    name: str
    weight: Reals
    bias: Reals
    modulation: Reals | None
    limbs: int
    prime: int
    common: int = 1

    def square(self, accumulated: Reals) -> Reals:
        """What becomes of sums: doubled, squared, divided by the prime."""
        return (APART * accumulated) ** 2 / self.prime

    def rows(self) -> Reals:
        """All weights that go into each output, `[out, any]`."""
        flat = self.weight.reshape(len(self.weight), -1)
        return flat if self.modulation is None else np.hstack([flat, self.modulation])


@dataclass(frozen=True)
class _Scale:
    """How a ciphertext's value stands for a stage's: `value = U / scale - constant`."""

    scale: Reals
    constant: Reals

    def folded(self, weight: Reals) -> Reals:
        """Weights on values to weights on ciphertexts; both `[out, in, ...]`."""
        return weight / self.scale.reshape(1, -1, *[1] * (weight.ndim - 2))

    @property
    def mean(self) -> Reals:
        """The constant part of the ciphertext's value."""
        return self.constant * self.scale


@dataclass(frozen=True)
class IntegerLayers:
    """A leveled network in integers, for given parameters and size of style.

    Attributes:
        pixel_scale: Of an encrypted content.
        style_scale: Of an encrypted style.
        style_cells: Side of the style in cells, a power of two.
        style: 3 x 3 stages of the style branch, one after the other.
        pool: Reads sums over all cells of the style and of all `style`; gives the style code.
        mean_prime: Divides its sums before they are squared.
        content: 3 x 3 stages; each reads the pixels and all before it.
        gain: `[channels]`: a feature is `gain * U + offset`.
        offset: `[channels]`.
        bound: Values of a result are smaller: a coefficient that leaves the first prime adds that
            prime to every slot.
    """

    pixel_scale: float
    style_scale: float
    style_cells: int
    style: tuple[Layer, ...]
    pool: Layer
    mean_prime: int
    content: tuple[Layer, ...]
    gain: Reals
    offset: Reals
    bound: float

    @property
    def layers(self) -> Iterator[Layer]:
        """All, in order of evaluation."""
        yield from (*self.style, self.pool, *self.content)

    def to_arrays(self) -> dict[str, NDArray[np.int64] | Reals]:
        """All of it as named arrays, for a file."""
        out: dict[str, NDArray[np.int64] | Reals] = {
            "scalars": np.array([self.pixel_scale, self.style_scale, self.bound]),
            "mean": np.array([self.style_cells, self.mean_prime]),
            "gain": self.gain,
            "offset": self.offset,
        }
        for layer in self.layers:
            out[f"{layer.name}.chain"] = np.array([layer.limbs, layer.prime, layer.common])
            out[f"{layer.name}.weight"] = layer.weight.astype(np.int64)
            out[f"{layer.name}.bias"] = layer.bias.astype(np.int64)
            if layer.modulation is not None:
                out[f"{layer.name}.modulation"] = layer.modulation.astype(np.int64)
        return out

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> IntegerLayers:
        """Inverse of `to_arrays`; raises KeyError or ValueError if something is missing."""

        def layer(name: str) -> Layer:
            limbs, prime, common = arrays[f"{name}.chain"].tolist()
            weight, bias = (arrays[f"{name}.{part}"] for part in ("weight", "bias"))
            modulation = arrays.get(f"{name}.modulation")
            return Layer(
                name,
                weight.astype(np.float64),
                bias.astype(np.float64),
                None if modulation is None else modulation.astype(np.float64),
                limbs,
                prime,
                common,
            )

        def numbered(prefix: str) -> tuple[Layer, ...]:
            count = sum(name.startswith(prefix) and name.endswith(".chain") for name in arrays)
            return tuple(layer(f"{prefix}{index}") for index in range(count))

        pixel_scale, style_scale, bound = arrays["scalars"].tolist()
        style_cells, mean_prime = arrays["mean"].tolist()
        return IntegerLayers(
            pixel_scale=pixel_scale,
            style_scale=style_scale,
            style_cells=style_cells,
            style=numbered("style"),
            pool=layer("pool"),
            mean_prime=mean_prime,
            content=numbered("content"),
            gain=arrays["gain"],
            offset=arrays["offset"],
            bound=bound,
        )

    def style_code(self, cells: Reals, noise: Noise = NO_NOISE) -> Reals:
        """Values of the encrypted style code `[code]`.

        Args:
            noise: What encryption adds.
            cells: Whitened style `[48, S, S]`. Left of a row's first cell is the last cell of the
                row above: so do rotations of a ciphertext that is filled with copies of it.
        """
        side = cells.shape[-1]
        known = [cells.reshape(len(cells), -1) * self.style_scale]
        known[0] = known[0] + noise.inputs(known[0].shape)
        for layer in self.style:
            total = layer.bias[:, None]
            for dy, dx in np.ndindex(3, 3):
                shifted = np.roll(known[-1], -((dy - 1) * side + dx - 1), axis=1)
                total = total + np.ascontiguousarray(layer.weight[:, :, dy, dx]) @ shifted
            known.append(layer.square(total) + noise.level(total.shape))
        summed = np.concatenate([values.sum(1) for values in known])
        mean = (self.pool.weight @ summed + self.pool.bias) / self.mean_prime
        code = self.pool.square(mean + noise.level(mean.shape))
        return code + noise.level(code.shape)

    def values(self, cells: Reals, code: Reals, noise: Noise = NO_NOISE) -> Reals:
        """Values `[channels, h, w]` of the last stage.

        Args:
            noise: What encryption adds.
            cells: Whitened content `[48, h + 2 reach, w + 2 reach]`, continued beyond its edge.
            code: From `style_code`.
        """
        known = cells * self.pixel_scale + noise.inputs(cells.shape)
        for layer in self.content:
            _, height, width = known.shape
            assert layer.modulation is not None
            total = np.zeros((len(layer.bias), height - 2, width - 2))
            total += (layer.bias + layer.modulation @ code)[:, None, None]
            flat = total.reshape(len(total), -1)
            # With strides of its own, NumPy would multiply without BLAS, fifty times slower.
            kernel = np.ascontiguousarray(layer.weight.transpose(2, 3, 0, 1))
            for dy, dx in np.ndindex(3, 3):
                window = known[:, dy : dy + height - 2, dx : dx + width - 2]
                flat += kernel[dy, dx] @ window.reshape(len(known), -1)
            out = layer.square(total) + noise.level(total.shape)
            known = np.concatenate([known[:, 1:-1, 1:-1], out])
        return out

    def shares(self, values: Reals) -> tuple[float, float]:
        """How much of what a ciphertext holds a result's values take; from 1 on it is noise.

        The largest value, and the largest mean of a channel: no coefficient is larger than the mean
        of all slots, of two values each.
        """
        largest_mean = float(values.mean((1, 2)).max())
        return float(values.max()) / self.bound, largest_mean / (self.bound / 4)

    def features(self, cells: Reals, code: Reals) -> Floats:
        """Features `[channels, h, w]` of the last stage; see `values`."""
        return self.read(self.values(cells, code))

    def read(self, values: Reals) -> Floats:
        """Features of the last stage's values `[channels, ...]`, decrypted or not."""
        shape = -1, *[1] * (values.ndim - 1)
        return (values * self.gain.reshape(shape) + self.offset.reshape(shape)).astype(np.float32)


def integer_layers(
    network: LeveledNetwork, parameters: Parameters, style_cells: int
) -> IntegerLayers:
    """Round a network's weights; the same arguments always give the same integers.

    Args:
        network: What was trained.
        parameters: Primes and scales.
        style_cells: Side of the style in cells, a power of two.

    Raises:
        CircuitError: if the parameters are not secure or have too few levels for the network.
    """
    key = parameters, style_cells
    if key not in network._rounded:
        network._rounded[key] = _rounded(network, parameters, style_cells)
    rounded = network._rounded[key]
    assert isinstance(rounded, IntegerLayers)
    return rounded


def _rounded(network: LeveledNetwork, parameters: Parameters, style_cells: int) -> IntegerLayers:
    parameters.require(network.architecture.levels)
    # Limbs of an encrypted style; every square costs the last of them.
    limbs = parameters.levels + 1
    style_bits = parameters.style_bits - np.log2(style_cells / STYLE_CELLS)

    style_scale = 2.0**parameters.style_pixel_bits
    before = _Scale(np.full(network.style[0].weight.shape[1], style_scale), np.zeros(1))
    sums, style, offsets = [before], [], []
    for index, square in enumerate(network.style):
        prime = parameters.primes[limbs - 1]
        target = np.full(len(square.bias), 2.0**style_bits * prime) ** 0.5 / APART
        layer = _layer(f"style{index}", square, target, before, limbs, prime)
        style.append(layer)
        offsets.append((square, target))
        before = _behind(square, target, prime)
        sums.append(before)
        limbs -= 1

    mean_prime, prime = parameters.primes[limbs - 1], parameters.primes[limbs - 2]
    target = _target(network.pool, parameters.code_bits, prime)
    on_sums = target * mean_prime / style_cells**2
    pool = _pool(network.pool, on_sums, style, sums, offsets, style_cells**2, limbs, prime)
    code = _behind(network.pool, target, prime)
    limbs -= 2

    content = []
    scale = 2.0**parameters.pixel_bits
    known = _Scale(np.full(network.content[0].weight.shape[1], scale), np.zeros(1))
    for index, square in enumerate(network.content):
        prime = parameters.primes[limbs - 1]
        last = index == len(network.content) - 1
        bits = parameters.result_bits if last else parameters.value_bits
        target = _target(square, bits, prime)
        content.append(_layer(f"content{index}", square, target, known, limbs, prime, code))
        behind = _behind(square, target, prime)
        known = _Scale(
            np.concatenate([known.scale, behind.scale]),
            np.concatenate([np.broadcast_to(known.constant, known.scale.shape), behind.constant]),
        )
        limbs -= 1
    return IntegerLayers(
        pixel_scale=scale,
        style_scale=style_scale,
        style_cells=style_cells,
        style=tuple(style),
        pool=pool,
        mean_prime=mean_prime,
        content=tuple(content),
        gain=1 / behind.scale,
        offset=-behind.constant,
        bound=0.875 * parameters.primes[0],
    )


def weight_steps(
    curvatures: Mapping[str, Reals], parameters: Parameters, style_cells: int
) -> dict[str, Reals]:
    """What one unit of a stage's integer weights stands for, for training that rounds as we do.

    The style code's own weights are left out: they are rounded to 12 bits, which nothing feels.

    Args:
        curvatures: By stage as `LeveledNetwork.arrays` names them, `[out]`.
        parameters: Primes and scales.
        style_cells: Side of the style in cells, a power of two.

    Returns:
        By name of an array of weights, what broadcasts to it.

    Raises:
        CircuitError: if the parameters have too few or too many levels for the network.
    """
    style = sum(name.startswith("style") for name in curvatures)
    content = sum(name.startswith("content") for name in curvatures)
    parameters.require(style + content + 2)
    limbs, steps = parameters.levels + 1, {}
    style_bits = parameters.style_bits - np.log2(style_cells / STYLE_CELLS)
    source = np.array([2.0**parameters.style_pixel_bits])
    for index in range(style):
        target = np.sqrt(2.0**style_bits * parameters.primes[limbs - 1]) / APART
        steps[f"style{index}.weight"] = (source / target).reshape(1, -1, 1, 1)
        source = 2.0**style_bits / np.abs(curvatures[f"style{index}"])
        limbs -= 1
    limbs -= 2
    source = np.full(CELL_CHANNELS, 2.0**parameters.pixel_bits)
    for index in range(content):
        name = f"content{index}"
        bits = parameters.result_bits if index == content - 1 else parameters.value_bits
        prime, curvature = parameters.primes[limbs - 1], np.abs(curvatures[name])
        target = np.sqrt(2.0**bits * prime * curvature)[:, None] / APART
        steps[f"{name}.weight"] = (source / target)[:, :, None, None]
        steps[f"{name}.modulation"] = 2.0**parameters.code_bits / target
        source = np.concatenate([source, np.full(len(curvature), 2.0**bits)])
        limbs -= 1
    return steps


def _target(square: Square, bits: float, prime: int) -> Reals:
    """Factor `t` on `v` with which the square's result has a value's scale of so many bits."""
    return np.sqrt(2.0**bits * prime * np.abs(square.curvature)) / APART


def _behind(square: Square, target: Reals, prime: int) -> _Scale:
    """How `U = (2 t v)^2 / q` stands for `y = a v^2 - shift / 2`."""
    return _Scale((APART * target) ** 2 / (prime * square.curvature), square.shift / 2)


def _layer(
    name: str,
    square: Square,
    target: Reals,
    source: _Scale,
    limbs: int,
    prime: int,
    code: _Scale | None = None,
) -> Layer:
    """Integers with which sums are `t v`."""
    column = target[:, None]
    weight = np.rint(target[:, None, None, None] * source.folded(square.weight))
    mean = np.broadcast_to(source.mean, source.scale.shape)
    bias = target * (square.bias + square.shift) - weight.sum((2, 3)) @ mean
    modulation = None
    if square.modulation is not None:
        assert code is not None
        modulation = np.rint(column * code.folded(square.modulation))
        bias = bias - modulation @ code.mean
    return _checked(Layer(name, weight, np.rint(bias), modulation, limbs, prime))


def _pool(
    square: Square,
    target: Reals,
    style: list[Layer],
    sources: list[_Scale],
    squares: list[tuple[Square, Reals]],
    cells: int,
    limbs: int,
    prime: int,
) -> Layer:
    """The style code of sums over all cells: of the pixels and of every stage's `U`.

    A tap is the mean of `z^2 = v^2 - 2 shift v + shift^2`. That of `v^2` is the mean of `U` in
    another scale, and that of `v` a linear layer of the mean of what the stage reads.
    """
    exact = [np.zeros((len(square.bias), len(s.scale))) for s in sources]
    # Of z with zero mean and unit deviation: near what rounding is to be right for.
    typical = [np.zeros(len(s.scale)) for s in sources]
    constant = square.bias + square.shift
    first = 0
    for index, (layer, (each, factor)) in enumerate(zip(style, squares, strict=True)):
        taps = square.weight[:, first : first + len(factor)]
        first += len(factor)
        scale = (APART * factor) ** 2 / layer.prime
        exact[index + 1] += taps / scale
        linear = taps * (2 * each.shift / factor)
        exact[index] -= linear @ layer.weight.sum((2, 3))
        constant = constant + taps @ each.shift**2 - linear @ layer.bias
        typical[index + 1] = scale * (1 + each.shift**2)
    ideal = target[:, None] * np.hstack(exact)
    common = 2 ** max(0, math.ceil(math.log2(np.abs(ideal).max() / WEIGHT_MAX)))
    weight = np.rint(ideal / common) * common
    bias = target * constant + (ideal - weight) @ np.concatenate(typical)
    # In every cell, before the sum over them.
    bias = np.rint(bias / common) * common * cells
    return _checked(Layer("pool", weight, bias, None, limbs, prime, common))


def _checked(layer: Layer) -> Layer:
    """Raises CircuitError if a stage's weights vanish at the scales that the primes leave."""
    if not layer.weight.reshape(len(layer.weight), -1).any(1).all():
        raise CircuitError(
            f"stage {layer.name} has outputs whose integer weights are all zero; "
            "take longer primes or smaller scales"
        )
    return layer
