"""A stage as an ordinary Brevitas model, for concrete-ml to compile the same weights from.

concrete-ml knows no replicate padding, so these models convolve without any; it can't add an
encrypted style code to an accumulator, so the code is part of their biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import brevitas.nn as qnn
import numpy as np
import torch
from brevitas.quant import Int16Bias
from PIL import Image
from torch import Tensor, nn

from nst.engines.base import PreparedInput
from nst.engines.concrete.preparation import prepare_content, prepare_style, quantized
from nst.network.architecture import (
    COLUMNS,
    CONTENT,
    LEVEL,
    OUTPUT,
    ROWS,
    STYLE,
    STYLE_CODE,
    Architecture,
)
from nst.network.integers import IntegerNetwork, IntegerStage, Ints, space_to_depth
from nst.network.levels import LEVELS
from nst.network.weights import load_weights
from nst.pictures.picture import Picture
from nst.training.stage_layer import TIE, ReluLevels, SignedLevels, Weights
from tests.toy import random_network

PICTURES = Path(__file__).resolve().parent.parent / "examples" / "pairs"


def installed_network() -> IntegerNetwork:
    """Trained weights if there are any, else random ones of the real sizes."""
    for name in ("low", "draft"):
        if LEVELS[name].trained:
            return load_weights(LEVELS[name].weights)
    return random_network(Architecture())


def crop(kind: str, name: str, size: int) -> Picture:
    """The middle of an example picture at half its size."""
    with Image.open(PICTURES / kind / f"{name}.jpg") as image:
        small = image.convert("RGB").reduce(2)
    left, top = (small.width - size) // 2, (small.height - size) // 2
    pixels = np.asarray(small.crop((left, top, left + size, top + size)), dtype=np.float32)
    return Picture(np.ascontiguousarray(pixels.transpose(2, 0, 1)) / 255)


@dataclass(frozen=True)
class Clear:
    """A pair's levels after each stage, by NumPy."""

    inputs: list[PreparedInput]
    levels: dict[str, Ints]

    @property
    def code(self) -> Ints:
        return self.levels[STYLE_CODE][:, 0, 0]


def run_clear(network: IntegerNetwork, size: int) -> Clear:
    """An example pair through `nst.network.integers`, at the contrast the client would choose."""
    style = prepare_style(network, crop(STYLE, "rocket", size))
    content = prepare_content(network, crop(CONTENT, "cat", size), style)
    inputs = [style.input, content.input]
    levels = {each.role: space_to_depth(quantized(each)) for each in inputs}
    for name, layer in network.stages.items():
        code = levels[STYLE_CODE][:, 0, 0] if layer.stage.modulated else None
        sources = np.concatenate([levels[s] for s in layer.stage.sources])
        levels[name] = layer.activate(layer.accumulate(sources, code))
    np.testing.assert_array_equal(levels[OUTPUT], content.features)
    return Clear(inputs, levels)


class OracleStage(nn.Module):
    """One stage with its style as part of the bias, valid padding.

    A pool is a convolution whose kernel spans what it sums over. The quantizer to 0 .. 7 is the
    ReLU: with a `QuantReLU` between two layers concrete-ml would round the accumulator (scales
    are powers of two) before the bias is added, which is not what the network was trained for.
    """

    def __init__(self, layer: IntegerStage, code: Ints | None, kernel: tuple[int, int]) -> None:
        super().__init__()
        stage = layer.stage
        self.conv = qnn.QuantConv2d(
            stage.in_channels,
            stage.out_channels,
            kernel,
            stride=stage.stride,
            bias=True,
            weight_quant=Weights,
        )
        bias = layer.bias if layer.modulation is None else layer.bias + layer.modulation @ code
        weight = np.broadcast_to(layer.weight, (*layer.weight.shape[:2], *kernel))
        with torch.no_grad():
            self.conv.weight.copy_(torch.from_numpy(weight / LEVEL))
            self.conv.bias.copy_(torch.from_numpy(bias / LEVEL + TIE))
        self.quantizer = quantizer(stage.output_min)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.quantizer(self.conv(x))
        return out


class RoundingOracle(nn.Module):
    """A ReLU stage as concrete-ml encrypts it cheaply: its integer bias first, then rounding.

    concrete-ml rounds, halves up, where a layer with power-of-two scales is followed by another;
    the 1 x 1 convolution that copies its input is there to follow, and costs no PBS.
    """

    def __init__(self, layer: IntegerStage, code: Ints) -> None:
        super().__init__()
        channels = layer.stage.out_channels
        assert layer.modulation is not None
        self.quantizer = qnn.QuantIdentity(act_quant=SignedLevels, return_quant_tensor=True)
        self.conv = qnn.QuantConv2d(
            layer.stage.in_channels,
            channels,
            3,
            bias=True,
            weight_quant=Weights,
            bias_quant=Int16Bias,
        )
        self.relu = qnn.QuantReLU(act_quant=ReluLevels, return_quant_tensor=True)
        self.copy = qnn.QuantConv2d(channels, channels, 1, bias=False, weight_quant=Weights)
        bias = layer.bias + layer.modulation @ code
        with torch.no_grad():
            self.conv.weight.copy_(torch.from_numpy(layer.weight / LEVEL))
            self.conv.bias.copy_(torch.from_numpy(bias / LEVEL))
            self.copy.weight.copy_(torch.eye(channels)[:, :, None, None] / LEVEL)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.copy(self.relu(self.conv(self.quantizer(x))))
        return out


def quantizer(low: int) -> nn.Module:
    """Quantizer to levels from `low`: signed ones or those of a ReLU."""
    identity: nn.Module = qnn.QuantIdentity(act_quant=SignedLevels if low < 0 else ReluLevels)
    return identity


class Oracle(nn.Module):
    """One stage behind a quantizer that takes its sources' levels as they are."""

    def __init__(self, stage: OracleStage, low: int) -> None:
        super().__init__()
        self.quantizer = quantizer(low)
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stage(self.quantizer(x))
        return out


def make_oracle(network: IntegerNetwork, name: str, clear: Clear) -> tuple[Oracle, Ints]:
    """The oracle of a stage under a style code, and the levels that it reads."""
    layer = network.stages[name]
    source = np.concatenate([clear.levels[s] for s in layer.stage.sources])
    kind = layer.stage.kind
    height, width = (
        source.shape[axis] if axis in kind.summed else kind.kernel for axis in (ROWS, COLUMNS)
    )
    code = clear.code if layer.stage.modulated else None
    stage = OracleStage(layer, code, (height, width))
    return Oracle(stage, int(source.min())).eval(), source
