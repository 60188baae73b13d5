"""The network as plain data: a list of stages that training, circuits and the task graph all read.

Every stage is linear work followed by one programmable bootstrap (PBS) an output element. Its
accumulator is an integer of `ACCUMULATOR_BITS` signed bits; approximate rounding keeps the
`KEPT_BITS` most significant of them, so one activation level is `LEVEL = 2**6` accumulator units.
Activations are integers, weights are integers too, and both keep the same meaning in the training
forward, the NumPy forward and the circuit; the scale between a sum and an activation is always the
power of two `LEVEL`, which is why requantization never costs a PBS of its own.

All stages share one accumulator width on purpose: wired stages of one module take the widest
one's encoding, and 12 bits cost half again as much as 10.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

ACCUMULATOR_BITS = 10
KEPT_BITS = 4
SHIFT = ACCUMULATOR_BITS - KEPT_BITS
LEVEL = 1 << SHIFT
"""Accumulator units in one activation level."""
ACCUMULATOR_MIN = -(1 << (ACCUMULATOR_BITS - 1))
ACCUMULATOR_MAX = (1 << (ACCUMULATOR_BITS - 1)) - LEVEL // 2 - 1
"""Largest accumulator that does not round up and out of the signed range."""
WEIGHT_BITS = 4
WEIGHT_MAX = (1 << (WEIGHT_BITS - 1)) - 1
PIXEL_MIN, PIXEL_MAX = -8, 7
"""Whitened pixels enter the circuits as signed 4-bit integers."""
RELU_MAX = (1 << (KEPT_BITS - 1)) - 1
SIGNED_MIN, SIGNED_MAX = -(1 << (KEPT_BITS - 1)), (1 << (KEPT_BITS - 1)) - 1
CELL = 4
"""Side in pixels of one latent position: pictures enter by space-to-depth of 4 x 4 cells."""
CELL_CHANNELS = 3 * CELL * CELL
UPSAMPLE = 2
"""Side, in half-resolution positions, of the pixel shuffle after the last encrypted stage."""
LEAK = 4
"""A leaky activation divides negative levels by this: -8 .. 7 become -2 .. 7."""

CONTENT: Final = "content"
STYLE: Final = "style"
"""Names of the two encrypted inputs."""
STYLE_CODE, OUTPUT = "style_code", "up"
"""Names of the last stage of the style branch, and of the content path."""


def is_style(name: str) -> bool:
    """Whether a stage belongs to the style branch, which is computed once per style."""
    return name.startswith("style_")


Kind = Literal["conv", "row_pool", "pool"]
Activation = Literal["relu", "leaky", "signed"]
LOWEST: dict[Activation, int] = {
    "relu": 0,
    "leaky": SIGNED_MIN // LEAK,
    "signed": SIGNED_MIN,
}
"""Smallest level of each activation. The largest is that of the accumulator, 7."""


@dataclass(frozen=True)
class Stage:
    """One stage: linear work on rows of earlier stages, then one PBS an output element.

    Attributes:
        name: Identifier, also the name of the circuit function.
        kind: `conv`, a 3 x 3 convolution with replicate padding; `row_pool`, a 1 x 1 convolution
            summed over the width of one row; `pool`, a 1 x 1 convolution summed over all rows.
        sources: Names of the stages or inputs whose rows are concatenated over channels. One at
            half the resolution of the first is enlarged to it by repetition.
        source_channels: Channels of each.
        out_channels: Channels of the result.
        stride: Spatial stride of a `conv`.
        modulated: Whether the style code, through a linear map, is added to the accumulator:
            feature-wise shift conditioning before the nonlinearity, which costs no PBS.
        activation: `relu`, levels 0 .. 7; `leaky`, -2 .. 7; `signed`, -8 .. 7. A table look-up
            costs the same whatever is in the table.
    """

    name: str
    kind: Kind
    sources: tuple[str, ...]
    source_channels: tuple[int, ...]
    out_channels: int
    stride: int = 1
    modulated: bool = False
    activation: Activation = "relu"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record."""
        return asdict(self)

    @property
    def in_channels(self) -> int:
        """Channels of all sources together."""
        return sum(self.source_channels)

    @property
    def output_min(self) -> int:
        """Smallest activation level of this stage."""
        return LOWEST[self.activation]

    @property
    def output_max(self) -> int:
        """Largest activation level of this stage."""
        return SIGNED_MAX


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network; everything else about its shape follows.

    The content path is a trunk at a quarter of the resolution with, if `coarse` is not zero, a
    second trunk at an eighth of it in between: a stage there costs a quarter and sees twice as
    far. Concatenating more sources costs no PBS, only linear work.

    Attributes:
        latent: Channels at a quarter of the resolution.
        body: Number of 3 x 3 stages at a quarter of the resolution between the stem (or the
            coarse trunk) and the last stage.
        up: Channels at half the resolution, made by the last stage and a pixel shuffle.
        coarse: Channels at an eighth of the resolution; 0 for no such trunk.
        coarse_body: Number of 3 x 3 stages at an eighth of the resolution.
        dense: How many predecessors of its trunk a stage reads, at most.
        reads_pixels: Whether every stage at a quarter of the resolution reads the content's
            pixels too.
        style_stem: Channels of the first stage of the style branch.
        style_stride: Its stride: 2 at mid, 3 at high and 4 at ultra keep the style branch at its
            size at low.
        style_body: Channels of the style branch at half the resolution of its stem.
        style_deep: Channels of a second 3 x 3 stage at that resolution; 0 for no such stage.
        style_rows: Channels of the row means of the style branch.
        code: Length of the style code that modulates every content stage.
        code_layers: Number of layers from the row means to the style code.
        style_leaky: Whether activations of the style branch are leaky: ReLUs throw half of the
            kept bits away, and a channel whose accumulators have become negative everywhere
            never comes back in training.
        leaky: The same of the content path, whose last stage, read by a linear layer, is signed
            then.
    """

    latent: int = 32
    body: int = 2
    up: int = 12
    coarse: int = 80
    coarse_body: int = 3
    dense: int = 9
    reads_pixels: bool = True
    style_stem: int = 16
    style_stride: int = 1
    style_body: int = 32
    style_deep: int = 0
    style_rows: int = 48
    code: int = 128
    code_layers: int = 2
    style_leaky: bool = True
    leaky: bool = False

    def stages(self) -> tuple[Stage, ...]:
        """All stages in an order in which every source comes before its readers."""
        return (*self._style_stages(), *self._content_stages())

    def _style_stages(self) -> list[Stage]:
        usual: Activation = "leaky" if self.style_leaky else "relu"
        stages = [
            Stage(
                "style_stem",
                "conv",
                (STYLE,),
                (CELL_CHANNELS,),
                self.style_stem,
                self.style_stride,
                activation=usual,
            ),
            Stage(
                "style_body",
                "conv",
                ("style_stem",),
                (self.style_stem,),
                self.style_body,
                2,
                activation=usual,
            ),
        ]
        if self.style_deep:
            stages.append(
                Stage(
                    "style_deep",
                    "conv",
                    ("style_body",),
                    (self.style_body,),
                    self.style_deep,
                    activation=usual,
                )
            )
        last = stages[-1]
        stages.append(
            Stage(
                "style_rows",
                "row_pool",
                (last.name,),
                (last.out_channels,),
                self.style_rows,
                activation="signed",
            )
        )
        for index in range(self.code_layers):
            before = stages[-1]
            name = "style_code" if index == self.code_layers - 1 else f"style_mix{index + 1}"
            width = before.out_channels
            stages.append(
                Stage(name, "pool", (before.name,), (width,), self.code, activation=usual)
            )
        return stages

    def _content_stages(self) -> list[Stage]:
        channels = {CONTENT: CELL_CHANNELS}
        stages: list[Stage] = []

        def add(name: str, sources: list[str], out: int, stride: int = 1) -> None:
            usual: Activation = "signed" if name == "up" else "leaky"
            widths = tuple(channels[s] for s in sources)
            stages.append(
                Stage(
                    name,
                    "conv",
                    tuple(sources),
                    widths,
                    out,
                    stride,
                    modulated=True,
                    activation=usual if self.leaky else "relu",
                )
            )
            channels[name] = out

        add("stem", [CONTENT], self.latent)
        trunk, beside = ["stem"], [CONTENT] if self.reads_pixels else []
        for index in range(self.coarse_body if self.coarse else 0):
            name = f"coarse{index + 1}"
            coarse = [s.name for s in stages if s.name.startswith("coarse")]
            if index == 0:
                add(name, ["stem"], self.coarse, 2)
            else:
                add(name, coarse[: -self.dense - 1 : -1], self.coarse)
        if stages[-1].name != "stem":
            beside = [stages[-1].name, *beside]
        for index in range(self.body + 1):
            last = index == self.body
            sources = [*trunk[: -self.dense - 1 : -1], *beside]
            name = "up" if last else f"body{index + 1}"
            add(name, sources, self.up * UPSAMPLE * UPSAMPLE if last else self.latent)
            trunk.append(name)
        return stages

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record of the sizes."""
        return asdict(self)

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Architecture:
        """Inverse of `to_dict`; raises TypeError on unknown fields."""
        return Architecture(**record)


