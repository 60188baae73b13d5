"""Contact sheets: groups of pictures, those of a group beside each other, on one picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from nst.pictures.size import Size

GAP = 8
"""Pixels between the pictures of a group; groups stand three times as far apart."""
BACKGROUND = (24, 24, 27)

Shown = Image.Image | tuple[int, int, int]
"""A picture, or the colour of the empty place of one."""


def contact_sheet(groups: Sequence[Sequence[Shown]], cell: Size, columns: int) -> Image.Image:
    """Groups in rows, from left to right and from top to bottom.

    Args:
        groups: All of as many pictures.
        cell: The place of each picture, which is enlarged a whole number of times with hard
            pixels, or reduced, to fit.
        columns: Groups beside each other, if there are so many.
    """
    columns = max(1, min(columns, len(groups)))
    rows = -(-len(groups) // columns)
    members = max(map(len, groups), default=0)
    step_x, step_y = members * (cell.width + GAP) + 2 * GAP, cell.height + 3 * GAP
    size = (columns * step_x + 3 * GAP, rows * step_y + 3 * GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    for index, group in enumerate(groups):
        top = 3 * GAP + index // columns * step_y
        for place, shown in enumerate(group):
            left = 3 * GAP + index % columns * step_x + place * (cell.width + GAP)
            if isinstance(shown, tuple):
                sheet.paste(shown, (left, top, left + cell.width, top + cell.height))
                continue
            image = fitted(shown, cell)
            corner = left + (cell.width - image.width) // 2, top + (cell.height - image.height) // 2
            sheet.paste(image, corner)
    return sheet


def fitted(image: Image.Image, cell: Size) -> Image.Image:
    """A picture enlarged a whole number of times with hard pixels, or reduced, to fit a cell."""
    if image.width > cell.width or image.height > cell.height:
        reduced = image.copy()
        reduced.thumbnail((cell.width, cell.height), Image.Resampling.BICUBIC)
        return reduced
    factor = min(cell.width // image.width, cell.height // image.height)
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)
