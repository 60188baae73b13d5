"""The network as plain data: a list of stages that training, circuits and the task graph all read.

Every stage is linear work followed by one programmable bootstrap (PBS) per output element. Its
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

from nst.pictures.size import GRID

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
CELL = GRID // 2
"""Side in pixels of one latent position: pictures enter by space-to-depth of 4 x 4 cells."""
CELL_CHANNELS = 3 * CELL * CELL
UPSAMPLE = 2
"""Side, in half-resolution positions, of the pixel shuffle after the last encrypted stage."""
LEAK = 4
"""A leaky activation divides negative levels by this: -8 .. 7 become -2 .. 7."""

Branch = Literal["content", "style"]
"""The style branch, which is computed once per style, and the content path."""
CONTENT: Final = "content"
STYLE: Final = "style"
"""Also names of the two encrypted inputs."""
STYLE_CODE, OUTPUT = "style_code", "up"
"""Names of the last stage of the style branch, and of the content path."""

Activation = Literal["relu", "leaky", "signed"]
LOWEST: dict[Activation, int] = {
    "relu": 0,
    "leaky": SIGNED_MIN // LEAK,
    "signed": SIGNED_MIN,
}
"""Smallest level of each activation. The largest is that of the accumulator, 7."""
ROWS, COLUMNS = 1, 2
"""Axes of a stage's levels `[C, H, W]`."""


@dataclass(frozen=True)
class Grid:
    """Rows and width of one stage's output at a given picture size."""

    rows: int
    width: int


@dataclass(frozen=True)
class Kind:
    """Linear work of a stage on its sources: sums over whole axes, then a convolution.

    Training, integers, circuits and the task graph read all they do from these fields.

    Attributes:
        kernel: Side of the convolution, whose padding is replicate.
        summed: Axes over which the sources are summed before it.
    """

    kernel: int
    summed: tuple[int, ...] = ()

    @property
    def margin(self) -> int:
        """Rows and columns on each side of a position that its output reads."""
        return self.kernel // 2

    @property
    def reads(self) -> tuple[int, ...] | None:
        """Rows of a source that an output row reads, relative to its own; None for all rows."""
        return None if ROWS in self.summed else tuple(range(-self.margin, self.margin + 1))

    def grid(self, source: Grid, stride: int) -> Grid:
        """Output grid; raises ValueError if the stride does not divide the source's."""
        if source.rows % stride or source.width % stride:
            raise ValueError(f"stride {stride} does not divide {source.rows} x {source.width}")
        return Grid(
            1 if ROWS in self.summed else source.rows // stride,
            1 if COLUMNS in self.summed else source.width // stride,
        )


CONV, ROW_POOL, POOL = Kind(3), Kind(1, (COLUMNS,)), Kind(1, (ROWS, COLUMNS))


def rows_read(reads: tuple[int, ...] | None, row: int, stride: int, height: int) -> list[int]:
    """Rows of a source that an output row reads; beyond a border it is the border's row.

    Args:
        reads: `Kind.reads`.
        row: Of the output.
        stride: Of the stage.
        height: Rows of the source.
    """
    if reads is None:
        return list(range(height))
    return [min(max(row * stride + offset, 0), height - 1) for offset in reads]


@dataclass(frozen=True)
class Stage:
    """One stage: linear work on rows of earlier stages, then one PBS per output element.

    Attributes:
        name: Identifier, also the name of the circuit function.
        branch: Whose input it works on.
        kind: Its linear work.
        sources: Names of the stages or inputs, all of one grid, that are joined over channels.
        source_channels: Channels of each.
        out_channels: Channels of the result.
        stride: Spatial stride of the convolution.
        modulated: Whether the style code, through a linear map, is added to the accumulator:
            feature-wise shift conditioning before the nonlinearity, which costs no PBS.
        activation: `relu`, levels 0 .. 7; `leaky`, -2 .. 7; `signed`, -8 .. 7. A table look-up
            costs the same whatever is in the table.
    """

    name: str
    branch: Branch
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
    """Sizes of the network, by default those of low; everything else about its shape follows.

    The content path is a trunk at a quarter of the resolution whose stages read all stages before
    them and the content's pixels: more sources cost no PBS, only linear work. The style branch
    ends in means over the picture and two layers on them. Its activations are leaky: ReLUs throw
    half of the kept bits away, and a channel whose accumulators have become negative everywhere
    never comes back in training.

    Attributes:
        latent: Channels at a quarter of the resolution.
        body: Number of 3 x 3 stages between the stem and the last stage.
        up: Channels at half the resolution, made by the last stage and a pixel shuffle.
        style_stem: Channels of the first stage of the style branch.
        style_stride: Its stride: 2 at mid, 3 at high and 4 at ultra keep the style branch at its
            size at low.
        style_body: Channels of the style branch at half the resolution of its stem.
        style_deep: Channels of a second 3 x 3 stage at that resolution; 0 for no such stage.
        style_rows: Channels of the row means of the style branch.
        code: Length of the style code that modulates every content stage.
    """

    latent: int = 32
    body: int = 3
    up: int = 12
    style_stem: int = 24
    style_stride: int = 1
    style_body: int = 48
    style_deep: int = 64
    style_rows: int = 96
    code: int = 160

    def stages(self) -> tuple[Stage, ...]:
        """All stages in an order in which every source comes before its readers."""
        return (*self._style_stages(), *self._content_stages())

    def _style_stages(self) -> list[Stage]:
        stages: list[Stage] = []
        wanted: list[tuple[str, Kind, int, int, Activation]] = [
            ("style_stem", CONV, self.style_stem, self.style_stride, "leaky"),
            ("style_body", CONV, self.style_body, 2, "leaky"),
            ("style_deep", CONV, self.style_deep, 1, "leaky"),
            ("style_rows", ROW_POOL, self.style_rows, 1, "signed"),
            ("style_mix1", POOL, self.code, 1, "leaky"),
            (STYLE_CODE, POOL, self.code, 1, "leaky"),
        ]
        source, channels = STYLE, CELL_CHANNELS
        for name, kind, out, stride, activation in wanted:
            if out:
                stages.append(
                    Stage(name, STYLE, kind, (source,), (channels,), out, stride, False, activation)
                )
                source, channels = name, out
        return stages

    def _content_stages(self) -> list[Stage]:
        stages: list[Stage] = []
        channels = {CONTENT: CELL_CHANNELS}
        last = OUTPUT, self.up * UPSAMPLE * UPSAMPLE
        names = ("stem", *(f"body{index + 1}" for index in range(self.body)))
        for name, out in (*((name, self.latent) for name in names), last):
            # The nearest stage first, the pixels last.
            sources = tuple(reversed(channels))
            widths = tuple(channels[source] for source in sources)
            stages.append(Stage(name, CONTENT, CONV, sources, widths, out, modulated=True))
            channels[name] = out
        return stages

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record of the sizes."""
        return asdict(self)

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Architecture:
        """Inverse of `to_dict`; raises TypeError on unknown fields."""
        return Architecture(**record)


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
        if side <= 0 or side % GRID:
            raise ValueError(f"picture size {side} is no positive multiple of {GRID}")
    out = {
        CONTENT: Grid(height // CELL, width // CELL),
        STYLE: Grid(size // CELL, size // CELL),
    }
    for stage in stages:
        try:
            out[stage.name] = stage.kind.grid(out[stage.sources[0]], stage.stride)
        except ValueError as error:
            raise ValueError(
                f"a picture of {size} pixels does not fit stage {stage.name}: {error}"
            ) from error
    return out
