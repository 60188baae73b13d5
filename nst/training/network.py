"""The trainable network: Brevitas layers whose quantizers are the circuits' integers.

Weights are quantized to 4 bits with the constant scale 1/64, activations to integers with the
constant scale 1: a float network in units of activation levels that can be read off as integers
without any rescaling (see `nst.network.architecture`). Modulation by the style is a shift
before the nonlinearity (FiLM without the scale, arXiv 1709.07871), since a product of ciphertexts
would cost two PBS per element and a shift costs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import brevitas.nn as qnn
import numpy as np
import torch
import torch.nn.functional as F
from brevitas.inject.enum import ScalingImplType
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from torch import Tensor, nn

from nst.network.architecture import (
    CELL,
    CONTENT,
    KEPT_BITS,
    LEAK,
    LEVEL,
    RELU_MAX,
    SIGNED_MAX,
    SIGNED_MIN,
    STYLE,
    UPSAMPLE,
    WEIGHT_BITS,
    WEIGHT_MAX,
    Architecture,
    Branch,
    Stage,
    grids,
)
from nst.network.integers import RESULT_FLOOR, IntegerNetwork, IntegerStage, Ints
from nst.network.levels import QualityLevel
from nst.network.pixels import PIXEL_STEPS, dither
from nst.network.weights import load_weights
from nst.training.dataset import Batch
from nst.training.finishing import standardized
from nst.training.trainable import Conditions, Trainable, checked_sizes

TIE = 0.5 / LEVEL
"""Half an accumulator unit: the circuit rounds halves up, PyTorch to even; with it none are met."""
SAFE_LEVELS = 6.5
"""Beyond this many levels an accumulator is penalized: it must never leave its 10 bits."""
SAFE_NEGATIVE = -7.0
"""Likewise below zero, where the accumulator ends at -8 levels, not at 7.48."""

USED_DEVIATION, USED_MEAN = 1.7, 0.75
"""Levels: what a channel's accumulators should at least deviate by, and at most centre on."""


class Weights(Int8WeightPerTensorFloat):  # type: ignore[misc]
    """Integers -7 .. 7 times 1/64."""

    bit_width = WEIGHT_BITS
    scaling_impl_type = ScalingImplType.CONST
    scaling_init = WEIGHT_MAX / LEVEL


class ReluLevels(Uint8ActPerTensorFloat):  # type: ignore[misc]
    """Integers 0 .. 7."""

    bit_width = KEPT_BITS - 1
    scaling_impl_type = ScalingImplType.CONST
    scaling_init = float(RELU_MAX)


class SignedLevels(Int8ActPerTensorFloat):  # type: ignore[misc]
    """Integers -8 .. 7."""

    bit_width = KEPT_BITS
    scaling_impl_type = ScalingImplType.CONST
    scaling_init = float(-SIGNED_MIN)


class StageLayer(nn.Module):
    """One stage of the network on whole pictures `[N, C, H, W]`."""

    def __init__(self, stage: Stage, code: int) -> None:
        super().__init__()
        self.stage = stage
        kernel = stage.kind.kernel
        self.conv = qnn.QuantConv2d(
            stage.in_channels,
            stage.out_channels,
            kernel,
            stride=stage.stride,
            bias=False,
            weight_quant=Weights,
        )
        self.bias = nn.Parameter(torch.zeros(stage.out_channels))
        self.modulation = (
            qnn.QuantLinear(code, stage.out_channels, bias=False, weight_quant=Weights)
            if stage.modulated
            else None
        )
        self.quantizer: nn.Module = (
            qnn.QuantReLU(act_quant=ReluLevels)
            if stage.activation == "relu"
            else qnn.QuantIdentity(act_quant=SignedLevels)
        )
        fan_in = stage.in_channels * kernel * kernel
        for source, weight in zip(
            stage.sources, self.conv.weight.split(stage.source_channels, 1), strict=True
        ):
            typical = PIXEL_STEPS * 1.6 if source in (CONTENT, STYLE) else 1.4
            with torch.no_grad():
                weight.normal_(std=2.0 / (typical * fan_in**0.5))
        if self.modulation is not None:
            nn.init.normal_(self.modulation.weight, std=0.02)

    def forward(self, x: Tensor, code: Tensor | None, conditions: Conditions) -> Tensor:
        """Levels of the sources `[N, C, H, W]` (and style code `[N, K]`) to levels."""
        kind = self.stage.kind
        if kind.summed:
            x = x.sum([axis + 1 for axis in kind.summed], keepdim=True)
        acc = self.conv(F.pad(x, (kind.margin,) * 4, mode="replicate") if kind.margin else x)
        bias = self.bias
        if self.quantized:
            bias = bias + ((bias * LEVEL).round() / LEVEL - bias).detach()
        acc = acc + bias[:, None, None]
        if self.modulation is not None:
            assert code is not None
            acc = acc + self.modulation(code)[:, :, None, None]
        # Summed over positions, so that a single accumulator out of bounds is felt: one wrapped
        # value is a wrong activation, however rare.
        excess = F.relu(torch.maximum(acc - SAFE_LEVELS, SAFE_NEGATIVE - acc)).sum((2, 3)).mean()
        conditions.overflow = conditions.overflow + excess
        conditions.idle = conditions.idle + idleness(acc)
        if conditions.noise:
            acc = acc + conditions.noise * torch.randn_like(acc)
        levels: Tensor = self.quantizer(acc + TIE)
        return leak(levels, self.quantized) if self.stage.activation == "leaky" else levels

    @property
    def quantized(self) -> bool:
        """Whether weights and activations are being quantized."""
        return not self.conv.weight_quant.disable_quant

    def quantize(self, on: bool) -> None:
        """Switch between the float warm-up and quantization."""
        self.conv.weight_quant.disable_quant = not on
        self.quantizer.act_quant.disable_quant = not on
        if self.modulation is not None:
            self.modulation.weight_quant.disable_quant = not on

    def integers(self) -> IntegerStage:
        """The stage as integers, exactly what `forward` computes with when quantized."""

        def whole(weight: Tensor) -> Ints:
            # Brevitas rounds half to even and clips to the narrow range, as np.rint does here.
            scaled = np.rint(weight.detach().double().numpy() * LEVEL)
            return np.clip(scaled, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int64)

        return IntegerStage(
            stage=self.stage,
            weight=whole(self.conv.weight),
            bias=np.rint(self.bias.detach().double().numpy() * LEVEL).astype(np.int64),
            modulation=None if self.modulation is None else whole(self.modulation.weight),
        )


