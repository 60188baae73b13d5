"""Decodes picture files, which come from anywhere: to RGB, upright and without alpha."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nst.errors import InputError

MAX_PIXELS = 89_000_000
"""Larger pictures are refused by their header: a small file can decode to all the memory."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""The decoders in use, whatever the suffix says; others would only widen the attack surface."""

# Pillow warns where `MAX_PIXELS` refuses; threads cannot silence a warning for a moment only.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_rgb(path: Path, short_side: int | None = None) -> Image.Image:
    """A picture as RGB, upright; transparent parts are white, of an animation the first frame.

    Args:
        path: A file in one of `FORMATS`.
        short_side: If given, JPEG files are decoded at a half, quarter or eighth of their size
            as long as their short side stays at least this many pixels: several times faster.

    Raises:
        InputError: if the file is missing, unreadable, damaged, too large or not a picture.
    """
    shown = repr(str(path))
    too_large = f"{shown} has too many pixels to be opened safely: scale it down"
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{shown} is not a file: name a picture")
        with Image.open(path, formats=FORMATS) as picture:
            if short_side is not None:
                short = min(picture.size)
                width, height = (max(1, side * short_side // short) for side in picture.size)
                picture.draft(None, (width, height))
            # Only the header has been read so far. Pillow has a limit too, but any library of the
            # process may have lifted it.
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
