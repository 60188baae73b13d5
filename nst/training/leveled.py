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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst.engines.ckks.network import LARGEST_PIXEL, LEAST_CURVATURE, LeveledArchitecture
from nst.network.architecture import CELL, CELL_CHANNELS, UPSAMPLE
from nst.network.integers import RESULT_FLOOR
from nst.training.finishing import standardized

BOUND = 4.0
"""Of |z| in training: values beyond it cost, so that they keep within a modulus."""


class Square(nn.Module):
    """`a z^2 + z`, channel by channel; collects how far `z` leaves its bound."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.curvature = nn.Parameter(torch.full((channels,), 0.2))

    def forward(self, z: Tensor) -> Tensor:
        """`z` is `[N, C, ...]`."""
        sign = torch.where(self.curvature < 0, -1.0, 1.0)
        curvature = sign * self.curvature.abs().clamp(min=LEAST_CURVATURE)
        return curvature.view(1, -1, *[1] * (z.dim() - 2)) * z * z + z


class LeveledStyleTransfer(nn.Module):
    """Content path, style branch and the client's last linear layer, of squares only.

    Inputs and outputs live in whitened colour space (`nst.pictures.color`).
    """

    def __init__(self, architecture: LeveledArchitecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        before = CELL_CHANNELS
        self.style_convs, self.style_squares = nn.ModuleList(), nn.ModuleList()
        for channels in a.style:
            self.style_convs.append(_conv(before, channels))
            self.style_squares.append(Square(channels))
            before = channels
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
        self.head = nn.Conv2d(a.up, 3 * UPSAMPLE**2, 3)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.skip = nn.Parameter(torch.eye(3) * 0.7)
        self.register_buffer("blur", torch.tensor([1.0, 2.0, 1.0]) / 4, persistent=False)
        self.excess: list[Tensor] = []
        self.largest = 0.0

    def style_code(self, style: Tensor) -> Tensor:
        """Style code `[N, code]` of whitened styles `[N, 3, S, S]`."""
        x = F.pixel_unshuffle(style.clamp(-LARGEST_PIXEL, LARGEST_PIXEL), CELL)
        taps = []
        for conv, square in zip(self.style_convs, self.style_squares, strict=True):
            z = self._bounded(conv(F.pad(x, (1, 1, 1, 1), mode="circular")))
            taps.append(z.pow(2).mean((2, 3)))
            x = square(z)
        return self.pool_square(self._bounded(self.pool(torch.cat(taps, 1))))

    def forward(self, content: Tensor, code: Tensor) -> Tensor:
        """Whitened content `[N, 3, H, W]` and style code to a standardized result."""
        around = CELL * self.architecture.reach
        bounded = content.clamp(-LARGEST_PIXEL, LARGEST_PIXEL)
        padded = F.pad(bounded, (around,) * 4, mode="reflect")
        return self.finish(content, self.features(F.pixel_unshuffle(padded, CELL), code))

    def features(self, x: Tensor, code: Tensor) -> Tensor:
        """Features of cells `[N, 48, h + 2 reach, w + 2 reach]`: `[N, 4 up, h, w]`."""
        known = x
        for conv, modulation, square in zip(
            self.convs, self.modulations, self.squares, strict=True
        ):
            z = self._bounded(conv(known) + modulation(code)[:, :, None, None])
            known = torch.cat([known[:, :, 1:-1, 1:-1], y := square(z)], 1)
        return y

    def finish(self, content: Tensor, up: Tensor) -> Tensor:
        """The client's part: last linear layer, smooth upsampling, colour-mixing skip."""
        half = F.pixel_shuffle(up, UPSAMPLE)
        full = F.pixel_shuffle(self.head(F.pad(half, (1, 1, 1, 1), "replicate")), UPSAMPLE)
        kernel = torch.outer(self.blur, self.blur)[None, None].repeat(3, 1, 1, 1)
        smooth = F.conv2d(F.pad(full, (1, 1, 1, 1), "replicate"), kernel, groups=3)
        result = torch.einsum("ij,njhw->nihw", self.skip, content) + smooth
        return standardized(result, RESULT_FLOOR)

    def take_excess(self) -> Tensor:
        """Mean squared excess of all values since the last call over their bound."""
        total = torch.stack(self.excess).sum()
        self.excess = []
        return total

    def _bounded(self, z: Tensor) -> Tensor:
        beyond = F.relu(z.abs() - BOUND)
        self.excess.append(beyond.pow(2).mean())
        with torch.no_grad():
            self.largest = max(self.largest, float(z.abs().max()))
        return z


def _conv(inside: int, out: int) -> nn.Conv2d:
    conv = nn.Conv2d(inside, out, 3)
    nn.init.normal_(conv.weight, std=(9 * inside) ** -0.5)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
