"""The trainable network of engine concrete, out of the layers of `nst.training.stage_layer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst.network.architecture import (
    CELL,
    CONTENT,
    LEVEL,
    SIGNED_MAX,
    SIGNED_MIN,
    STYLE,
    Architecture,
    Branch,
    grids,
)
from nst.network.integers import IntegerNetwork
from nst.network.levels import QualityLevel
from nst.network.pixels import PIXEL_STEPS, dither
from nst.network.weights import load_weights
from nst.training import calibration
from nst.training.dataset import Batch
from nst.training.stage_layer import Staged, StageLayer
from nst.training.trainable import Conditions, checked_sizes


class StyleTransfer(Staged):
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
        self._make_last_layer(architecture.up)

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