@dataclass(frozen=True)
class Grid:
    """Rows and width of one stage's output at a given picture size."""

    rows: int
    width: int


def grids(
    stages: tuple[Stage, ...], size: int, width: int | None = None, height: int | None = None
) -> dict[str, Grid]:
    """Output grid of every input and stage.

    Args:
        stages: The network.
        size: Side of the square style, in pixels.
        width: Of the content, in pixels; None for `size`.
        height: Likewise.

    Raises:
        ValueError: if one of them is no multiple of 8, or a stride does not divide the rows it
            meets.
    """
    width, height = width or size, height or size
    for side in (size, width, height):
        if side <= 0 or side % (2 * CELL):
            raise ValueError(f"picture size {side} is no positive multiple of {2 * CELL}")
    out = {
        CONTENT: Grid(height // CELL, width // CELL),
        STYLE: Grid(size // CELL, size // CELL),
    }
    for stage in stages:
        source = out[stage.sources[0]]
        if stage.kind == "conv":
            if source.rows % stage.stride or source.width % stage.stride:
                raise ValueError(
                    f"a picture of {size} pixels gives stage {stage.name} {source.rows} rows, "
                    f"which its stride {stage.stride} does not divide"
                )
            out[stage.name] = Grid(source.rows // stage.stride, source.width // stage.stride)
        elif stage.kind == "row_pool":
            out[stage.name] = Grid(source.rows, 1)
        else:
            out[stage.name] = Grid(1, 1)
    return out
