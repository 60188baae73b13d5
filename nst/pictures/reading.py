"""Decodes picture files, which come from anywhere: to sRGB, upright and without alpha."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

from nst.errors import InputError
from nst.pictures.formats import FORMATS, white_of, why_not_read
from nst.pictures.profiles import profile_of, to_srgb

MAX_PIXELS = 256_000_000
"""Larger pictures are refused by their header: a small file can decode to all the memory. Cameras
and phones take up to 200 million."""
REDUCED_ABOVE, REDUCED_SIDE = 50_000_000, 4096
"""JPEG files of more pixels are decoded at a half, quarter or eighth of their size, as long as
their short side keeps so many pixels."""

# Both limits of Pillow's are lower: threads cannot silence a warning for a moment only.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# What it says of damaged EXIF data is of no use to whoever has the picture.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_rgb(path: Path, short_side: int | None = None) -> Image.Image:
    """A picture in sRGB, upright; transparent parts are white, of an animation the first frame.

    Args:
        path: A file in one of `FORMATS`.
        short_side: If given, JPEG files are decoded at a half, quarter or eighth of their size
            as long as their short side stays at least this many pixels: several times faster.

    Raises:
        InputError: if the file is missing, unreadable, damaged, too large or not a picture.
    """
    with _opened(path, short_side) as (picture, white, inverted):
        picture.load()
        profile = profile_of(picture)
        return _to_rgb(_upright(picture), profile, white, inverted)


def require_readable(path: Path) -> None:
    """Raise InputError unless a file's header is that of a picture which `read_rgb` takes.

    No pixel is decoded, so that damage further on is not found.
    """
    with _opened(path, None):
        pass


@contextmanager
def _opened(path: Path, short_side: int | None) -> Iterator[tuple[Image.Image, int, bool]]:
    """A picture of which the header has been read, and what `white_of` says of it.

    What goes wrong while it is open, and there, becomes an InputError.
    """
    shown = repr(str(path))
    too_large = (
        f"{shown} has too many pixels to be opened safely, more than {MAX_PIXELS // 10**6} "
        "million: scale it down"
    )
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{shown} is not a file: name a picture")
        with Image.open(path, formats=FORMATS) as picture:
            pixels = picture.width * picture.height
            try:
                white, inverted = white_of(picture)
            except InputError as error:
                raise InputError(f"{shown} {error}") from error
            if short_side is None and pixels > REDUCED_ABOVE:
                short_side = REDUCED_SIDE
            if short_side is not None:
                short = min(picture.size)
                width, height = (max(1, side * short_side // short) for side in picture.size)
                picture.draft(None, (width, height))
                # Progressive JPEG takes memory for all its pixels, however small it is decoded.
                if not picture.info.get("progressive"):
                    pixels = picture.width * picture.height
            # Pillow has a limit too, but any library of the process may have lifted it.
            if pixels > MAX_PIXELS:
                raise InputError(too_large)
            yield picture, white, inverted
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(too_large) from error
    except FileNotFoundError as error:
        raise InputError(f"{shown} does not exist: check the path") from error
    except PermissionError as error:
        raise InputError(f"{shown} may not be read: check its permissions") from error
    except UnidentifiedImageError as error:
        other = f"is empty, damaged or not a picture: use one of {', '.join(FORMATS)}"
        raise InputError(f"{shown} {why_not_read(path) or other}") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{shown} cannot be decoded in full ({detail}): save it again as RGB PNG or JPEG"
        ) from error


def _upright(picture: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(picture.getexif().get(Base.Orientation, 1))
    except Exception:  # damaged EXIF data raise nearly anything, and the pixels are sound
        method = None
    return picture if method is None else picture.transpose(method)


def _to_rgb(picture: Image.Image, profile: bytes | None, white: int, inverted: bool) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        return to_srgb(_to_eight_bits(picture, white, inverted), profile)
    if picture.has_transparency_data:
        with_alpha = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        # A profile for grey fits no longer.
        rgb = to_srgb(with_alpha.convert("RGB"), profile)
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(rgb, mask=with_alpha.getchannel("A"))
        return flat
    if picture.mode not in ("RGB", "CMYK", "L", "LAB"):
        picture = picture.convert("RGB")
    return to_srgb(picture, profile)


def _to_eight_bits(picture: Image.Image, white: float, inverted: bool) -> Image.Image:
    """Grey of 16 bits (`I` modes) or of floats in [0, 1] or [0, 255], scaled to 8 bits."""
    # Pillow's own conversion clips at 255: nearly every 16-bit pixel would be white.
    values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
    if picture.mode == "F":
        white = 1 if values.max() <= 1 else 255
    values = np.clip(values / white, 0, 1)
    return Image.fromarray(np.rint((1 - values if inverted else values) * 255).astype(np.uint8))
