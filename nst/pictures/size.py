"""How large a content and its result are: any width and height, on the grid of the network.

The quality level says how large a style is looked at; a size says how much of a content there is.
Everything on the content's way is a convolution, so a larger content is more rows, each of them
longer, and no tile, overlap or seam.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nst.errors import InputError

GRID = 8
"""Pixels: the coarsest cells that the network works on. Other sides are padded to a multiple of it
before encryption."""
SMALLEST, LARGEST = 16, 4096
"""Pixels of a side, whatever the engine."""


@dataclass(frozen=True)
class Size:
    """Width and height of a content and its result, in pixels."""

    width: int
    height: int

    @staticmethod
    def square(side: int) -> Size:
        """A square with sides of so many pixels."""
        return Size(side, side)

    @staticmethod
    def parse(text: str) -> Size:
        """`WIDTHxHEIGHT`, or one number for a square.

        Raises:
            InputError: if it is neither, or too small or too large.
        """
        found = re.fullmatch(r"(\d{1,9})(?:\s*[x×X]\s*(\d{1,9}))?", text.strip())
        if not found:
            raise InputError(f"size {text!r} is not WIDTHxHEIGHT; write it like 768x512, or 512")
        width, height = found[1], found[2] or found[1]
        return Size(int(width), int(height)).checked()

    def checked(self, widest: int = LARGEST) -> Size:
        """The same; raises InputError if it is too small or too large to be computed.

        Args:
            widest: Width that an engine computes, see `nst.engines.base.Engine.widest`.
        """
        if not (SMALLEST <= self.width <= widest and SMALLEST <= self.height <= LARGEST):
            raise InputError(
                f"size {self}: the width must be {SMALLEST} to {widest:,} pixels and the height "
                f"{SMALLEST} to {LARGEST:,}; give another"
            )
        return self

    @property
    def padded(self) -> Size:
        """What is encrypted: sides rounded up to the grid."""
        return Size(-(-self.width // GRID) * GRID, -(-self.height // GRID) * GRID)

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"
