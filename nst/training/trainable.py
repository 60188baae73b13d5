"""What the trainer asks of an engine's network: the seam between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst.network.architecture import UPSAMPLE
from nst.network.integers import RESULT_FLOOR
from nst.training.dataset import Batch
from nst.training.finishing import standardized

if TYPE_CHECKING:
    from nst.engines.ckks.network import LeveledArchitecture, LeveledNetwork
    from nst.network.architecture import Architecture
    from nst.network.integers import IntegerNetwork
    from nst.network.levels import QualityLevel


@dataclass
class Conditions:
    """What a training step does to the values of a network, and what it learns of them."""

    noise: float = 0.0
    """Standard deviation, in levels, of the noise the circuit's PBS sees before rounding."""
    overflow: Tensor | float = 0.0
    """How far values leave the range of the integers that they become."""
    idle: Tensor | float = 0.0
    """How far channels are from using that range."""
    largest: float = 0.0
    """Largest size of a bounded value; of a network that measures it, and without gradients."""


class Trainable(nn.Module, ABC):
    """An engine's network in PyTorch.

    Inputs and outputs live in whitened colour space (`nst.pictures.color`).

    Attributes:
        engine: Its name.
        needs_quantization: Whether float weights are of no use to it.
        architecture: A dataclass of sizes.
        head: The client's last linear layer.
        skip: `[3, 3]`, its colour-mixing skip from the content.
    """

    engine: ClassVar[str]
    needs_quantization: ClassVar[bool]
    architecture: Architecture | LeveledArchitecture
    head: nn.Conv2d
    skip: nn.Parameter
    blur: Tensor

    @classmethod
    @abstractmethod
    def build(cls, sizes: Mapping[str, Any], base: Mapping[str, Any]) -> Self:
        """A network with random weights from PyTorch's generator.

        Args:
            sizes: Fields of the architecture that differ from `base`.
            base: Fields that differ from the defaults.

        Raises:
            TypeError, ValueError: if there is no such architecture.
        """

    @classmethod
    @abstractmethod
    def sizes_of(cls, level: QualityLevel) -> Mapping[str, Any]:
        """Fields of the architecture in which a level differs from the defaults."""

    @classmethod
    @abstractmethod
    def read_weights(cls, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Sizes and state dict of shipped weights; raises CircuitError if they cannot be read."""

    @abstractmethod
    def check(self, side: int) -> None:
        """Raise ValueError if pictures of so many pixels do not fit the architecture.

        CircuitError says that no engine could compute the network.
        """

    def _make_last_layer(self, channels: int) -> None:
        """The client's part, which reads so many channels at half the resolution."""
        self.head = nn.Conv2d(channels, 3 * UPSAMPLE**2, 3)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.skip = nn.Parameter(torch.eye(3) * 0.7)
        self.register_buffer("blur", torch.tensor([1.0, 2.0, 1.0]) / 4, persistent=False)

    def finish(self, content: Tensor, up: Tensor) -> Tensor:
        """The client's part: last linear layer, smooth upsampling, colour-mixing skip."""
        half = F.pixel_shuffle(up, UPSAMPLE)
        full = F.pixel_shuffle(self.head(F.pad(half, (1, 1, 1, 1), "replicate")), UPSAMPLE)
        kernel = torch.outer(self.blur, self.blur)[None, None].repeat(3, 1, 1, 1)
        smooth = F.conv2d(F.pad(full, (1, 1, 1, 1), "replicate"), kernel, groups=3)
        result = torch.einsum("ij,njhw->nihw", self.skip, content) + smooth
        return standardized(result, RESULT_FLOOR)

    @abstractmethod
    def style_code(self, style: Tensor, conditions: Conditions) -> Tensor:
        """Style code `[N, code]` of whitened styles `[N, 3, S, S]`: the style signal."""

    @abstractmethod
    def forward(self, content: Tensor, code: Tensor, conditions: Conditions) -> Tensor:
        """Whitened contents `[N, 3, S, S]` and style codes to standardized results."""

    @property
    @abstractmethod
    def quantized(self) -> bool:
        """Whether weights (and what else the engine rounds) are being quantized."""

    @abstractmethod
    def quantize(self, on: bool) -> None:
        """Switch quantization on or off."""

    @abstractmethod
    def style_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the style branch."""

    def calibrate(
        self,
        optimizer: torch.optim.Optimizer,
        batches: Callable[[], list[Batch]],
        agree: Callable[[float], float],
    ) -> dict[str, float]:
        """Fit float weights to the integers before quantization begins.

        Args:
            optimizer: Its moments follow.
            batches: What to measure with; read only if it is called.
            agree: Makes a number the same on all workers.

        Returns:
            What was done by stage, for the metrics; nothing by default.
        """
        return {}

    @abstractmethod
    def weights(self, octaves: float) -> IntegerNetwork | LeveledNetwork:
        """What the engine publishes, with the client's share of `octaves`."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The architecture as JSON holds it."""
        record = asdict(self.architecture)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}


def checked_sizes(defaults: object, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of an architecture, those in `sizes` changed.

    Raises:
        ValueError: if a field is unknown, negative or of another type than the default.
    """
    fields = asdict(defaults)  # type: ignore[call-overload]
    for name, value in sizes.items():
        default = fields.get(name, value)
        listed = isinstance(default, tuple) and isinstance(value, list | tuple) and value
        parts = value if listed else [value]
        kind = int if listed else type(default)
        if not all(type(part) is kind and part >= 0 for part in parts):
            raise ValueError(f"{name} cannot be {value!r}")
        fields[name] = tuple(value) if listed else value
    return fields
