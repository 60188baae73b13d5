"""Plain pictures in memory: cut out of files, brought to a size, whitened.

Everything here sees plain pixels and runs on the user's machine only.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst.pictures.color import ColorStatistics, whiten
from nst.pictures.size import Size

Floats = NDArray[np.float32]


class Picture:
    """A picture `[3, H, W]` in [0, 1] with its colour statistics; a style is square."""

    def __init__(self, rgb: Floats) -> None:
        self._rgb = rgb

    @property
    def rgb(self) -> Floats:
        """Its pixels, `[3, H, W]` in [0, 1]."""
        return self._rgb

    @cached_property
    def statistics(self) -> ColorStatistics:
        """Mean and covariance of its colours."""
        return ColorStatistics.of(self.rgb)

    @cached_property
    def white(self) -> Floats:
        """The whitened picture."""
        return whiten(self.rgb, self.statistics)


class PicturesOnDisk:
    """Many pictures in a file without a name, which ends with this process."""

    def __init__(self, folder: Path) -> None:
        """Make the file where there is room for it; raises OSError if that fails."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._end = 0

    def keep(self, picture: Picture) -> Picture:
        """The same picture, whose pixels are read whenever they are asked for.

        Raises:
            OSError: if it cannot be written.
        """
        rgb = picture.rgb
        levels = np.rint(rgb * 255).astype(np.uint8)
        start = self._end
        self._end += os.pwrite(self._file.fileno(), levels.tobytes(), start)
        if self._end - start != levels.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def read() -> Floats:
            blob = os.pread(self._file.fileno(), levels_size, start)
            found = np.frombuffer(blob, np.uint8).reshape(shape)
            return found.astype(np.float32) / np.float32(255)

        levels_size, shape = levels.size, levels.shape
        return _OnDisk(read)


class _OnDisk(Picture):
    """Keeps nothing in memory."""

    def __init__(self, read: Callable[[], Floats]) -> None:
        self._read = read

    @property
    def rgb(self) -> Floats:
        """See `Picture`."""
        return self._read()

    @property
    def statistics(self) -> ColorStatistics:
        """See `Picture`."""
        return Picture(self.rgb).statistics

    @property
    def white(self) -> Floats:
        """See `Picture`."""
        return Picture(self.rgb).white


def central_part(image: Image.Image, size: Size) -> Floats:
    """The largest central part of an RGB image in a size's proportions, scaled to it.

    Returns:
        `[3, H, W]` in [0, 1], not padded.
    """
    width, height = size.width, size.height
    if image.width * height >= image.height * width:
        inner = max(1, round(image.height * width / height)), image.height
    else:
        inner = image.width, max(1, round(image.width * height / width))
    left, top = (image.width - inner[0]) // 2, (image.height - inner[1]) // 2
    return resized(image, (left, top, left + inner[0], top + inner[1]), (width, height))


def pad_to_grid(picture: Floats) -> Floats:
    """A picture `[3, H, W]` with its last row and column repeated up to the network's grid."""
    _, height, width = picture.shape
    padded = Size(width, height).padded
    margins = ((0, 0), (0, padded.height - height), (0, padded.width - width))
    return np.pad(picture, margins, mode="edge")


def resized(image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Floats:
    """The region `box` of an RGB image, scaled to a width and height, as `[3, H, W]` in [0, 1]."""
    return to_array(image.resize(size, Image.Resampling.BICUBIC, box=box))


def to_array(image: Image.Image) -> Floats:
    """An RGB image as `[3, H, W]` in [0, 1]."""
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255


def to_image(picture: Floats) -> Image.Image:
    """Picture `[3, H, W]`, clipped to [0, 1], as 8-bit RGB."""
    levels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))
