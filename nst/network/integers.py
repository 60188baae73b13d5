"""The network in integers, on plain NumPy: what the circuits compute, in the clear.

`preview` runs it, the client runs it before encrypting to prove that no accumulator leaves its
10 bits on the very pictures it is about to send, and the tests compare circuits with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst.network.architecture import (
    ACCUMULATOR_MAX,
    ACCUMULATOR_MIN,
    CELL,
    CONTENT,
    LEAK,
    LEVEL,
    STYLE,
    UPSAMPLE,
    Architecture,
    Branch,
    Stage,
)
from nst.pictures.color import standardized

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Noise = Callable[[Ints], NDArray[Any]]
"""Accumulators to accumulators as a noisy PBS sees them (see `nst.engines.concrete.simulation`)."""

RESULT_FLOOR = 0.3
"""Smallest deviation by which a result is divided when it is standardized."""


@dataclass(frozen=True)
class IntegerStage:
    """Integer weights of a stage.

    Attributes:
        stage: What the stage is.
        weight: `[out, in, k, k]`, values -7 .. 7.
        bias: `[out]`, accumulator units.
        modulation: `[out, code]`, values -7 .. 7, or None.
    """

    stage: Stage
    weight: Ints
    bias: Ints
    modulation: Ints | None

    def accumulate(self, x: Ints, code: Ints | None, window: bool = False) -> Ints:
        """Accumulators `[out, H, W]` from source levels and the style code.

        Args:
            x: `[in, H, W]`.
            code: `[code]`, for a modulated stage.
            window: Whether `x` is only what one row of the output reads.
        """
        kind = self.stage.kind
        if kind.summed:
            x = x.sum(kind.summed, keepdims=True)
        margins = 0 if window else kind.margin, kind.margin
        acc = convolve(x, self.weight, self.stage.stride, margins) + self.bias[:, None, None]
        if self.modulation is not None:
            if code is None:
                raise ValueError(f"stage {self.stage.name} is modulated and needs a style code")
            acc = acc + (self.modulation @ code)[:, None, None]
        return acc

    def activate(self, acc: NDArray[Any]) -> Ints:
        """Levels of accumulators, as exact rounding gives them: halves go up."""
        return self.look_up((acc + LEVEL // 2) // LEVEL)

    def look_up(self, levels: NDArray[Any]) -> Ints:
        """The stage's table: what becomes of an accumulator rounded to whole levels."""
        if self.stage.activation == "leaky":
            levels = np.where(levels < 0, (levels + LEAK // 2) // LEAK, levels)
        return np.clip(levels, self.stage.output_min, self.stage.output_max).astype(np.int64)


@dataclass
class AccumulatorRange:
    """Smallest and largest accumulator met so far."""

    low: int = 0
    high: int = 0

    def include(self, acc: Ints) -> None:
        """Widen the range by these accumulators."""
        self.low = min(self.low, int(acc.min()))
        self.high = max(self.high, int(acc.max()))

    @property
    def safe(self) -> bool:
        """Whether all of them fit the circuits' accumulators."""
        return self.low >= ACCUMULATOR_MIN and self.high <= ACCUMULATOR_MAX


@dataclass(frozen=True)
class IntegerNetwork:
    """All stages as integers, and the client's last linear layer in float32.

    Attributes:
        architecture: Sizes.
        stages: By name, in order of evaluation.
        head_weight: `[12, up, 3, 3]`.
        head_bias: `[12]`.
        skip: `[3, 3]`, the colour-mixing skip from the content.
        octaves: How far the client brings the result's octaves to the style's.
        lattice: How much of what repeats from cell to cell the client takes out.
    """

    architecture: Architecture
    stages: dict[str, IntegerStage]
    head_weight: Floats
    head_bias: Floats
    skip: Floats
    octaves: float = 0.0
    lattice: float = 0.0

    def style_code(
        self, pixels: Ints, seen: AccumulatorRange | None = None, noise: Noise | None = None
    ) -> Ints:
        """Style code `[code]` of quantized style pixels `[3, S, S]`."""
        return self._run(STYLE, pixels, None, seen, noise)[:, 0, 0]

    def content_features(
        self,
        pixels: Ints,
        code: Ints,
        seen: AccumulatorRange | None = None,
        noise: Noise | None = None,
    ) -> Ints:
        """Levels `[up * 4, H/4, W/4]` of the last encrypted stage."""
        return self._run(CONTENT, pixels, code, seen, noise)

    def _run(
        self,
        branch: Branch,
        pixels: Ints,
        code: Ints | None,
        seen: AccumulatorRange | None,
        noise: Noise | None,
    ) -> Ints:
        """Levels of the last stage of a branch."""
        out = space_to_depth(pixels)
        levels: dict[str, Ints] = {branch: out}
        for name, layer in self.stages.items():
            if layer.stage.branch != branch:
                continue
            acc = layer.accumulate(np.concatenate([levels[s] for s in layer.stage.sources]), code)
            if seen is not None:
                seen.include(acc)
            levels[name] = out = layer.activate(acc if noise is None else noise(acc))
        return out

    def finish(self, white: Floats, features: Floats) -> Floats:
        """The client's last linear layer: a standardized result `[3, H, W]` in whitened space.

        Args:
            white: Whitened content `[3, H, W]`.
            features: Levels `[up * 4, H/4, W/4]` of the last stage, decrypted or not.
        """
        return last_layer(self.head_weight, self.head_bias, self.skip, white, features)


def last_layer(
    head_weight: Floats, head_bias: Floats, skip: Floats, white: Floats, features: Floats
) -> Floats:
    """The client's last linear layer, smooth upsampling and the colour-mixing skip.

    Args:
        head_weight: `[12, up, 3, 3]`.
        head_bias: `[12]`.
        skip: `[3, 3]`.
        white: Whitened content `[3, H, W]`.
        features: `[up * 4, H/4, W/4]`.

    Returns:
        A standardized result `[3, H, W]` in whitened space.
    """
    half = depth_to_space(features, UPSAMPLE)
    full = depth_to_space(convolve(half, head_weight) + head_bias[:, None, None], UPSAMPLE)
    result = np.einsum("ij,jhw->ihw", skip, white) + binomial_blur(full)
    return standardized(result, RESULT_FLOOR)


def replicate_pad(x: NDArray[Any], rows: int = 1, columns: int = 1) -> NDArray[Any]:
    """So many replicated rows and columns on each side of `[C, H, W]`."""
    return np.pad(x, ((0, 0), (rows, rows), (columns, columns)), mode="edge")


def convolve(
    x: NDArray[Any], weight: NDArray[Any], stride: int = 1, margins: tuple[int, int] = (1, 1)
) -> NDArray[Any]:
    """Convolution of `[in, H, W]` by `[out, in, k, k]`.

    Args:
        x: What is convolved.
        weight: The kernel.
        stride: Of both axes.
        margins: Replicated rows and columns on each side.
    """
    padded, size = replicate_pad(x, *margins), weight.shape[2]
    height, width = ((length - size) // stride + 1 for length in padded.shape[1:])
    kind = np.result_type(x, weight)
    # Whole numbers as well: their sums are exact in float64, whose products are BLAS's.
    exact = np.float64 if np.issubdtype(kind, np.integer) else kind
    kernel = np.ascontiguousarray(weight.transpose(2, 3, 0, 1), dtype=exact)
    out = np.zeros((weight.shape[0], height * width), dtype=exact)
    for dy in range(size):
        for dx in range(size):
            window = padded[:, dy::stride, dx::stride][:, :height, :width]
            out += kernel[dy, dx] @ window.reshape(len(x), -1).astype(exact, copy=False)
    return out.reshape(-1, height, width).astype(kind, copy=False)


def space_to_depth(pixels: NDArray[Any], block: int = CELL) -> NDArray[Any]:
    """`[C, H, W]` to `[C * block^2, H / block, W / block]`, in PyTorch's channel order."""
    channels, height, width = pixels.shape
    split = pixels.reshape(channels, height // block, block, width // block, block)
    return split.transpose(0, 2, 4, 1, 3).reshape(-1, height // block, width // block)


def depth_to_space(cells: NDArray[Any], block: int) -> NDArray[Any]:
    """Inverse of `space_to_depth`."""
    depth, height, width = cells.shape
    split = cells.reshape(depth // block**2, block, block, height, width)
    return split.transpose(0, 3, 1, 4, 2).reshape(-1, height * block, width * block)


def binomial_blur(x: Floats) -> Floats:
    """Each channel blurred by the 3 x 3 binomial kernel, replicate padding."""
    p = replicate_pad(x)
    rows = (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) / 4
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
