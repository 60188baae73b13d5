"""The client takes out of a result what repeats from cell to cell.

The network works on cells of 4 x 4 and 8 x 8 pixels, and where the content is flat it paints the
same strokes into every cell: a lattice. Strokes that do not repeat average out over many cells, so
the mean of a neighbourhood, pixel of the cell by pixel, is that lattice alone. Linear work on
plain pixels: no PBS.
"""

from __future__ import annotations

import numpy as np

from nst.pictures.color import Floats, standardized
from nst.pictures.size import GRID

PERIOD = GRID
"""Pixels: a multiple of all finer cells."""
REACH = 2.0
"""Cells: standard deviation of the weights of a neighbourhood. Another part of the picture may have
another lattice; with less, strokes that happen to be alike are taken for one."""


def without_lattice(result: Floats, share: float) -> Floats:
    """Take out what is the same in all cells of a neighbourhood.

    Args:
        result: `[3, H, W]`, sides multiples of `PERIOD`; in whitened space.
        share: 1 takes all of it out, 0 nothing. Edges that are longer than a cell lose with it: the
            fewer cells a picture has, the more.

    Returns:
        The same with zero mean and unit deviation.
    """
    channels, height, width = result.shape
    rows, columns = height // PERIOD, width // PERIOD
    cells = (result - _around(result)).reshape(channels, rows, PERIOD, columns, PERIOD)
    lattice = np.einsum("ab,cbpxq->capxq", _neighbours(rows), cells)
    lattice = np.einsum("xy,capyq->capxq", _neighbours(columns), lattice)
    rest = result - np.float32(share) * lattice.reshape(result.shape)
    return standardized(rest)


def _neighbours(cells: int) -> Floats:
    """How much each cell of a row of them counts for each, `[cells, cells]`; sums are 1."""
    distance = np.arange(cells)[:, None] - np.arange(cells)[None]
    weights = np.exp(-0.5 * (distance / REACH) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _around(picture: Floats) -> Floats:
    """Mean of the square of `PERIOD` + 1 pixels around each pixel, edges repeated."""
    margin = PERIOD // 2
    padded = np.pad(picture, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    for axis in (1, 2):
        padded = np.lib.stride_tricks.sliding_window_view(padded, PERIOD + 1, axis).mean(-1)
    return padded.astype(np.float32)