class StyleTransfer(Trainable):
    """Content path, style branch and the client's last linear layer of engine concrete."""

    engine: ClassVar[str] = "concrete"
    needs_quantization: ClassVar[bool] = True
    architecture: Architecture

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.stages = nn.ModuleDict(
            {s.name: StageLayer(s, architecture.code) for s in architecture.stages()}
        )
        self.head = nn.Conv2d(architecture.up, 3 * UPSAMPLE * UPSAMPLE, 3)
        nn.init.normal_(self.head.weight, std=0.02)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        self.skip = nn.Parameter(torch.eye(3) * 0.7)
        self.register_buffer("blur", torch.tensor([1.0, 2.0, 1.0]) / 4, persistent=False)

    @classmethod
    def build(cls, sizes: Mapping[str, Any], base: Mapping[str, Any]) -> Self:
        """See `Trainable`."""
        known = Architecture(**checked_sizes(Architecture(), base))
        return cls(Architecture(**checked_sizes(known, sizes)))

    @classmethod
    def sizes_of(cls, level: QualityLevel) -> Mapping[str, Any]:
        """See `Trainable`."""
        return level.sizes

    @classmethod
    def read_weights(cls, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Trainable`."""
        integers = load_weights(path)
        state: dict[str, Tensor] = {
            "head.weight": torch.from_numpy(integers.head_weight),
            "head.bias": torch.from_numpy(integers.head_bias),
            "skip": torch.from_numpy(integers.skip),
        }
        for name, stage in integers.stages.items():
            prefix = f"stages.{name}"
            state[f"{prefix}.conv.weight"] = torch.from_numpy(stage.weight).float() / LEVEL
            state[f"{prefix}.bias"] = torch.from_numpy(stage.bias).float() / LEVEL
            if stage.modulation is not None:
                state[f"{prefix}.modulation.weight"] = (
                    torch.from_numpy(stage.modulation).float() / LEVEL
                )
        return integers.architecture.to_dict(), state

    def check(self, side: int) -> None:
        """See `Trainable`."""
        grids(self.architecture.stages(), side)

    def quantize(self, on: bool) -> None:
        """Switch every stage between the float warm-up and quantization."""
        for layer in self.stages.values():
            layer.quantize(on)

    def style_code(self, style: Tensor, conditions: Conditions) -> Tensor:
        """Style code `[N, code]` of whitened style pictures: the style signal."""
        return self._run(STYLE, pixel_levels(style, self.quantized), None, conditions).flatten(1)

    def forward(self, content: Tensor, code: Tensor, conditions: Conditions) -> Tensor:
        """Whitened content and style code to a standardized result in whitened space."""
        noise = torch.from_numpy(dither(*content.shape[-2:]).copy()).to(content.device)
        pixels = pixel_levels(content, self.quantized, noise)
        return self.finish(content, self._run(CONTENT, pixels, code, conditions))

    def _run(
        self, branch: Branch, pixels: Tensor, code: Tensor | None, conditions: Conditions
    ) -> Tensor:
        """Levels of the last stage of a branch."""
        out = cells(pixels)
        levels: dict[str, Tensor] = {branch: out}
        for name, layer in self.branch(branch).items():
            sources = torch.cat([levels[s] for s in layer.stage.sources], 1)
            levels[name] = out = layer(sources, code, conditions)
        return out

    def branch(self, branch: Branch) -> dict[str, StageLayer]:
        """Layers of a branch by name."""
        return {n: layer for n, layer in self.stages.items() if layer.stage.branch == branch}

    def finish(self, content: Tensor, up: Tensor) -> Tensor:
        """The client's part: last linear layer, smooth upsampling, colour-mixing skip."""
        half = F.pixel_shuffle(up, UPSAMPLE)
        full = F.pixel_shuffle(self.head(F.pad(half, (1, 1, 1, 1), "replicate")), UPSAMPLE)
        kernel = torch.outer(self.blur, self.blur)[None, None].repeat(3, 1, 1, 1)
        smooth = F.conv2d(F.pad(full, (1, 1, 1, 1), "replicate"), kernel, groups=3)
        result = torch.einsum("ij,njhw->nihw", self.skip, content) + smooth
        return standardized(result, RESULT_FLOOR)

    @property
    def quantized(self) -> bool:
        """Whether the network computes with integers."""
        return all(layer.quantized for layer in self.stages.values())

    def style_parameters(self) -> Iterator[nn.Parameter]:
        """See `Trainable`."""
        for layer in self.branch(STYLE).values():
            yield from layer.parameters()

    def calibrate(
        self,
        optimizer: torch.optim.Optimizer,
        batches: Callable[[], list[Batch]],
        agree: Callable[[float], float],
    ) -> dict[str, float]:
        """See `Trainable` and `nst.training.calibration`."""
        from nst.training import calibration

        found = calibration.factors(self, calibration.accumulator_levels(self, batches()))
        # Workers on different machines may differ in the last bit.
        agreed = {name: agree(factor) for name, factor in found.items()}
        moved = calibration.rescale_stages(self, agreed)
        calibration.rescale_moments(self, optimizer, moved)
        return agreed

    def weights(self, octaves: float) -> IntegerNetwork:
        """See `Trainable`."""
        return replace(self.integers(), octaves=octaves)

    def integers(self) -> IntegerNetwork:
        """The trained network as integers and the client's float32 last layer."""
        assert self.head.bias is not None
        return IntegerNetwork(
            architecture=self.architecture,
            stages={name: layer.integers() for name, layer in self.stages.items()},
            head_weight=self.head.weight.detach().numpy().copy(),
            head_bias=self.head.bias.detach().numpy().copy(),
            skip=self.skip.detach().numpy().copy(),
        )


def idleness(acc: Tensor) -> Tensor:
    """How far channels of an accumulator `[N, C, H, W]` are from using their levels; a scalar.

    The penalty of overflow alone draws everything to zero: deviations of 0.8 levels, where
    rounding is as strong as the signal, and channels that are never active. So deviations below
    `USED_DEVIATION` and means beyond `USED_MEAN` cost their square, channel by channel.
    """
    variance, mean = torch.var_mean(acc, (0, 2, 3), correction=0)
    deviation = (variance + 1e-4).sqrt()  # the root of 0 has no gradient
    return (F.relu(USED_DEVIATION - deviation) ** 2 + F.relu(mean.abs() - USED_MEAN) ** 2).mean()


def leak(levels: Tensor, quantized: bool) -> Tensor:
    """Leaky activation of signed levels; the gradient goes straight through its rounding."""
    small = levels / LEAK
    if quantized:
        # Multiples of 1/4: floor(x + 1/2) is exact.
        small = small + (torch.floor(small + 0.5) - small).detach()
    return torch.where(levels < 0, small, levels)


def pixel_levels(white: Tensor, quantized: bool, noise: Tensor | None = None) -> Tensor:
    """Whitened pixels as 4-bit levels (or, in the float warm-up, in the same unit).

    Args:
        white: `[N, 3, S, S]`.
        quantized: Whether to round.
        noise: Of a content, `nst.network.pixels.dither`.
    """
    scaled = white * PIXEL_STEPS if noise is None else white * PIXEL_STEPS + noise
    levels = torch.floor(scaled + 0.5) if quantized else scaled
    # Results of the network are encoded as style signals too, so gradients pass straight through.
    return (scaled + (levels - scaled).detach()).clamp(SIGNED_MIN, SIGNED_MAX)


def cells(pixels: Tensor) -> Tensor:
    """Space to depth: `[N, 3, S, S]` to `[N, 48, S/4, S/4]`; costs nothing under encryption."""
    return F.pixel_unshuffle(pixels, CELL)
