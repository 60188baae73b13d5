"""The leveled network in PyTorch: convolutions and squares, nothing else.

A stage is `y = a z^2 + z` of `z = conv(sources) + modulation(style code)`: squares are the only
nonlinearity that leveled CKKS has at a level each, and a bias inside a square modulates
multiplicatively, `(z + m)^2 = z^2 + 2 m z + m^2` (AdaIN's scale, arXiv 1703.06868, for free).
Every stage works on cells of 4 x 4 pixels and reads all stages before it and the pixels.

Nothing pads: the content is continued by mirroring beyond its edge, as wide as the network
reaches, which is the guard ring of a packed tile. The style branch wraps around, because a tile is
filled with copies of the style.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from brevitas.core.function_wrapper import TensorClampSte
from brevitas.core.quant import IntQuant
from torch import Tensor, nn

from nst.engines.ckks.integers import WEIGHT_MAX, weight_steps
from nst.engines.ckks.network import (
    LARGEST_PIXEL,
    LEAST_CURVATURE,
    LeveledArchitecture,
    LeveledNetwork,
    array_name,
    from_torch,
    load_network,
)
from nst.engines.ckks.packing import style_side
from nst.engines.ckks.parameters import Parameters
from nst.network.architecture import CELL, CELL_CHANNELS, UPSAMPLE
from nst.network.levels import QualityLevel
from nst.training.trainable import Conditions, Trainable, checked_sizes

BOUND = 4.0
"""Of |z| in training: values beyond it cost, so that they keep within a modulus."""


class Square(nn.Module):
    """`a z^2 + z`, channel by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.curvature = nn.Parameter(torch.full((channels,), 0.2))

    def forward(self, z: Tensor) -> Tensor:
        """`z` is `[N, C, ...]`."""
        return self.curvatures().view(1, -1, *[1] * (z.dim() - 2)) * z * z + z

    def curvatures(self) -> Tensor:
        """`a`, `[C]`, of a size that an engine can compute."""
        sign = torch.where(self.curvature < 0, -1.0, 1.0)
        return sign * self.curvature.abs().clamp(min=LEAST_CURVATURE)


