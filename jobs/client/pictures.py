"""Reads and writes pictures safely, on the client, where files come from anywhere."""

from __future__ import annotations

import io
import secrets
import warnings
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from nst.pictures.size import Size
from nst.errors import InputError
from nst.stylize import central_part, pad_to_grid, resized, to_image

Floats = NDArray[np.float32]
Fit = Literal["crop", "letterbox"]

MAX_PIXELS = 100_000_000
"""Larger pictures are refused by their header: a small file can decode to all the memory."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""The decoders in use, whatever the suffix says; others would only widen the attack surface."""


@dataclass(frozen=True)
class Box:
    """The region of a canvas that holds the picture; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def to_list(self) -> list[int]:
        """The four sides as JSON can hold them."""
        return list(astuple(self))

    @staticmethod
    def from_list(values: list[int]) -> Box:
        """Inverse of `to_list`; raises TypeError unless there are four values."""
        return Box(*values)


def read_picture(path: Path, size: int | Size, fit: Fit) -> tuple[Floats, Box]:
    """Picture as `[3, H, W]` in [0, 1], and the region of it that holds the picture.

    Args:
        path: A file in one of `FORMATS`; of an animation the first frame counts.
        size: What it is brought to: the side of a square, or a canvas. Sides that are not on the
            network's grid are padded to it with the picture's edges repeated.
        fit: `crop` takes the central part, `letterbox` the whole picture, with its edges
            repeated where it does not fill the canvas (the network would paint black bars).

    Raises:
        InputError: The file is missing, unreadable, damaged, too large or not a picture.
    """
    rgb = _decode(path)
    width, height = rgb.size
    canvas = Size.of(size)
    if fit == "crop":
        part = pad_to_grid(central_part(rgb, canvas))
        return part, Box(0, 0, canvas.width, canvas.height)

    # A line thinner than one pixel of the canvas still gets one.
    if width * canvas.height >= height * canvas.width:
        inner = (canvas.width, max(1, round(height * canvas.width / width)))
    else:
        inner = (max(1, round(width * canvas.height / height)), canvas.height)
    padded = canvas.padded
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
    write_file(encode_png(picture), path)


def cut_out(picture: Floats, box: Box) -> Floats:
    """The region `box` of a picture `[3, H, W]`."""
    return picture[:, box.top : box.bottom, box.left : box.right]


def encode_png(picture: Floats) -> bytes:
    """Picture `[3, H, W]`, clipped to [0, 1], as the bytes of a PNG file."""
    buffer = io.BytesIO()
    to_image(picture).save(buffer, "PNG")
    return buffer.getvalue()


def write_file(data: bytes, path: Path) -> None:
    """Writes a file whole or not at all; raises InputError if it cannot be written."""
    # Not from tempfile: its files are for their owner only, results are for everyone.
    temporary = path.parent / f".nst-batch-{secrets.token_hex(8)}.tmp"
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be written ({error.strerror}): "
            "check that its folder exists, may be written and has space, or use another --out"
        ) from error


def _decode(path: Path) -> Image.Image:
    """The picture as RGB, upright and without alpha; raises InputError."""
    shown = repr(str(path))
    too_large = f"{shown} has too many pixels to be opened safely: scale it down"
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{shown} is not a file: name a picture")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                # Only the header has been read so far. Pillow has a limit too, but any library
                # of the process may have lifted it.
                if picture.width * picture.height > MAX_PIXELS:
                    raise InputError(too_large)
                picture.load()
                return _to_rgb(ImageOps.exif_transpose(picture))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(too_large) from error
    except FileNotFoundError as error:
        raise InputError(f"{shown} does not exist: check the path") from error
    except PermissionError as error:
        raise InputError(f"{shown} may not be read: check its permissions") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{shown} is empty, damaged or not a picture: use one of {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{shown} cannot be decoded in full ({detail}): save it again as RGB PNG or JPEG"
        ) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _to_eight_bits(picture).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture.convert("RGBA"))
        return white.convert("RGB")
    return picture.convert("RGB")


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits (`I` modes) or of floats in [0, 1] or [0, 255], scaled to 8 bits."""
    # Pillow's own conversion clips at 255: nearly every 16-bit pixel would be white.
    values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
    white = 65535
    if picture.mode == "F":
        white = 1 if values.max() <= 1 else 255
    return Image.fromarray(np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8))
