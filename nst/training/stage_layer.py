"""One stage of the trainable network: a Brevitas layer whose quantizers are the circuit's integers.

Weights are quantized to 4 bits with the constant scale 1/64, activations to integers with the
constant scale 1: a float network in units of activation levels that can be read off as integers
without any rescaling (see `nst.network.architecture`). Modulation by the style is a shift
before the nonlinearity (FiLM without the scale, arXiv 1709.07871), since a product of ciphertexts
would cost two PBS per element and a shift costs none.
"""

from __future__ import annotations

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
    CONTENT,
    KEPT_BITS,
    LEAK,
    LEVEL,
    RELU_MAX,
    SIGNED_MIN,
    STYLE,
    WEIGHT_BITS,
    WEIGHT_MAX,
    Stage,
)
from nst.network.integers import IntegerStage, Ints
from nst.network.pixels import PIXEL_STEPS
from nst.training.trainable import Conditions, Trainable

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


class Staged(Trainable):
    """A network of such stages."""

    stages: nn.ModuleDict


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
