"""Brings pictures whose colours are of another space to sRGB, as results are."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base, Interop

_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}
"""Colour space of a profile for pictures of a mode."""
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50 = np.array([0.9642, 1, 0.8249])
D65 = (0.3127, 0.3290)

XY = tuple[float, float]
"""A colour's target in the chromaticity diagram."""


def profile_of(picture: Image.Image) -> bytes | None:
    """The profile in a picture's file; of a camera's that names Adobe RGB instead, Adobe RGB."""
    profile: bytes | None = picture.info.get("icc_profile")
    if profile:
        return profile
    try:
        exif = picture.getexif()
        space = exif.get_ifd(IFD.Exif).get(Base.ColorSpace)
        index = exif.get_ifd(IFD.Interop).get(Interop.InteropIndex)
    except Exception:  # damaged EXIF data raise nearly anything, and the pixels are sound
        return None
    return adobe_rgb() if space == 2 or index == "R03" else None


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of mode `RGB`, `CMYK`, `L` or `LAB` as sRGB.

    Args:
        picture: What to convert.
        profile: What its colours mean; without it, or if it is damaged or for other pictures, the
            plain conversion.
    """
    if picture.mode == "LAB":
        return _transform("LAB", None).apply(picture)
    if profile:
        try:
            return _transform(picture.mode, profile).apply(picture)
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return picture.convert("RGB")


@lru_cache(maxsize=8)
def _transform(mode: str, profile: bytes | None) -> ImageCms.ImageCmsTransform:
    """From pictures of a mode to sRGB; raises ValueError if the profile is for other ones."""
    if profile is None:
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    else:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            raise ValueError(f"a profile for {source.profile.xcolor_space}")
    # Black stays black, in print as well.
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(source, srgb, mode, "RGB", intent, flags)


@cache
def adobe_rgb() -> bytes:
    """The profile of Adobe RGB (1998), which cameras name in EXIF data and do not attach."""
    return matrix_profile([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], D65, 563 / 256)


def matrix_profile(primaries: Sequence[XY], white: XY, gamma: float) -> bytes:
    """An ICC profile (version 2) of an RGB space of three primaries and one gamma."""

    def xyz(of: XY) -> NDArray[np.float64]:
        return np.array([of[0], of[1], 1 - of[0] - of[1]]) / of[1]

    def fixed(values: NDArray[np.float64]) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    columns = np.array([xyz(primary) for primary in primaries]).T
    columns = columns * np.linalg.solve(columns, xyz(white))
    gains = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ xyz(white)))
    columns = np.linalg.inv(_BRADFORD) @ gains @ _BRADFORD @ columns
    curve = b"curv" + struct.pack(">IIHxx", 0, 1, round(gamma * 256))
    tags = {
        b"desc": b"desc" + struct.pack(">II4s", 0, 4, b"RGB") + bytes(80),
        b"cprt": b"text" + bytes(8),
        b"wtpt": b"XYZ " + bytes(4) + fixed(_D50),
        **{b"rgb"[i : i + 1] + b"XYZ": b"XYZ " + bytes(4) + fixed(columns[:, i]) for i in range(3)},
        **{b"rgb"[i : i + 1] + b"TRC": curve for i in range(3)},
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = struct.pack(">I4xI", start + len(body), 0x02100000)
    head = size + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(_D50) + bytes(48)
    return head + table + body