class LeveledStyleTransfer(Trainable):
    """Content path, style branch and the client's last linear layer of engine ckks.

    Quantized, 3 x 3 weights and modulations are the integers that the engine makes of them
    (`nst.engines.ckks.integers`), with gradients straight through: which real number an integer
    stands for depends on the primes and on the square behind it, five to seven bits in all.
    """

    engine: ClassVar[str] = "ckks"
    needs_quantization: ClassVar[bool] = False
    architecture: LeveledArchitecture

    def __init__(
        self, architecture: LeveledArchitecture, parameters: Parameters | None = None
    ) -> None:
        """Random weights; quantization rounds as for these parameters, or for those that ship."""
        super().__init__()
        self.ckks_parameters = parameters or Parameters()
        self.architecture = a = architecture
        before = CELL_CHANNELS
        self.style_convs, self.style_squares = nn.ModuleList(), nn.ModuleList()
        for channels in a.style:
            self.style_convs.append(_conv(before, channels))
            self.style_squares.append(Square(channels))
            before = channels
        # Of the last stage its `z` alone is read; what gets no gradient stops several workers.
        self.style_squares[-1].curvature.requires_grad_(False)
        self.pool = nn.Linear(sum(a.style), a.code)
        self.pool_square = Square(a.code)
        self.convs, self.modulations = nn.ModuleList(), nn.ModuleList()
        self.squares = nn.ModuleList()
        inside = CELL_CHANNELS
        for index in range(a.stages):
            last = index == a.stages - 1
            out = a.up * UPSAMPLE**2 if last else a.channels
            self.convs.append(_conv(inside, out))
            modulation = nn.Linear(a.code, out, bias=False)
            nn.init.normal_(modulation.weight, std=0.5 / a.code**0.5)
            self.modulations.append(modulation)
            self.squares.append(Square(out))
            inside += out
        self._make_last_layer(a.up)
        self._quantized = False
        self._round = IntQuant(signed=True, narrow_range=True, tensor_clamp_impl=TensorClampSte())
        self._bits = torch.tensor(float(WEIGHT_MAX.bit_length() + 1))

    @classmethod
    def build(cls, sizes: Mapping[str, Any], base: Mapping[str, Any]) -> Self:
        """See `Trainable`."""
        known = LeveledArchitecture(**checked_sizes(LeveledArchitecture(), base))
        return cls(LeveledArchitecture(**checked_sizes(known, sizes)))

    @classmethod
    def sizes_of(cls, level: QualityLevel) -> Mapping[str, Any]:
        """See `Trainable`; one network is trained for all levels."""
        return {}

    @classmethod
    def read_weights(cls, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Trainable`."""
        network = load_network(path)
        return asdict(network.architecture), cls.of(network).state_dict()

    @classmethod
    def of(cls, network: LeveledNetwork, parameters: Parameters | None = None) -> Self:
        """The trained network that these weights came from."""
        trained, arrays = cls(network.architecture, parameters), network.arrays()
        names = trained.state_dict().keys()
        trained.load_state_dict({n: torch.from_numpy(arrays[array_name(n)]) for n in names})
        return trained

    def check(self, side: int) -> None:
        """See `Trainable`."""
        self.ckks_parameters.require(self.architecture.levels)
        least = CELL * (self.architecture.reach + 1)
        if side % CELL or side < least:
            raise ValueError(f"pictures of {side} pixels are no whole cells, or less than {least}")

    @property
    def quantized(self) -> bool:
        """See `Trainable`."""
        return self._quantized

    def quantize(self, on: bool) -> None:
        """See `Trainable`."""
        self._quantized = on

    def style_parameters(self) -> Iterator[nn.Parameter]:
        """See `Trainable`."""
        for part in (self.style_convs, self.style_squares, self.pool, self.pool_square):
            yield from part.parameters()

    def weights(self, octaves: float) -> LeveledNetwork:
        """See `Trainable`."""
        state = {name: value.detach().cpu().numpy() for name, value in self.state_dict().items()}
        return from_torch(self.architecture, state, octaves)

    def style_code(self, style: Tensor, conditions: Conditions) -> Tensor:
        """See `Trainable`."""
        x = F.pixel_unshuffle(style.clamp(-LARGEST_PIXEL, LARGEST_PIXEL), CELL)
        steps = self._steps(style_side(x.shape[-1]))
        taps = []
        for index, (conv, square) in enumerate(
            zip(self.style_convs, self.style_squares, strict=True)
        ):
            weight = self._rounded(conv.weight, f"style{index}.weight", steps)
            around = F.pad(x, (1, 1, 1, 1), mode="circular")
            z = _bounded(F.conv2d(around, weight, conv.bias), conditions)
            taps.append(z.pow(2).mean((2, 3)))
            x = square(z)
        code: Tensor = self.pool_square(_bounded(self.pool(torch.cat(taps, 1)), conditions))
        return code

    def forward(self, content: Tensor, code: Tensor, conditions: Conditions) -> Tensor:
        """See `Trainable`; of contents `[N, 3, H, W]` of any size."""
        around = CELL * self.architecture.reach
        bounded = content.clamp(-LARGEST_PIXEL, LARGEST_PIXEL)
        padded = F.pad(bounded, (around,) * 4, mode="reflect")
        cells = F.pixel_unshuffle(padded, CELL)
        return self.finish(content, self.features(cells, code, conditions))

    def features(self, x: Tensor, code: Tensor, conditions: Conditions) -> Tensor:
        """Features of cells `[N, 48, h + 2 reach, w + 2 reach]`: `[N, 4 up, h, w]`."""
        known, steps = x, self._steps(1)
        for index, (conv, modulation, square) in enumerate(
            zip(self.convs, self.modulations, self.squares, strict=True)
        ):
            weight = self._rounded(conv.weight, f"content{index}.weight", steps)
            by_code = self._rounded(modulation.weight, f"content{index}.modulation", steps)
            moved = F.linear(code, by_code)[:, :, None, None]
            z = _bounded(F.conv2d(known, weight, conv.bias) + moved, conditions)
            known = torch.cat([known[:, :, 1:-1, 1:-1], y := square(z)], 1)
        return y

    def _steps(self, style_cells: int) -> dict[str, Tensor]:
        """By array, what a unit of its integers stands for; nothing unless quantized."""
        if not self.quantized:
            return {}
        curvatures = {
            f"{name}{index}": square.curvatures().detach().double().cpu().numpy()
            for name, squares in (("style", self.style_squares), ("content", self.squares))
            for index, square in enumerate(squares)
        }
        steps = weight_steps(curvatures, self.ckks_parameters, style_cells)
        like = self.skip
        return {
            n: torch.as_tensor(s, dtype=like.dtype, device=like.device) for n, s in steps.items()
        }

    def _rounded(self, weight: Tensor, name: str, steps: dict[str, Tensor]) -> Tensor:
        if name not in steps:
            return weight
        zero = weight.new_zeros(())
        rounded: Tensor = self._round(steps[name], zero, self._bits.to(weight.device), weight)
        return rounded


def _bounded(z: Tensor, conditions: Conditions) -> Tensor:
    """`z`, noting how far it leaves its bound: the mean square of that, summed over stages."""
    excess = F.relu(z.abs() - BOUND).pow(2).mean()
    conditions.overflow = conditions.overflow + excess
    if not torch.is_grad_enabled():
        # In training it would be one more pass over all values.
        conditions.largest = max(conditions.largest, float(z.abs().max()))
    return z


def _conv(inside: int, out: int) -> nn.Conv2d:
    conv = nn.Conv2d(inside, out, 3)
    nn.init.normal_(conv.weight, std=(9 * inside) ** -0.5)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
