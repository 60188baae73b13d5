"""Where pictures are in ciphertexts: a ciphertext is one channel of as many tiles as it has lanes.

Slot `position * stride + lane` holds a cell of the tile in that lane, and as its imaginary part one
of another tile: weights are real, so what is linear works on both parts alike. A content's
position is `row * columns + column`; its neighbours are rotations by `stride` and by
`columns * stride`, for all lanes at once. What comes in over a tile's edge is another's, and
reaches one cell further with every stage: a guard ring as wide as the network reaches keeps it
from the interior. The client fills the ring with the picture continued by mirroring, or with the
next tile's cells.

A style fills its lane with copies of itself, so that what comes in over an edge is the same style,
and a sum over as many positions as it has cells is the sum over the whole of it, in every slot.

SEAL's slots are the values of a polynomial at the powers of 3 of a root of unity, where the unit
`X^(N/2)` is i and -i by turns: the imaginary part of every second slot is negated. Rotations that
keep the unit are those by powers of -3, see `nst.engines.ckks.plan.LeveledPlan.element`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nst.engines.ckks.network import LARGEST_PIXEL
from nst.errors import InputError
from nst.network.architecture import CELL
from nst.network.integers import space_to_depth
from nst.pictures.color import Floats
from nst.pictures.size import Size

Reals = NDArray[np.float64]
Complexes = NDArray[np.complex128]


@dataclass(frozen=True)
class Tile:
    """Interior of a tile: rows and columns of the content's cells that it gives.

    Attributes:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
    """

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Layout:
    """How pictures of a size are laid out.

    Attributes:
        slots: Of a ciphertext.
        reach: Width of the guard ring in cells.
        stride: Slots from a cell to the next, a power of two; half the lanes.
        columns: Of a tile, guard ring included.
        style_cells: Side of a style in cells, a power of two.
    """

    slots: int
    reach: int
    stride: int
    columns: int
    style_cells: int

    @staticmethod
    def for_size(slots: int, reach: int, size: Size, style_side: int) -> Layout:
        """The layout for contents of a size that takes the fewest ciphertexts per content.

        Args:
            slots: Of a ciphertext.
            reach: Width of the guard ring in cells.
            size: Of contents in pixels, padded.
            style_side: Side of styles in pixels.

        Raises:
            InputError: if no tile of a ciphertext is larger than its guard ring, or the style is
                too large for it.
        """
        style_cells = style_side // CELL
        if style_cells & (style_cells - 1) or style_cells**2 > slots:
            raise InputError(
                f"styles of {style_side} pixels do not fit this ring: the side must be a power of "
                f"two, at most {CELL * 2 ** (int(math.log2(slots)) // 2)}"
            )
        width = size.width // CELL
        fitting = []
        stride = 1
        while slots // stride >= max((2 * reach + 1) ** 2, style_cells**2):
            # Square tiles, or such that a whole number of them is as wide as the content.
            parts = [-(-width // n) + 2 * reach for n in range(1, width + 1)]
            for columns in {math.isqrt(slots // stride), *parts}:
                layout = Layout(slots, reach, stride, columns, style_cells)
                if min(layout.rows, columns) > 2 * reach:
                    fitting.append(layout)
            stride *= 2
        if not fitting:
            raise InputError(
                f"a guard ring of {reach} cells and styles of {style_side} pixels leave nothing of "
                f"a ciphertext of {slots} values"
            )
        return min(fitting, key=lambda layout: layout._cost(size))

    @property
    def lanes(self) -> int:
        """Tiles of a ciphertext."""
        return 2 * self.stride

    @property
    def positions(self) -> int:
        """Cells of a lane."""
        return self.slots // self.stride

    @property
    def rows(self) -> int:
        """Of a tile, guard ring included."""
        return self.positions // self.columns

    @property
    def _inside(self) -> tuple[int, int]:
        return self.rows - 2 * self.reach, self.columns - 2 * self.reach

    def _cost(self, size: Size) -> tuple[float, int, int, int]:
        """Ciphertexts of a channel per content, when full.

        Of equals the one with the fewest tiles is the first, and of these the squarest: many sizes
        then have the same layout, and keys.
        """
        cells = size.height // CELL, size.width // CELL
        tiles = math.prod(-(-n // m) for n, m in zip(cells, self._inside, strict=True))
        each = -(-tiles // self.lanes) if tiles > self.lanes else 1 / (self.lanes // tiles)
        return each, tiles, abs(self.rows - self.columns), self.stride

    def pictures(self, size: Size) -> int:
        """Contents of a size that share ciphertexts: one if it has more tiles than these lanes."""
        return max(1, self.lanes // len(self.tiles(size)))

    def parts(self, size: Size) -> int:
        """Ciphertexts of a channel that contents of a size share."""
        return -(-len(self.tiles(size)) // self.lanes)

    def tiles(self, size: Size) -> list[Tile]:
        """Tiles of a content; together they give every cell at least once."""
        height, width = size.height // CELL, size.width // CELL
        rows, columns = self._inside
        return [
            Tile(top, left, min(rows, height), min(columns, width))
            for top in _starts(height, rows)
            for left in _starts(width, columns)
        ]

    @property
    def column_step(self) -> int:
        """Rotation that brings a cell's right neighbour to it."""
        return self.stride

    @property
    def row_step(self) -> int:
        """Rotation that brings the cell below a content's cell to it."""
        return self.stride * self.columns

    @property
    def style_row_step(self) -> int:
        """Likewise for a style's cell."""
        return self.stride * self.style_cells

    @property
    def pooling_steps(self) -> tuple[int, ...]:
        """Rotations that, each added to what it turns, sum over all cells of a style."""
        return tuple(self.stride << k for k in range(2 * int(math.log2(self.style_cells))))

    @property
    def steps(self) -> tuple[int, ...]:
        """All rotations, each once; negative ones turn the other way."""
        spatial = self.column_step, self.row_step, self.style_row_step
        return tuple(sorted({*spatial, *(-step for step in spatial), *self.pooling_steps}))

    def pack_tile(self, cells: Reals, tile: Tile) -> Reals:
        """One tile of a content as a lane `[channels, positions]`.

        Args:
            cells: From `content_cells`.
            tile: Of `tiles`.
        """
        around = 2 * self.reach
        rows, columns = tile.height + around, tile.width + around
        lane = np.zeros((len(cells), self.positions))
        grid = lane[:, : self.rows * self.columns].reshape(len(cells), self.rows, self.columns)
        grid[:, :rows, :columns] = cells[
            :, tile.top : tile.top + rows, tile.left : tile.left + columns
        ]
        return lane

    def pack_style(self, cells: Reals) -> Reals:
        """A style `[channels, S, S]` as a lane `[channels, positions]`."""
        flat = cells.reshape(len(cells), -1)
        return np.tile(flat, self.positions // flat.shape[1])

    def interleave(self, lanes: Sequence[Reals]) -> Complexes:
        """Lanes `[channels, positions]` as slots `[channels, slots]`; missing ones are zero."""
        channels = len(lanes[0])
        values = np.zeros((channels, self.positions, self.stride, 2))
        for index, lane in enumerate(lanes):
            values[:, :, index // 2, index % 2] = lane
        slots = values.view(np.complex128).reshape(channels, self.slots)
        return np.where(np.arange(self.slots) % 2, slots.conj(), slots)

    def interior(self, slots: Complexes, lane: int, tile: Tile) -> Reals:
        """What a tile gives `[channels, height, width]`, out of slots `[channels, slots]`."""
        straight = np.where(np.arange(self.slots) % 2, slots.conj(), slots)
        values = straight.reshape(len(slots), self.positions, self.stride)[:, :, lane // 2]
        part = values.imag if lane % 2 else values.real
        grid = part[:, : self.rows * self.columns].reshape(-1, self.rows, self.columns)
        r = self.reach
        return grid[:, r : r + tile.height, r : r + tile.width]


def style_side(side: int) -> int:
    """Side in pixels of the styles of a level of so many: the power of two below."""
    return 1 << (side.bit_length() - 1)


def content_cells(white: Floats, reach: int) -> Reals:
    """Cells `[48, h + 2 reach, w + 2 reach]` of a content, continued by mirroring.

    Args:
        white: Whitened `[3, H, W]`.
        reach: Width of the guard ring in cells.
    """
    around = CELL * reach
    padded = np.pad(bounded(white), ((0, 0), (around, around), (around, around)), mode="reflect")
    return space_to_depth(padded).astype(np.float64)


def style_cells(white: Floats) -> Reals:
    """Cells `[48, S, S]` of a style."""
    return space_to_depth(bounded(white)).astype(np.float64)


def bounded(white: Floats) -> Floats:
    """Whitened pixels of at most `LARGEST_PIXEL`, either sign: squares of squares grow fast."""
    return np.clip(white, -LARGEST_PIXEL, LARGEST_PIXEL)


def _starts(length: int, inside: int) -> Iterator[int]:
    """Where intervals of so many cells start that cover a length; the last ends with it."""
    count = max(1, -(-length // inside))
    yield from (min(index * inside, max(0, length - inside)) for index in range(count))
