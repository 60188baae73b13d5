"""Reads and writes pictures safely, on the client, where files come from anywhere."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst.errors import InputError
from nst.pictures.picture import central_part, pad_to_grid, resized, to_image
from nst.pictures.reading import read_rgb
from nst.pictures.size import Size

Floats = NDArray[np.float32]
Fit = Literal["crop", "letterbox"]


class Box(NamedTuple):
    """The region of a prepared picture that holds the picture; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        """Its width and height."""
        return Size(self.right - self.left, self.bottom - self.top)


def read_picture(path: Path, size: Size, fit: Fit) -> tuple[Floats, Box]:
    """Picture as `[3, H, W]` in [0, 1], and the region of it that holds the picture.

    Args:
        path: A file that `read_rgb` takes.
        size: What it is brought to. Sides that are not on the network's grid are padded to it
            with the picture's edges repeated.
        fit: `crop` takes the central part, `letterbox` the whole picture, with its edges
            repeated where it does not fill the size (the network would paint black bars).

    Raises:
        InputError: if the file cannot be used.
    """
    rgb = read_rgb(path)
    width, height = rgb.size
    if fit == "crop":
        return pad_to_grid(central_part(rgb, size)), Box(0, 0, size.width, size.height)

    # A line thinner than one pixel of the size still gets one.
    if width * size.height >= height * size.width:
        inner = (size.width, max(1, round(height * size.width / width)))
    else:
        inner = (max(1, round(width * size.height / height)), size.height)
    padded = size.padded
    left, top = (padded.width - inner[0]) // 2, (padded.height - inner[1]) // 2
    box = Box(left, top, left + inner[0], top + inner[1])
    margins = (
        (0, 0),
        (box.top, padded.height - box.bottom),
        (box.left, padded.width - box.right),
    )
    return np.pad(resized(rgb, (0, 0, width, height), inner), margins, mode="edge"), box


def write_png(picture: Floats, path: Path, force: bool = False) -> None:
    """Writes a picture `[3, H, W]` in [0, 1] as PNG.

    Raises:
        InputError: The file exists and `force` is not set, or it cannot be written.
    """
    if path.exists() and not force:
        raise InputError(f"{str(path)!r} exists: use --force to replace it or another --out")
    write_image(to_image(picture), path)


def write_image(image: Image.Image, path: Path) -> None:
    """Writes an image as PNG; raises InputError if it cannot be written."""
    write_file(png_bytes(image), path)


def cut_out(picture: Floats, box: Box) -> Floats:
    """The region `box` of a picture `[3, H, W]`."""
    return picture[:, box.top : box.bottom, box.left : box.right]


def png_bytes(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_file(data: bytes, path: Path) -> None:
    """Writes a file whole or not at all; raises InputError if it cannot be written."""
    with writing(path) as file:
        file.write(data)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that is there as a whole at the end, or not at all; raises InputError."""
    # Not from tempfile: its files are for their owner only, results are for everyone.
    temporary = path.parent / f".nst-batch-{secrets.token_hex(8)}.tmp"
    with explaining(path):
        try:
            with temporary.open("xb") as file:
                yield file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turns an OSError of writing a file into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be written ({error.strerror}): "
            "check that its folder exists, may be written and has space, or use another --out"
        ) from error
